"""Deadlines, committed bodies, faults of an attempt, OBSERVE, events."""

from __future__ import annotations

import pytest
from driver import (
    BREAKER,
    ENDPOINTS,
    NOBODYS_FAULT,
    NOTHING,
    OK,
    OPEN,
    RESET,
    RETRIES,
    S503,
    TIMED_OUT,
    World,
    status,
)

from resilmesh.engine.call import RAISE, RETURN, SEND, SLEEP, WAIT
from resilmesh.engine.verdict import Verdict
from resilmesh.errors import DeadlineExceeded

# -------------------------------------------------------------------------------------------------- deadlines


def test_its_own_timeout_is_the_services_failure():
    world = World("timeout: 1s\n" + BREAKER)
    ran = world.run(TIMED_OUT, takes=1.0)
    assert ran.step is RAISE
    assert type(ran.error) is DeadlineExceeded
    assert isinstance(ran.error, TimeoutError)
    assert "timeout of 1s" in str(ran.error)
    assert world.plan().breaker.window.failures == 1
    assert (world.stats()["failed"], world.stats()["ignored"]) == (1, 0)


@pytest.mark.parametrize("mode", ["ENFORCE", "OBSERVE"])
def test_an_inherited_deadline_says_nothing_about_the_service(mode):
    world = World("timeout: 5s\n" + BREAKER + ENDPOINTS, mesh=f"mode: {mode}")
    for _ in range(9):
        ran = world.run(TIMED_OUT, takes=1.0, deadline=world.now + 1)
        assert ran.step is (RAISE if mode == "ENFORCE" else RETURN)
    if mode == "ENFORCE":
        assert "inherited" in str(ran.error)
    assert world.plan().breaker.window.calls == 0
    assert (world.stats()["failed"], world.stats()["ignored"]) == (0, 9)
    assert world.held() == NOTHING


def test_the_sooner_of_two_deadlines_holds():
    world = World("timeout: 5s\n")
    assert world.flying(deadline=world.now + 9).deadline == world.now + 5
    assert world.flying(deadline=world.now + 1).deadline == world.now + 1


def test_the_time_of_one_try_is_a_failure_and_retried():
    world = World("timeout: 10s\nretries: {retryOn: [gateway-error], perTryTimeout: 1s, backoff: {base: 1ms}}\n" + BREAKER)
    ran = world.run(TIMED_OUT, OK, takes=1.0)
    assert (ran.step, ran.attempts) == (RETURN, 2)
    assert world.plan().breaker.window.failures == 1


def test_a_loop_that_is_a_hair_early_has_met_the_limit():
    world = World("timeout: 1s\n")
    assert world.run(TIMED_OUT, takes=0.9995).step is RAISE
    assert world.run(TIMED_OUT, takes=0.99).step is RETURN


def test_the_client_s_own_time_out_before_the_limit_is_its_own():
    world = World("timeout: 10s\n")
    ran = world.run(TIMED_OUT, takes=5.0)
    assert (ran.step, ran.error) == (RETURN, None)


# --------------------------------------------------------------------------------------------- committed bodies


@pytest.mark.parametrize(
    ("verdict", "window", "counted"),
    [(Verdict.SUCCESS, (1, 0), "succeeded"), (Verdict.FAILURE, (1, 1), "failed"), (Verdict.IGNORED, (0, 0), "ignored")],
)
def test_a_body_is_judged_when_it_ends(verdict, window, counted):
    world = World(BREAKER + ENDPOINTS + "concurrency: {maxRequests: 9}\n")
    call = world.flying()
    call.answered(world.now, 1, OPEN)
    assert world.plan().breaker.window.calls == 0
    call.ended(world.now, 1, verdict)
    assert (world.plan().breaker.window.calls, world.plan().breaker.window.failures) == window
    assert world.stats()[counted] == 1
    assert world.held() == NOTHING


