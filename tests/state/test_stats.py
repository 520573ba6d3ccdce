"""Counters and histograms add up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from resilmesh.state.stats import BOUNDS, Stats, bucket


def test_the_bounds_of_a_bucket_include_its_upper_end():
    assert [bucket(seconds) for seconds in (0, BOUNDS[0], BOUNDS[0] * 1.001, BOUNDS[-1], 1e9)] == [0, 0, 1, len(BOUNDS) - 1, len(BOUNDS)]


def test_what_is_started_and_not_finished_is_in_flight():
    stats = Stats()
    stats.started = 7
    stats.succeeded[3] += 1
    stats.failed[5] += 1
    stats.count(stats.rejected, "CircuitOpen")
    stats.abandoned += 1
    stats.ignored += 1
    assert (stats.finished, stats.in_flight) == (5, 2)


def test_a_fork_leaves_nothing_in_flight():
    stats = Stats()
    stats.started = 3
    stats.succeeded[3] += 1
    stats.after_fork()
    assert stats.in_flight == 0
    assert stats.snapshot(0.0)["discarded"] == 2


@given(st.lists(st.tuples(st.sampled_from(["success", "failure", "abandoned", "RateLimited", "open"]), st.floats(0, 30))))
def test_a_snapshot_adds_up(endings):
    stats = Stats()
    for ending, seconds in endings:
        stats.started += 1
        if ending == "success":
            stats.succeeded[bucket(seconds)] += 1
            stats.succeeded_seconds += seconds
        elif ending == "failure":
            stats.failed[bucket(seconds)] += 1
        elif ending == "abandoned":
            stats.abandoned += 1
        elif ending == "RateLimited":
            stats.count(stats.rejected, ending)
    shown = stats.snapshot(0.0)
    parts = [shown[each] for each in ("inFlight", "succeeded", "failed", "abandoned", "ignored", "discarded")]
    assert shown["calls"] == len(endings) == sum(parts) + sum(shown["rejected"].values())
    succeeded = [seconds for ending, seconds in endings if ending == "success"]
    for index, bound in enumerate(shown["durations"]["bounds"]):
        assert sum(shown["durations"]["succeeded"][: index + 1]) == sum(seconds <= bound for seconds in succeeded)
    assert abs(shown["durations"]["succeededSeconds"] - sum(succeeded)) < 1e-3
