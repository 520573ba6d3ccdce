"""A call whose slot came after its deadline was sent all the same."""

from __future__ import annotations

from resilmesh import Mesh
from resilmesh.engine.call import RAISE, SEND, WAIT, Call
from resilmesh.engine.verdict import OK
from resilmesh.errors import DeadlineExceeded
from resilmesh.testing import ManualClock

POLICY = "apiVersion: resilmesh/v1\nservices:\n- name: s\n  timeout: 1s\n  concurrency: {maxRequests: 1, maxPending: 1}\n"


def test_a_slot_that_comes_too_late_is_given_back():
    clock = ManualClock()
    mesh = Mesh.from_text(POLICY, clock=clock)
    plan = mesh.table.named("s", None)[1]
    first, second = Call(plan), Call(plan)
    assert first.start(clock.monotonic()) is SEND
    assert second.start(clock.monotonic()) is WAIT
    clock.advance(2)
    first.answered(clock.monotonic(), 1, OK)
    assert second.woke(clock.monotonic()) is RAISE
    assert isinstance(second.error, DeadlineExceeded)
    assert plan.concurrency.in_flight == 0