def test_responses_that_die_in_the_body_open_the_circuit():
    world = World(BREAKER)
    for _ in range(4):
        call = world.flying()
        call.answered(world.now, 1, OPEN)
        call.ended(world.now, 1, Verdict.FAILURE)
    assert world.plan().breaker.state == "OPEN"


@pytest.mark.parametrize("observed", [True, False])
def test_to_outlier_detection_headers_are_one_result_and_a_body_that_breaks_is_another(observed):
    """As in Envoy: a success that breaks is one failure, never two in a row; a 503 that breaks is two."""
    world = World("endpoints: [{address: '10.0.0.1:80'}]\noutlierDetection: {consecutive5xxErrors: 3}\n", observed=observed)
    endpoint = world.plan().endpoints[0]
    for _ in range(4):
        call = world.flying()
        call.answered(world.now, 1, OPEN)
        call.ended(world.now, 1, Verdict.FAILURE)
        assert endpoint.server_errors == 1
    call = world.flying()
    call.answered(world.now, 1, status(503, complete=False))
    assert not endpoint.ejected
    call.ended(world.now, 1, Verdict.FAILURE)
    assert endpoint.ejected


def test_a_body_that_ends_well_forgives_nothing_that_failed_meanwhile():
    world = World("endpoints: [{address: '10.0.0.1:80'}]\noutlierDetection: {consecutive5xxErrors: 3}\n")
    streaming = world.flying()
    streaming.answered(world.now, 1, OPEN)
    world.run(S503)
    streaming.ended(world.now, 1, Verdict.SUCCESS)
    assert world.plan().endpoints[0].server_errors == 1


@pytest.mark.parametrize("observed", [True, False])
def test_a_probe_succeeds_at_commit(observed):
    world = World(BREAKER, observed=observed)
    world.trip()
    world.clock.advance(10)
    probes = [world.flying(), world.flying()]
    for call in probes:
        call.answered(world.now, 1, OPEN)
    assert world.plan().breaker.state == "CLOSED"
    for call in probes:
        call.ended(world.now, 1, Verdict.FAILURE)
    assert world.plan().breaker.window.calls == 0, "a probe is judged once"


@pytest.mark.parametrize("observed", [True, False])
def test_slow_call_time_ends_at_commit(observed):
    world = World(
        "circuitBreaker: {failureRateThreshold: null, slowCallRateThreshold: 50, slowCallDurationThreshold: 1s,"
        " slidingWindow: {size: 4}}\n",
        observed=observed,
    )
    for seconds in (0.5, 1.0):
        call = world.flying()
        world.clock.advance(seconds)
        call.answered(world.now, 1, OPEN)
        world.clock.advance(60)
        call.ended(world.now, 1, Verdict.SUCCESS)
    assert (world.plan().breaker.window.calls, world.plan().breaker.window.slow) == (2, 1)


def test_a_failure_with_a_body_is_judged_at_its_headers_and_counts_once():
    world = World(BREAKER + "concurrency: {maxRequests: 1}\n")
    call = world.flying()
    assert call.answered(world.now, 1, status(503, complete=False)) is RETURN
    assert world.plan().breaker.window.failures == 1
    assert world.gate().in_flight == 1
    call.ended(world.now, 1, Verdict.SUCCESS)
    assert world.plan().breaker.window.failures == 1
    assert world.stats()["failed"] == 1


def test_a_committed_call_is_not_retried():
    world = World(RETRIES)
    call = world.flying()
    call.answered(world.now, 1, OPEN)
    assert call.answered(world.now, 1, S503) is RETURN
    assert call.number == 1


# --------------------------------------------------------------------------------------- faults of an attempt


