"""outlierDetection: what counts, who is taken out, for how long, and what happens when nobody is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise

import pytest
from scripted import OK, RESET, Say, Script, Seen, Service, refusing, status
from sidebyside import Caller, Observation, covers, side_by_side

from tests.timing import in_time

Services = dict[str, Service]

NOBODY_LEFT = "no healthy upstream"


def policy(outlier: str, more: str = "", endpoints: str = '{address: "$a"}') -> str:
    return f"""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{endpoints}]
  outlierDetection: {outlier}
  {more}
"""


def some(count: int) -> Callable[[Caller], None]:
    """A pause after each: Envoy's main thread ejects, and its workers learn of it when the machine has time for them."""
    def traffic(caller: Caller) -> None:
        for _ in range(count):
            caller.get()
            time.sleep(0.01)

    return traffic


@pytest.mark.parametrize("outcome", [status(500), status(503), RESET, Say(delay=0.5)], ids=["500", "503", "reset", "too late"])
@covers("ServiceBlocks.outlier_detection", "OutlierDetection.consecutive_5xx_errors")
def test_the_only_endpoint_is_ejected(services: Services, outcome: Say) -> None:
    both = side_by_side(services, policy("{consecutive5xxErrors: 3}", "timeout: 150ms"), some(5), a=outcome)
    both.agree()
    assert both.envoy.attempts == 3
    assert (both.envoy.statuses[3:], both.envoy.bodies[3:]) == ([503, 503], [NOBODY_LEFT, NOBODY_LEFT])


@covers("OutlierDetection.consecutive_5xx_errors")
def test_a_success_in_between_starts_the_count_again(services: Services) -> None:
    script = [status(500), status(500), OK, status(500), status(500), status(429), status(500), status(500), status(500)]
    both = side_by_side(services, policy("{consecutive5xxErrors: 3}"), some(10), a=script)
    both.agree()
    assert both.envoy.attempts == 9


HALF = Say(body=b"x" * 1000, how="half")
LATE_BODY = Say(body=b"x" * 1000, body_delay=0.4)


@pytest.mark.parametrize(("threshold", "outcomes", "attempts"), [
    (1, [HALF], 1),
    (2, [HALF], 4),  # each has begun well, so no two are in a row
    (2, [HALF, status(500)], 2),
    (2, [Say(status=500, body=b"x" * 1000, how="half")], 1),  # its status is one failure, its body another
    (1, [LATE_BODY], 4),  # cut off by the timeout, which is not the endpoint's doing
], ids=["once", "never two", "and an error", "twice at once", "too late"])
@covers("OutlierDetection.consecutive_5xx_errors")
def test_bodies_that_break(services: Services, threshold: int, outcomes: list[Say], attempts: int) -> None:
    text = policy(f"{{consecutive5xxErrors: {threshold}}}", "timeout: 150ms")
    both = side_by_side(services, text, some(4), a=outcomes)
    both.agree()
    assert both.envoy.attempts == attempts


@pytest.mark.parametrize(("threshold", "attempts"), [(1, 1), (2, 4)])
@pytest.mark.parametrize("outcome", [RESET, HALF, Say(delay=0.3)], ids=["reset", "half", "too late"])
@covers("OutlierDetection.split_external_local_origin_errors", "OutlierDetection.consecutive_local_origin_failures")
def test_what_breaks_a_connection_counts_once_at_most_when_split(services: Services, outcome: Say, threshold: int, attempts: int) -> None:
    """The connection that was made starts the count again, and so only a threshold of one is reached."""
    outlier = f"{{splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: {threshold}}}"
    both = side_by_side(services, policy(outlier, "timeout: 150ms"), some(4), a=outcome)
    both.agree()
    assert both.envoy.attempts == attempts


@covers("OutlierDetection.consecutive_5xx_errors")
def test_null_counts_nothing(services: Services) -> None:
    text = policy("{consecutive5xxErrors: null, consecutiveGatewayErrors: 8}")
    both = side_by_side(services, text, some(7), a=status(503))
    both.agree()
    assert both.envoy.attempts == 7


@covers("OutlierDetection.consecutive_gateway_errors")
def test_gateway_errors(services: Services) -> None:
    text = policy("{consecutive5xxErrors: null, consecutiveGatewayErrors: 3}")
    script = [status(500), status(502), status(504), status(500), status(502), RESET, status(503)]
    both = side_by_side(services, text, some(9), a=script)
    both.agree()
    assert both.envoy.attempts == 7


def _among_two(services: Services, outlier: str, address: str, **scripts: Say) -> tuple[list[str], list[str]]:
    """24 calls, in turn to ``address`` and to a good endpoint; who answered in each plane, F for a failure."""
    text = policy(outlier, endpoints=f'{{address: "{address}"}}, {{address: "$b"}}')
    both = side_by_side(services, text, some(24), **scripts)
    library, envoy = ([("ok" if code == 200 else "F") for code in each.statuses] for each in both)
    return library, envoy


