"""A retry that the circuit refused after the backoff was counted as a retry that was made."""

from __future__ import annotations

from resilmesh import Mesh
from resilmesh.engine.call import RETURN, SLEEP, Call
from resilmesh.engine.verdict import Answer, Verdict, mask
from resilmesh.testing import ManualClock

POLICY = """
apiVersion: resilmesh/v1
services:
- name: s
  circuitBreaker: {consecutiveFailures: 2}
  retries: {retryOn: [5xx], idempotent: true}
"""
FAILED = Answer(Verdict.FAILURE, mask("5xx"))


def test_a_retry_is_counted_when_it_is_made():
    clock = ManualClock()
    mesh = Mesh.from_text(POLICY, clock=clock)
    plan = mesh.table.named("s", None)[1]
    waiting, other = Call(plan, True), Call(plan, False)
    for call in (waiting, other):
        call.start(clock.monotonic())
    assert waiting.answered(clock.monotonic(), 1, FAILED) is SLEEP
    other.answered(clock.monotonic(), 1, FAILED)
    clock.advance(1)
    assert waiting.woke(clock.monotonic()) is RETURN
    assert mesh.snapshot()["services"]["s"]["routes"]["*"]["retries"] == 0