def test_a_fault_of_an_attempt_feeds_the_circuit_and_the_retries_but_ejects_nobody():
    world = World(
        RETRIES + BREAKER + ENDPOINTS + "outlierDetection: {consecutive5xxErrors: 1}\nfault: {abort: {httpStatus: 503}, scope: ATTEMPT}\n"
    )
    for _ in range(4):
        call, step = world.start()
        while step is SEND:
            assert call.injected == 503
            step = call.answered(world.now, call.number, status(503, injected=True))
            if step is SLEEP:
                world.clock.advance(1)
                step = call.woke(world.now)
    assert world.plan().breaker.state == "OPEN"
    assert not any(endpoint.ejected for endpoint in world.plan().endpoints)
    assert world.stats()["faults"]["abort"] == 4
    assert world.stats()["retries"] > 0


def test_a_delay_longer_than_one_try_is_a_time_out_that_is_retried():
    world = World(
        "retries: {maxRetries: 1, retryOn: [gateway-error], perTryTimeout: 1s, idempotent: true, backoff: {base: 1ms}}\n"
        "fault: {delay: {fixedDelay: 5s}, scope: ATTEMPT}\n"
    )
    call, _ = world.start()
    assert call.wake_at == world.now + 1
    world.clock.advance(1)
    assert call.woke(world.now) is SLEEP, "the backoff before the second"
    world.clock.advance(0.1)
    assert call.woke(world.now) is SLEEP, "the second one's delay"
    world.clock.advance(1)
    assert call.woke(world.now) is RAISE
    assert type(call.error) is DeadlineExceeded


@pytest.mark.parametrize("scope", ["CALL", "ATTEMPT"])
def test_delay_and_abort_are_drawn_apart(scope):
    world = World(f"fault: {{abort: {{httpStatus: 500, percent: 50}}, delay: {{fixedDelay: 1s, percent: 50}}, scope: {scope}}}\n")
    seen = {}
    for _ in range(2000):
        call, step = world.start()
        delayed = step is SLEEP
        if delayed:
            world.clock.advance(1)
            step = call.woke(world.now)
        aborted = call.injected is not None if scope == "ATTEMPT" else step is RAISE
        seen[delayed, aborted] = seen.get((delayed, aborted), 0) + 1
        call.abandon(world.now)
    assert all(400 < seen[delayed, aborted] < 600 for delayed in (True, False) for aborted in (True, False))


# ----------------------------------------------------------------------------------------------------- OBSERVE


def observing(blocks):
    return World(blocks, mesh="mode: OBSERVE")


@pytest.mark.parametrize("blocks", [
    BREAKER, "rateLimit: {requests: 1, per: 60s}\n", "concurrency: {maxRequests: 1, maxPending: 5}\n", RETRIES, "timeout: 1s\n", ENDPOINTS,
    "fault: {abort: {httpStatus: 500}, delay: {fixedDelay: 1s}}\n", "fault: {abort: {httpStatus: 500}, scope: ATTEMPT}\n",
])
def test_observe_changes_nothing(blocks):
    world = observing(blocks)
    for _ in range(10):
        call, step = world.start()
        assert step is SEND
        assert (call.endpoint, call.injected, call.deadline, call.headers_by) == (None, None, float("inf"), float("inf"))
        assert call.answered(world.now, 1, S503) is RETURN
        assert call.error is None
    assert world.held() == NOTHING
    assert world.stats()["rejected"] == {}
    assert world.stats()["failed"] == 10


def test_observe_counts_what_would_have_been_rejected():
    world = observing(BREAKER)
    for _ in range(7):
        world.run(S503)
    assert world.stats()["wouldReject"] == {"CircuitOpen": 3}
    assert world.told("would_reject") == ["would_reject"] * 3
    assert world.plan().breaker.window.calls == 4, "they do not feed the circuit"


def test_a_call_that_the_circuit_would_refuse_would_hold_no_slot():
    world = observing(BREAKER + "concurrency: {maxRequests: 1}\n")
    for _ in range(4):
        world.run(S503)
    for _ in range(3):
        world.flying()
    assert world.stats()["wouldReject"] == {"CircuitOpen": 3}


