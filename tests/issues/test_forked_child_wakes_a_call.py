"""A call that was waiting when its process forked went on in the child as well, and left its endpoint loaded there."""

from __future__ import annotations

from resilmesh import Mesh
from resilmesh.engine import call as engine
from resilmesh.engine.call import RAISE, SLEEP, Call
from resilmesh.engine.verdict import Answer, Verdict, mask
from resilmesh.testing import ManualClock

POLICY = """
apiVersion: resilmesh/v1
services:
- {name: s, endpoints: [{address: "10.0.0.1:80"}], retries: {retryOn: [5xx], idempotent: true}}
"""


def test_what_waits_at_a_fork_is_the_parents(monkeypatch):
    clock = ManualClock()
    mesh = Mesh.from_text(POLICY, clock=clock)
    call = Call(mesh.table.named("s", None)[1], True)
    call.start(clock.monotonic())
    assert call.answered(clock.monotonic(), 1, Answer(Verdict.FAILURE, mask("5xx"))) is SLEEP
    monkeypatch.setattr(engine, "_generation", engine._generation + 1)
    mesh.ledger.after_fork()
    mesh._store.after_fork()
    clock.advance(1)
    assert call.woke(clock.monotonic()) is RAISE
    assert call.error is not None
    assert mesh.snapshot()["services"]["s"]["endpoints"]["10.0.0.1:80"]["inFlight"] == 0
