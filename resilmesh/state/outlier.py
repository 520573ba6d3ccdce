"""Outlier detection: which endpoints keep failing, and how long each stays out. Envoy's rules (ENVOY.md 2d).

    event                                                       effect
    the n-th consecutive failure of a kind that is counted      ejected at once, if maxEjectionPercent allows
    any success                                                 every count starts at zero
    a multiple of `interval`, in this order:
      after base * times ejected                                returned, all traffic at once (there is no half-open)
      not ejected                                               times ejected shrinks by one
      its figures of the interval are bad (state/rates.py)      ejected, if maxEjectionPercent allows; the worst first

Ejection ends at an interval's tick, not between two, as in Envoy: base 1 s with interval 500 ms was seen to
last 1.5, 2.5, 3.5 s. The ticks are worked off when somebody looks or tells, so no timer is needed: what is told is
counted after the ticks that came before it. A consecutive count that reaches its threshold starts again at zero,
ejected or not.

What the rates count, as was seen of Envoy with 20 requests of each kind (percent that was good):

    outcome                     not split    split: answers    split: local origin
    503 one time in four        75           75                100
    reset, or time-out          0            -                 50     the connection was good, what came of it was not
    200, and the body breaks    50           100               50
    503, and the body breaks    0            0                 50
    refused                     0            -                 0
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resilmesh.state.rates import FailurePercentage, Figure, SuccessRate, above_the_limit, below_the_others
from resilmesh.state.slowstart import JUST_NOW, LONG_AGO, SlowStart

#: event name, endpoint, now, detail
Notify = Callable[[str, "Endpoint", float, dict[str, Any]], None]
#: What a tick has to tell once the lock is free.
_News = tuple[str, "Endpoint", dict[str, Any]]

#: A backlog of ticks longer than this changes nothing any more: everything has returned and decayed.
_MOST_TICKS = 10_000


@dataclass(frozen=True, slots=True)
class OutlierSettings:
    """The policy's outlierDetection block. Durations are seconds, percents 0-100."""

    consecutive_5xx: int | None
    consecutive_gateway: int | None
    consecutive_local: int | None
    split_local: bool
    interval: float
    base: float
    longest: float
    max_percent: float
    panic: float
    success_rate: SuccessRate | None = None
    failure_percentage: FailurePercentage | None = None

    @property
    def counts_rates(self) -> bool:
        return self.success_rate is not None or self.failure_percentage is not None


class Endpoint:
    """One address of a service and what is remembered of it. Outlives policies that keep its address."""

    __slots__ = (
        "address", "answers", "attentive", "came_at", "ejected", "ejected_at", "ejections", "gateway_failures", "good_answers", "host",
        "in_flight", "labels", "local_failures", "local_origin_success_rate", "multiplier", "port", "requests", "resets",
        "server_errors", "slow_start", "success_rate", "unconnected",
    )

    def __init__(self, address: str, labels: Mapping[str, str], slow_start: SlowStart | None = None) -> None:
        self.address = address
        host, _, port = address.rpartition(":")
        self.host = host[1:-1] if host.startswith("[") else host
        self.port = int(port)
        self.labels = dict(labels)
        self.slow_start = slow_start
        #: Since when its traffic is eased (state/slowstart.py).
        self.came_at = LONG_AGO
        self.in_flight = 0
        self.requests = 0
        self.server_errors = self.gateway_failures = self.local_failures = 0
        #: Whether the detector has to be told of a success: a count above stands, or the counters below run.
        self.attentive = False
        # Of the interval that runs. When split: `resets` are connections that were made and broke before their answer,
        # `unconnected` failures without a connection of their own.
        self.answers = self.good_answers = self.resets = self.unconnected = 0
        #: Percent of the last interval; ``None`` where there is none.
        self.success_rate: float | None = None
        self.local_origin_success_rate: float | None = None
        self.ejected = False
        self.ejected_at = 0.0
        self.multiplier = 0
        self.ejections = 0

    def __repr__(self) -> str:
        return f"Endpoint({self.address!r})"

    def retune(self, labels: Mapping[str, str], slow_start: SlowStart | None) -> None:
        self.labels, self.slow_start = dict(labels), slow_start

    def share(self, now: float) -> float:
        """Of a full share of the traffic what it gets, more than 0 and at most 1."""
        if self.slow_start is None or self.came_at == LONG_AGO:
            return 1.0
        if self.came_at == JUST_NOW:
            self.came_at = now
        return self.slow_start.share(now - self.came_at)

    def after_fork(self) -> None:
        self.in_flight = 0

    def snapshot(self, now: float) -> dict[str, Any]:
        return {
            "labels": self.labels, "inFlight": self.in_flight, "requests": self.requests, "ejected": self.ejected,
            "ejections": self.ejections, "consecutive5xx": self.server_errors, "successRate": self.success_rate,
            "localOriginSuccessRate": self.local_origin_success_rate, "slowStartShare": self.share(now),
        }

    def figures(self) -> tuple[Figure | None, Figure | None]:
        """What the interval that is over says of its answers, and of the way to it; the next one begins at nothing."""
        # No call from here to the zeros, so that no thread counts between.
        answers, good, resets, unconnected = self.answers, self.good_answers, self.resets, self.unconnected
        self.answers = self.good_answers = self.resets = self.unconnected = 0
        connections = answers + 2 * resets + unconnected  # a reset is a connection that was made, and one that broke
        return (
            (100.0 * good / answers, answers) if answers else None,
            (100.0 * (answers + resets) / connections, connections) if connections else None,
        )


