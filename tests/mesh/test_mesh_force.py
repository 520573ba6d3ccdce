"""A circuit set by hand, while calls go on."""

from __future__ import annotations

import pytest

import resilmesh
from resilmesh.testing import ManualClock

POLICY = """
apiVersion: resilmesh/v1
services:
- name: ledger
  circuitBreaker: {consecutiveFailures: 2, failureRateThreshold: null}
  routes:
  - {name: charge, circuitBreaker: {consecutiveFailures: 1}}
  - {name: plain, circuitBreaker: null}
- {name: off, mode: "OFF"}
"""


def made():
    mesh = resilmesh.Mesh.from_text(POLICY, clock=ManualClock())
    outcome = [None]

    @mesh.guard("ledger")
    def call():
        if outcome[0] is not None:
            raise outcome[0]
        return "done"

    return mesh, call, outcome


def test_a_circuit_that_is_forced_open_refuses_until_auto():
    mesh, call, _ = made()
    mesh.force_circuit("ledger", "OPEN")
    with pytest.raises(resilmesh.CircuitOpen) as refused:
        call()
    assert refused.value.retry_after is None
    mesh.apply_text(POLICY.replace("consecutiveFailures: 2", "consecutiveFailures: 3"))
    with pytest.raises(resilmesh.CircuitOpen):
        call()  # a new policy does not undo it
    mesh.force_circuit("ledger", "AUTO")
    assert call() == "done"


def test_a_circuit_that_is_forced_closed_lets_an_outage_through():
    mesh, call, outcome = made()
    events = []
    mesh.subscribe(events.append)
    mesh.force_circuit("ledger", "CLOSED")
    outcome[0] = OSError("down")
    for _ in range(5):
        with pytest.raises(OSError, match="down"):
            call()
    assert [event.name for event in events if event.name.startswith("circuit")] == ["circuit_changed"]
    assert mesh.snapshot()["services"]["ledger"]["circuitBreakers"]["*"]["state"] == "FORCED_CLOSED"


def test_metrics_only_tells_what_it_would_have_done():
    mesh, call, outcome = made()
    events = []
    mesh.subscribe(events.append)
    mesh.force_circuit("ledger", "METRICS_ONLY")
    outcome[0] = OSError("down")
    for _ in range(4):
        with pytest.raises(OSError, match="down"):
            call()
    told = [(event.name, event.detail) for event in events if event.name.startswith("circuit")]
    assert told == [
        ("circuit_changed", {"old": "CLOSED", "new": "METRICS_ONLY", "reason": "set by hand"}),
        ("circuit_would_open", {"reason": "2 failures in a row"}),
    ]


def test_a_route_with_its_own_circuit_is_set_alone():
    mesh, call, _ = made()
    mesh.force_circuit("ledger", "OPEN", route="charge")
    assert call() == "done"
    with pytest.raises(resilmesh.CircuitOpen):
        mesh.guard("ledger", route="charge")(lambda: None)()


@pytest.mark.parametrize(
    ("arguments", "route", "kind", "says"),
    [
        (("ledgre", "OPEN"), None, resilmesh.UnknownService, "it has ledger, off"),
        (("ledger", "OPEN"), "unknown", resilmesh.UnknownService, "no route 'unknown'"),
        (("ledger", "open"), None, ValueError, "OPEN, CLOSED, METRICS_ONLY, AUTO, not 'open'"),
        (("ledger", "OPEN"), "plain", ValueError, "'ledger/plain' has no circuit: give it a 'circuitBreaker'"),
        (("off", "OPEN"), None, ValueError, "'off' has no circuit: its mode is OFF"),
    ],
)
def test_what_cannot_be_set_is_said(arguments, route, kind, says):
    mesh, *_ = made()
    with pytest.raises(kind, match=says):
        mesh.force_circuit(*arguments, route=route)
