"""Under OBSERVE a time-out by the caller's own deadline counted as a failure of the service."""

from __future__ import annotations

from resilmesh import Mesh
from resilmesh.engine.call import Call
from resilmesh.engine.verdict import Answer, Verdict
from resilmesh.state.stats import IGNORED


def test_it_says_nothing_about_the_service():
    text = "apiVersion: resilmesh/v1\nmesh: {mode: OBSERVE}\nservices:\n- {name: s, circuitBreaker: {consecutiveFailures: 1}}\n"
    plan = Mesh.from_text(text).table.named("s", None)[1]
    call = Call(plan, deadline=1001.0)
    call.start(1000.0)
    call.answered(1001.0, 1, Answer(Verdict.FAILURE, timed_out=True))
    assert plan.breaker.state == "CLOSED"
    assert plan.stats.counts[IGNORED] == 1
