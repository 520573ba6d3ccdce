"""Half-open permits lowered below the results that were in: no probe was let through, and nobody was left to decide."""

from __future__ import annotations

from resilmesh import Mesh
from resilmesh.engine.call import RAISE, SEND, Call
from resilmesh.engine.verdict import OK, Answer, Verdict
from resilmesh.testing import ManualClock


def policy(permits):
    return (
        "apiVersion: resilmesh/v1\nservices:\n- name: s\n  circuitBreaker: {consecutiveFailures: 1, waitDurationInOpenState: 1s, "
        f"permittedNumberOfCallsInHalfOpenState: {permits}}}\n"
    )


def test_half_open_is_decided_by_the_results_that_are_in():
    clock = ManualClock()
    mesh = Mesh.from_text(policy(10), clock=clock)

    def attempt(answer):
        call = Call(mesh.table.named("s", None)[1])
        step = call.start(clock.monotonic())
        if step is SEND:
            call.answered(clock.monotonic(), 1, answer)
        return step

    attempt(Answer(Verdict.FAILURE))
    clock.advance(1)
    for _ in range(5):
        assert attempt(OK) is SEND
    mesh.apply_text(policy(3))
    clock.advance(1000)
    assert attempt(OK) is not RAISE
    assert mesh.table.named("s", None)[1].breaker.state == "CLOSED"
