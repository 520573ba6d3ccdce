"""Forced faults: for as long as a block runs, and not a call longer."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest

from resilmesh import CircuitOpen, DeadlineExceeded, InjectedFault, Mesh, UnknownService
from resilmesh.testing import ManualClock, ScriptedTransport, Trace, assert_trace
from tests.drive.guarding import RETRY, circuit, idle, listen, mesh_of, policy, stats
from tests.testing.clients import KINDS, Client


def mesh_and_work(**blocks: str) -> tuple[Mesh, Any]:
    mesh = mesh_of(clock=ManualClock(), **blocks)
    return mesh, mesh.guard("svc", idempotent=True)(lambda: "worked")


def status_of(work: Any) -> Any:
    try:
        return work()
    except InjectedFault as error:
        return error.status


def test_a_status_in_place_of_the_service() -> None:
    mesh, work = mesh_and_work()
    with mesh.inject("svc", status=503):
        assert [status_of(work) for _ in range(3)] == [503] * 3
    assert work() == "worked"
    assert stats(mesh)["faults"] == {"abort": 3}


@pytest.mark.anyio
@pytest.mark.parametrize("kind", KINDS)
async def test_over_http_it_is_a_response_and_nothing_is_sent(kind: str) -> None:
    mesh = mesh_of(clock=ManualClock(), hosts="[svc.test]")
    service = ScriptedTransport(200)
    client = Client(kind, mesh, service)
    with mesh.inject("svc", status=418):
        assert (await client.get()).status_code == 418
    assert service.requests == []
    assert (await client.get()).status_code == 200
    await client.close()


def test_a_delay_takes_the_clocks_time() -> None:
    mesh, work = mesh_and_work()
    with mesh.inject("svc", delay=3):
        assert work() == "worked"
    with mesh.inject("svc", delay="300ms"):
        assert work() == "worked"
    assert mesh.clock.monotonic() == pytest.approx(1003.3)


def test_at_each_attempt_it_exercises_retries_and_the_circuit() -> None:
    mesh, work = mesh_and_work(retries=RETRY, circuitBreaker="{consecutiveFailures: 3}")
    with mesh.inject("svc", status=503, scope="ATTEMPT"):
        assert status_of(work) == 503
        with pytest.raises(CircuitOpen):
            work()
    assert circuit(mesh)["state"] == "OPEN"


def test_a_delay_of_the_attempt_runs_into_its_time() -> None:
    mesh, work = mesh_and_work(timeout="1s")
    with mesh.inject("svc", delay=2, scope="ATTEMPT"), pytest.raises(DeadlineExceeded):
        work()


def test_a_share_of_the_calls() -> None:
    mesh, work = mesh_and_work()
    with mesh.inject("svc", status=500, percent=25):
        failed = sum(status_of(work) == 500 for _ in range(2000))
    assert 400 < failed < 600
    with mesh.inject("svc", status=500, percent=0):
        assert {status_of(work) for _ in range(100)} == {"worked"}


def test_one_route_or_all_of_them() -> None:
    mesh = mesh_of(clock=ManualClock(), routes="[{name: read}, {name: write}]")
    works = {route: mesh.guard("svc", route=route)(lambda: "worked") for route in ("read", "write", None)}
    with mesh.inject("svc", route="read", status=503):
        assert [status_of(works[route]) for route in ("read", "write", None)] == [503, "worked", "worked"]
    with mesh.inject("svc", status=503):
        assert [status_of(works[route]) for route in ("read", "write", None)] == [503, 503, 503]


def test_several_at_once_and_the_innermost_status_counts() -> None:
    mesh, work = mesh_and_work(fault="{abort: {httpStatus: 500}, delay: {fixedDelay: 1s}}", retries=RETRY)
    with mesh.inject("svc", delay=2), mesh.inject("svc", status=501), Trace(mesh) as trace:
        with mesh.inject("svc", status=502):
            assert status_of(work) == 502
        assert status_of(work) == 501
    assert "fault CALL delay 3s" in trace.lines
    assert status_of(work) == 500, "the policy's own"


def test_both_scopes_at_once() -> None:
    mesh, work = mesh_and_work(retries=RETRY)
    with mesh.inject("svc", delay=2), mesh.inject("svc", status=503, scope="ATTEMPT"), assert_trace(
        mesh, ["fault CALL delay 2s", "fault ATTEMPT 503", "attempt 1 -> 503", "backoff", ..., "attempt 3 -> 503", "call FAILURE"],
    ):
        assert status_of(work) == 503


@pytest.mark.parametrize("seed", range(5))
def test_undone_exactly_whatever_the_order(seed: int) -> None:
    mesh, work = mesh_and_work()
    draw = random.Random(seed)
    active: list[Any] = []
    for _ in range(60):
        if active and draw.random() < 0.5:
            active.pop(draw.randrange(len(active))).__exit__()
        else:
            active.append(mesh.inject("svc", status=draw.randrange(500, 600)).__enter__())
        assert status_of(work) == (active[-1].fault.abort_status if active else "worked")
        assert [each["status"] for each in mesh.snapshot()["injections"]] == [each.fault.abort_status for each in active]
    for each in active:
        each.__exit__()
    assert (work(), mesh.snapshot()["injections"]) == ("worked", [])


def test_from_many_threads() -> None:
    mesh, work = mesh_and_work()
    wrong: list[Any] = []

    def drill(status: int) -> None:
        for _ in range(40):
            with mesh.inject("svc", status=status):
                if status_of(work) == "worked":
                    wrong.append(status)

    threads = [threading.Thread(target=drill, args=(500 + number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (wrong, work(), mesh.snapshot()["injections"]) == ([], "worked", [])
    assert idle(mesh)


def test_it_stands_through_a_reload_and_state_stays() -> None:
    mesh, work = mesh_and_work(circuitBreaker="{consecutiveFailures: 2}", rateLimit="{requests: 3, per: 1h}")
    with mesh.inject("svc", status=503, scope="ATTEMPT"):
        assert status_of(work) == 503
        mesh.apply_text(policy(circuitBreaker="{consecutiveFailures: 2}", rateLimit="{requests: 3, per: 1h}", timeout="9s"))
        assert status_of(work) == 503
    assert circuit(mesh)["state"] == "OPEN", "both failures were counted by one circuit"
    assert mesh.snapshot()["revision"] == 2, "an injection is no policy"


def test_a_reload_that_takes_the_service_away_leaves_nothing_behind() -> None:
    mesh = mesh_of(clock=ManualClock())
    with mesh.inject("svc", status=503):
        mesh.apply_text("apiVersion: resilmesh/v1\nservices:\n- {name: other, timeout: 1s}\n")
        assert mesh.snapshot()["injections"][0]["service"] == "svc"
    mesh.apply_text(policy())
    assert mesh.guard("svc")(lambda: "worked")() == "worked"


def test_a_call_keeps_what_it_began_with() -> None:
    mesh = mesh_of(clock=ManualClock())
    injection = mesh.inject("svc", status=503, scope="ATTEMPT")

    @mesh.guard("svc")
    def begins_within() -> str:
        injection.__enter__()
        return "worked"

    assert begins_within() == "worked"
    injection.__exit__()


def test_seen_in_the_snapshot_and_in_events() -> None:
    mesh = mesh_of(clock=ManualClock())
    events = listen(mesh)
    with mesh.inject("svc", status=503, delay=0.3, percent=10, scope="ATTEMPT") as injection:
        assert mesh.snapshot()["injections"] == [
            {"service": "svc", "route": None, "status": 503, "delay": 0.3, "percent": 10, "scope": "ATTEMPT"},
        ]
        assert repr(injection) == "<Injection into svc: status 503, delay 300ms, 10 %, scope ATTEMPT>"
    detail = {"status": 503, "delay": 0.3, "percent": 10, "scope": "ATTEMPT"}
    assert [(each.name, each.service, each.route, each.detail) for each in events] == [
        ("injection_began", "svc", None, detail), ("injection_ended", "svc", None, detail),
    ]


def test_as_a_decorator_each_call_has_its_own() -> None:
    mesh, work = mesh_and_work()

    @mesh.inject("svc", status=503)
    def drill(deep: int) -> Any:
        assert len(mesh.snapshot()["injections"]) == 3 - deep
        return status_of(work) if deep == 0 else drill(deep - 1)

    @mesh.inject("svc", status=502)
    async def async_drill() -> Any:
        await asyncio.sleep(0)
        return status_of(work)

    async def several() -> list[Any]:
        return await asyncio.gather(*(async_drill() for _ in range(5)))

    assert drill(2) == 503
    assert asyncio.run(several()) == [502] * 5
    assert (work(), drill.__name__) == ("worked", "drill")
    with pytest.raises(TypeError, match="generator function"):
        @mesh.inject("svc", status=503)
        def steps() -> Any:
            yield


@pytest.mark.anyio
async def test_async_with_is_the_same() -> None:
    mesh, work = mesh_and_work()
    async with mesh.inject("svc", status=503):
        assert status_of(work) == 503
    assert work() == "worked"


@pytest.mark.parametrize(("arguments", "error", "said"), [
    ({}, TypeError, "needs a status= .* a delay="), ({"status": 99}, ValueError, "from 200 to 599, not 99"),
    ({"status": True}, ValueError, "not True"), ({"status": "503"}, ValueError, "not '503'"),
    ({"delay": -1}, ValueError, "delay is a number"),
    ({"delay": float("nan")}, TypeError, "delay is a number from 0 to 3600"), ({"delay": "3"}, ValueError, "has no unit"),
    ({"status": 503, "percent": 101}, ValueError, "percent is a number from 0 to 100"),
    ({"status": 503, "scope": "call"}, ValueError, "'CALL'"), ({"status": 503, "percent": "1"}, TypeError, "percent is a number"),
])
def test_what_makes_no_fault(arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        mesh_of().inject("svc", **arguments)


def test_names_and_modes_under_which_nothing_would_happen() -> None:
    mesh = mesh_of(routes="[{name: read}]")
    with pytest.raises(UnknownService, match="no service 'scv'; it has svc"):
        mesh.inject("scv", status=503)
    with pytest.raises(UnknownService, match="no route 'raed'; it has read"):
        mesh.inject("svc", route="raed", status=503)
    for mode in ("OFF", "OBSERVE"):
        with pytest.raises(ValueError, match=f"cannot inject into svc: the mesh has mode {mode}"):
            mesh_of(mesh=f'{{mode: "{mode}"}}').inject("svc", status=503)
        with pytest.raises(ValueError, match=f"the service 'svc' has mode {mode}"):
            mesh_of(mode=f'"{mode}"').inject("svc", status=503)
    partly = mesh_of(routes='[{name: read, mode: "OFF"}, {name: write}]')
    with pytest.raises(ValueError, match="cannot inject into svc/read: the route 'read' has mode OFF"):
        partly.inject("svc", route="read", status=503)
    with partly.inject("svc", status=503):
        assert partly.guard("svc", route="read")(lambda: "worked")() == "worked"


def test_the_mode_is_looked_at_when_it_begins() -> None:
    mesh = mesh_of()
    injection = mesh.inject("svc", status=503)
    mesh.apply_text(policy(mesh='{mode: "OFF"}'))
    with pytest.raises(ValueError, match="mode OFF"):
        injection.__enter__()
    assert mesh.snapshot()["injections"] == []


def test_one_injection_is_not_entered_twice() -> None:
    injection = mesh_of().inject("svc", status=503)
    with injection, pytest.raises(RuntimeError, match="is active already"):
        injection.__enter__()
    with injection:
        pass
