"""Outlier detection, against a model that works off every interval one by one."""

from __future__ import annotations

import threading
from fractions import Fraction

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resilmesh.state.outlier import Endpoint, OutlierDetector, OutlierSettings
from resilmesh.state.rates import FailurePercentage, SuccessRate


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

    def succeed(self, number, times=1):
        for _ in range(times):
            self.detector.success(self.endpoints[number], self.now)

    def answer(self, *percents, of=10):
        """Each endpoint answers ``of`` times, well in so many per cent."""
        for number, percent in enumerate(percents):
            self.succeed(number, of * percent // 100)
            self.fail(number, of - of * percent // 100)

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


def rates(size, *, rate=None, percentage=None, **changes):
    return Cluster(size, consecutive_5xx=None, success_rate=rate, failure_percentage=percentage, **changes)


RATE = SuccessRate(minimum_hosts=5, request_volume=10, stdev_factor=1.9)
HALF = FailurePercentage(threshold=50, minimum_hosts=1, request_volume=10)


@pytest.mark.parametrize(("rate", "percents", "out"), [
    (RATE, (50, 100, 100, 100, 100, 100), [0]),  # as Envoy was seen to: 50 is below 56.3
    (RATE, (50, 50, 100, 100, 100, 100), []),  # 38.5
    (SuccessRate(5, 10, 1.4), (50, 50, 100, 100, 100, 100), [0, 1]),
    (SuccessRate(7, 10, 1.9), (50, 100, 100, 100, 100, 100), []),
    (SuccessRate(5, 11, 1.9), (50, 100, 100, 100, 100, 100), []),
    (SuccessRate(1, 1, 0.001), (70, 70, 70), []),  # who is like the others is no outlier, however it is rounded
    (SuccessRate(1, 1, 0.001), (0,), []),
    (SuccessRate(2, 1, 1.0), (0, 100), []),  # at the threshold, not below it
    (SuccessRate(2, 1, 0.999), (0, 100), [0]),
])
def test_who_is_too_far_below_the_mean(rate, percents, out):
    cluster = rates(len(percents), rate=rate)
    cluster.answer(*percents)
    assert cluster.out() == [], "an interval that is not over"
    cluster.now += 1.0
    assert cluster.out() == out
    assert [(name, detail["reason"]) for name, _, detail in cluster.told] == [("endpoint_ejected", "successRate")] * len(out)


@pytest.mark.parametrize(("percentage", "percents", "out"), [
    (HALF, (50, 60), [0]),
    (HALF, (51, 60), [0]),  # of ten answers five are good
    (HALF, (60, 100), []),
    (FailurePercentage(100, 1, 10), (0, 10), [0]),
    (FailurePercentage(50, 3, 10), (0, 0), []),
    (FailurePercentage(50, 1, 11), (0, 0), []),
])
def test_who_fails_in_too_many_per_cent(percentage, percents, out):
    cluster = rates(len(percents), percentage=percentage)
    cluster.answer(*percents)
    cluster.now += 1.0
    assert cluster.out() == out
    assert [detail["reason"] for _, _, detail in cluster.told] == ["failurePercentage"] * len(out)


def test_who_had_too_few_answers_is_neither_counted_nor_judged():
    cluster = rates(6, rate=RATE)
    cluster.answer(50, 100, 100, 100, 100)
    cluster.fail(5, 9)
    cluster.now += 1.0
    assert cluster.out() == [0]


def test_an_interval_begins_at_nothing():
    cluster = rates(1, percentage=HALF)
    cluster.fail(0, 9)
    cluster.now += 1.0
    cluster.fail(0, 9)
    cluster.now += 1.0
    assert cluster.out() == []


def test_what_is_told_late_is_of_the_interval_in_which_it_is_told():
    """Nobody looked when the interval ended."""
    cluster = rates(2, percentage=HALF)
    cluster.fail(0, 10)
    cluster.now += 1.5
    cluster.succeed(0, 90)
    assert cluster.endpoints[0].ejected
    assert cluster.told == [("endpoint_ejected", 0, {"reason": "failurePercentage", "seconds": 2.0})]
    cluster.succeed(1, 5)
    cluster.now += 1.0
    cluster.fail(1, 1)
    assert [each.success_rate for each in cluster.endpoints] == [100.0, 100.0]


def test_intervals_that_nobody_saw_are_worked_off_as_if_each_had_come_in_time():
    """Ejected at the end of the first, for two seconds from then, and returned by the third; the growth goes with the fourth."""
    cluster = rates(1, percentage=HALF)
    cluster.fail(0, 10)
    cluster.now += 2.9
    assert cluster.out() == [0]
    cluster.now += 0.1
    assert cluster.out() == []
    cluster.fail(0, 10)
    cluster.now += 7.0
    assert cluster.out() == []
    assert [name for name, _, _ in cluster.told] == ["endpoint_ejected", "endpoint_returned"] * 2
    assert cluster.endpoints[0].success_rate is None, "nothing was told in the last interval"
    assert cluster.endpoints[0].multiplier == 0


def test_who_is_out_is_not_compared_with():
    """With it there would be five to compare. The counts stay: what panic sends there is judged when it is back."""
    cluster = rates(5, rate=RATE, percentage=FailurePercentage(100, 1, 10))
    cluster.answer(100, 100, 100, 100, 0)
    cluster.now += 1.0
    assert cluster.out() == [4]
    cluster.answer(50, 100, 100, 100, 100)
    cluster.now += 1.0
    assert cluster.out() == [4]
    cluster.fail(4, 10)
    cluster.now += 1.0
    assert cluster.out() == [4], "returned by this tick, and ejected by it"
    assert [name for name, number, _ in cluster.told if number == 4] == ["endpoint_ejected", "endpoint_returned", "endpoint_ejected"]


def test_of_those_that_may_not_all_go_the_worst_goes():
    cluster = rates(4, percentage=HALF, max_percent=50)
    cluster.answer(40, 10, 30, 20)
    cluster.now += 1.0
    assert cluster.out() == [1, 3]


SPLIT = {"split_local": True, "percentage": FailurePercentage(100, 1, 1)}


@pytest.mark.parametrize(("results", "external", "local"), [
    ([(503, False), None, None, None], 75.0, 100.0),
    ([(0, False)], None, 50.0),  # a reset: the connection was good
    ([None, (0, True)], 100.0, 50.0),  # 200, and the body breaks
    ([(503, False), (0, True)], 0.0, 50.0),
    ([(0, True)], None, 0.0),  # refused
])
def test_the_rates_that_envoy_was_seen_to_have_when_split(results, external, local):
    cluster = rates(1, **{**SPLIT, "max_percent": 0.0})
    for each in results * 5:
        if each is None:
            cluster.succeed(0)
        else:
            cluster.fail(0, 1, each[0], local_origin=each[1])
    cluster.now += 1.0
    cluster.out()
    shown = cluster.endpoints[0].snapshot(cluster.now)
    assert (shown["successRate"], shown["localOriginSuccessRate"]) == (external, local)


@pytest.mark.parametrize(("status", "local", "reason"), [(500, False, "failurePercentage"), (0, True, "localOriginFailurePercentage")])
def test_answers_and_connections_are_judged_apart_when_split(status, local, reason):
    cluster = rates(1, **SPLIT)
    cluster.fail(0, 3, status, local_origin=local)
    cluster.now += 1.0
    assert cluster.out() == [0]
    assert cluster.told[0][2]["reason"] == reason


def test_connections_are_compared_with_those_that_are_still_in():
    cluster = rates(6, rate=SuccessRate(6, 1, 1.9), split_local=True)
    cluster.answer(0, 100, 100, 100, 100, 100)
    cluster.fail(1, 50, 0, local_origin=True)
    cluster.now += 1.0
    assert cluster.out() == [0], "the answers took one, so that five are left"


def test_a_success_need_be_told_only_while_it_matters():
    cluster = Cluster(consecutive_5xx=3)
    endpoint = cluster.endpoints[0]
    assert not endpoint.attentive
    cluster.fail(0)
    assert endpoint.attentive
    cluster.succeed(0)
    assert not endpoint.attentive
    cluster.detector.retune(figures(failure_percentage=HALF), cluster.endpoints)
    assert endpoint.attentive
    cluster.succeed(0)
    assert endpoint.attentive
    cluster.detector.retune(figures(), cluster.endpoints)
    assert not endpoint.attentive


def test_a_retune_that_stops_counting_and_one_that_begins_again_forget():
    cluster = rates(1, percentage=HALF)
    cluster.fail(0, 10)
    cluster.detector.retune(figures(consecutive_5xx=None), cluster.endpoints)
    cluster.fail(0, 10)
    cluster.detector.retune(figures(consecutive_5xx=None, failure_percentage=HALF), cluster.endpoints)
    cluster.now += 1.0
    assert cluster.out() == []
    cluster.fail(0, 10)
    cluster.detector.retune(figures(consecutive_5xx=None, failure_percentage=FailurePercentage(90, 1, 10)), cluster.endpoints)
    cluster.now += 1.0
    assert cluster.out() == [0], "what goes on counting forgets nothing"


def test_threads_lose_no_success():
    cluster = rates(1, percentage=HALF)
    endpoint = cluster.endpoints[0]
    threads = [threading.Thread(target=cluster.succeed, args=(0, 20_000)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (endpoint.answers, endpoint.good_answers) == (80_000, 80_000)


class OutlierMachine(RuleBasedStateMachine):
    """The model processes every tick since the beginning, one after another."""

    @initialize(
        size=st.integers(1, 4), threshold=st.sampled_from([1, 2, 3, 1000]), base=st.sampled_from([1.0, 2.5]),
        percent=st.sampled_from([50.0, 100.0]),
        rate=st.none() | st.builds(SuccessRate, st.integers(1, 4), st.integers(1, 4), st.sampled_from([0.5, 1.0, 1.4])),
        percentage=st.none() | st.builds(FailurePercentage, st.sampled_from([30, 50, 100]), st.integers(1, 3), st.integers(1, 4)),
    )
    def begin(self, size, threshold, base, percent, rate, percentage):
        self.cluster = Cluster(
            size, consecutive_5xx=threshold, base=base, longest=6.0, max_percent=percent, success_rate=rate, failure_percentage=percentage,
        )
        self.rate, self.percentage = rate, percentage
        self.told: list[list[bool]] = [[] for _ in range(size)]
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
            self.judge()
            self.told = [[] for _ in self.told]
            self.next_tick += 1.0

    def judge(self):
        present = [each for each, told in enumerate(self.told) if told and self.out_since[each] is None]
        shares = {each: Fraction(100 * sum(self.told[each]), len(self.told[each])) for each in present}
        worst_first = sorted(shares, key=lambda each: shares[each])
        outliers = []
        if self.rate is not None:
            counted = [each for each in worst_first if len(self.told[each]) >= self.rate.request_volume]
            if len(counted) >= self.rate.minimum_hosts:
                mean = sum(shares[each] for each in counted) / len(counted)
                variance = sum((shares[each] - mean) ** 2 for each in counted) / len(counted)
                factor = Fraction(str(self.rate.stdev_factor))
                outliers += [each for each in counted if shares[each] < mean and (mean - shares[each]) ** 2 > factor**2 * variance]
        if self.percentage is not None:
            counted = [each for each in worst_first if len(self.told[each]) >= self.percentage.request_volume]
            if len(counted) >= self.percentage.minimum_hosts:
                outliers += [each for each in counted if 100 - shares[each] >= self.percentage.threshold]
        for each in outliers:
            self.eject(each, self.next_tick)

    def eject(self, each, at):
        out = sum(since is not None for since in self.out_since)
        if self.out_since[each] is None and 100 * (out + 1) <= self.percent * len(self.row):
            self.out_since[each] = at
            if self.times_out[each] * self.base < 6.0 + self.base:
                self.times_out[each] += 1

    @rule(quarters=st.integers(1, 20))
    def wait(self, quarters):
        self.cluster.now += quarters / 4

    @rule(data=st.data(), times=st.integers(1, 5), quarters=st.integers(0, 9))
    def succeed(self, data, times, quarters):
        """Told late, too: nobody has looked meanwhile."""
        each = data.draw(st.integers(0, len(self.row) - 1))
        self.cluster.now += quarters / 4
        self.catch_up()
        if self.cluster.endpoints[each].attentive:
            self.cluster.succeed(each, times)
            self.told[each] += [True] * times
        self.row[each] = 0

    @rule(data=st.data(), times=st.integers(1, 3), quarters=st.integers(0, 9))
    def fail(self, data, times, quarters):
        each = data.draw(st.integers(0, len(self.row) - 1))
        self.cluster.now += quarters / 4
        self.catch_up()
        for _ in range(times):
            self.cluster.fail(each)
            self.told[each].append(False)
            self.row[each] += 1
            if self.row[each] == self.threshold:
                self.row[each] = 0
                self.eject(each, self.cluster.now)

    @invariant()
    def agrees(self):
        if hasattr(self, "row"):
            self.catch_up()
            assert self.cluster.out() == [each for each, since in enumerate(self.out_since) if since is not None]


OutlierMachine.TestCase.settings = hypothesis_settings(max_examples=100, stateful_step_count=40, deadline=None)
TestOutlierMachine = OutlierMachine.TestCase
