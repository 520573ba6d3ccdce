"""Every policy in testdata earns exactly the diagnostics of its leading comments: none, errors, or warnings."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilmesh.errors import PolicyError
from resilmesh.policy.check import check
from resilmesh.policy.codes import CODES, Diagnostic
from resilmesh.policy.load import load_file

TESTDATA = Path(__file__).parent / "testdata"

#: Codes whose text cannot lie in a readable file; test_policy_document.py has them, and the mesh's tests its own (RM218, RM233, RM234).
ELSEWHERE = {"RM001", "RM002", "RM003", "RM013", "RM218", "RM233", "RM234"}


def policies(kind: str) -> list[object]:
    return [pytest.param(path, id=path.stem) for path in sorted((TESTDATA / kind).glob("*.yaml"))]


def found(path: Path) -> list[Diagnostic]:
    try:
        return check(load_file(path))
    except PolicyError as error:
        return list(error.diagnostics)


def expected(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [f"{path}:{line.removeprefix('# ')}" for line in lines if line.startswith("# ")]


@pytest.mark.parametrize("path", policies("valid"))
def test_valid(path: Path) -> None:
    assert found(path) == []


@pytest.mark.parametrize("path", policies("invalid"))
def test_invalid(path: Path) -> None:
    diagnostics = found(path)
    assert [str(each) for each in diagnostics] == expected(path)
    assert {each.severity for each in diagnostics} == {"error"}


@pytest.mark.parametrize("path", policies("dangers"))
def test_dangers(path: Path) -> None:
    diagnostics = found(path)
    assert [str(each) for each in diagnostics] == expected(path)
    assert {each.severity for each in diagnostics} == {"warning"}


def test_every_code_has_a_policy_that_earns_it() -> None:
    earned = {each.code for kind in ("invalid", "dangers") for path in (TESTDATA / kind).glob("*.yaml") for each in found(path)}
    assert earned | ELSEWHERE == set(CODES)
    assert not earned & ELSEWHERE
