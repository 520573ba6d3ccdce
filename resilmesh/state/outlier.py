"""Outlier detection: which endpoints keep failing, and how long each stays out. Envoy's rules (ENVOY.md 2d).

    event                                                       effect
    the n-th consecutive failure of a kind that is counted      ejected at once, if maxEjectionPercent allows
    any success                                                 every count starts at zero
    a multiple of `interval` after base * times ejected         returned, all traffic at once (there is no half-open)
    a multiple of `interval` while not ejected                  times ejected shrinks by one

Ejection ends at an interval's tick, not between two, as in Envoy: base 1 s with interval 500 ms was seen to
last 1.5, 2.5, 3.5 s. The ticks are worked off when somebody looks, so no timer is needed. A count that
reaches its threshold starts again at zero, ejected or not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: event name, endpoint, now, detail
Notify = Callable[[str, "Endpoint", float, dict[str, Any]], None]

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


class Endpoint:
    """One address of a service and what is remembered of it. Outlives policies that keep its address."""

    __slots__ = (
        "address", "ejected", "ejected_at", "ejections", "gateway_failures", "host", "in_flight", "labels", "local_failures",
        "multiplier", "port", "requests", "server_errors",
    )

    def __init__(self, address: str, labels: Mapping[str, str]) -> None:
        self.address = address
        host, _, port = address.rpartition(":")
        self.host = host[1:-1] if host.startswith("[") else host
        self.port = int(port)
        self.labels = dict(labels)
        self.in_flight = 0
        self.requests = 0
        self.server_errors = self.gateway_failures = self.local_failures = 0
        self.ejected = False
        self.ejected_at = 0.0
        self.multiplier = 0
        self.ejections = 0

    def __repr__(self) -> str:
        return f"Endpoint({self.address!r})"

    def after_fork(self) -> None:
        self.in_flight = 0

    def snapshot(self, now: float) -> dict[str, Any]:
        return {
            "labels": self.labels, "inFlight": self.in_flight, "requests": self.requests, "ejected": self.ejected,
            "ejections": self.ejections, "consecutive5xx": self.server_errors,
        }


class OutlierDetector:
    """Counts failures by endpoint and ejects. ``version`` grows when the set of healthy endpoints changed."""

    __slots__ = ("_lock", "_next_tick", "_notify", "_restless", "endpoints", "settings", "version")

    def __init__(self, settings: OutlierSettings | None, endpoints: Sequence[Endpoint], notify: Notify) -> None:
        self._lock = threading.Lock()
        self._notify = notify
        self.settings = settings
        self.endpoints = tuple(endpoints)
        self.version = 0
        self._next_tick = float("-inf")
        #: Whether any endpoint is ejected or still owes decay: otherwise ticks have nothing to do.
        self._restless = False

    def retune(self, settings: OutlierSettings | None, endpoints: Sequence[Endpoint]) -> None:
        """New thresholds from the next result on. Without settings everybody returns."""
        with self._lock:
            if settings is not None and (self.settings is None or self.settings.interval != settings.interval):
                self._next_tick = float("-inf")  # the old rhythm may be hours away
            self.settings, self.endpoints = settings, tuple(endpoints)
            if settings is None:
                for endpoint in self.endpoints:
                    endpoint.ejected, endpoint.multiplier = False, 0
            self.version += 1

    def success(self, endpoint: Endpoint) -> None:
        """The endpoint answered well: whatever was counted was not consecutive."""
        endpoint.server_errors = endpoint.gateway_failures = endpoint.local_failures = 0

    def failure(self, endpoint: Endpoint, now: float, *, status: int, local_origin: bool) -> None:
        """The endpoint failed with an HTTP ``status`` (0: no answer), or before there was a connection."""
        settings = self.settings
        if settings is None:
            return
        reason = self._count(endpoint, settings, status, local_origin)
        if reason is not None:
            self._eject(endpoint, now, reason)

    @staticmethod
    def _count(endpoint: Endpoint, settings: OutlierSettings, status: int, local_origin: bool) -> str | None:
        if settings.split_local:
            # Envoy: a connection that was made resets this count. What breaks it counts here again, and so never
            # more than one (ENVOY.md 2d: 12 of 24 failed and nothing was ejected).
            if not local_origin:
                endpoint.local_failures = 0
            if status == 0:
                endpoint.local_failures += 1
                # Not `==`, here and below: a retune may have lowered the threshold under the count.
                if settings.consecutive_local is not None and endpoint.local_failures >= settings.consecutive_local:
                    endpoint.local_failures = 0
                    return "consecutiveLocalOriginFailures"
                return None
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

    def _eject(self, endpoint: Endpoint, now: float, reason: str) -> None:
        with self._lock:
            settings = self.settings
            if settings is None or endpoint.ejected or endpoint not in self.endpoints:
                return
            out = 1 + sum(each.ejected for each in self.endpoints)
            if 100 * out > settings.max_percent * len(self.endpoints):
                return
            if endpoint.multiplier * settings.base < settings.longest + settings.base:
                endpoint.multiplier += 1
            endpoint.ejected, endpoint.ejected_at = True, now
            endpoint.ejections += 1
            self.version += 1
            self._restless = True
            seconds = self._sentence(endpoint, settings)
        self._notify("endpoint_ejected", endpoint, now, {"reason": reason, "seconds": seconds})

    @staticmethod
    def _sentence(endpoint: Endpoint, settings: OutlierSettings) -> float:
        return min(settings.base * endpoint.multiplier, max(settings.base, settings.longest))

    def tick(self, now: float) -> None:
        """Work off the intervals that are over: return who has served, let the others' growth decay."""
        settings = self.settings
        if settings is None or now < self._next_tick:
            return
        returned: list[Endpoint] = []
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
                if not self._restless:
                    break
                self._one_tick(first + index * settings.interval, settings, returned)
        for endpoint in returned:
            self._notify("endpoint_returned", endpoint, now, {})

    def _one_tick(self, at: float, settings: OutlierSettings, returned: list[Endpoint]) -> None:
        restless = False
        for endpoint in self.endpoints:
            if endpoint.ejected:
                # A nanosecond of slack: the sum of intervals and the time of ejection round apart.
                if at - endpoint.ejected_at + 1e-9 >= self._sentence(endpoint, settings):
                    endpoint.ejected = False
                    endpoint.server_errors = endpoint.gateway_failures = endpoint.local_failures = 0
                    self.version += 1
                    returned.append(endpoint)
            elif endpoint.multiplier:
                endpoint.multiplier -= 1
            restless = restless or endpoint.ejected or endpoint.multiplier > 0
        self._restless = restless

    def after_fork(self) -> None:
        self._lock = threading.Lock()
