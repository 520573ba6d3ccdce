"""The fuzzing targets run without atheris: on their seeds, and on a few hundred inputs made from them."""

from __future__ import annotations

import logging
import random

import pytest

from tests.fuzz import targets
from tests.fuzz.draws import Draws

SEEDS = sorted(set(targets.seeds()))


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # a refused reload is logged


@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_seeds(target: bytes) -> None:
    seeds = [each for each in SEEDS if each[:1] == target]
    assert len(seeds) >= 5
    assert [targets.run(each) for each in seeds] == [0] * len(seeds)


@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_what_is_made_from_seeds(target: bytes) -> None:
    rng = random.Random(7)
    seeds = [each for each in SEEDS if each[:1] == target]
    for _ in range(60):
        made = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(1, len(made) + 1)
            new = rng.choice((b"", b"\0", b"\n", b"[", rng.randbytes(1), rng.randbytes(4), rng.choice(seeds)[1:40]))
            made[at : at + rng.choice((0, 0, 1, 4))] = new
        assert targets.run(bytes(made)) == 0, bytes(made)


def test_an_input_without_a_target_is_not_kept() -> None:
    assert targets.run(b"") == targets.run(b"?") == -1


def test_draws() -> None:
    draws = Draws(b"\x05\x01\x02abc\xff")
    assert (draws.below(4), draws.below(1000), draws.raw(2), draws.pick("xyz")) == (1, 513, b"ab", "x")
    assert (draws.rest(), draws.below(7), draws.text()) == (b"\xff", 0, "")
