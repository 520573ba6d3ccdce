"""Every key of the model refuses what it must, at its place, in the words of testdata/fields."""

from __future__ import annotations

import pytest
from field_cases import FIELDS, HERE, Case, cases, files, keys

from resilmesh.policy import fields, model  # noqa: F401  # the model makes the blocks

CASES = cases()
FILES = files()
REMEDY = "look at what changed: python -m tests.policy.field_cases && git diff tests/policy/testdata/fields"


@pytest.mark.parametrize("block", sorted({case.block for case in CASES}))
def test_the_messages_are_those_that_are_committed(block: str) -> None:
    path = FIELDS / f"{block}.txt"
    assert path.exists(), REMEDY
    assert FILES[block] == path.read_text(encoding="utf-8"), REMEDY


def test_no_file_of_a_block_that_is_gone() -> None:
    assert {path.stem for path in FIELDS.glob("*.txt")} == {case.block for case in CASES}, REMEDY


def test_every_key_of_the_model_has_cases() -> None:
    """Read from the classes, where the cases are read from the schema."""
    levels = {"CallBlocks", "ServiceBlocks"}  # which stand in no policy by themselves
    blocks = [each for each in _below(fields.Block) if each.__module__.startswith("resilmesh.") and each.__name__ not in levels]
    of_the_model = {(each.__name__, info.alias or key) for each in blocks for key, info in each.model_fields.items()}
    assert keys() == of_the_model
    assert {(case.block, case.key) for case in CASES} == of_the_model


@pytest.mark.parametrize("block", sorted({case.block for case in CASES}))
def test_each_is_refused_where_it_stands(block: str) -> None:
    for case in CASES:
        if case.block == block:
            _refused_in_place(case)


def _refused_in_place(case: Case) -> None:
    found = case.found()
    assert found, case
    value = case.policy.index(f'"{HERE}"')
    key, end = case.policy.rindex(f'"{case.key}"', 0, value), value + len(case.written)
    for each in found:
        assert each.severity == "error"
        assert (each.line, key < each.column <= end + 1) == (1, True), f"{each} is not about {case.key}"
        assert len(each.message) < 200
        assert each.hint or each.code == "RM107" or "empty" in each.message or "must be" in each.message, f"{each} has no remedy"


def _below(kind: type[fields.Block]) -> list[type[fields.Block]]:
    return [each for below in kind.__subclasses__() for each in (below, *_below(below))]
