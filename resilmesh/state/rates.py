"""Which endpoints answer worse than the others, or worse than allowed, by the figures of one interval. Envoy's arithmetic.

    successRate          of the endpoints with `requestVolume` answers, those below mean - stdevFactor * standard deviation
    failurePercentage    of those with its `requestVolume`, those that failed in `threshold` per cent or more

Either says nothing while fewer than `minimumHosts` endpoints have the volume. The deviation is that of the whole
population, so one bad endpoint of n lies sqrt(n - 1) deviations below the mean: by Envoy's 1.9 it takes five.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, sqrt

#: Percents that are apart by less are the same, rounded otherwise: endpoints that are all alike have no outlier.
_HAIR = 1e-9


@dataclass(frozen=True, slots=True)
class SuccessRate:
    """The policy's successRate block."""

    minimum_hosts: int
    request_volume: int
    stdev_factor: float


@dataclass(frozen=True, slots=True)
class FailurePercentage:
    """The policy's failurePercentage block. ``threshold``: percent."""

    threshold: int
    minimum_hosts: int
    request_volume: int


#: Percent of the answers that were good, and how many answers there were.
Figure = tuple[float, int]


def below_the_others(figures: Sequence[Figure], settings: SuccessRate) -> list[int]:
    """Which of the ``figures`` lie too far below their mean."""
    counted = [index for index, (_, volume) in enumerate(figures) if volume >= settings.request_volume]
    if len(counted) < settings.minimum_hosts:
        return []
    mean = fsum(figures[index][0] for index in counted) / len(counted)
    deviation = sqrt(fsum((figures[index][0] - mean) ** 2 for index in counted) / len(counted))
    threshold = mean - settings.stdev_factor * deviation
    return [index for index in counted if figures[index][0] < threshold - _HAIR]


def above_the_limit(figures: Sequence[Figure], settings: FailurePercentage) -> list[int]:
    """Which of the ``figures`` have failed too often."""
    counted = [index for index, (_, volume) in enumerate(figures) if volume >= settings.request_volume]
    if len(counted) < settings.minimum_hosts:
        return []
    return [index for index in counted if 100.0 - figures[index][0] >= settings.threshold - _HAIR]