def test_the_circuit_goes_through_its_states_under_observe():
    world = observing(BREAKER)
    for _ in range(4):
        world.run(S503)
    world.clock.advance(10)
    for _ in range(2):
        world.run(OK)
    assert [event.detail["new"] for event in world.events if event.name == "circuit_changed"] == ["OPEN", "HALF_OPEN", "CLOSED"]


def test_a_body_that_breaks_counts_under_observe_too():
    world = observing(BREAKER)
    call = world.flying()
    call.answered(world.now, 1, OPEN)
    call.ended(world.now, 1, Verdict.FAILURE)
    assert world.plan().breaker.window.failures == 1


# ------------------------------------------------------------------------------------------------------ events


def names(world):
    return [event.name for event in world.events]


def test_the_events_of_a_success():
    world = World()
    world.run(OK)
    assert names(world) == ["call_started", "attempt_started", "attempt_ended", "call_ended"]
    assert {event.call for event in world.events} == {1}


def test_the_events_of_a_retry_and_of_a_circuit_that_opens():
    world = World(RETRIES + BREAKER)
    for _ in range(3):
        world.run(S503, idempotent=False)
    world.events.clear()
    world.run(S503, status(200))
    assert names(world) == ["call_started", "attempt_started", "attempt_ended", "circuit_changed", "retry_refused", "call_ended"]
    assert [event.detail.get("reason") for event in world.events if event.name == "retry_refused"] == ["circuit"]


def test_the_events_of_a_backoff():
    world = World(RETRIES)
    world.run(RESET, OK)
    assert names(world) == [
        "call_started", "attempt_started", "attempt_ended", "backoff", "attempt_started", "attempt_ended", "call_ended",
    ]
    assert [event.attempt for event in world.events] == [0, 1, 1, 1, 2, 2, 2]


def test_the_events_of_the_queue():
    world = World("concurrency: {maxRequests: 1, maxPending: 1}\n")
    first = world.flying()
    second, step = world.start()
    assert step is WAIT
    assert world.start()[1] is RAISE
    world.events.clear()
    first.answered(world.now, 1, OK)
    second.woke(world.now)
    assert [(event.name, event.call) for event in world.events] == [("attempt_ended", 1), ("call_ended", 1), ("attempt_started", 2)]


def test_a_body_ends_the_call_in_the_events():
    world = World()
    call = world.flying()
    call.answered(world.now, 1, OPEN)
    assert names(world)[-1] == "attempt_ended"
    call.ended(world.now, 1, Verdict.FAILURE)
    assert (world.events[-1].name, world.events[-1].detail["verdict"]) == ("call_ended", "FAILURE")


def test_an_observer_that_comes_late_learns_the_rest():
    world = World(observed=False)
    call = world.flying()
    world.mesh.subscribe(world.events.append)
    call.answered(world.now, 1, OK)
    assert names(world) == ["attempt_ended", "call_ended"]


def test_an_observer_that_raises_breaks_no_call_and_is_dropped(caplog):
    world = World()

    def broken(event):
        raise ValueError("no")

    world.mesh.subscribe(broken)
    world.run(OK)
    world.run(OK)
    assert [record.message for record in caplog.records] == ["an observer raised at call_started and is unsubscribed"]
    assert names(world).count("call_ended") == 2


# ------------------------------------------------------------------------------- the nine questions, on calls


def probing():
    return World(BREAKER)


def state(world):
    return world.plan().breaker.state


def test_question_1_a_hundred_returned_503s_open_it():
    world = probing()
    for _ in range(4):
        world.run(S503)
    assert state(world) == "OPEN"
    assert world.run(OK).step is RAISE


