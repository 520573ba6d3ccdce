"""Outlier detection, against a model that works off every interval one by one."""

from __future__ import annotations

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resilmesh.state.outlier import Endpoint, OutlierDetector, OutlierSettings


def figures(**changes):
    values = {
        "consecutive_5xx": 3, "consecutive_gateway": None, "consecutive_local": None, "split_local": False, "interval": 1.0, "base": 2.0,
        "longest": 300.0, "max_percent": 100.0, "panic": 0.0,
    }
    return OutlierSettings(**{**values, **changes})


class Cluster:
    def __init__(self, size=2, **changes):
        self.told = []
        self.endpoints = [Endpoint(f"10.0.0.{number}:80", {}) for number in range(size)]
        self.detector = OutlierDetector(figures(**changes), self.endpoints, self.tell)
        self.now = 1000.0
        self.detector.tick(self.now)  # the rhythm begins with the first call

    def tell(self, name, endpoint, now, detail):
        self.told.append((name, self.endpoints.index(endpoint), detail))

    def fail(self, number, times=1, status=500, local_origin=False):
        for _ in range(times):
            self.detector.failure(self.endpoints[number], self.now, status=status, local_origin=local_origin)

    def out(self):
        self.detector.tick(self.now)
        return [number for number, endpoint in enumerate(self.endpoints) if endpoint.ejected]

    def seconds_out(self, number):
        """How long an ejected endpoint stays out, looked at every eighth of a second."""
        began = self.now
        while number in self.out():
            self.now += 0.125
        return self.now - began


def test_ejected_at_once_at_the_threshold():
    cluster = Cluster()
    cluster.fail(0, 2)
    assert cluster.out() == []
    cluster.fail(0)
    assert cluster.out() == [0]
    assert cluster.told == [("endpoint_ejected", 0, {"reason": "consecutive5xxErrors", "seconds": 2.0})]


def test_a_success_starts_the_count_again():
    cluster = Cluster()
    for _ in range(5):
        cluster.fail(0, 2)
        cluster.detector.success(cluster.endpoints[0], cluster.now)
    assert cluster.out() == []


@pytest.mark.parametrize(("status", "ejects"), [(0, True), (502, True), (503, True), (504, True), (500, False), (501, False)])
def test_what_a_gateway_error_is(status, ejects):
    cluster = Cluster(consecutive_5xx=None, consecutive_gateway=3)
    cluster.fail(0, 3, status)
    assert cluster.out() == ([0] if ejects else [])


def test_another_5xx_breaks_a_row_of_gateway_errors():
    cluster = Cluster(consecutive_5xx=None, consecutive_gateway=3)
    for status in (503, 503, 500, 503, 503):
        cluster.fail(0, 1, status)
    assert cluster.out() == []


def test_local_origin_failures_count_apart_when_split():
    cluster = Cluster(split_local=True, consecutive_local=2, consecutive_5xx=3)
    cluster.fail(0, 1, 0, local_origin=True)
    cluster.fail(0, 2, 500)
    assert cluster.out() == []
    cluster.fail(0, 2, 0, local_origin=True)
    assert cluster.out() == [0]


def test_a_reset_over_a_connection_never_counts_more_than_one_when_split():
    """A threshold of one ejects, as in Envoy: the connection that was made resets the count, and then it breaks."""
    cluster = Cluster(split_local=True, consecutive_local=2, consecutive_5xx=1, consecutive_gateway=1)
    cluster.fail(0, 20, 0)
    assert cluster.out() == []
    cluster = Cluster(split_local=True, consecutive_local=1, consecutive_5xx=1, consecutive_gateway=1)
    cluster.fail(0, 1, 0)
    assert cluster.out() == [0]


def test_ejection_ends_at_an_interval_and_grows():
    """base 1 s, interval 500 ms: 1.5, 2.5, 3.5 s were seen of Envoy, for it was ejected between two ticks."""
    cluster = Cluster(base=1.0, interval=0.5)
    lasted = []
    for _ in range(3):
        cluster.now += 0.125
        cluster.fail(0, 3)
        lasted.append(cluster.seconds_out(0))
    assert lasted == [pytest.approx(1.375), pytest.approx(2.375), pytest.approx(3.375)]


def test_ejection_never_lasts_longer_than_its_maximum():
    cluster = Cluster(base=2.0, longest=3.0)
    lasted = []
    for _ in range(4):
        cluster.fail(0, 3)
        lasted.append(cluster.seconds_out(0))
    assert lasted == [2.0, 3.0, 3.0, 3.0]