@covers("OutlierDetection.split_external_local_origin_errors", "OutlierDetection.consecutive_local_origin_failures")
def test_connections_that_fail_are_counted_apart(services: Services) -> None:
    outlier = "{consecutive5xxErrors: 1, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 3}"
    with refusing() as nobody:
        library, envoy = _among_two(services, outlier, nobody)
    assert library.count("F") == envoy.count("F") == 3
    assert "F" not in library[6:] + envoy[6:]


@covers("OutlierDetection.split_external_local_origin_errors")
def test_split_or_not_a_refused_connection_is_a_failure(services: Services) -> None:
    with refusing() as nobody:
        library, envoy = _among_two(services, "{consecutive5xxErrors: 2, splitExternalLocalOriginErrors: false}", nobody)
    assert library.count("F") == envoy.count("F") == 2


@covers("OutlierDetection.split_external_local_origin_errors")
def test_split_a_reset_connection_counts_nowhere(services: Services) -> None:
    outlier = "{consecutive5xxErrors: 2, splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 2}"
    library, envoy = _among_two(services, outlier, "$a", a=RESET)
    assert library.count("F") == envoy.count("F") == 12


def _outages(caller: Caller, seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        caller.get()
        time.sleep(0.02)


def _pauses(seen: list[Seen]) -> list[float]:
    """Times for which the service saw nothing."""
    return [later.at - earlier.at for earlier, later in pairwise(seen) if later.at - earlier.at > 0.15]


@covers("OutlierDetection.interval", "OutlierDetection.base_ejection_time", "OutlierDetection.max_ejection_time")
def test_each_ejection_is_longer_until_the_longest(services: Services) -> None:
    """base 300 ms, interval 150 ms: out for 0.3-0.45 s, then 0.6-0.75, then no longer than that."""
    text = policy("{consecutive5xxErrors: 2, interval: 150ms, baseEjectionTime: 300ms, maxEjectionTime: 600ms}")
    both = side_by_side(services, text, lambda caller: _outages(caller, 2.5), a=status(503))
    for plane in both:
        pauses = _pauses(plane.seen["a"])
        assert len(pauses) >= 3
        in_time(pauses[0], 0.55, least=0.28)
        for pause in pauses[1:]:
            in_time(pause, 0.9, least=0.58)
        # Two calls each time that it is back; the traffic may end between them.
        assert plane.attempts - 2 * len(pauses) in (1, 2)


@covers("OutlierDetection.interval", "OutlierDetection.base_ejection_time")
def test_growth_is_forgotten_by_the_interval(services: Services) -> None:
    """Out, well for three intervals, and out again: no longer than the first time."""
    text = policy("{consecutive5xxErrors: 1, interval: 150ms, baseEjectionTime: 400ms}")

    def traffic(caller: Caller) -> None:
        _outages(caller, 1.2)

    def script(_request: Seen, before: int) -> Say:
        return status(503) if before in (0, 25) else OK

    both = side_by_side(services, text, traffic, a=script)
    for plane in both:
        pauses = _pauses(plane.seen["a"])
        assert pauses
        for pause in pauses:
            in_time(pause, 0.68, least=0.38)


@pytest.mark.parametrize(("percent", "ejected"), [(49, 0), (50, 1), (100, 2)])
@covers("OutlierDetection.max_ejection_percent")
def test_how_many_may_be_out(services: Services, percent: int, ejected: int) -> None:
    text = policy(f"{{consecutive5xxErrors: 2, maxEjectionPercent: {percent}}}", endpoints='{address: "$a"}, {address: "$b"}')
    both = side_by_side(services, text, some(16), a=status(503), b=status(503))
    for plane in both:
        assert plane.bodies.count(NOBODY_LEFT) == (12 if ejected == 2 else 0)
        assert sorted(map(len, (plane.seen["a"], plane.seen["b"]))) == {0: [8, 8], 1: [2, 14], 2: [2, 2]}[ejected]


@pytest.mark.parametrize(("threshold", "panics"), [(50, False), (51, True)])
@covers("OutlierDetection.panic_threshold")
def test_panic(services: Services, threshold: int, panics: bool) -> None:
    text = policy(f"{{consecutive5xxErrors: 2, panicThreshold: {threshold}}}", endpoints='{address: "$a"}, {address: "$b"}')
    both = side_by_side(services, text, some(24), a=status(503))
    for plane in both:
        assert len(plane.seen["a"]) == (pytest.approx(12, abs=2) if panics else 2)


@pytest.mark.parametrize(("threshold", "panics"), [(66, False), (67, True), (100, True)])
@covers("OutlierDetection.panic_threshold")
def test_panic_while_most_are_well(services: Services, threshold: int, panics: bool) -> None:
    """Left to itself, Envoy never panics while 71.4 % are healthy."""
    text = policy(f"{{consecutive5xxErrors: 1, panicThreshold: {threshold}}}",
                  endpoints='{address: "$a"}, {address: "$b"}, {address: "$c"}')
    both = side_by_side(services, text, some(24), a=status(503))
    for plane in both:
        assert len(plane.seen["a"]) == (pytest.approx(8, abs=2) if panics else 1)


@covers("OutlierDetection.panic_threshold")
def test_panic_with_nobody_left(services: Services) -> None:
    both = side_by_side(services, policy("{consecutive5xxErrors: 2, panicThreshold: 1}"), some(6), a=status(503))
    both.agree()
    assert both.envoy.attempts == 6


@covers("ServiceBlocks.outlier_detection")
def test_a_retry_finds_the_good_endpoint_and_the_bad_one_goes(services: Services) -> None:
    text = policy("{consecutive5xxErrors: 3}", "retries: {maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}",
                  endpoints='{address: "$a"}, {address: "$b"}')
    both = side_by_side(services, text, some(20), a=status(503))
    for plane in both:
        assert plane.statuses == [200] * 20
        assert len(plane.seen["a"]) == 3


@covers("ServiceBlocks.outlier_detection")
def test_difference_a_retry_that_finds_nobody_left(services: Services) -> None:
    """Seconds later, because Envoy's ejection reaches its workers only after a moment."""
    text = policy("{consecutive5xxErrors: 1}", "retries: {maxRetries: 1, retryOn: [5xx], retryAfter: {max: 2s}}")
    both = side_by_side(services, text, some(1), a=status(500, headers=(("retry-after", "1"),)))
    assert (both.library.bodies, both.envoy.bodies) == (["service says 500"], [NOBODY_LEFT])
    assert both.library.attempts == both.envoy.attempts == 1


# ------------------------------------------------------------------------------------------------ rates


@pytest.fixture(scope="module")
def six() -> Iterator[Services]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(Service()) for name in "abcdef"}