def test_questions_2_and_7_answers_from_before_the_trip_change_nothing():
    world = probing()
    stale = [world.flying() for _ in range(20)]
    world.trip()
    for call in stale[:5]:
        call.answered(world.now, 1, OK)
    assert state(world) == "OPEN"
    world.clock.advance(10)
    probe = world.flying()
    for call in stale[5:10]:
        call.answered(world.now, 1, OK)
    for call in stale[10:15]:
        call.answered(world.now, 1, S503)
    assert state(world) == "HALF_OPEN"
    probe.answered(world.now, 1, OK)
    world.run(OK)
    assert state(world) == "CLOSED"
    for call in stale[15:]:
        call.answered(world.now, 1, S503)
    assert state(world) == "CLOSED"
    assert world.held() == NOTHING


def test_question_3_half_open_lets_through_what_is_permitted():
    world = probing()
    world.trip()
    world.clock.advance(10)
    assert [world.start()[1] for _ in range(20)].count(SEND) == 2


@pytest.mark.parametrize("end", [
    lambda call, now: call.abandon(now), lambda call, now: call.answered(now, 1, NOBODYS_FAULT),
    lambda call, now: call.orphan(),
], ids=["cancelled", "foreign error", "garbage"])
def test_questions_4_5_6_and_8_who_goes_away_decides_nothing(end):
    world = probing()
    for _ in range(30):
        end(world.flying(), world.now)
    assert state(world) == "CLOSED"
    world.trip()
    world.clock.advance(10)
    for _ in range(30):
        end(world.flying(), world.now)
        assert state(world) == "HALF_OPEN"
    world.run(OK)
    world.run(OK)
    assert state(world) == "CLOSED"


def test_question_9_a_success_of_an_earlier_half_open_does_not_count():
    world = probing()
    world.trip()
    world.clock.advance(10)
    early, failing = world.flying(), world.flying()
    failing.answered(world.now, 1, S503)
    world.clock.advance(10)
    probe = world.flying()
    early.answered(world.now, 1, OK)
    assert world.start()[1] is SEND, "one place is still free: nothing was counted"
    probe.answered(world.now, 1, OK)
    assert state(world) == "HALF_OPEN"


RATES = (
    "endpoints: [{address: '10.0.0.1:80'}]\n"
    "outlierDetection: {consecutive5xxErrors: null, interval: 1s, splitExternalLocalOriginErrors: %s,\n"
    "                   failurePercentage: {threshold: 100, minimumHosts: 1, requestVolume: 1}}\n"
)


@pytest.mark.parametrize("observed", [False, True])
@pytest.mark.parametrize(("split", "external", "local"), [("false", 50.0, None), ("true", 60.0, 500 / 6)])
def test_rates_count_every_answer_once_and_a_body_that_breaks_once_more(split, external, local, observed):
    """Of ENVOY.md's kinds: 200, 200 with a body, 200 whose body breaks, and two 503."""
    world = World(RATES % split, observed=observed)
    world.run(OK)
    for verdict in (Verdict.SUCCESS, Verdict.FAILURE):
        call = world.flying()
        call.answered(world.now, 1, OPEN)
        call.ended(world.now, 1, verdict)
    world.run(S503)
    world.run(S503)
    world.clock.jump(1.0)
    world.start()
    shown = world.mesh.snapshot()["services"]["s"]["endpoints"]["10.0.0.1:80"]
    # Split: 3 of 5 answers; of the connections 5 were good and one broke.
    assert shown["successRate"] == pytest.approx(external)
    assert shown["localOriginSuccessRate"] == (None if local is None else pytest.approx(local))


def test_what_a_fault_makes_up_is_in_no_rate():
    world = World(RATES % "false" + "fault: {abort: {httpStatus: 503}, scope: ATTEMPT}\n")
    for _ in range(5):
        call = world.flying()
        call.answered(world.now, 1, status(503, injected=True))
    world.clock.jump(1.0)
    world.start()
    assert world.mesh.snapshot()["services"]["s"]["endpoints"]["10.0.0.1:80"]["successRate"] is None
