"""With consecutiveFailures and a slow-call rate but no failure rate, probes that failed fast closed the circuit."""

from __future__ import annotations

from resilmesh.state.breaker import BreakerSettings, CircuitBreaker


def test_one_failed_probe_opens_a_circuit_that_knows_no_failure_rate():
    settings = BreakerSettings(
        failure_rate=None, slow_rate=50.0, slow_seconds=1.0, consecutive=2, time_based=False, window_size=10, minimum_calls=10,
        wait_open=5.0, half_open_permits=2, count_throttled=False,
    )
    breaker = CircuitBreaker(settings, lambda *change: None)
    for _ in range(2):
        breaker.failure(breaker.acquire(1000.0, 1.0), 1000.0, 0.0)
    assert breaker.state == "OPEN"
    breaker.failure(breaker.acquire(1005.0, 1.0), 1005.0, 0.0)
    assert breaker.state == "OPEN"