def _failing(of_ten: str) -> Script:
    """Fails where the pattern says F, over and over. Even, so that the share of any interval is near that of the whole."""
    def script(_request: Seen, before: int) -> Say:
        return status(503) if of_ten[before % len(of_ten)] == "F" else OK

    return script


HALF_OF_THEM = _failing("F-")
FORTY = _failing("F-F--")
SIXTY = _failing("FF-F-")


def _who_is_out(
    services: Services, rates: str, names: str = "abcdef", more: str = "", dead: str = "", **scripts: Script,
) -> list[set[str]]:
    """By plane: the endpoints that see nothing any more.

    An interval is 300 ms, so that a whole one has ended 200 ms before the end. Ejections last longer than the test.
    """
    addresses = [f'"${name}"' for name in names] + ([f'"{dead}"'] if dead else [])
    endpoints = ", ".join(f"{{address: {address}}}" for address in addresses)
    text = policy(f"{{consecutive5xxErrors: null, interval: 300ms, {rates}}}", more, endpoints=endpoints)

    def traffic(caller: Caller) -> None:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            caller.get()

    both = side_by_side(services, text, traffic, **scripts)
    return [_silent(plane, names, dead) for plane in both]


def _silent(plane: Observation, names: str, dead: str) -> set[str]:
    end = max(seen[-1].at for seen in plane.seen.values() if seen)
    out = {name for name in names if plane.seen[name][-1].at < end - 0.2}
    if dead and all(reply.status == 200 for reply in plane.replies if reply.at > plane.replies[-1].at - 0.2):
        out.add("dead")
    return out


@pytest.mark.parametrize(("factor", "hosts", "volume", "names", "bad", "out"), [
    (1.9, 5, 5, "abcdef", "a", {"a"}),
    (1.9, 5, 5, "abcdef", "ab", set()),  # two of six are 1.4 deviations below the mean
    (1.2, 5, 5, "abcdef", "ab", {"a", "b"}),
    (1.9, 7, 5, "abcdef", "a", set()),
    (1.4, 3, 5, "abc", "a", {"a"}),
    (1.5, 3, 5, "abc", "a", set()),  # one of three is 1.41 below
    (1.9, 5, 100_000, "abcdef", "a", set()),
], ids=["one of six", "two of six", "nearer", "too few", "one of three", "never by three", "too little"])
@covers(
    "OutlierDetection.success_rate", "SuccessRate.minimum_hosts", "SuccessRate.request_volume", "SuccessRate.stdev_factor",
)
def test_who_does_worse_than_the_others_is_ejected(
    six: Services, factor: float, hosts: int, volume: int, names: str, bad: str, out: set[str],
) -> None:
    rates = f"successRate: {{stdevFactor: {factor}, minimumHosts: {hosts}, requestVolume: {volume}}}"
    library, envoy = _who_is_out(six, rates, names, **dict.fromkeys(bad, HALF_OF_THEM))
    assert library == envoy == out


