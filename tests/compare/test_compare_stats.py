"""The statistics, against values that can be checked elsewhere."""

from __future__ import annotations

import math
import random
from statistics import NormalDist, fmean

import pytest

from resilmesh.compare.stats import Spread, difference_interval, quantile, two_proportions


def test_quantile_interpolates() -> None:
    assert quantile([4, 1, 3, 2], 0.5) == 2.5
    assert quantile([1, 2, 3], 0) == 1
    assert quantile([1, 2, 3], 1) == 3
    assert math.isnan(quantile([], 0.5))


@pytest.mark.parametrize(
    ("hits", "z"),
    [
        # By hand: the difference of the shares over the root of p(1-p) * 2/n, p pooled.
        ((15, 100, 25, 100), -1.76777),
        ((5, 100, 25, 100), -3.96059),
        ((50, 100, 50, 100), 0.0),
    ],
)
def test_two_proportions(hits: tuple[int, int, int, int], z: float) -> None:
    assert two_proportions(*hits) == pytest.approx(2 * NormalDist().cdf(-abs(z)), rel=0.001)


@pytest.mark.parametrize("hits", [(0, 100, 0, 100), (100, 100, 100, 100), (3, 0, 5, 10)])
def test_nothing_to_tell_apart_is_the_same(hits: tuple[int, int, int, int]) -> None:
    assert two_proportions(*hits) == 1.0


def test_two_proportions_rarely_cries_wolf() -> None:
    rng = random.Random(5)
    draws = [[sum(rng.random() < 0.2 for _ in range(300)) for _ in range(2)] for _ in range(300)]
    assert sum(two_proportions(a, 300, b, 300) < 0.05 for a, b in draws) <= 30


def test_bootstrap_interval_holds_the_true_difference_and_not_another() -> None:
    rng = random.Random(3)
    a = [rng.gauss(10, 1) for _ in range(400)]
    b = [rng.gauss(11, 1) for _ in range(400)]
    low, high = difference_interval(a, b, fmean, rng)
    assert 0.5 < low < 1 < high < 1.5


def test_bootstrap_of_nothing_is_no_interval() -> None:
    assert all(math.isnan(end) for end in difference_interval([], [1.0], fmean, random.Random(1)))


def test_spread() -> None:
    assert Spread.of([3, 1, 2]) == Spread(1, 2, 3)
