"""Counters and histograms add up."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from resilmesh.state.ledger import Ledger
from resilmesh.state.stats import (
    ABANDONED,
    ATTEMPT_FAILED,
    BOUNDS,
    CALL_SUCCEEDED,
    DIRECT_FAILED,
    IGNORED,
    MOST_OUTCOMES,
    OTHER,
    STARTED,
    SUCCEEDED,
    Stats,
    bucket,
)


def _stats():
    return Stats(Ledger(), "inventory", "*")


def test_the_bounds_of_a_bucket_include_its_upper_end():
    assert [bucket(seconds) for seconds in (0, BOUNDS[0], BOUNDS[0] * 1.001, BOUNDS[-1], 1e9)] == [0, 0, 1, len(BOUNDS) - 1, len(BOUNDS)]


def test_the_bounds_are_close_together_and_have_those_of_the_conventions_among_them():
    assert all(1 < right / left < 1.15 for left, right in pairwise(BOUNDS))
    assert set(BOUNDS) >= {0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10}


def test_what_is_started_and_not_finished_is_in_flight():
    stats = _stats()
    stats.counts[STARTED] = 8
    stats.counts[SUCCEEDED + 3] += 1
    stats.histogram(CALL_SUCCEEDED).record(1.0)
    stats.histogram(DIRECT_FAILED).record(0.5)
    stats.count("rejected", "CircuitOpen")
    stats.counts[ABANDONED] += 1
    stats.counts[IGNORED] += 1
    assert (stats.finished, stats.in_flight) == (6, 2)


def test_a_child_of_a_fork_has_counted_nothing_and_has_nothing_in_flight():
    ledger = Ledger()
    stats = Stats(ledger, "inventory", "*")
    stats.counts[STARTED] = 3
    stats.counts[SUCCEEDED + 3] += 1
    stats.histogram(CALL_SUCCEEDED).record(1.0)
    ledger.after_fork()
    shown = stats.snapshot(0.0)
    assert (stats.in_flight, shown["calls"], shown["succeeded"]) == (0, 0, 0)


def test_direct_calls_are_counted_once_for_call_and_attempt():
    stats = _stats()
    stats.counts[SUCCEEDED + bucket(0.2)] += 1
    stats.sums[0] += 0.2
    stats.histogram(CALL_SUCCEEDED).record(2.0)
    stats.histogram(ATTEMPT_FAILED).record(1.5)
    shown = stats.snapshot(0.0)
    assert (sum(shown["durations"]["succeeded"]), shown["durations"]["succeededSeconds"]) == (2, 2.2)
    assert (sum(shown["attemptDurations"]["succeeded"]), shown["attemptDurations"]["succeededSeconds"]) == (1, 0.2)
    assert (sum(shown["attemptDurations"]["failed"]), shown["attemptDurations"]["failedSeconds"]) == (1, 1.5)


def test_of_too_many_outcomes_the_last_are_counted_together():
    stats = _stats()
    for number in range(MOST_OUTCOMES + 50):
        stats.outcomes.of((f"/service/Method{number}", 0, "")).record(0.1)
    assert len(stats.outcomes.items()) == MOST_OUTCOMES + 1
    assert sum(dict(stats.outcomes.items())[OTHER].counts) == 50


@given(st.lists(st.tuples(st.sampled_from(["success", "failure", "abandoned", "RateLimited", "open"]), st.floats(0, 30))))
def test_a_snapshot_adds_up(endings):
    stats = _stats()
    for ending, seconds in endings:
        stats.counts[STARTED] += 1
        if ending == "success":
            stats.counts[SUCCEEDED + bucket(seconds)] += 1
            stats.sums[0] += seconds
        elif ending == "failure":
            stats.histogram(DIRECT_FAILED).record(seconds)
        elif ending == "abandoned":
            stats.counts[ABANDONED] += 1
        elif ending == "RateLimited":
            stats.count("rejected", ending)
    shown = stats.snapshot(0.0)
    parts = [shown[each] for each in ("inFlight", "succeeded", "failed", "abandoned", "ignored")]
    assert shown["calls"] == len(endings) == sum(parts) + sum(shown["rejected"].values())
    succeeded = [seconds for ending, seconds in endings if ending == "success"]
    for index, bound in enumerate(shown["durations"]["bounds"]):
        assert sum(shown["durations"]["succeeded"][: index + 1]) == sum(seconds <= bound for seconds in succeeded)
    assert abs(shown["durations"]["succeededSeconds"] - sum(succeeded)) < 1e-3
