"""The little statistics that the comparison needs, from the standard library alone."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

#: Calls influence the ones after them (a circuit that has opened refuses all of them), so that they are no independent
#: draws. Blocks of this many consecutive calls are taken to be.
BLOCK = 20
_RESAMPLES = 200
#: From here on Student's distribution is the normal one to all the digits that matter.
_MANY = 200


def quantile(values: Sequence[float], share: float) -> float:
    """The ``share`` quantile (0 to 1) by linear interpolation; NaN of nothing."""
    return _of_ordered(sorted(values), share)


def _of_ordered(ordered: Sequence[float], share: float) -> float:
    if not ordered:
        return math.nan
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A difference and how well it is known: its standard error, and the degrees of freedom behind that (0: not known at all)."""

    difference: float
    error: float = math.inf
    degrees: float = 0

    def times(self, factor: float) -> Estimate:
        """The same in another unit."""
        return Estimate(self.difference * factor, self.error * factor, self.degrees)

    @property
    def p(self) -> float:
        """How likely chance alone makes a difference at least this large (two-sided)."""
        if self.degrees < 1 or math.isinf(self.error):
            return 1.0
        if self.error == 0:
            return 0.0 if self.difference else 1.0
        return 2 * (1 - student(abs(self.difference) / self.error, self.degrees))

    @property
    def interval(self) -> tuple[float, float]:
        """Where the true difference lies with 95 % confidence."""
        if self.degrees < 1 or math.isinf(self.error):
            return -math.inf, math.inf
        reach = _student_quantile(0.975, self.degrees) * self.error
        return self.difference - reach, self.difference + reach


def student(t: float, degrees: float) -> float:
    """Probability of at most ``t`` (not negative) under Student's distribution of a whole number of degrees of freedom.

    Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    if degrees > _MANY:
        return (1 + math.erf(t / math.sqrt(2))) / 2
    count = int(degrees)
    angle = math.atan(t / math.sqrt(count))
    cosine = math.cos(angle)
    term = total = 1.0 if count % 2 == 0 else cosine
    for step in range(2 if count % 2 else 1, count - 1, 2):
        term *= cosine * cosine * step / (step + 1)
        total += term
    within = math.sin(angle) * total if count > 1 else 0.0
    return (1 + (within if count % 2 == 0 else 2 / math.pi * (angle + within))) / 2


def _student_quantile(share: float, degrees: float) -> float:
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student(middle, degrees) < share else (low, middle)
    return low


def paired_means(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Of mean(b) - mean(a), where each place of both is the same call, in the order of the calls.

    The error is that of blocks of consecutive calls. One call is added that differs, so that no difference at all in a
    few calls does not pass for certainty.
    """
    count = len(a)
    difference = fmean(b) - fmean(a)
    blocks = [
        sum(y - x for x, y in zip(a[start:start + BLOCK], b[start:start + BLOCK], strict=True)) - difference * len(a[start:start + BLOCK])
        for start in range(0, count, BLOCK)
    ]
    if len(blocks) < 3:
        return Estimate(difference)
    variance = (sum(each * each for each in blocks) + 1) * len(blocks) / (len(blocks) - 1)
    return Estimate(difference, math.sqrt(variance) / count, len(blocks) - 1)


def quantiles_apart(
    a: Sequence[float | None], b: Sequence[float | None], shares: Sequence[float], rng: random.Random,
) -> list[Estimate]:
    """Of each quantile of b minus that of a, by a bootstrap of blocks of consecutive calls; None: a call that does not count."""
    starts = range(0, len(a), BLOCK)
    here = _differences(a, b, shares)
    if len(starts) < 3 or any(map(math.isnan, here)):
        return [Estimate(each) for each in here]
    draws = []
    for _ in range(_RESAMPLES):
        chosen = rng.choices(starts, k=len(starts))
        mine, theirs = ([each for start in chosen for each in of_one[start:start + BLOCK]] for of_one in (a, b))
        draws.append(_differences(mine, theirs, shares))
    errors = [_deviation([draw[place] for draw in draws]) for place in range(len(shares))]
    return [Estimate(difference, error, len(starts) - 1) for difference, error in zip(here, errors, strict=True)]


def _differences(a: Sequence[float | None], b: Sequence[float | None], shares: Sequence[float]) -> list[float]:
    mine, theirs = (sorted(each for each in of_one if each is not None) for of_one in (a, b))
    return [_of_ordered(theirs, share) - _of_ordered(mine, share) for share in shares]


def _deviation(values: Sequence[float]) -> float:
    known = [each for each in values if not math.isnan(each)]
    return stdev(known) if len(known) > len(values) / 2 else math.inf


def shares_apart(hits_a: int, total_a: int, hits_b: int, total_b: int) -> Estimate:
    """Of two shares of independent draws."""
    a, b = hits_a / max(total_a, 1), hits_b / max(total_b, 1)
    if not total_a or not total_b:
        return Estimate(b - a)
    return Estimate(b - a, math.hypot(_error_of_share(hits_a, total_a), _error_of_share(hits_b, total_b)), math.inf)


def _error_of_share(hits: int, total: int) -> float:
    # With one hit and one miss more: none in a few draws is no certainty.
    share = (hits + 1) / (total + 2)
    return math.sqrt(share * (1 - share) / (total + 2))


def rounds_apart(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Of mean(b) - mean(a), one value a round, rounds paired (t test). From fewer than three rounds nothing can be said."""
    apart = [y - x for x, y in zip(a, b, strict=True)]
    difference = fmean(apart)
    if len(apart) < 3 or not math.isfinite(difference):
        return Estimate(difference)
    return Estimate(difference, stdev(apart) / math.sqrt(len(apart)), len(apart) - 1)


@dataclass(frozen=True, slots=True)
class Spread:
    """Least, median and greatest of some rounds."""

    least: float
    median: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), quantile(values, 0.5), max(values))