class OutlierDetector:
    """Counts failures by endpoint and ejects. ``version`` grows when the set of healthy endpoints changed."""

    __slots__ = ("_lock", "_next_tick", "_notify", "_rates", "_restless", "endpoints", "settings", "version")

    def __init__(self, settings: OutlierSettings | None, endpoints: Sequence[Endpoint], notify: Notify) -> None:
        self._lock = threading.Lock()
        self._notify = notify
        self.settings = settings
        self.endpoints = tuple(endpoints)
        self.version = 0
        self._next_tick = float("-inf")
        #: Whether any endpoint is ejected or still owes decay: otherwise later ticks have nothing to do.
        self._restless = False
        self._rates = False
        self._count_rates(settings)

    def retune(self, settings: OutlierSettings | None, endpoints: Sequence[Endpoint]) -> None:
        """New thresholds from the next result on. Without settings everybody returns; who is new here comes slowly."""
        with self._lock:
            if settings is not None and (self.settings is None or self.settings.interval != settings.interval):
                self._next_tick = float("-inf")  # the old rhythm may be hours away
            new = set(endpoints).difference(self.endpoints)
            self.settings, self.endpoints = settings, tuple(endpoints)
            for endpoint in self.endpoints:
                if endpoint in new or (settings is None and endpoint.ejected):
                    endpoint.came_at = JUST_NOW
                if settings is None:
                    endpoint.ejected, endpoint.multiplier = False, 0
            self._count_rates(settings)
            self.version += 1

    def _count_rates(self, settings: OutlierSettings | None) -> None:
        goes_on, self._rates = self._rates, settings is not None and settings.counts_rates
        for endpoint in self.endpoints:
            if not (goes_on and self._rates):
                endpoint.figures()  # a failure counts whether anybody asks or not
                endpoint.success_rate = endpoint.local_origin_success_rate = None
            endpoint.attentive = self._rates or endpoint.server_errors + endpoint.gateway_failures + endpoint.local_failures > 0

    def success(self, endpoint: Endpoint, now: float) -> None:
        """The endpoint answered well: whatever was counted was not consecutive. Need not be told while it is not ``attentive``."""
        if now >= self._next_tick:
            self.tick(now)
        # No call from here on, and so no lock: no other thread's figure is lost, and no failure is told in between.
        if self._rates:
            endpoint.answers += 1
            endpoint.good_answers += 1
        endpoint.server_errors = endpoint.gateway_failures = endpoint.local_failures = 0
        endpoint.attentive = self._rates

    def failure(self, endpoint: Endpoint, now: float, *, status: int, local_origin: bool) -> None:
        """The endpoint failed with an HTTP ``status`` (0: no answer).

        ``local_origin``: before there was a connection, or on one that has given its answer already.
        """
        settings = self.settings
        if settings is None:
            return
        if now >= self._next_tick:
            self.tick(now)
        reason = self._count(endpoint, settings, status, local_origin)
        endpoint.attentive = True
        if reason is not None:
            with self._lock:
                ejected = self._eject(endpoint, now, reason)
            self._tell(now, ejected)

    @staticmethod
    def _count(endpoint: Endpoint, settings: OutlierSettings, status: int, local_origin: bool) -> str | None:
        if settings.split_local:
            # Envoy: a connection that was made resets this count. What breaks it counts here again, and so never
            # more than one (ENVOY.md 2d: 12 of 24 failed and nothing was ejected).
            if not local_origin:
                endpoint.local_failures = 0
            if status == 0:
                if local_origin:
                    endpoint.unconnected += 1
                else:
                    endpoint.resets += 1
                endpoint.local_failures += 1
                # Not `==`, here and below: a retune may have lowered the threshold under the count.
                if settings.consecutive_local is not None and endpoint.local_failures >= settings.consecutive_local:
                    endpoint.local_failures = 0
                    return "consecutiveLocalOriginFailures"
                return None
        endpoint.answers += 1
        reason = None
        if status in (0, 502, 503, 504):
            endpoint.gateway_failures += 1
            if settings.consecutive_gateway is not None and endpoint.gateway_failures >= settings.consecutive_gateway:
                endpoint.gateway_failures = 0
                reason = "consecutiveGatewayErrors"
        else:
            endpoint.gateway_failures = 0
        endpoint.server_errors += 1
        if settings.consecutive_5xx is not None and endpoint.server_errors >= settings.consecutive_5xx:
            endpoint.server_errors = 0
            reason = reason or "consecutive5xxErrors"
        return reason

    def _eject(self, endpoint: Endpoint, at: float, reason: str) -> list[_News]:
        """Under the lock: eject, if it is in and may go. What to tell, if anything."""
        settings = self.settings
        if settings is None or endpoint.ejected or endpoint not in self.endpoints:
            return []
        out = 1 + sum(each.ejected for each in self.endpoints)
        if 100 * out > settings.max_percent * len(self.endpoints):
            return []
        if endpoint.multiplier * settings.base < settings.longest + settings.base:
            endpoint.multiplier += 1
        endpoint.ejected, endpoint.ejected_at = True, at
        endpoint.ejections += 1
        self.version += 1
        self._restless = True
        return [("endpoint_ejected", endpoint, {"reason": reason, "seconds": self._sentence(endpoint, settings)})]

    @staticmethod
    def _sentence(endpoint: Endpoint, settings: OutlierSettings) -> float:
        return min(settings.base * endpoint.multiplier, max(settings.base, settings.longest))

    def _tell(self, now: float, news: Sequence[_News]) -> None:
        for name, endpoint, detail in news:
            self._notify(name, endpoint, now, detail)

    def tick(self, now: float) -> None:
        """Work off the intervals that are over: return who has served, let the others' growth decay, judge by the rates."""
        settings = self.settings
        if settings is None or now < self._next_tick:
            return
        news: list[_News] = []
        with self._lock:
            if now < self._next_tick:
                return  # another thread was faster
            if self._next_tick == float("-inf"):
                self._next_tick = now + settings.interval
                return
            missed = min(int((now - self._next_tick) / settings.interval) + 1, _MOST_TICKS)
            first = self._next_tick
            self._next_tick += max(missed, int((now - first) / settings.interval) + 1) * settings.interval
            for index in range(missed):
                at = first + index * settings.interval
                if self._restless:
                    news += self._return_and_decay(at, settings)
                # What was counted belongs to the first interval: nobody told anything in the later ones.
                if index < 2 and self._rates:
                    news += self._judge(at, settings)
                elif not self._restless:
                    break
        self._tell(now, news)

    def _return_and_decay(self, at: float, settings: OutlierSettings) -> list[_News]:
        restless = False
        news: list[_News] = []
        for endpoint in self.endpoints:
            if endpoint.ejected:
                # A nanosecond of slack: the sum of intervals and the time of ejection round apart.
                if at - endpoint.ejected_at + 1e-9 >= self._sentence(endpoint, settings):
                    endpoint.ejected, endpoint.came_at = False, at
                    endpoint.server_errors = endpoint.gateway_failures = endpoint.local_failures = 0
                    self.version += 1
                    news.append(("endpoint_returned", endpoint, {}))
            elif endpoint.multiplier:
                endpoint.multiplier -= 1
            restless = restless or endpoint.ejected or endpoint.multiplier > 0
        self._restless = restless
        return news

    def _judge(self, at: float, settings: OutlierSettings) -> list[_News]:
        """Eject by the figures of the interval that ended ``at``, and keep them to be shown."""
        answers: dict[Endpoint, Figure] = {}
        connections: dict[Endpoint, Figure] = {}
        for endpoint in self.endpoints:
            external, local = endpoint.figures()
            if external is not None:
                answers[endpoint] = external
            if local is not None and settings.split_local:
                connections[endpoint] = local
            endpoint.success_rate = answers[endpoint][0] if endpoint in answers else None
            endpoint.local_origin_success_rate = connections[endpoint][0] if endpoint in connections else None
        return [
            *self._judge_one(answers, at, settings, "successRate", "failurePercentage"),
            *self._judge_one(connections, at, settings, "localOriginSuccessRate", "localOriginFailurePercentage"),
        ]

    def _judge_one(
        self, counted: Mapping[Endpoint, Figure], at: float, settings: OutlierSettings, by_success: str, by_failure: str,
    ) -> list[_News]:
        # Who is out is not compared with, as in Envoy. The worst goes first, should maxEjectionPercent not let all of them
        # go, for which Envoy has no order.
        present = sorted((each for each in counted if not each.ejected), key=lambda each: counted[each][0])
        figures = [counted[each] for each in present]
        outliers: list[tuple[int, str]] = []
        if settings.success_rate is not None:
            outliers += [(index, by_success) for index in below_the_others(figures, settings.success_rate)]
        if settings.failure_percentage is not None:
            outliers += [(index, by_failure) for index in above_the_limit(figures, settings.failure_percentage)]
        return [each for index, reason in outliers for each in self._eject(present[index], at, reason)]

    def after_fork(self) -> None:
        self._lock = threading.Lock()
