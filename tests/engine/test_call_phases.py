"""Every line of the transition table of ``resilmesh/engine/call.py``."""

from __future__ import annotations

import pytest
from driver import BREAKER, ENDPOINTS, NOBODYS_FAULT, NOTHING, OK, OPEN, RETRIES, S503, World

from resilmesh.engine.call import RAISE, RETURN, SEND, SLEEP, WAIT
from resilmesh.engine.verdict import Verdict
from resilmesh.errors import (
    CallError,
    CircuitOpen,
    ConcurrencyExceeded,
    DeadlineExceeded,
    InjectedFault,
    NoHealthyEndpoint,
    RateLimited,
    Rejected,
)

DELAY = "fault: {delay: {fixedDelay: 3s}}\n"
DELAY_ATTEMPT = "fault: {delay: {fixedDelay: 3s}, scope: ATTEMPT}\n"
ONE_SLOT = "concurrency: {maxRequests: 1, maxPending: 5, maxPendingWait: 2s}\n"
EVERYTHING = BREAKER + RETRIES + ENDPOINTS + "concurrency: {maxRequests: 1, maxPending: 5}\n"


def test_new_to_flying_to_over():
    world = World()
    call, step = world.start()
    assert step is SEND
    assert (call.number, call.endpoint, call.headers_by, call.deadline) == (1, None, float("inf"), float("inf"))
    assert call.answered(world.now, 1, OK) is RETURN
    assert call.over
    assert call.error is None


@pytest.mark.parametrize(
    ("blocks", "before", "error"),
    [
        (BREAKER, World.trip, CircuitOpen),
        ("rateLimit: {requests: 1, per: 60s}\n", lambda world: world.run(OK), RateLimited),
        ("concurrency: {maxRequests: 1}\n", World.flying, ConcurrencyExceeded),
        (ENDPOINTS + "outlierDetection: {consecutive5xxErrors: 1}\n", lambda world: [world.run(S503) for _ in "12"], NoHealthyEndpoint),
    ],
)
def test_new_to_over_by_a_rejection(blocks, before, error):
    world = World(blocks)
    before(world)
    call, step = world.start()
    assert step is RAISE
    assert type(call.error) is error
    assert isinstance(call.error, Rejected)
    assert (call.error.service, call.error.attempts, call.over) == ("s", 0, True)
    assert set(world.stats()["rejected"]) == {error.__name__}
    assert world.told()[-1] == "call_rejected"


def test_new_to_over_by_a_deadline_that_has_passed():
    world = World()
    call, step = world.start(deadline=world.now)
    assert step is RAISE
    assert type(call.error) is DeadlineExceeded
    assert call.error.attempts == 0
    assert world.stats()["ignored"] == 1


def test_new_to_delayed_to_flying():
    world = World(DELAY + "timeout: 1s\n")
    call, step = world.start()
    assert step is SLEEP
    assert call.wake_at == world.now + 3
    world.clock.advance(2.9)
    assert call.woke(world.now) is SLEEP
    world.clock.advance(0.1)
    assert call.woke(world.now) is SEND
    assert call.deadline == world.now + 1, "an injected delay does not eat the timeout"


def test_delayed_to_over_by_an_abort():
    world = World("fault: {delay: {fixedDelay: 3s}, abort: {httpStatus: 418}}\n")
    call, _ = world.start()
    world.clock.advance(3)
    assert call.woke(world.now) is RAISE
    assert isinstance(call.error, InjectedFault)
    assert call.error.status == 418
    assert world.stats()["ignored"] == 1
    assert world.stats()["faults"] == {"delay": 1, "abort": 1}


def test_delayed_to_over_by_the_deadline_that_it_inherited():
    world = World(DELAY)
    call, _ = world.start(deadline=world.now + 1)
    assert call.wake_at == world.now + 1
    world.clock.advance(1)
    assert call.woke(world.now) is RAISE
    assert type(call.error) is DeadlineExceeded


def test_delayed_to_queued_to_flying():
    world = World(ONE_SLOT + DELAY)
    first = world.call()
    second = world.call()
    for call in (first, second):
        call.start(world.now)
    world.clock.advance(3)
    assert first.woke(world.now) is SEND
    assert second.woke(world.now) is WAIT
    first.answered(world.now, 1, OK)
    assert second.woke(world.now) is SEND


def test_queued_stays_queued_until_its_turn():
    world = World(ONE_SLOT)
    first = world.flying()
    second, step = world.start()
    assert step is WAIT
    assert second.wake_at == world.now + 2
    assert second.woke(world.now) is WAIT
    woken = []
    second.lend(lambda: woken.append(1))
    first.answered(world.now, 1, OK)
    assert woken == [1]
    assert second.woke(world.now) is SEND
    assert world.gate().in_flight == 1


def test_queued_to_over_after_max_pending_wait():
    world = World(ONE_SLOT)
    world.flying()
    call, _ = world.start()
    world.clock.advance(2)
    assert call.woke(world.now) is RAISE
    assert type(call.error) is ConcurrencyExceeded
    assert len(world.gate().queue) == 0


def test_queued_to_over_by_the_deadline():
    world = World("concurrency: {maxRequests: 1, maxPending: 5}\ntimeout: 1s\n")
    world.flying()
    call, step = world.start()
    assert (step, call.wake_at) == (WAIT, world.now + 1)
    world.clock.advance(1)
    assert call.woke(world.now) is RAISE
    assert type(call.error) is DeadlineExceeded
    assert world.stats()["failed"] == 1


