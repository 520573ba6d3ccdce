"""Which endpoint the next attempt goes to."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilmesh.state.balance import Balancer
from resilmesh.state.outlier import Endpoint, OutlierDetector, OutlierSettings
from resilmesh.state.slowstart import SlowStart

POLICIES = ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"]


def cluster(policy, size, *, panic=0.0, seed=1, slow_start=None):
    endpoints = [Endpoint(f"10.0.0.{number}:80", {}, slow_start) for number in range(size)]
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


# ------------------------------------------------------------------------------------------- slow start

#: A hundredth at once, all of it after a hundred seconds: the per cent are the seconds.
EASED = SlowStart(window=100.0, aggression=1.0, least=0.01)


@pytest.mark.parametrize(("slow_start", "elapsed", "share"), [
    (SlowStart(10.0, 1.0, 0.1), 0.0, 0.1),
    (SlowStart(10.0, 1.0, 0.1), 0.9, 0.1),
    (SlowStart(10.0, 1.0, 0.1), 2.5, 0.25),
    (SlowStart(10.0, 1.0, 0.1), 10.0, 1.0),
    (SlowStart(10.0, 2.0, 0.1), 2.5, 0.5),
    (SlowStart(10.0, 0.5, 0.0), 5.0, 0.25),
    (SlowStart(10.0, 1.0, 0.0), 0.0, 0.0001),  # Envoy: it has been there for a millisecond
    (SlowStart(10.0, 1.0, 0.0), -5.0, 0.0001),
    (SlowStart(1e9, 0.01, 0.0), 1.0, 1e-6),  # never nothing
    (SlowStart(1e-4, 1.0, 0.0), 0.0, 1.0),
])
def test_the_share_grows_with_time(slow_start, elapsed, share):
    assert slow_start.share(elapsed) == pytest.approx(share)


def returned(policy, size, seed=1):
    """A cluster whose first endpoint came back at 1030."""
    endpoints, detector, balancer = cluster(policy, size, seed=seed, slow_start=EASED)
    balancer.pick(1000.0)
    eject(detector, endpoints[0])
    assert endpoints[0] not in {balancer.pick(1029.0) for _ in range(20)}
    balancer.pick(1030.0)
    assert not endpoints[0].ejected
    return endpoints, detector, balancer


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("seconds", [10, 30, 60, 100])
def test_who_comes_back_gets_its_share(policy, seconds):
    endpoints, _, balancer = returned(policy, 4)
    picked = Counter(balancer.pick(1030.0 + seconds) for _ in range(8000))
    assert picked[endpoints[0]] / 8000 == pytest.approx(seconds / (300 + seconds), abs=0.02)
    others = [picked[each] for each in endpoints[1:]]
    assert max(others) - min(others) < (3 if policy == "ROUND_ROBIN" else 400)


def test_an_eased_endpoint_is_seldom_drawn_and_then_preferred_if_it_is_less_loaded():
    endpoints, _, balancer = returned("LEAST_REQUEST", 4)
    for each in endpoints[1:]:
        each.in_flight = 50
    picked = Counter(balancer.pick(1040.0) for _ in range(8000))
    assert picked[endpoints[0]] / 8000 == pytest.approx(1 - (1 - 10 / 310) ** 2, abs=0.02)
    endpoints[0].in_flight = 100
    picked = Counter(balancer.pick(1040.0) for _ in range(8000))
    assert picked[endpoints[0]] / 8000 == pytest.approx((10 / 310) ** 2, abs=0.01)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_only_one_that_is_left_gets_every_call_however_small_its_share(policy):
    endpoints, detector, balancer = returned(policy, 2)
    assert balancer.pick(1030.0, [endpoints[1]]) is endpoints[0]
    eject(detector, endpoints[1])
    assert {balancer.pick(1030.0) for _ in range(50)} == {endpoints[0]}


@pytest.mark.parametrize("policy", POLICIES)
def test_all_that_are_eased_alike_share_alike(policy):
    endpoints, detector, balancer = cluster(policy, 3, slow_start=EASED)
    balancer.pick(1000.0)
    eject(detector, *endpoints)
    assert balancer.pick(1029.0) is None
    picked = Counter(balancer.pick(1030.0) for _ in range(6000))
    assert all(1800 < picked[each] < 2200 for each in endpoints)


@pytest.mark.parametrize("policy", POLICIES)
def test_who_a_new_policy_adds_is_eased_from_its_first_chance_on_and_the_first_ones_are_not(policy):
    endpoints, detector, balancer = cluster(policy, 2, slow_start=EASED)
    assert [each.share(1000.0) for each in endpoints] == [1.0, 1.0]
    new = Endpoint("10.0.0.9:80", {}, EASED)
    detector.retune(detector.settings, [*endpoints, new])
    balancer.retune(policy, [*endpoints, new])
    for now, share in ((5000.0, 1 / 201), (5050.0, 50 / 250), (5100.0, 100 / 300)):
        picked = Counter(balancer.pick(now) for _ in range(4000))
        assert picked[new] / 4000 == pytest.approx(share, abs=0.03)


def test_whoever_returns_because_nothing_is_detected_any_more_is_eased():
    endpoints, detector, balancer = cluster("RANDOM", 2, slow_start=EASED)
    eject(detector, endpoints[0])
    detector.retune(None, endpoints)
    balancer.pick(1050.0)
    assert [each.share(1060.0) for each in endpoints] == [0.1, 1.0]


def test_nobody_is_looked_at_while_nobody_is_eased():
    _, detector, balancer = returned("ROUND_ROBIN", 3)
    balancer.pick(1129.0)
    assert balancer._seen != detector.version
    balancer.pick(1130.0)
    assert balancer._seen == detector.version


@given(policy=st.sampled_from(POLICIES), size=st.integers(1, 4), seed=st.integers(0, 99), data=st.data())
def test_a_pick_ends_with_someone_healthy_whoever_is_eased(policy, size, seed, data):
    endpoints, detector, balancer = cluster(policy, size, seed=seed, slow_start=SlowStart(100.0, 0.01, 0.0))
    for each in endpoints:
        each.came_at = data.draw(st.sampled_from([900.0, 950.0, 1000.0, 2000.0, float("inf"), float("-inf")]))
    numbers = st.sets(st.integers(0, size - 1))
    eject(detector, *(endpoints[each] for each in data.draw(numbers, "ejected")))
    tried = [endpoints[each] for each in data.draw(numbers, "tried")]
    healthy = [each for each in endpoints if not each.ejected]
    for _ in range(3):
        assert balancer.pick(1000.0, tried) in (([each for each in healthy if each not in tried] or healthy) if healthy else [None])
