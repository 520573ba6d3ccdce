"""A policy of more services than are compiled at once: those that nobody called are compiled when somebody does."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

import resilmesh
from resilmesh.engine.compile import AT_ONCE

SERVICES = AT_ONCE * 3


def policy(services: int = SERVICES, timeout: str = "1s", wait: str = "10s") -> str:
    return "apiVersion: resilmesh/v1\nservices:\n" + "".join(
        f"- name: s{number}\n  hosts: [s{number}.svc]\n  timeout: {timeout}\n"
        f"  circuitBreaker: {{consecutiveFailures: 1, waitDurationInOpenState: {wait}}}\n"
        f"  endpoints: [{{address: '10.0.0.1:{1000 + number}'}}]\n  routes: [{{name: r, match: {{path: /r}}, timeout: 2s}}]\n"
        for number in range(services)
    )


def fail(mesh: resilmesh.Mesh, service: str) -> None:
    @mesh.guard(service)
    def call() -> None:
        raise OSError("down")

    with pytest.raises(OSError, match="down"):
        call()


def state(mesh: resilmesh.Mesh, service: str) -> str:
    found: str = mesh.snapshot()["services"][service]["circuitBreakers"]["*"]["state"]
    return found


def test_a_service_has_state_once_it_was_called() -> None:
    mesh = resilmesh.Mesh.from_text(policy())
    assert mesh.snapshot()["services"]["s7"]["circuitBreakers"] == {}
    plan = mesh.route_http("GET", "s7.svc", 80, "/r?q", {})
    assert plan is not None
    assert (plan.service, plan.route, plan.timeout) == ("s7", "r", 2.0)
    assert mesh.route_http("GET", "s7.svc", 80, "/r", {}) is plan
    assert state(mesh, "s7") == "CLOSED"
    assert mesh.snapshot()["services"]["s8"]["circuitBreakers"] == {}


def test_state_outlives_a_reload_of_a_service_in_use_and_of_no_other() -> None:
    mesh = resilmesh.Mesh.from_text(policy())
    fail(mesh, "s3")
    assert state(mesh, "s3") == "OPEN"
    mesh.apply_text(policy(timeout="5s"))
    assert state(mesh, "s3") == "OPEN"
    plan = mesh.table.named("s3", None)[1]
    assert plan is not None
    assert plan.timeout == 5.0
    with pytest.raises(resilmesh.PolicyError, match="'s3'"):
        mesh.apply_text(policy(services=3))  # its guard needs it


def test_a_service_that_leaves_is_forgotten() -> None:
    mesh = resilmesh.Mesh.from_text(policy())
    mesh.route_http("GET", f"s{SERVICES - 1}.svc", 80, "/", {})
    mesh.apply_text(policy(services=SERVICES - 1))
    assert f"s{SERVICES - 1}" not in mesh.snapshot()["services"]


def test_a_table_that_was_superseded_retunes_nothing() -> None:
    mesh = resilmesh.Mesh.from_text(policy())
    old = mesh.table
    mesh.apply_text(policy(timeout="5s", wait="99s"))
    new = mesh.table.named("s9", None)[1]
    late = old.named("s9", None)[1]
    assert new is not None
    assert late is not None
    assert late.breaker is new.breaker, "a call that began under the old policy counts where the new ones do"
    assert new.breaker is not None
    assert new.breaker.settings.wait_open == 99.0


def test_threads_that_come_at_once_share_the_state_of_a_service() -> None:
    mesh = resilmesh.Mesh.from_text(policy())
    found = []
    barrier = threading.Barrier(8)

    def look() -> None:
        barrier.wait()
        plan = mesh.route_http("GET", "s5.svc", 80, "/", {})
        assert plan is not None
        found.append(plan.breaker)

    threads = [threading.Thread(target=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1


def test_an_injection_reaches_a_service_that_nobody_called() -> None:
    mesh = resilmesh.Mesh.from_text(policy())
    with mesh.inject("s100", status=503), pytest.raises(resilmesh.InjectedFault):
        mesh.guard("s100")(lambda: None)()
    mesh.guard("s100")(lambda: None)()


def test_a_file_that_changes_is_prepared_by_another_process_and_what_was_counted_stays(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy())
    with resilmesh.Mesh.from_file(path, reload_interval=0.05) as mesh:
        fail(mesh, "s3")
        told: list[str] = []
        mesh.subscribe(lambda event: told.append(event.name))
        for text in (policy(timeout="7s"), policy() + "- nonsense\n"):
            (tmp_path / "new").write_text(text)
            os.replace(tmp_path / "new", path)
            known, until = len(told), time.monotonic() + 20
            while len(told) == known and time.monotonic() < until:
                time.sleep(0.02)
        assert told == ["policy_applied", "policy_refused"]
        plan = mesh.route_http("GET", "s150.svc", 80, "/", {})
        assert plan is not None
        assert plan.timeout == 7.0
        assert state(mesh, "s3") == "OPEN"
        assert mesh.snapshot()["lastRefusal"].startswith(f"{path}:")
