"""An interrupt right after a ticket was claimed lost the slot for good; one inside `wait` left a ticket nobody owned."""

from __future__ import annotations

import pytest

from resilmesh import Mesh
from resilmesh.engine.call import Call
from resilmesh.engine.verdict import OK
from resilmesh.state.concurrency import Concurrency

POLICY = "apiVersion: resilmesh/v1\nservices:\n- name: s\n  concurrency: {maxRequests: 1, maxPending: 1}\n"


@pytest.mark.parametrize("where", ["claim", "wait"])
def test_an_interrupt_loses_no_slot(where, monkeypatch):
    plan = Mesh.from_text(POLICY).table.named("s", None)[1]
    first, second = Call(plan), Call(plan)
    first.start(1000.0)
    whole = getattr(Concurrency, where)

    def interrupted(*args):
        if whole(*args):
            raise KeyboardInterrupt

    if where == "wait":
        monkeypatch.setattr(Concurrency, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            second.start(1000.0)
        second.abandon(1000.0)
        first.answered(1001.0, 1, OK)
    else:
        second.start(1000.0)
        first.answered(1001.0, 1, OK)
        monkeypatch.setattr(Concurrency, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            second.woke(1001.0)
        second.abandon(1001.0)
    assert (plan.concurrency.in_flight, len(plan.concurrency.queue)) == (0, 0)
