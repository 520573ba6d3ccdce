"""A call abandoned by another thread while this one was inside the engine went on, and gave back twice or not at all."""

from __future__ import annotations

import pytest

from resilmesh import Mesh
from resilmesh.engine.call import RAISE, RETURN, SEND, Call
from resilmesh.engine.verdict import OK, Answer, Verdict, mask
from resilmesh.state.balance import Balancer
from resilmesh.state.breaker import CircuitBreaker
from resilmesh.testing import ManualClock

POLICY = """
apiVersion: resilmesh/v1
services:
- name: s
  endpoints: [{address: "10.0.0.1:80"}]
  concurrency: {maxRequests: 5}
  circuitBreaker: {}
  retries: {retryOn: [5xx], idempotent: true}
"""
FAILED = Answer(Verdict.FAILURE, mask("5xx"))


@pytest.mark.parametrize(("where", "method", "answer"), [
    (Balancer, "pick", None), (CircuitBreaker, "success", OK), (CircuitBreaker, "failure", FAILED), (CircuitBreaker, "admits", FAILED),
])
def test_nothing_is_kept_and_nothing_given_back_twice(where, method, answer, monkeypatch):
    mesh = Mesh.from_text(POLICY, clock=ManualClock())
    plan = mesh.table.named("s", None)[1]
    call, whole = Call(plan, True), getattr(where, method)

    def meanwhile(*args, **kwargs):
        call.abandon(1000.0)
        return whole(*args, **kwargs)

    if answer is None:
        monkeypatch.setattr(where, method, meanwhile)
        assert call.start(1000.0) is RAISE
    else:
        assert call.start(1000.0) is SEND
        monkeypatch.setattr(where, method, meanwhile)
        assert call.answered(1000.0, 1, answer) is RETURN
    shown = mesh.snapshot()["services"]["s"]
    assert shown["concurrency"]["*"]["inFlight"] == 0
    assert shown["endpoints"]["10.0.0.1:80"]["inFlight"] == 0
    assert (shown["routes"]["*"]["abandoned"], shown["routes"]["*"]["inFlight"]) == (1, 0)


def test_a_call_that_was_abandoned_before_it_began_does_not_begin():
    call = Call(Mesh.from_text(POLICY).table.named("s", None)[1])
    call.abandon(1000.0)
    assert call.start(1000.0) is RAISE
    assert call.error is not None