def test_growth_decays_while_the_endpoint_is_well():
    cluster = Cluster(base=2.0)
    for _ in range(3):
        cluster.fail(0, 3)
        cluster.seconds_out(0)
    cluster.now += 10
    cluster.detector.tick(cluster.now)
    cluster.fail(0, 3)
    assert cluster.seconds_out(0) == 2.0


@pytest.mark.parametrize(("size", "percent", "ejected"), [(2, 10, 0), (10, 10, 1), (4, 50, 2), (3, 100, 3), (4, 49, 1)])
def test_no_more_are_out_than_the_maximum_percent(size, percent, ejected):
    cluster = Cluster(size, max_percent=percent)
    for number in range(size):
        cluster.fail(number, 3)
    assert len(cluster.out()) == ejected


def test_a_retune_without_the_block_returns_everybody():
    cluster = Cluster()
    cluster.fail(0, 3)
    cluster.detector.retune(None, cluster.endpoints)
    assert cluster.out() == []
    cluster.fail(0, 50)
    assert cluster.out() == []


def test_an_endpoint_that_left_the_policy_is_not_ejected():
    cluster = Cluster()
    cluster.detector.retune(figures(), cluster.endpoints[1:])
    cluster.fail(0, 3)
    assert cluster.out() == []


def test_returned_endpoints_are_told_of_and_start_from_nothing():
    cluster = Cluster()
    cluster.fail(0, 3)
    cluster.fail(0, 2)
    cluster.seconds_out(0)
    assert cluster.told[-1] == ("endpoint_returned", 0, {})
    cluster.fail(0, 2)
    assert cluster.out() == []


def test_hours_of_silence_are_worked_off_at_once():
    cluster = Cluster()
    cluster.fail(0, 3)
    cluster.now += 86400.0
    assert cluster.out() == []
    cluster.now += 0.5
    cluster.fail(0, 3)
    assert cluster.out() == [0]


@pytest.mark.parametrize(("address", "host", "port"), [("10.0.0.1:80", "10.0.0.1", 80), ("[::1]:8443", "::1", 8443), ("a.b:1", "a.b", 1)])
def test_an_address_is_a_host_and_a_port(address, host, port):
    endpoint = Endpoint(address, {})
    assert (endpoint.host, endpoint.port) == (host, port)


class OutlierMachine(RuleBasedStateMachine):
    """The model processes every tick since the beginning, one after another."""

    @initialize(
        size=st.integers(1, 4), threshold=st.integers(1, 3), base=st.sampled_from([1.0, 2.5]), percent=st.sampled_from([50.0, 100.0]),
    )
    def begin(self, size, threshold, base, percent):
        self.cluster = Cluster(size, consecutive_5xx=threshold, base=base, longest=6.0, max_percent=percent)
        self.threshold, self.base, self.percent = threshold, base, percent
        self.row = [0] * size
        self.times_out = [0] * size
        self.out_since: list[float | None] = [None] * size
        self.next_tick = self.cluster.now + 1.0

    def catch_up(self):
        while self.next_tick <= self.cluster.now:
            for each, since in enumerate(self.out_since):
                if since is None:
                    self.times_out[each] = max(0, self.times_out[each] - 1)
                elif self.next_tick - since >= min(6.0, self.base * self.times_out[each]):
                    self.out_since[each], self.row[each] = None, 0
            self.next_tick += 1.0

    @rule(quarters=st.integers(1, 20))
    def wait(self, quarters):
        self.cluster.now += quarters / 4

    @rule(data=st.data())
    def succeed(self, data):
        each = data.draw(st.integers(0, len(self.row) - 1))
        self.cluster.detector.success(self.cluster.endpoints[each], self.cluster.now)
        self.row[each] = 0

    @rule(data=st.data(), times=st.integers(1, 3))
    def fail(self, data, times):
        each = data.draw(st.integers(0, len(self.row) - 1))
        for _ in range(times):
            self.catch_up()
            self.cluster.detector.tick(self.cluster.now)
            self.cluster.fail(each)
            self.row[each] += 1
            if self.row[each] == self.threshold:
                self.row[each] = 0
                out = sum(since is not None for since in self.out_since)
                if self.out_since[each] is None and 100 * (out + 1) <= self.percent * len(self.row):
                    self.out_since[each] = self.cluster.now
                    if self.times_out[each] * self.base < 6.0 + self.base:
                        self.times_out[each] += 1

    @invariant()
    def agrees(self):
        if hasattr(self, "row"):
            self.catch_up()
            assert self.cluster.out() == [each for each, since in enumerate(self.out_since) if since is not None]


OutlierMachine.TestCase.settings = hypothesis_settings(max_examples=100, stateful_step_count=40, deadline=None)
TestOutlierMachine = OutlierMachine.TestCase