@pytest.mark.parametrize(("rates", "bad", "out"), [
    ("failurePercentage: {threshold: 50, minimumHosts: 3, requestVolume: 10}", SIXTY, {"a"}),
    ("failurePercentage: {threshold: 50, minimumHosts: 3, requestVolume: 10}", FORTY, set()),
    ("failurePercentage: {threshold: 100, minimumHosts: 3, requestVolume: 10}", status(500), {"a"}),
    ("failurePercentage: {threshold: 50, minimumHosts: 4, requestVolume: 10}", SIXTY, set()),
    ("failurePercentage: {threshold: 50, minimumHosts: 3, requestVolume: 100000}", SIXTY, set()),
], ids=["60 %", "40 %", "all", "too few", "too little"])
@covers(
    "OutlierDetection.failure_percentage", "FailurePercentage.threshold", "FailurePercentage.minimum_hosts",
    "FailurePercentage.request_volume",
)
def test_who_fails_too_often_is_ejected(six: Services, rates: str, bad: Script, out: set[str]) -> None:
    library, envoy = _who_is_out(six, rates, "abc", a=bad)
    assert library == envoy == out


@pytest.mark.parametrize(("split", "outcome", "threshold", "out"), [
    ("true", HALF, 35, {"a"}),  # the connection was good and then broke: half of the local origin's
    ("true", HALF, 70, set()),
    ("true", RESET, 70, set()),
    ("false", RESET, 100, {"a"}),
    ("false", HALF, 35, {"a"}),  # the status was good and then the body broke: half of the answers
    ("false", HALF, 70, set()),
], ids=["half, split", "no more than half, split", "reset, split", "reset", "half", "no more than half"])
@covers("OutlierDetection.failure_percentage", "OutlierDetection.split_external_local_origin_errors")
def test_what_the_percentages_are_of(six: Services, split: str, outcome: Say, threshold: int, out: set[str]) -> None:
    """Envoy takes 0.1 s for half a body, so that an interval has few of them."""
    rates = f"splitExternalLocalOriginErrors: {split}, failurePercentage: {{threshold: {threshold}, minimumHosts: 1, requestVolume: 4}}"
    library, envoy = _who_is_out(six, rates, "ab", a=outcome)
    assert library == envoy == out


@covers("OutlierDetection.success_rate", "OutlierDetection.split_external_local_origin_errors")
def test_connections_are_compared_with_connections_when_split(six: Services) -> None:
    rates = "splitExternalLocalOriginErrors: true, successRate: {requestVolume: 5}"
    with refusing() as nobody:
        library, envoy = _who_is_out(six, rates, dead=nobody)
    assert library == envoy == {"dead"}


@covers("OutlierDetection.failure_percentage", "OutlierDetection.max_ejection_percent")
def test_no_more_go_by_their_rates_than_may(six: Services) -> None:
    rates = "maxEjectionPercent: 67, failurePercentage: {threshold: 50, minimumHosts: 3, requestVolume: 5}"
    library, envoy = _who_is_out(six, rates, "abc", a=SIXTY, b=SIXTY, c=SIXTY)
    assert len(library) == len(envoy) == 2


# ------------------------------------------------------------------------------------------- slow start


@pytest.mark.parametrize("balancer", ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"])
@covers("LoadBalancer.slow_start", "SlowStart.window", "SlowStart.aggression", "SlowStart.min_weight_percent")
def test_difference_who_comes_back_is_eased(services: Services, balancer: str) -> None:
    """Ejected by its first answer and back in 0.4 s: all at once in Envoy, little by little in the library."""
    text = policy(
        "{consecutive5xxErrors: 1, interval: 100ms, baseEjectionTime: 350ms}",
        f"loadBalancer: {{policy: {balancer}, slowStart: {{window: 5s, aggression: 0.5, minWeightPercent: 2}}}}",
        endpoints='{address: "$a"}, {address: "$b"}',
    )

    def traffic(caller: Caller) -> None:
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            caller.get()

    both = side_by_side(services, text, traffic, a=[status(503), OK])
    shares = []
    for plane in both:
        end = plane.seen["b"][-1].at
        late = {name: sum(each.at > end - 0.5 for each in plane.seen[name]) for name in "ab"}
        shares.append(late["a"] / (late["a"] + late["b"]))
    library, envoy = shares
    assert library < 0.2
    assert 0.3 < envoy < 0.7
