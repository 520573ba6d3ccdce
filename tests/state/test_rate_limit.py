"""Token buckets against the bucket itself: a number of tokens that grows with time."""

from __future__ import annotations

import threading
from fractions import Fraction

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resilmesh.state.ratelimit import AllOf, LimitsByValue, RateLimit, RateLimitByValue


def taken(limit, now, calls):
    return sum(limit.take(now) for _ in range(calls))


def test_a_bucket_starts_full():
    assert taken(RateLimit(5, 1.0, 5), 1000.0, 8) == 5


def test_tokens_flow_in_continuously():
    limit = RateLimit(5, 1.0, 5)
    taken(limit, 1000.0, 5)
    assert not limit.take(1000.19)
    assert limit.take(1000.2)
    assert not limit.take(1000.2)
    assert taken(limit, 1000.8, 9) == 3


def test_the_bucket_holds_no_more_than_burst():
    limit = RateLimit(10, 1.0, 3)
    taken(limit, 1000.0, 3)
    assert taken(limit, 2000.0, 9) == 3


def test_a_refused_call_costs_no_token():
    limit = RateLimit(1, 1.0, 1)
    limit.take(1000.0)
    for tenth in range(1, 10):
        assert not limit.take(1000.0 + tenth / 10)
    assert limit.take(1001.0)


def test_retry_after_is_when_the_next_token_comes():
    limit = RateLimit(2, 1.0, 1)
    assert limit.retry_after(1000.0) == 0
    limit.take(1000.0)
    assert limit.retry_after(1000.0) == pytest.approx(0.5, abs=1e-5)
    assert limit.retry_after(1000.4) == pytest.approx(0.1, abs=1e-5)
    assert limit.take(1000.0 + limit.retry_after(1000.0))


def test_a_token_of_a_limit_is_given_back_when_another_refuses():
    wide, narrow = RateLimit(10, 1.0, 10), RateLimit(1, 1.0, 1)
    both = AllOf([wide, narrow])
    assert [both.take(1000.0) for _ in range(3)] == [True, False, False]
    assert wide.tokens(1000.0) == pytest.approx(9)
    assert both.retry_after(1000.0) == pytest.approx(1.0, abs=1e-5)


def test_a_retuned_bucket_misses_as_many_tokens_as_before():
    limit = RateLimit(10, 1.0, 10)
    taken(limit, 1000.0, 4)
    limit.retune(100, 1.0, 50)
    assert limit.tokens(1000.0) == pytest.approx(46)
    assert taken(limit, 1000.0, 99) == 46


def test_a_smaller_bucket_is_empty_at_worst():
    limit = RateLimit(10, 1.0, 10)
    taken(limit, 1000.0, 10)
    limit.retune(10, 1.0, 2)
    assert limit.tokens(1000.0) == pytest.approx(0)
    assert limit.take(1000.1)


def test_the_snapshot_names_the_figures_and_the_tokens():
    limit = RateLimit(4, 2.0, 8)
    limit.take(1000.0)
    assert limit.snapshot(1000.0) == {"requests": 4, "per": 2.0, "burst": 8, "tokens": 7.0}


figures = st.tuples(st.integers(1, 20), st.sampled_from([0.125, 0.5, 1.0, 60.0]), st.integers(1, 20))


class RateLimitMachine(RuleBasedStateMachine):
    @initialize(given=figures)
    def begin(self, given):
        self.now = Fraction(1000)
        self.requests, self.per, self.burst = given
        self.limit = RateLimit(*given)
        self.tokens = Fraction(self.burst)

    @rule(sixteenths=st.integers(0, 64))
    def wait(self, sixteenths):
        passed = Fraction(sixteenths, 16)
        self.now += passed
        self.tokens = min(Fraction(self.burst), self.tokens + passed * self.requests / Fraction(self.per))

    @rule()
    def take(self):
        # A millionth of a token of slack is the limit's own; the model's figures are exact.
        near = abs(self.tokens - 1) < Fraction(1, 10_000)
        answer = self.limit.take(float(self.now))
        assert near or answer == (self.tokens >= 1)
        if answer:
            self.tokens -= 1

    @rule(given=figures)
    def retune(self, given):
        missing = self.burst - self.tokens
        self.requests, self.per, self.burst = given
        self.tokens = max(Fraction(0), self.burst - missing)
        self.limit.retune(*given)
        self.limit.tokens(float(self.now))  # a retune counts from the next time that anybody looks

    @invariant()
    def tokens_agree(self):
        if hasattr(self, "limit"):
            assert self.limit.tokens(float(self.now)) == pytest.approx(float(self.tokens), abs=1e-3)


RateLimitMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestRateLimitMachine = RateLimitMachine.TestCase


# ------------------------------------------------------------------------------------- by header value


def by_value(**changes):
    figures = {"header": "x-user", "requests": 2, "per": 10.0, "burst": 2, "max_values": 3}
    return RateLimitByValue(**{**figures, **changes})


def test_each_value_has_a_bucket_and_those_without_one_share():
    limits = by_value()
    assert [taken(limits.of(value), 1000.0, 4) for value in ("a", "b", None)] == [2, 2, 2]
    assert taken(limits.of("a"), 1000.0, 1) == 0


def test_the_bucket_unused_for_longest_goes_first():
    limits = by_value()
    for value in ("a", "b", "c", "a", "d"):
        limits.of(value).take(1000.0)
    assert limits.snapshot(1000.0) == {
        "requests": 2, "per": 10.0, "burst": 2, "header": "x-user", "values": 3, "evicted": 1,
    }
    assert taken(limits.of("a"), 1000.0, 4) == 0, "kept, because it was used"
    assert taken(limits.of("b"), 1000.0, 4) == 2, "it went, and begins anew"


def test_the_bucket_of_requests_without_the_header_is_none_of_the_values():
    limits = by_value(max_values=1)
    taken(limits.of("a"), 1000.0, 2)
    assert taken(limits.of(None), 1000.0, 4) == 2
    assert taken(limits.of("a"), 1000.0, 4) == 0
    limits.of("b")
    assert taken(limits.of(None), 1000.0, 4) == 0
    assert limits.snapshot(1000.0)["evicted"] == 1
    limits.retune(4, 10.0, 4, 1)
    assert limits.of(None).burst == 4


def test_a_long_value_is_told_apart_and_not_kept():
    limits = by_value()
    assert limits.of("a" * 5000) is limits.of("a" * 5000)
    assert limits.of("a" * 5000) is not limits.of("a" * 5001)
    assert limits.of("a" * 128) is not limits.of("a" * 129)


def test_new_figures_reach_every_bucket_and_a_smaller_number_of_them_evicts():
    limits = by_value()
    for value in ("a", "b", "c"):
        taken(limits.of(value), 1000.0, 2)
    limits.retune(4, 10.0, 4, 2)
    assert limits.snapshot(1000.0)["values"] == 2
    assert taken(limits.of("c"), 1000.0, 9) == 2, "what was missing stays missing"


def test_several_limits_of_one_request():
    whole, user = RateLimit(3, 10.0, 3), by_value()
    both = LimitsByValue([whole, user])
    assert both.headers == ("x-user",)
    assert taken(both.of(("a",)), 1000.0, 5) == 2
    assert taken(both.of(("b",)), 1000.0, 5) == 1, "the limit of all is used up, and b keeps its second token"
    assert user.of("b").tokens(1000.0) == 1
    assert LimitsByValue([user]).of(()) is user.of(None)


def test_threads_that_come_at_once_get_one_bucket_a_value():
    limits = by_value(requests=1_000_000, burst=1_000_000, max_values=4)
    values = [str(number) for number in range(4)]

    def work():
        for number in range(4000):
            limits.of(values[number % 4]).take(1000.0)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(1_000_000 - limits.of(value).tokens(1000.0) for value in values) == pytest.approx(16_000, abs=0.1)


class ByValueMachine(RuleBasedStateMachine):
    """Against a list of values in the order of their last use, each with its tokens."""

    def __init__(self):
        super().__init__()
        self.limits, self.now, self.kept = by_value(), 1000.0, {}
        #: Of requests without the header, whose bucket never goes.
        self.without = {}

    @rule(value=st.sampled_from(["a", "b", "c", "d", None, "e" * 200]))
    def call(self, value):
        kept = self.without if value is None else self.kept
        tokens, at = kept.pop(value, (Fraction(2), self.now))
        tokens = min(Fraction(2), tokens + Fraction(2, 10) * (Fraction(self.now) - Fraction(at)))
        passes = self.limits.of(value).take(self.now)
        assert passes == (tokens >= 1)
        kept[value] = (tokens - passes, self.now)
        while len(self.kept) > 3:
            self.kept.pop(next(iter(self.kept)))

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.0, 20.0]))
    def wait(self, seconds):
        self.now += seconds

    @invariant()
    def bounded(self):
        assert self.limits.snapshot(self.now)["values"] == len(self.kept)


TestByValueMachine = ByValueMachine.TestCase
TestByValueMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
