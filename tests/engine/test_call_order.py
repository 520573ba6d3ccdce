"""The order of decisions. Each test fails if the two lines that it names were swapped."""

from __future__ import annotations

import pytest
from driver import BREAKER, ENDPOINTS, NOTHING, OK, RETRIES, S503, World

from resilmesh.engine.call import RAISE, SEND, SLEEP, WAIT
from resilmesh.errors import CircuitOpen, ConcurrencyExceeded, DeadlineExceeded, InjectedFault, NoHealthyEndpoint, RateLimited

NO_TOKEN = "rateLimit: {requests: 1, per: 3600s}\n"
NO_SLOT = "concurrency: {maxRequests: 1}\n"
ABORT = "fault: {abort: {httpStatus: 503}}\n"
EJECT = ENDPOINTS + "outlierDetection: {consecutive5xxErrors: 1}\n"


def tokens(world):
    return world.plan().limit.tokens(world.now)


@pytest.mark.parametrize("mode", ["OBSERVE", "OFF"])
def test_mode_is_above_the_fault(mode):
    world = World(ABORT, mesh=f"mode: {mode}")
    if mode == "OFF":
        assert world.plan() is None
    else:
        assert world.start()[1] is SEND
        assert world.stats()["faults"] == {}


@pytest.mark.parametrize(("mesh", "service", "route", "works"), [
    ("OFF", "ENFORCE", "ENFORCE", None), ("ENFORCE", "OFF", "OBSERVE", None), ("OBSERVE", "ENFORCE", "OFF", None),
    ("OBSERVE", "ENFORCE", "ENFORCE", "OBSERVE"), ("ENFORCE", "ENFORCE", "OBSERVE", "OBSERVE"),
    ("ENFORCE", "ENFORCE", "ENFORCE", "ENFORCE"),
])
def test_the_weakest_mode_works(mesh, service, route, works):
    world = World(f"mode: {service}\nroutes: [{{name: r, mode: {route}}}]\n", mesh=f"mode: {mesh}")
    plan = world.plan("r")
    assert (None if plan is None else plan.mode) == works


def test_a_fault_is_above_the_rate_limit_and_takes_no_token():
    world = World(ABORT + NO_TOKEN)
    for _ in range(3):
        call, step = world.start()
        assert step is RAISE
        assert isinstance(call.error, InjectedFault)
    assert tokens(world) == 1


def test_a_fault_is_above_the_retries():
    world = World(ABORT + RETRIES)
    ran = world.run(OK)
    assert (ran.step, ran.attempts) == (RAISE, 0)


def test_a_fault_is_above_the_deadline_and_eats_no_timeout():
    world = World("fault: {delay: {fixedDelay: 5s}}\ntimeout: 1s\n")
    assert world.run(OK, takes=0.9).error is None


def test_a_delay_is_above_concurrency_and_holds_no_slot():
    world = World("fault: {delay: {fixedDelay: 5s}}\n" + NO_SLOT)
    assert [world.start()[1] for _ in range(3)] == [SLEEP, SLEEP, SLEEP]
    assert world.gate().in_flight == 0


def test_the_deadline_is_above_the_rate_limit():
    world = World(NO_TOKEN)
    call, _ = world.start(deadline=world.now)
    assert isinstance(call.error, DeadlineExceeded)
    assert tokens(world) == 1


def test_the_deadline_is_above_the_queue_so_that_waiting_counts():
    world = World("timeout: 1s\nconcurrency: {maxRequests: 1, maxPending: 1}\n")
    first = world.flying()
    second, step = world.start()
    assert step is WAIT
    world.clock.advance(0.75)
    first.answered(world.now, 1, OK)
    assert second.woke(world.now) is SEND
    assert second.deadline == world.now + 0.25


def test_the_budget_is_above_the_rate_limit_and_measures_what_is_offered():
    world = World(NO_TOKEN + "retryBudget: {percent: 100, minRetriesPerSecond: 0}\n")
    for _ in range(5):
        world.start()
    assert world.plan().budget.balance(world.now) == 5


