"""What is retried, when, how often, and what the user gets when it is not."""

from __future__ import annotations

import pytest
from driver import BREAKER, ENDPOINTS, NOTHING, OK, REFUSED, RESET, RETRIES, S503, TIMED_OUT, World, status

from resilmesh.engine.backoff import backoff, come_back
from resilmesh.engine.call import RAISE, RETURN, SEND, SLEEP
from resilmesh.engine.verdict import WORDS, Answer, Verdict, mask
from resilmesh.errors import CircuitOpen, DeadlineExceeded, NoHealthyEndpoint


def retrying(*on, more=""):
    return World(f"retries: {{maxRetries: 1, retryOn: [{', '.join(map(str, on))}]{more}}}\n")


@pytest.mark.parametrize(
    ("on", "answer", "attempts"),
    [
        (["5xx"], S503, 2), (["5xx"], status(500), 2), (["5xx"], status(404), 1), (["5xx"], status(429), 1), (["5xx"], RESET, 2),
        (["5xx"], REFUSED, 2), (["5xx"], TIMED_OUT, 2), (["gateway-error"], S503, 2), (["gateway-error"], status(500), 1),
        (["gateway-error"], RESET, 2), (["connect-failure"], REFUSED, 2), (["connect-failure"], S503, 1), (["connect-failure"], RESET, 1),
        (["reset"], RESET, 2), (["reset"], S503, 1), (["retriable-4xx"], status(409), 2), (["retriable-4xx"], status(404), 1),
        ([429], status(429), 2), ([418], status(418), 2), ([418], status(404), 1), ([200], OK, 2), ([500], status(500), 2),
        ([429], Answer(Verdict.THROTTLED, WORDS["envoy-ratelimited"], 429), 1),
        (["envoy-ratelimited"], Answer(Verdict.THROTTLED, WORDS["envoy-ratelimited"], 429), 2),
    ],
)
def test_words_and_statuses_govern(on, answer, attempts):
    world = retrying(*on)
    ran = world.run(answer)
    assert (ran.step, ran.attempts) == (RETURN, attempts)
    assert world.held() == NOTHING


@pytest.mark.parametrize("word", sorted(WORDS))
def test_every_word_is_a_word_of_its_own(word):
    assert retrying(word).run(Answer(Verdict.FAILURE, mask(word))).attempts == 2
    others = mask(*(each for each in WORDS if each != word))
    assert retrying(word).run(Answer(Verdict.FAILURE, others)).attempts == 1


def test_nothing_is_retried_without_the_block():
    assert World().run(S503).attempts == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_max_retries_counts_attempts_after_the_first(retries):
    world = World(f"retries: {{maxRetries: {retries}, retryOn: [5xx]}}\n")
    assert world.run(S503).attempts == retries + 1
    assert world.stats()["retries"] == retries


@pytest.mark.parametrize(("answer", "idempotent", "replayable", "attempts"), [
    (S503, True, True, 2), (S503, False, True, 1), (S503, True, False, 1), (TIMED_OUT, False, True, 1),
    (REFUSED, False, True, 2),  # the service never saw it
    (REFUSED, False, False, 1), (status(429), False, True, 1),
])
def test_what_may_have_reached_the_service_is_repeated_only_if_that_is_harmless(answer, idempotent, replayable, attempts):
    world = retrying("5xx", 429)
    assert world.run(answer, idempotent=idempotent, replayable=replayable).attempts == attempts


def test_the_last_response_is_returned_as_it_is():
    world = World(RETRIES)
    ran = world.run(status(500), status(502), status(504))
    assert (ran.step, ran.attempts, ran.error) == (RETURN, 3, None)
    assert world.stats()["failed"] == 1
    assert world.stats()["attemptsByVerdict"] == {"FAILURE": 3}


# ------------------------------------------------------------------------------------------------------ waits


