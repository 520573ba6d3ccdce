"""A fork while another thread was closing the circuit left a child whose circuit was closed and refused every call."""

from __future__ import annotations

from resilmesh.state.breaker import BreakerSettings, CircuitBreaker


def test_a_closed_circuit_has_a_permit_after_a_fork():
    settings = BreakerSettings(50.0, None, 1.0, None, False, 10, 10, 5.0, 2, False)
    breaker = CircuitBreaker(settings, lambda *change: None)
    breaker.permit = None  # what the other thread had come to: the state was written, its permit not yet made
    breaker.after_fork()
    assert breaker.acquire(1000.0, 1.0) is not None
