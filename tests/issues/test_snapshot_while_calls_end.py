"""A snapshot taken while calls started and ended showed fewer than no calls in flight, and parts that did not add up."""

from __future__ import annotations

from resilmesh.state.ledger import Ledger
from resilmesh.state.stats import ABANDONED, STARTED, Stats


class _EndingMeanwhile(Stats):
    """Stands for another thread: a call starts and ends while the counters are being read."""

    __slots__ = ()

    def labelled(self, name):
        self.counts[STARTED] += 1
        self.counts[ABANDONED] += 1
        return super().labelled(name)

    def durations(self, parts):
        self.counts[STARTED] += 1
        self.counts[ABANDONED] += 1
        return super().durations(parts)


def test_never_fewer_than_none_in_flight():
    stats = _EndingMeanwhile(Ledger(), "inventory", "*")
    assert stats.in_flight >= 0
    shown = stats.snapshot(0.0)
    parts = ("inFlight", "succeeded", "failed", "abandoned", "ignored")
    assert shown["inFlight"] >= 0
    assert shown["calls"] == sum(shown[each] for each in parts) + sum(shown["rejected"].values())
