"""One line of log for each change of state, and not one more than anybody can read."""

from __future__ import annotations

import logging

from resilmesh import Mesh
from resilmesh.engine.events import Event
from resilmesh.telemetry.log import BURST, StateLog
from resilmesh.testing import ManualClock

POLICY = """
apiVersion: resilmesh/v1
services:
- name: stock
  endpoints: [{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]
  circuitBreaker: {consecutiveFailures: 3, waitDurationInOpenState: 1s, permittedNumberOfCallsInHalfOpenState: 1}
  outlierDetection: {consecutive5xxErrors: 2, interval: 1s, baseEjectionTime: 1s, maxEjectionPercent: 50}
"""


def _fail(mesh):
    try:
        mesh.call("stock", lambda: 1 / 0)
    except Exception:
        return


def test_each_change_is_a_line_with_the_event_beside_it(caplog):
    caplog.set_level(logging.INFO, logger="resilmesh")
    clock = ManualClock()
    mesh = Mesh.from_text(POLICY, clock=clock, seed=1)
    for _ in range(3):
        _fail(mesh)
    clock.advance(2.5)
    mesh.call("stock", lambda: 1)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert ("WARNING", "circuit of stock: CLOSED -> OPEN, 3 failures in a row") in told
    assert ("INFO", "circuit of stock: OPEN -> HALF_OPEN, waitDurationInOpenState is over") in told
    assert ("INFO", "circuit of stock: HALF_OPEN -> CLOSED, 1 of 1 probes succeeded") in told
    opened = next(record for record in caplog.records if "-> OPEN" in record.getMessage())
    assert opened.resilmesh == {
        "event": "circuit_changed", "service": "stock", "route": None, "old": "CLOSED", "new": "OPEN", "reason": "3 failures in a row",
    }


def _changed(at):
    return Event(at, "circuit_changed", "stock", None, 0, 0, {"old": "CLOSED", "new": "OPEN", "reason": "tests"})


def test_what_is_too_much_is_left_out_and_counted(caplog):
    lines = StateLog()
    for _ in range(BURST + 5):
        lines(_changed(0.0))
    assert len(caplog.records) == BURST
    lines(_changed(1.0))
    assert caplog.records[-1].getMessage().endswith("(5 more such lines were left out)")
    lines(_changed(1.5))
    assert len(caplog.records) == BURST + 1
    lines(_changed(100.0))
    assert caplog.records[-1].getMessage().endswith("(1 more such lines were left out)")


def test_services_are_limited_apart(caplog):
    lines = StateLog()
    for _ in range(BURST + 5):
        lines(_changed(0.0))
    lines(_changed(0.0)._replace(service="ledger"))
    assert "ledger" in caplog.records[-1].getMessage()


def test_events_of_calls_have_no_line(caplog):
    StateLog()(Event(0.0, "call_started", "stock", None, 1, 0, {}))
    assert caplog.records == []
