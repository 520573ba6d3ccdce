"""What happened to the calls of a block, compared with what was expected."""

from __future__ import annotations

import threading

import pytest

from resilmesh import CircuitOpen
from resilmesh.engine.events import Event
from resilmesh.testing import ManualClock, ScriptedTransport, Trace, assert_trace
from resilmesh.testing.trace import told
from tests.drive.guarding import RETRY, mesh_of
from tests.testing.clients import Client

pytestmark = pytest.mark.anyio


async def test_the_lines_of_a_call() -> None:
    mesh = mesh_of(clock=ManualClock(), hosts="[svc.test]", retries=RETRY)
    client = Client("httpx", mesh, ScriptedTransport([503, "reset", 200, 503, 200]))
    with assert_trace(mesh, [
        "attempt 1 -> 503", "backoff 0s", "attempt 2 -> FAILURE", "backoff", "attempt 3 -> 200", "call SUCCESS",
    ]) as trace:
        await client.get()
    assert [event.name for event in trace.events].count("attempt_started") == 3
    with assert_trace(mesh, ["attempt 1", ..., "call SUCCESS"]):
        await client.get()
    await client.close()


def test_rejections_circuits_and_faults() -> None:
    mesh = mesh_of(clock=ManualClock(), circuitBreaker="{consecutiveFailures: 1}")

    @mesh.guard("svc")
    def work() -> None:
        raise LookupError

    with Trace(mesh) as trace:
        with pytest.raises(LookupError):
            work()
        with pytest.raises(CircuitOpen):
            work()
    assert trace.lines == ["attempt 1 -> FAILURE", "circuit OPEN", "call FAILURE", "rejected CircuitOpen"]
    assert trace.calls == [["attempt 1 -> FAILURE", "call FAILURE"], ["rejected CircuitOpen"]]
    with Trace(mesh) as trace, mesh.inject("svc", status=418, delay=2), pytest.raises(Exception, match="418"):
        work()
    assert trace.lines == ["injection_began", "fault CALL delay 2s", "fault CALL 418", "call IGNORED", "injection_ended"]
    trace.expect(["injection_began", "fault CALL", "fault", "call", "injection_ended"])


def test_the_difference_is_readable() -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY)
    failures = [LookupError]

    @mesh.guard("svc")
    def work() -> None:
        if failures:
            raise failures.pop()

    with pytest.raises(AssertionError) as caught, assert_trace(mesh, ["attempt 1 -> FAILURE", "attempt 2", "call FAILURE"]):
        work()
    assert str(caught.value).splitlines() == [
        "the trace is not the expected one (- expected, + happened):",
        "    attempt 1 -> FAILURE",
        "  + backoff 0s",
        "    attempt 2 -> SUCCESS",
        "  - call FAILURE",
        "  + call SUCCESS",
    ]
    with pytest.raises(AssertionError, match="nothing happened: was this mesh the one"), assert_trace(mesh, ["attempt 1"]):
        pass


@pytest.mark.parametrize(("expected", "matches"), [
    (["a", "b", "c d"], True), (["a", ...], True), ([...], True), ([..., "c"], True), (["a", ..., "b", ..., "c d"], True),
    ([..., ..., "c"], True), (["...", "c d"], True), (["a", "b"], False), (["a", "b", "c d", "e"], False), ([..., "b"], False),
    (["a", ..., "a", "c"], False), ([], False), (["a", "b", "c de"], False), (["a", "b", "c"], True), (["", "b", "c"], False),
])
def test_words_may_be_left_off_and_lines_left_open(expected: list[str], matches: bool) -> None:
    trace = Trace(mesh_of())
    trace.events = [Event(0, name, "svc", None, 1, 1, {}) for name in ("a", "b", "c d")]
    if matches:
        trace.expect(expected)
    else:
        with pytest.raises(AssertionError):
            trace.expect(expected)


def test_an_exception_of_the_block_goes_on_with_the_trace() -> None:
    mesh = mesh_of(clock=ManualClock())
    guarded = mesh.guard("svc")({}.popitem)
    with pytest.raises(KeyError) as caught, assert_trace(mesh, []):
        guarded()
    assert caught.value.__notes__ == ["the trace until then:\n    attempt 1 -> FAILURE\n    call FAILURE"]


def test_one_service_of_several_and_one_block_of_several() -> None:
    mesh = mesh_of(clock=ManualClock(), routes="[{name: read}]")
    with Trace(mesh, route="read") as trace, Trace(mesh, service="other") as other:
        mesh.guard("svc", route="read")(lambda: None)()
        mesh.guard("svc")(lambda: None)()
    mesh.guard("svc", route="read")(lambda: None)()
    assert (len(trace.calls), other.lines) == (1, [])
    with trace, pytest.raises(RuntimeError, match="recording already"):
        trace.__enter__()


def test_calls_that_overlap_are_told_apart() -> None:
    mesh = mesh_of(clock=ManualClock())
    meet = threading.Barrier(8)
    guarded = mesh.guard("svc")(meet.wait)
    with Trace(mesh) as trace:
        threads = [threading.Thread(target=guarded, args=(5,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert trace.calls == [["attempt 1 -> SUCCESS", "call SUCCESS"]] * 8


@pytest.mark.parametrize(("name", "detail", "line"), [
    ("retry_refused", {"reason": "budget"}, "no retry: budget"),
    ("would_reject", {"reason": "RateLimited"}, "would reject RateLimited"),
    ("call_abandoned", {}, "abandoned"), ("call_queued", {}, "queued"),
    ("fell_back", {"reason": "REJECTED"}, "fell back: REJECTED"),
    ("endpoint_ejected", {"endpoint": "10.0.0.1:80"}, "ejected 10.0.0.1:80"),
    ("endpoint_returned", {"endpoint": "10.0.0.1:80"}, "returned 10.0.0.1:80"),
    ("policy_applied", {"revision": 2}, "policy_applied"),
])
def test_every_kind_of_line(name: str, detail: dict[str, object], line: str) -> None:
    assert told(Event(0, name, "svc", None, 1, 1, detail)) == line
