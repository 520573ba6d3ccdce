"""Durations that were counted by bucket, read again: quantiles, sums and differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple


class Quantile(NamedTuple):
    """What is known of one quantile."""

    #: Interpolated within its bucket; infinite: it lies in the last bucket, which has no bound.
    seconds: float
    #: The bounds of its bucket.
    low: float
    high: float

    @property
    def coarse(self) -> bool:
        """Whether the bucket is so wide that the figure alone would promise too much: a quarter of it, or more."""
        return math.isfinite(self.high) and self.high - self.low >= self.seconds / 4


class Histogram(NamedTuple):
    """Counts by bucket, whose upper ``bounds`` are seconds (the last bucket has none), and the sum of all."""

    bounds: Sequence[float]
    counts: Sequence[int]
    seconds: float

    @property
    def number(self) -> int:
        return sum(self.counts)

    def plus(self, other: Histogram) -> Histogram:
        """Both together. The bounds are the same."""
        counts = [left + right for left, right in zip(self.counts, other.counts, strict=True)]
        return Histogram(self.bounds, counts, self.seconds + other.seconds)

    def since(self, earlier: Histogram | None) -> Histogram:
        """What was added since an earlier reading; all of it, where the process has begun anew or counts by other bounds."""
        if earlier is None or list(earlier.bounds) != list(self.bounds):
            return self
        counts = [now - then for now, then in zip(self.counts, earlier.counts, strict=True)]
        if min(counts) < 0:
            return self
        return Histogram(self.bounds, counts, max(0.0, self.seconds - earlier.seconds))

    def quantile(self, share: float) -> Quantile | None:
        """The duration that ``share`` of them did not exceed, interpolated; ``None`` of nothing."""
        number = self.number
        if not number:
            return None
        rank, below = share * number, 0
        for at, count in enumerate(self.counts):
            if count and below + count >= rank:
                low = self.bounds[at - 1] if at else 0.0
                if at == len(self.bounds):
                    return Quantile(math.inf, low, math.inf)
                high = self.bounds[at]
                return Quantile(low + (high - low) * max(0.0, rank - below) / count, low, high)
            below += count
        raise AssertionError("the counts add up to their number")

    def longer(self, seconds: float) -> int:
        """How many took longer than that for certain: those of the buckets that begin there, or above."""
        return sum(count for at, count in enumerate(self.counts) if at and self.bounds[at - 1] >= seconds)