def test_the_rate_limit_is_above_concurrency():
    world = World(NO_TOKEN + NO_SLOT)
    world.flying()
    assert isinstance(world.start()[0].error, RateLimited)


def test_a_throttled_call_holds_no_slot():
    world = World(NO_TOKEN + "concurrency: {maxRequests: 5}\n")
    world.flying()
    world.start()
    assert world.gate().in_flight == 1


def test_concurrency_is_above_the_circuit():
    world = World(NO_SLOT + BREAKER)
    world.trip()
    world.clock.advance(10)
    world.flying()  # holds the slot, and is a probe
    assert isinstance(world.start()[0].error, ConcurrencyExceeded)
    assert world.held()["probes"] == 1


def test_one_call_holds_one_slot_through_its_retries():
    world = World("concurrency: {maxRequests: 2}\n" + RETRIES)
    call = world.flying()
    seen = []
    for number in (1, 2):
        seen.append(world.gate().in_flight)
        assert call.answered(world.now, number, S503) is SLEEP
        seen.append(world.gate().in_flight)
        world.clock.advance(1)
        assert call.woke(world.now) is SEND
    call.answered(world.now, 3, OK)
    assert seen == [1, 1, 1, 1]
    assert world.gate().in_flight == 0


def test_a_call_that_the_circuit_refuses_gives_its_slot_back():
    world = World(NO_SLOT + BREAKER)
    world.trip()
    assert isinstance(world.start()[0].error, CircuitOpen)
    assert world.held() == NOTHING


SPLIT = """
endpoints:
- {address: "10.0.0.1:80", labels: {v: a}}
- {address: "10.0.0.2:80", labels: {v: b}}
- {address: "10.0.0.3:80", labels: {v: b}}
subsets: [{name: a, labels: {v: a}}, {name: b, labels: {v: b}}]
split: [{subset: a, weight: 50}, {subset: b, weight: 50}]
retries: {maxRetries: 3, retryOn: [5xx], idempotent: true}
"""


def test_the_split_is_drawn_once_per_call_and_retries_stay_in_the_subset():
    world = World(SPLIT)
    for _ in range(40):
        call, seen = world.flying(), []
        for number in (1, 2, 3, 4):
            seen.append(call.endpoint.labels["v"])
            call.answered(world.now, number, S503)
            world.clock.advance(1)
            call.woke(world.now)
        assert len(seen) == 4
        assert len(set(seen)) == 1


def test_the_circuit_is_above_the_endpoint_which_a_refused_attempt_does_not_move_on():
    world = World(BREAKER + ENDPOINTS)
    world.trip()
    before = world.plan().balancer._next
    for _ in range(3):
        assert isinstance(world.start()[0].error, CircuitOpen)
    assert world.plan().balancer._next == before


def test_a_probe_that_finds_no_endpoint_gives_its_lease_back():
    world = World(BREAKER + EJECT)
    world.trip()
    world.clock.advance(10)  # the circuit is ready for probes, the endpoints are ejected for 30 s
    for _ in range(5):
        assert isinstance(world.start()[0].error, NoHealthyEndpoint)
    assert world.held() == NOTHING


def test_a_fault_of_attempt_scope_is_below_the_circuit_and_the_endpoint():
    world = World(BREAKER + ENDPOINTS + "fault: {abort: {httpStatus: 503}, scope: ATTEMPT}\n")
    call = world.flying()
    assert (call.injected, call.endpoint is None) == (503, False)
    assert world.held()["endpoints"] == 1
    call.abandon(world.now)
    world.trip()
    assert isinstance(world.start()[0].error, CircuitOpen)


def test_the_time_of_one_try_never_outlasts_the_call():
    world = World("timeout: 1s\nretries: {retryOn: [5xx], perTryTimeout: 600ms}\n")
    call = world.flying()
    assert (call.headers_by, call.deadline) == (world.now + 0.6, world.now + 1)
    world = World("timeout: 1s\nretries: {retryOn: [5xx], perTryTimeout: 5s}\n")
    assert world.flying().headers_by == world.now + 1
