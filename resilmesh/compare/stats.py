"""The little statistics that the comparison needs, from the standard library alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: A difference this unlikely by chance counts. Small, because a run makes about thirty comparisons.
ALPHA = 0.001
_RESAMPLES = 400


def quantile(values: Sequence[float], share: float) -> float:
    """The ``share`` quantile (0 to 1) by linear interpolation; NaN of nothing."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def two_proportions(hits_a: int, total_a: int, hits_b: int, total_b: int) -> float:
    """p value (two-sided, pooled z test) of both shares being the same."""
    if not total_a or not total_b:
        return 1.0
    pooled = (hits_a + hits_b) / (total_a + total_b)
    variance = pooled * (1 - pooled) * (1 / total_a + 1 / total_b)
    if variance == 0:
        return 1.0
    z = (hits_a / total_a - hits_b / total_b) / math.sqrt(variance)
    return math.erfc(abs(z) / math.sqrt(2))


def difference_interval(
    a: Sequence[float], b: Sequence[float], statistic: Callable[[Sequence[float]], float], rng: random.Random,
    resamples: int = _RESAMPLES,
) -> tuple[float, float]:
    """Percentile bootstrap interval, at 1 - ALPHA as far as ``resamples`` reach, of statistic(b) - statistic(a)."""
    if not a or not b:
        return (math.nan, math.nan)
    differences = sorted(
        statistic(rng.choices(b, k=len(b))) - statistic(rng.choices(a, k=len(a))) for _ in range(resamples)
    )
    cut = int(len(differences) * ALPHA / 2)
    return differences[cut], differences[-1 - cut]


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, median and greatest of some rounds."""

    least: float
    median: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), quantile(values, 0.5), max(values))
