"""`resilmesh suggest` as it is called: from a file, from a running program, and from what it cannot use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import resilmesh
from resilmesh.cli import main
from resilmesh.testing import ManualClock


@pytest.fixture
def mesh() -> resilmesh.Mesh:
    clock = ManualClock()
    made = resilmesh.Mesh.from_text("{apiVersion: resilmesh/v1, mesh: {mode: OBSERVE}, services: [{name: ledger}]}", clock=clock)

    @made.guard("ledger")
    def book() -> None:
        clock.advance(0.095)

    for _ in range(300):
        book()
    return made


def test_a_profile_in_a_file_gives_a_policy_that_check_accepts(
    mesh: resilmesh.Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "profile.json").write_text(json.dumps(mesh.telemetry.document()))
    assert main(["suggest", str(tmp_path / "profile.json")]) == 0
    (tmp_path / "policy.yaml").write_text(capsys.readouterr().out)
    assert main(["check", str(tmp_path / "policy.yaml")]) == 0
    capsys.readouterr()
    assert main(["suggest", str(tmp_path / "profile.json"), "--policy", str(tmp_path / "policy.yaml"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert "is kept as it is" in found["policy"]
    assert not any(each["suggested"] for each in found["values"])


@pytest.mark.parametrize("socket", [False, True])
def test_a_running_program_is_asked(mesh: resilmesh.Mesh, socket: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with mesh.serve_admin(f"unix:{tmp_path}/admin" if socket else "127.0.0.1:0") as admin:
        assert main(["suggest", admin.address]) == 0
    assert "calls that succeeded was" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "words"), [
    ("{", "is not JSON"), ("[]", "no profile"), ('{"format": "resilmesh/stats/v9"}', "use the resilmesh that wrote it"),
    ('{"format": "resilmesh/stats/v1"}', "has no 'snapshot'"),
    ('{"format": "resilmesh/stats/v1", "seconds": NaN, "snapshot": {}}', "'seconds' is not"),
    ('{"format": "resilmesh/stats/v1", "seconds": 3, "snapshot": {}}', "no calls at all"),
])
def test_what_is_no_profile_is_refused_with_a_remedy(content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile.json").write_text(content)
    assert main(["suggest", str(tmp_path / "profile.json")]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(("argument", "words"), [("127.0.0.1:1", "nobody answers at"), ("nowhere.json", "cannot read nowhere.json")])
def test_what_is_not_there_is_told(argument: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suggest", argument]) == 2
    assert words in capsys.readouterr().err


def test_a_policy_that_is_wrong_is_refused(mesh: resilmesh.Mesh, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document: dict[str, Any] = mesh.telemetry.document()
    (tmp_path / "profile.json").write_text(json.dumps(document))
    (tmp_path / "policy.yaml").write_text("apiVersion: resilmesh/v2")
    assert main(["suggest", str(tmp_path / "profile.json"), "--policy", str(tmp_path / "policy.yaml")]) == 2
    assert "policy.yaml:1" in capsys.readouterr().err
