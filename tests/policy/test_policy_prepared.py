"""A policy that a child process loads is the one that this process would have loaded, and so are its mistakes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from resilmesh.errors import PolicyError
from resilmesh.policy.check import check
from resilmesh.policy.load import load_file
from resilmesh.policy.prepared import Services, names_and_hosts, prepare

TESTDATA = Path(__file__).parent / "testdata"
POLICY = """
apiVersion: resilmesh/v1
mesh: {workload: web}
defaults: {timeout: 3s}
services:
- name: a
  hosts: [a.svc, "*.a.svc"]
  endpoints: [{address: "10.0.0.1:80", labels: {version: v1}}]
  routes: [{name: r, match: {path: {regex: "/v[0-9]+"}}, rateLimit: {requests: 5}}]
- {name: b, mode: "OFF"}
- {name: c, circuitBreaker: null, loadBalancer: RANDOM}
"""


def test_the_child_gives_the_same_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    pauses: list[None] = []
    loaded = prepare(str(path), lambda: pauses.append(None))
    here = load_file(path).policy
    assert loaded.checked
    assert isinstance(loaded.policy.services, Services)
    assert len(pauses) == len(loaded.policy.services) == 3
    assert list(loaded.policy.services) == here.services
    assert loaded.policy.services[-3:2] == here.services[-3:2]
    assert [name for name, _ in names_and_hosts(loaded.policy)] == ["a", "b", "c"]
    assert next(iter(names_and_hosts(loaded.policy)))[1] == ["a.svc", "*.a.svc"]
    assert loaded.policy.model_copy(update={"services": here.services}) == here
    assert [service.model_fields_set for service in loaded.policy.services] == [service.model_fields_set for service in here.services]


@pytest.mark.parametrize("name", ["many_at_once", "ports", "several_documents"])
def test_the_child_gives_the_same_mistakes(name: str) -> None:
    path = TESTDATA / "invalid" / f"{name}.yaml"
    with pytest.raises(PolicyError) as there:
        prepare(str(path))
    try:
        here = check(load_file(path))
    except PolicyError as error:
        here = error.diagnostics
    assert list(there.value.diagnostics) == list(here)


def test_without_an_interpreter_to_run_the_file_is_loaded_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    for executable in ("", "/usr/sbin/uwsgi", str(tmp_path / "python-that-is-not-there")):
        monkeypatch.setattr(sys, "executable", executable)
        assert prepare(str(path)).policy == load_file(path).policy


def test_a_child_that_dies_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    monkeypatch.setattr("resilmesh.policy.prepared._PROGRAM", "import sys; sys.stdout.write('no pickle'); sys.exit(3)")
    assert prepare(str(path)).policy == load_file(path).policy
