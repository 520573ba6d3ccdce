"""A KeyboardInterrupt at any point of a call leaves nothing in flight.

The interpreter delivers a signal where a Python function is entered and after a call of C code, and nowhere else (but for
the end of a loop's turn). A profile function is called at just these points, and raises at each of them in turn.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from types import FrameType
from typing import Any

import pytest

import resilmesh
from resilmesh.drive.context import deadline
from resilmesh.testing import ManualClock
from tests.drive.guarding import RETRY, idle, mesh_of

PACKAGE = os.path.dirname(resilmesh.__file__)


class Interruptions:
    """Raises KeyboardInterrupt at the n-th point at which the interpreter might."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename.startswith(PACKAGE) and not in_finalizer(frame):
            self.passed += 1
            if self.passed == self.at:
                self.where = f"{os.path.relpath(frame.f_code.co_filename, PACKAGE)}:{frame.f_lineno}"
                raise KeyboardInterrupt


def in_finalizer(frame: FrameType | None) -> bool:
    """What is raised in there is lost: the interpreter writes it to stderr and goes on."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class Trouble(Exception):
    pass


def succeed(mesh: resilmesh.Mesh) -> None:
    mesh.guard("svc")(lambda: 1)()


def fail(mesh: resilmesh.Mesh) -> None:
    def raises() -> None:
        raise Trouble

    with suppress(Trouble):
        mesh.guard("svc")(raises)()


def loop(mesh: resilmesh.Mesh) -> None:
    for attempt in mesh.attempts("svc"):
        with attempt:
            if attempt.number == 1:
                raise Trouble


def rejected(mesh: resilmesh.Mesh) -> None:
    with suppress(resilmesh.Rejected):
        for _ in range(3):
            mesh.guard("svc")(lambda: 1)()


def predicate(mesh: resilmesh.Mesh) -> None:
    mesh.guard("svc", failures=lambda result: result is None)(lambda: None)()


def injected(mesh: resilmesh.Mesh) -> None:
    with suppress(resilmesh.InjectedFault):
        mesh.guard("svc")(lambda: 1)()


def probe(mesh: resilmesh.Mesh) -> None:
    """Opens the circuit, waits until it is half-open, and sends a probe that succeeds."""
    fail(mesh)
    clock = mesh.clock
    assert isinstance(clock, ManualClock)
    clock.advance(10)
    succeed(mesh)


def queue(mesh: resilmesh.Mesh) -> None:
    """Waits for a slot in vain."""
    for attempt in mesh.attempts("svc"):
        with attempt, suppress(resilmesh.ConcurrencyExceeded):
            succeed(mesh)


EVERYTHING = {
    "timeout": "9s", "concurrency": "{maxRequests: 1, maxPending: 1, maxPendingWait: 1s}", "retries": RETRY,
    "retryBudget": "{percent: 100, minRetriesPerSecond: 1, ttl: 1s}", "rateLimit": "{requests: 100, per: 1s}",
    "circuitBreaker": "{consecutiveFailures: 3, slidingWindow: {type: TIME_BASED, size: 1s}}",
    "endpoints": '[{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]', "outlierDetection": "{consecutive5xxErrors: 2}",
}
CASES: list[Any] = [
    pytest.param(succeed, EVERYTHING, id="success"),
    pytest.param(fail, EVERYTHING, id="failure"),
    pytest.param(loop, EVERYTHING, id="attempts"),
    pytest.param(predicate, EVERYTHING, id="predicate"),
    pytest.param(rejected, {"rateLimit": "{requests: 1, per: 1h}", "concurrency": "{maxRequests: 1}"}, id="rejected"),
    pytest.param(injected, {**EVERYTHING, "fault": "{abort: {httpStatus: 503}, delay: {fixedDelay: 1s}}"}, id="fault of the call"),
    pytest.param(
        injected, {**EVERYTHING, "fault": "{abort: {httpStatus: 503}, delay: {fixedDelay: 1s}, scope: ATTEMPT}"}, id="fault of the attempt",
    ),
    pytest.param(
        probe, {"circuitBreaker": "{consecutiveFailures: 1, waitDurationInOpenState: 5s}", "concurrency": "{maxRequests: 1}"}, id="probe",
    ),
    pytest.param(queue, EVERYTHING, id="queue"),
    pytest.param(fail, {**EVERYTHING, "mode": "OBSERVE"}, id="observe"),
]


def interrupted(scenario: Callable[[resilmesh.Mesh], None], mesh: resilmesh.Mesh, interruptions: Interruptions) -> None:
    profiled = sys.getprofile()
    sys.setprofile(interruptions)
    try:
        scenario(mesh)
    finally:
        sys.setprofile(profiled)


@pytest.mark.parametrize("observed", [False, True], ids=["", "observed"])
@pytest.mark.parametrize(("scenario", "blocks"), CASES)
def test_interrupted_anywhere_nothing_is_held(scenario: Callable[[resilmesh.Mesh], None], blocks: dict[str, str], observed: bool) -> None:
    leaks, at = [], 0
    while True:
        at += 1
        clock = ManualClock()
        mesh = mesh_of(clock=clock, **blocks)
        if observed:
            mesh.subscribe(lambda event: None)
        interruptions = Interruptions(at)
        context = copy_context()
        with suppress(KeyboardInterrupt):
            context.run(interrupted, scenario, mesh, interruptions)
        if not interruptions.where:
            break
        # The end of a `with` is Python code, at whose entry an interrupt leaves the block's deadline behind; a guard has no such gap.
        assert context.run(deadline) == float("inf") or scenario in (loop, queue), interruptions.where
        clock.advance(100)  # a probe that is interrupted before it is the call's own ends by itself, like any that is not answered
        if not idle(mesh):
            leaks.append(interruptions.where)
            continue
        with suppress(resilmesh.Rejected, resilmesh.InjectedFault):
            succeed(mesh)
        assert idle(mesh), interruptions.where
    assert at > 10, "there were points to interrupt at"
    assert leaks == [], f"{len(leaks)} of {at} points"


def test_a_real_signal_ends_a_wait_in_the_queue() -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1, maxPending: 1, maxPendingWait: 30s}")
    began = time.monotonic()
    for attempt in mesh.attempts("svc"):
        with attempt:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
            with pytest.raises(KeyboardInterrupt):
                succeed(mesh)
            assert mesh.snapshot()["services"]["svc"]["concurrency"]["*"]["pending"] == 0
    assert time.monotonic() - began < 5
    assert idle(mesh)
    succeed(mesh)
