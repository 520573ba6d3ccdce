"""Keeping a certificate fresh: when it is renewed, and what happens when that fails. Nothing here waits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from resilmesh.identity.ca import CertificateAuthority
from resilmesh.identity.renewal import LOOK, keep_fresh
from resilmesh.identity.svid import Svid
from tests.identity.authority import HOUR, START, WEB, Clock, make


class Over(Exception):
    """The end of a test's time."""


class Keeper:
    """One workload whose certificate is kept fresh for some hours."""

    def __init__(self, authority: CertificateAuthority, clock: Clock, events: dict[float, Callable[[], object]] | None = None) -> None:
        self.authority, self.clock, self.events = authority, clock, dict(events or {})
        self.renewed: list[float] = []
        self.said: list[tuple[float, str]] = []
        self.waits: list[float] = []
        self.current = self.authority.issue(WEB)
        self.end = 0.0

    @property
    def seconds(self) -> float:
        return (self.clock.at - START).total_seconds()

    def run(self, seconds: float, rng: float = 0.5) -> None:
        self.end = seconds
        with pytest.raises(Over):
            keep_fresh(
                self.current.svid, self.renew, lambda: self.authority.bundle() != self.current.bundles["shop.example"], wait=self.wait,
                now=lambda: self.clock.seconds, rng=lambda: rng, say=lambda words: self.said.append((self.seconds, words)),
            )

    def renew(self) -> Svid:
        self.current = self.authority.issue(WEB)
        self.renewed.append(self.seconds)
        return self.current.svid

    def wait(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.clock.go(seconds)
        for at in [each for each in self.events if each <= self.seconds]:
            self.events.pop(at)()
        if self.seconds >= self.end:
            raise Over


@pytest.mark.parametrize(("rng", "first"), [(0.0, 1587), (0.5, 1770), (1.0, 1953)])
def test_it_is_renewed_at_half_of_its_life_more_or_less(tmp_path: Path, rng: float, first: float) -> None:
    clock = Clock()
    keeper = Keeper(make(tmp_path, clock), clock)
    keeper.run(3 * HOUR, rng)
    assert keeper.renewed[0] == first
    between = [later - earlier for earlier, later in zip(keeper.renewed, keeper.renewed[1:], strict=False)]
    assert set(between) == {first}
    assert keeper.said == []
    assert max(keeper.waits) == LOOK


def test_a_bundle_that_changed_is_fetched_at_once(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    keeper = Keeper(authority, clock, {600.0: authority.announce_root})
    keeper.run(700)
    assert keeper.renewed == [600.0]
    assert len(keeper.current.bundles["shop.example"].certificates) == 2


def test_a_renewal_that_fails_is_tried_again(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    events = {1000.0: lambda: authority.revoke(WEB), 2500.0: lambda: authority.lift(WEB)}
    keeper = Keeper(authority, clock, events)
    keeper.run(3 * HOUR)
    assert keeper.renewed[0] == pytest.approx(2500, abs=60)
    first, last = keeper.said[0], keeper.said[-1]
    assert first[0] == 1770
    assert "the renewal failed: spiffe://shop.example/ns/prod/sa/web is revoked" in first[1]
    assert first[1].endswith("the old certificate is good for 1830 s more; again in 0.8 s")
    assert last[1].endswith("again in 45.0 s")
    assert 15 < len(keeper.said) < 30


def test_it_goes_on_after_the_certificate_has_ended(tmp_path: Path) -> None:
    clock = Clock()
    keeper = Keeper(make(tmp_path, clock), clock)

    def broken() -> Svid:
        raise OSError(28, "No space left on device")

    keeper.renew = broken  # type: ignore[method-assign]
    keeper.run(1.2 * HOUR)
    assert "[Errno 28] No space left on device; the old certificate has ended" in keeper.said[-1][1]


def test_an_authority_that_is_gone_for_a_while(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    state = tmp_path / "ca" / "ca.json"
    kept = state.read_bytes()
    keeper = Keeper(authority, clock, {100.0: state.unlink, 200.0: lambda: state.write_bytes(kept)})
    keeper.run(300)
    assert "there is no authority in" in keeper.said[0][1]
    assert keeper.said[-1][0] < 200


def test_any_other_error_is_not_hidden(tmp_path: Path) -> None:
    svid = make(tmp_path).issue(WEB).svid

    def broken() -> Svid:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        keep_fresh(svid, broken, lambda: True, wait=float, now=lambda: 0.0, rng=lambda: 0.5, say=print)
