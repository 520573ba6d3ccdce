"""What a process had on its ``sys.path``, or lay in its directory, broke the child that loads a policy, or was run by it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from resilmesh.policy.prepared import Services, prepare


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text("apiVersion: resilmesh/v1\nservices: [{name: a}]\n")
    return str(path)


def test_an_entry_that_is_no_text(policy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path])  # Python passes over it; a TypeError kept every later policy out
    assert isinstance(prepare(policy).policy.services, Services)


def test_modules_in_the_working_directory(policy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path("subprocess.py").write_text("open('was-run', 'w').close()\n")
    assert isinstance(prepare(policy).policy.services, Services)
    assert not Path("was-run").exists()


def test_somebody_else_writes_to_the_childs_output(policy: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("print('Initialising')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert [service.name for service in prepare(policy).policy.services] == ["a"]
