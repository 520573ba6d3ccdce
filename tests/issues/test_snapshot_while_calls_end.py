"""A snapshot taken while calls started and ended showed fewer than no calls in flight, and parts that did not add up."""

from __future__ import annotations

from resilmesh.state.stats import Stats


class _EndingMeanwhile(dict):
    """Stands for another thread: a call starts and ends while the counters are being read."""

    def __init__(self, stats):
        super().__init__()
        self.stats = stats

    def values(self):
        self.stats.started += 1
        self.stats.abandoned += 1
        return super().values()


def test_never_fewer_than_none_in_flight():
    stats = Stats()
    stats.rejected = _EndingMeanwhile(stats)
    assert stats.in_flight >= 0
    shown = stats.snapshot(0.0)
    parts = ("inFlight", "succeeded", "failed", "abandoned", "ignored", "discarded")
    assert shown["inFlight"] >= 0
    assert shown["calls"] == sum(shown[each] for each in parts) + sum(shown["rejected"].values())