def test_backoff_is_full_jitter_and_bounded():
    longest = [backoff(retry, 0.025, 0.25, 0.999999) for retry in (1, 2, 3, 4, 5)]
    assert longest == pytest.approx([0.025, 0.075, 0.175, 0.25, 0.25], rel=1e-5)
    assert backoff(5, 0.025, 0.25, 0.0) == 0
    assert backoff(10_000, 0.025, 0.25, 0.5) == 0.125


def test_come_back_adds_up_to_half():
    assert (come_back(2.0, 0.0), come_back(2.0, 0.5)) == (2.0, 2.5)


@pytest.mark.parametrize(("asked", "least", "most"), [(2.0, 2.0, 3.0), (60.0, 60.0, 90.0), (60.1, 0.0, 0.1), (0.0, 0.0, 0.1)])
def test_the_service_says_when_to_come_back(asked, least, most):
    waits = []
    for seed in range(30):
        world = World(RETRIES, seed=seed)
        call = world.flying()
        assert call.answered(world.now, 1, status(503, retry_after=asked)) is SLEEP
        waits.append(call.wake_at - world.now)
    assert all(least <= wait <= most for wait in waits)
    assert len(set(waits)) > 1


def test_retry_after_null_is_the_backoff():
    world = World("retries: {retryOn: [5xx], retryAfter: null, backoff: {base: 10ms}, idempotent: true}\n")
    call = world.flying()
    call.answered(world.now, 1, status(503, retry_after=30.0))
    assert call.wake_at < world.now + 0.02


# --------------------------------------------------------------- leave to retry, asked before the backoff


def test_a_retry_that_would_end_past_the_deadline_is_not_waited_for():
    world = World("timeout: 5s\n" + RETRIES)
    call = world.flying()
    assert call.answered(world.now, 1, status(503, retry_after=5.0)) is RETURN
    assert call.error is None
    assert world.stats()["retriesRefused"] == {"deadline": 1}


def test_a_retry_that_an_open_circuit_would_refuse_is_not_waited_for():
    world = World(RETRIES + BREAKER)
    for _ in range(3):
        world.run(S503, idempotent=False)
    call = world.flying()
    assert call.answered(world.now, 1, S503) is RETURN
    assert world.stats()["retriesRefused"] == {"circuit": 1}


def test_a_backoff_that_outlasts_the_open_circuit_is_waited_for():
    world = World(RETRIES + BREAKER)
    for _ in range(3):
        world.run(S503, idempotent=False)
    call = world.flying()
    assert call.answered(world.now, 1, status(503, retry_after=10.0)) is SLEEP
    world.clock.advance(call.wake_at - world.now)
    assert call.woke(world.now) is SEND
    assert world.held()["probes"] == 1


BUDGET = "retryBudget: {percent: 20, minRetriesPerSecond: 0, ttl: 10s}\n"


def test_the_budget_takes_its_deposit_once_per_call():
    world = World(RETRIES + BUDGET)
    ran = [world.run(S503).attempts for _ in range(10)]
    assert sum(ran) == 12
    assert world.stats()["retriesRefused"]["budget"] == 10


def test_what_another_reason_refuses_costs_no_budget():
    world = World("timeout: 1s\n" + RETRIES + "retryBudget: {percent: 100, minRetriesPerSecond: 0}\n")
    world.run(status(503, retry_after=5.0))
    assert world.plan().budget.balance(world.now) == 1


# ------------------------------------------------------------------------------- refused after the backoff


def test_the_circuit_opens_during_the_backoff_and_the_kept_outcome_is_returned():
    world = World(RETRIES + BREAKER)
    call = world.flying()
    assert call.answered(world.now, 1, S503) is SLEEP
    world.trip()
    world.clock.advance(0.1)
    assert call.woke(world.now) is RETURN
    assert type(call.error) is CircuitOpen
    assert call.error.attempts == 1
    assert world.stats()["retriesRefused"] == {"circuit": 1}
    assert world.stats()["retries"] == 0
    assert world.held() == NOTHING