def test_queued_to_over_because_the_circuit_opened_meanwhile():
    world = World(BREAKER + "concurrency: {maxRequests: 1, maxPending: 5}\n")
    first = world.flying()
    call, _ = world.start()
    for _ in range(4):
        world.plan().breaker.failure(world.plan().breaker.permit or first._permit, world.now, 0.0)
    first.abandon(world.now)
    assert call.woke(world.now) is RAISE
    assert type(call.error) is CircuitOpen
    assert world.held() == NOTHING


def test_paused_to_flying():
    world = World(DELAY_ATTEMPT)
    call, step = world.start()
    assert (step, call.wake_at) == (SLEEP, world.now + 3)
    world.clock.advance(3)
    assert call.woke(world.now) is SEND


def test_flying_to_backoff_to_flying():
    world = World(RETRIES)
    call = world.flying()
    assert call.answered(world.now, 1, S503) is SLEEP
    assert world.now <= call.wake_at <= world.now + 0.1
    world.clock.advance(0.1)
    assert call.woke(world.now) is SEND
    assert call.number == 2


def test_backoff_to_paused():
    world = World(RETRIES + DELAY_ATTEMPT)
    call, _ = world.start()
    world.clock.advance(3)
    assert call.woke(world.now) is SEND
    assert call.answered(world.now, 1, S503) is SLEEP
    world.clock.advance(0.1)
    assert call.woke(world.now) is SLEEP
    assert call.wake_at == world.now + 3
    assert world.stats()["retries"] == 1


def test_flying_to_committed_to_over():
    world = World(EVERYTHING)
    call = world.flying()
    assert call.answered(world.now, 1, OPEN) is RETURN
    assert not call.over
    assert world.held() == {"slots": 1, "probes": 0, "endpoints": 1, "calls": 1}
    call.ended(world.now, 1, Verdict.SUCCESS)
    assert call.over
    assert world.held() == NOTHING
    assert world.stats()["succeeded"] == 1


def test_an_answer_of_another_attempt_is_dropped():
    world = World(EVERYTHING)
    call = world.flying()
    assert call.answered(world.now, 7, S503) is RETURN
    assert not call.over
    call.answered(world.now, 1, OPEN)
    call.ended(world.now, 7, Verdict.FAILURE)
    assert not call.over


def test_ended_counts_once():
    world = World(EVERYTHING)
    call = world.flying()
    call.answered(world.now, 1, OPEN)
    for _ in range(3):
        call.ended(world.now, 1, Verdict.SUCCESS)
        call.abandon(world.now)
    assert world.held() == NOTHING
    assert (world.stats()["succeeded"], world.stats()["abandoned"]) == (1, 0)


# --------------------------------------------------------------------------------------------- abandon, orphan


def _new(world):
    return world.call()


def _delayed(world):
    call, step = world.start()
    assert step is SLEEP
    return call


def _queued(world):
    world.flying()
    call, step = world.start()
    assert step is WAIT
    return call


def _flying(world):
    return world.flying()


def _backoff(world):
    call = world.flying()
    assert call.answered(world.now, 1, S503) is SLEEP
    return call


def _committed(world):
    call = world.flying()
    call.answered(world.now, 1, OPEN)
    return call


PHASES = [
    (EVERYTHING, _new, 0), (EVERYTHING + DELAY, _delayed, 1), (EVERYTHING, _queued, 1), (EVERYTHING + DELAY_ATTEMPT, _delayed, 1),
    (EVERYTHING, _flying, 1), (EVERYTHING, _backoff, 1), (EVERYTHING, _committed, 1),
]


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize(("blocks", "reach", "counted"), PHASES)
def test_abandon_gives_everything_back_in_every_phase(blocks, reach, counted, observed):
    world = World(blocks, observed=observed)
    others = []
    flying, world.flying = world.flying, lambda **facts: others.append(flying(**facts)) or others[-1]
    call = reach(world)
    for other in others:
        if other is not call:
            other.answered(world.now, 1, OK)
    for _ in range(3):
        call.abandon(world.now)
    assert world.held() == NOTHING
    assert world.stats()["abandoned"] == counted
    assert world.told("call_abandoned") == ["call_abandoned"] * (counted * observed)


@pytest.mark.parametrize(("blocks", "reach", "counted"), PHASES)
def test_an_abandoned_call_does_nothing_any_more(blocks, reach, counted):
    world = World(blocks)
    call = reach(world)
    call.abandon(world.now)
    before = world.held(), world.stats()
    if counted:
        assert call.woke(world.now) is RAISE
    else:
        assert call.start(world.now) is RAISE
    assert call.answered(world.now, 1, S503) is RETURN
    call.ended(world.now, 1, Verdict.FAILURE)
    assert type(call.error) is CallError
    assert (world.held(), world.stats()) == before


def test_an_orphan_is_cleaned_up_by_the_next_call():
    world = World(EVERYTHING)
    lost = world.flying()
    lost.answered(world.now, 1, OPEN)
    lost.orphan()
    assert not lost.over, "a finalizer takes no lock"
    assert world.flying().number == 1, "the only slot is free again"
    assert lost.over
    assert world.stats()["abandoned"] == 1


def test_an_orphan_that_had_ended_after_all_counts_once():
    world = World(EVERYTHING)
    call = world.flying()
    call.answered(world.now, 1, OPEN)
    call.orphan()
    call.ended(world.now, 1, Verdict.SUCCESS)
    assert (world.stats()["succeeded"], world.stats()["abandoned"]) == (1, 0)
    assert world.held() == NOTHING


def test_the_outcome_that_is_nobodys_fault_is_ignored():
    world = World(EVERYTHING)
    ran = world.run(NOBODYS_FAULT)
    assert (ran.step, ran.attempts) == (RETURN, 1)
    assert world.stats()["ignored"] == 1
    assert world.plan().breaker.window.calls == 0
