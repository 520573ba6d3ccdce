"""The statistics, against values that can be checked elsewhere."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest

from resilmesh.compare.stats import Estimate, Spread, paired_means, quantile, quantiles_apart, rounds_apart, shares_apart, student


def test_quantile_interpolates() -> None:
    assert quantile([4, 1, 3, 2], 0.5) == 2.5
    assert quantile([1, 2, 3], 0) == 1
    assert quantile([1, 2, 3], 1) == 3
    assert math.isnan(quantile([], 0.5))


@pytest.mark.parametrize(
    ("degrees", "t"),  # of 97.5 %, from any table of Student's distribution
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (29, 2.045), (100, 1.984)],
)
def test_students_distribution(degrees: int, t: float) -> None:
    assert student(t, degrees) == pytest.approx(0.975, abs=3e-5)
    assert student(0, degrees) == pytest.approx(0.5)
    low, high = Estimate(10, 2, degrees).interval
    assert (low, high) == (pytest.approx(10 - 2 * t, abs=0.01), pytest.approx(10 + 2 * t, abs=0.01))


def test_student_becomes_normal() -> None:
    for degrees in (500, math.inf):
        assert student(1.96, degrees) == pytest.approx(NormalDist().cdf(1.96))
    assert student(2.5, 199) == pytest.approx(student(2.5, 201), abs=1e-3)


def test_an_estimate_of_nothing_says_nothing() -> None:
    assert Estimate(5.0).p == 1.0
    assert Estimate(5.0).interval == (-math.inf, math.inf)


def test_paired_means_by_hand() -> None:
    # Three blocks of 20 calls, of which 2, 4 and 6 differ: the mean is 12/60; the blocks are 2, 0 and 2 off it, with one call more.
    a = [0.0] * 60
    b = [1.0] * 2 + [0.0] * 18 + [1.0] * 4 + [0.0] * 16 + [1.0] * 6 + [0.0] * 14
    found = paired_means(a, b)
    assert found.difference == pytest.approx(0.2)
    assert found.error == pytest.approx(math.sqrt((4 + 0 + 4 + 1) * 3 / 2) / 60)
    assert found.degrees == 2


def test_paired_means_of_too_few_calls_say_nothing() -> None:
    assert paired_means([0.0] * 40, [1.0] * 40) == Estimate(1.0)


def _alarms(draw: random.Random, runs: int, cluster: int) -> int:
    """How often two samples of 600 calls alike are told apart at 5 %; calls fail in ``cluster`` s."""
    found = 0
    for _ in range(runs):
        a, b = ([float(failed) for _ in range(600 // cluster) for failed in [draw.random() < 0.2] * cluster] for _ in "ab")
        found += paired_means(a, b).p < 0.05
    return found


def test_paired_means_rarely_cry_wolf_even_when_calls_fail_together() -> None:
    assert _alarms(random.Random(5), 200, 1) <= 20
    assert _alarms(random.Random(6), 200, 10) <= 24


def test_the_interval_of_paired_means_holds_the_true_difference() -> None:
    rng = random.Random(7)
    held = 0
    for _ in range(100):
        a = [rng.gauss(10, 1) for _ in range(400)]
        b = [each + rng.gauss(0.5, 0.5) for each in a]
        low, high = paired_means(a, b).interval
        held += low <= 0.5 <= high
    assert held >= 90


def test_quantiles_apart_find_the_true_difference_and_not_another() -> None:
    rng = random.Random(3)
    a: list[float | None] = [rng.gauss(10, 1) if number % 5 else None for number in range(600)]
    b: list[float | None] = [rng.gauss(11, 1) if number % 7 else None for number in range(600)]
    for estimate in quantiles_apart(a, b, (0.5, 0.9), rng):
        low, high = estimate.interval
        assert 0.5 < low < 1 < high < 1.5
    assert quantiles_apart(a[:30], b[:30], (0.5,), rng)[0].degrees == 0


@pytest.mark.parametrize(("hits", "total"), [(15, 100), (0, 100), (50, 1000)])
def test_shares_apart(hits: int, total: int) -> None:
    found = shares_apart(hits, total, hits + 20, total)
    assert found.difference == pytest.approx(20 / total)
    mean = (2 * hits + 20) / (2 * total)
    # The pooled error of the textbook is close to this one of two shares.
    assert found.error == pytest.approx(math.sqrt(mean * (1 - mean) * 2 / total), rel=0.1)
    assert shares_apart(0, 10, 0, 10).interval[1] > 0.1


def test_rounds_are_paired() -> None:
    found = rounds_apart([1, 5, 9], [3, 7, 12])
    assert found.difference == pytest.approx(7 / 3)
    assert found.error == pytest.approx(1 / 3)
    assert found.degrees == 2
    assert rounds_apart([1, 5], [3, 7]).degrees == 0
    assert rounds_apart([1, 1, 1], [1, 1, 1]).p == 1.0
    assert rounds_apart([1, 1, 1], [2, 2, 2]).p == 0.0


def test_spread() -> None:
    assert Spread.of([3, 1, 2]) == Spread(1, 2, 3)