def test_the_last_endpoint_is_ejected_during_the_backoff():
    world = World(RETRIES + "endpoints: [{address: '10.0.0.1:80'}]\noutlierDetection: {consecutive5xxErrors: 1}\n")
    call = world.flying()
    assert call.answered(world.now, 1, S503) is SLEEP
    world.clock.advance(0.1)
    assert call.woke(world.now) is RETURN
    assert type(call.error) is NoHealthyEndpoint
    assert world.stats()["retriesRefused"] == {"endpoint": 1}
    assert world.held() == NOTHING


def test_a_driver_that_wakes_past_the_deadline_returns_the_kept_outcome():
    world = World("timeout: 1s\n" + RETRIES)
    call = world.flying()
    assert call.answered(world.now, 1, S503) is SLEEP
    world.clock.advance(2)
    assert call.woke(world.now) is RETURN
    assert type(call.error) is DeadlineExceeded
    assert world.stats()["retriesRefused"] == {"deadline": 1}


def test_retries_go_to_endpoints_that_were_not_tried():
    world = World(RETRIES + ENDPOINTS)
    for _ in range(10):
        call = world.flying()
        first = call.endpoint
        call.answered(world.now, 1, S503)
        world.clock.advance(1)
        assert call.woke(world.now) is SEND
        assert call.endpoint is not first
        call.answered(world.now, 2, OK)
    assert world.held() == NOTHING


def test_an_error_of_the_last_attempt_is_the_users_own():
    """A time-out that the service or the client raised by itself is not reported as ours."""
    world = World("timeout: 10s\n" + RETRIES)
    ran = world.run(TIMED_OUT)
    assert (ran.step, ran.attempts, ran.error) == (RETURN, 3, None)


def test_retries_exhausted_on_our_own_limit_raise():
    world = World("retries: {maxRetries: 1, retryOn: [5xx], perTryTimeout: 1s, idempotent: true}\n")
    ran = world.run(TIMED_OUT, takes=1.0)
    assert (ran.step, ran.attempts) == (RAISE, 2)
    assert type(ran.error) is DeadlineExceeded
    assert ran.error.attempts == 2


# ---------------------------------------------------------------------------------------- gRPC's own rules

UNSEEN = Answer(Verdict.UNSENT, mask("refused-stream"), 503, grpc="UNAVAILABLE", refused=True)


@pytest.mark.parametrize(("blocks", "attempts"), [
    ("", 2), ("retries: {maxRetries: 1, retryOn: [unavailable]}\n", 2), ("retries: {maxRetries: 0, retryOn: [refused-stream]}\n", 2),
    ("retries: {maxRetries: 2, retryOn: [refused-stream], backoff: {base: 1ms}}\n", 4),
    ("retryBudget: {percent: 0, minRetriesPerSecond: 0}\n", 2),
])
def test_what_the_service_did_not_look_at_is_sent_again_once_whatever_the_policy_says(blocks, attempts):
    world = World(blocks)
    assert world.run(UNSEEN, idempotent=False).attempts == attempts
    assert world.held() == NOTHING


def test_what_cannot_be_sent_again_is_not():
    assert World().run(UNSEEN, replayable=False).attempts == 1


def test_a_grpc_status_is_no_http_status():
    assert retrying(503).run(Answer(Verdict.FAILURE, 0, 503, grpc="UNAVAILABLE")).attempts == 1


@pytest.mark.parametrize(("timeout", "own", "said"), [(None, 2.0, "2s"), ("3s", 2.0, "2s"), ("1s", 2.0, "1s")])
def test_a_callers_own_timeout_is_a_timeout(timeout, own, said):
    world = World("" if timeout is None else f"timeout: {timeout}\n")
    call = world.call()
    call.lasts(world.now, own)
    ran = world.run(Answer(Verdict.FAILURE, 0, timed_out=True), call=call, takes=5.0)
    assert ran.step is RAISE
    assert isinstance(ran.call.error, DeadlineExceeded)
    assert f"no answer within the timeout of {said}" in str(ran.call.error)
    assert (world.stats()["failed"], world.stats()["ignored"]) == (1, 0)  # as an inherited deadline would not be
