"""Sliding windows against the plain list of everything that was ever recorded."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resilmesh.state.window import CountWindow, TimeWindow


def test_a_count_window_forgets_the_oldest():
    window = CountWindow(3)
    for failed in (True, False, False, False):
        window.record(0.0, failed=failed, slow=False)
    assert (window.calls, window.failures) == (3, 0)


def test_a_count_window_counts_failures_and_slow_calls_apart():
    window = CountWindow(10)
    window.record(0.0, failed=True, slow=True)
    window.record(0.0, failed=False, slow=True)
    window.success(0.0)
    assert (window.calls, window.failures, window.slow) == (3, 1, 2)


def test_a_success_takes_the_place_of_a_failure():
    window = CountWindow(1)
    window.record(0.0, failed=True, slow=True)
    window.success(0.0)
    assert (window.calls, window.failures, window.slow) == (1, 0, 0)


def test_a_time_window_keeps_for_nine_tenths_and_forgets_after_the_whole():
    window = TimeWindow(10.0)
    window.record(1000.0, failed=True, slow=False)
    window.roll(1009.0)
    assert (window.calls, window.failures) == (1, 1)
    window.roll(1010.0)
    assert (window.calls, window.failures) == (0, 0)


def test_a_time_window_forgets_in_steps_of_a_tenth():
    window = TimeWindow(10.0)
    for second in range(10):
        window.record(1000.0 + second, failed=second % 2 == 0, slow=False)
    seen = []
    for second in range(10, 15):
        window.roll(1000.0 + second)
        seen.append((window.calls, window.failures))
    assert seen == [(9, 4), (8, 4), (7, 3), (6, 3), (5, 2)]


def test_a_time_window_that_slept_past_its_length_is_empty():
    window = TimeWindow(10.0)
    window.record(1000.0, failed=True, slow=True)
    window.roll(5000.0)
    assert (window.calls, window.failures, window.slow) == (0, 0, 0)


def test_a_time_that_is_older_than_the_bucket_counts_in_it():
    """Two threads read the clock in one order and record in the other."""
    window = TimeWindow(10.0)
    window.success(1005.0)
    window.record(1004.9, failed=True, slow=False)
    assert (window.calls, window.failures) == (2, 1)


@pytest.mark.parametrize("start", [0.0, 0.05, 1e-9, 1e9])
def test_a_time_window_works_from_any_origin_of_the_clock(start):
    window = TimeWindow(1.0)
    window.success(start)
    window.roll(start + 0.85)
    assert window.calls == 1
    window.roll(start + 2.0)
    assert window.calls == 0


class CountWindowMachine(RuleBasedStateMachine):
    @initialize(size=st.integers(1, 7))
    def begin(self, size):
        self.window, self.size, self.outcomes = CountWindow(size), size, []

    @rule()
    def success(self):
        self.window.success(0.0)
        self.outcomes.append((False, False))

    @rule(failed=st.booleans(), slow=st.booleans())
    def record(self, failed, slow):
        self.window.record(0.0, failed=failed, slow=slow)
        self.outcomes.append((failed, slow))

    @invariant()
    def counts_the_last_outcomes(self):
        if hasattr(self, "outcomes"):
            last = self.outcomes[-self.size:]
            assert self.window.calls == len(last)
            assert self.window.failures == sum(failed for failed, _ in last)
            assert self.window.slow == sum(slow for _, slow in last)


class TimeWindowMachine(RuleBasedStateMachine):
    """An outcome younger than nine tenths of the window is counted, one older than the window is not."""

    @initialize(seconds=st.sampled_from([0.1, 1.0, 10.0, 3600.0]), start=st.sampled_from([0.0, 0.3, 1000.0, 1e7]))
    def begin(self, seconds, start):
        self.window, self.seconds, self.now = TimeWindow(seconds), seconds, start
        self.outcomes: list[tuple[float, bool, bool]] = []

    @rule(share=st.one_of(st.floats(0, 0.3), st.floats(0, 3), st.sampled_from([0.1, 0.9, 1.0])))
    def wait(self, share):
        self.now += share * self.seconds

    @rule()
    def success(self):
        self.window.success(self.now)
        self.outcomes.append((self.now, False, False))

    @rule(failed=st.booleans(), slow=st.booleans())
    def record(self, failed, slow):
        self.window.record(self.now, failed=failed, slow=slow)
        self.outcomes.append((self.now, failed, slow))

    @invariant()
    def counts_what_is_recent(self):
        if not hasattr(self, "outcomes"):
            return
        self.window.roll(self.now)
        hair = 1e-6 * self.seconds
        surely = [each for each in self.outcomes if self.now - each[0] < 0.9 * self.seconds - hair]
        perhaps = [each for each in self.outcomes if self.now - each[0] < self.seconds + hair]
        assert len(surely) <= self.window.calls <= len(perhaps)
        for kind, counted in ((1, self.window.failures), (2, self.window.slow)):
            assert sum(each[kind] for each in surely) <= counted <= sum(each[kind] for each in perhaps)


for machine in (CountWindowMachine, TimeWindowMachine):
    machine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestCountWindow, TestTimeWindow = CountWindowMachine.TestCase, TimeWindowMachine.TestCase
