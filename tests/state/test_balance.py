"""Which endpoint the next attempt goes to."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilmesh.state.balance import Balancer
from resilmesh.state.outlier import Endpoint, OutlierDetector, OutlierSettings

POLICIES = ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"]


def cluster(policy, size, *, panic=0.0, seed=1):
    endpoints = [Endpoint(f"10.0.0.{number}:80", {}) for number in range(size)]
    settings = OutlierSettings(1, None, None, False, 10.0, 30.0, 300.0, 100.0, panic)
    detector = OutlierDetector(settings, endpoints, lambda *event: None)
    return endpoints, detector, Balancer(policy, endpoints, detector, Random(seed))


def eject(detector, *endpoints):
    for endpoint in endpoints:
        detector.failure(endpoint, 1000.0, status=500, local_origin=False)


def test_round_robin_takes_each_in_turn():
    endpoints, _, balancer = cluster("ROUND_ROBIN", 4)
    picked = Counter(balancer.pick(1000.0) for _ in range(400))
    assert picked == dict.fromkeys(endpoints, 100)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_round_robin_is_even_when_some_calls_try_another(size):
    """The first endpoint always fails, so that every call that begins there goes on to the next: Envoy's 30, 30, 30."""
    endpoints, _, balancer = cluster("ROUND_ROBIN", size)
    picked = Counter()
    for _ in range(10 * (size - 1)):
        tried = [balancer.pick(1000.0)]
        if tried[0] is endpoints[0]:
            tried.append(balancer.pick(1000.0, tried))
        picked.update(tried)
    assert all(abs(picked[each] - 10) <= 1 for each in endpoints)


def test_round_robin_starts_anywhere():
    firsts = {cluster("ROUND_ROBIN", 4, seed=seed)[2].pick(1000.0).address for seed in range(40)}
    assert firsts == {f"10.0.0.{each}:80" for each in range(4)}


def test_least_request_prefers_the_less_loaded():
    endpoints, _, balancer = cluster("LEAST_REQUEST", 4)
    endpoints[0].in_flight = 50
    picked = Counter(balancer.pick(1000.0) for _ in range(4000))
    # Drawn twice with replacement: the loaded one is taken only when both draws are it, 1 in 16.
    assert 150 < picked[endpoints[0]] < 350


def test_random_takes_all_alike():
    endpoints, _, balancer = cluster("RANDOM", 4)
    endpoints[0].in_flight = 50
    picked = Counter(balancer.pick(1000.0) for _ in range(4000))
    assert all(850 < picked[each] < 1150 for each in endpoints)


@pytest.mark.parametrize("policy", POLICIES)
def test_one_that_was_tried_is_tried_again_only_when_there_is_no_other(policy):
    endpoints, detector, balancer = cluster(policy, 3)
    for _ in range(50):
        assert balancer.pick(1000.0, endpoints[:2]) is endpoints[2]
    eject(detector, endpoints[2])
    for _ in range(50):
        assert balancer.pick(1000.0, endpoints[:2]) in endpoints[:2]


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_is_picked_when_all_are_ejected(policy):
    endpoints, detector, balancer = cluster(policy, 2)
    eject(detector, *endpoints)
    assert balancer.pick(1000.0) is None


@pytest.mark.parametrize(("panic", "uses_all"), [(50.0, False), (51.0, True)])
def test_below_the_panic_threshold_all_are_used(panic, uses_all):
    endpoints, detector, balancer = cluster("ROUND_ROBIN", 4, panic=panic)
    eject(detector, *endpoints[:2])
    picked = {balancer.pick(1000.0) for _ in range(8)}
    assert picked == set(endpoints if uses_all else endpoints[2:])


def test_an_empty_subset_has_nobody():
    assert cluster("ROUND_ROBIN", 0)[2].pick(1000.0) is None


def test_a_retune_changes_members_and_policy():
    endpoints, _, balancer = cluster("ROUND_ROBIN", 3)
    balancer.pick(1000.0)
    balancer.retune("RANDOM", endpoints[:1])
    assert {balancer.pick(1000.0) for _ in range(20)} == {endpoints[0]}


@given(policy=st.sampled_from(POLICIES), size=st.integers(1, 5), data=st.data())
def test_what_is_picked_is_healthy_and_untried_while_there_is_one(policy, size, data):
    endpoints, detector, balancer = cluster(policy, size)
    numbers = st.sets(st.integers(0, size - 1))
    eject(detector, *(endpoints[each] for each in data.draw(numbers, "ejected")))
    tried = [endpoints[each] for each in data.draw(numbers, "tried")]
    healthy = [each for each in endpoints if not each.ejected]
    picked = balancer.pick(1000.0, tried)
    assert picked in (([each for each in healthy if each not in tried] or healthy) if healthy else [None])
