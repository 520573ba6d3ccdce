"""What was observed, read from a stats document: calls, attempts, durations and endpoints of each service and route."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resilmesh.telemetry.asking import NoDocument
from resilmesh.telemetry.quantiles import Histogram

#: What a policy takes for a name. A route such as ``(mirror)`` is none of the policy's.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?", re.ASCII)


@dataclass(frozen=True)
class RouteProfile:
    """What was counted of one route, or of the requests that no route matches (``*``)."""

    name: str
    calls: int
    in_flight: int
    succeeded: Histogram | None
    failed: Histogram | None
    attempts: int
    #: Of attempts that succeeded; ``None``: the document does not say.
    attempts_succeeded: Histogram | None
    attempts_failed: int
    retries: int
    #: Under OBSERVE what the policy of then would have refused, otherwise what it did refuse; by the exception's name.
    refused: Mapping[str, int]
    faults: int
    #: Whether what was called are methods of gRPC.
    grpc: bool

    @property
    def ended(self) -> int:
        """Calls that succeeded or failed."""
        return sum(each.number for each in (self.succeeded, self.failed) if each is not None)

    @property
    def seconds(self) -> float:
        """What those took, together."""
        return sum(each.seconds for each in (self.succeeded, self.failed) if each is not None)


@dataclass(frozen=True)
class ServiceProfile:
    """What was counted of one service."""

    name: str
    routes: Mapping[str, RouteProfile]
    #: By address: the failures in a row now, and how often it was ejected.
    endpoints: Mapping[str, tuple[int, int]]
    #: By the route that a concurrency limit stands on: what it let in, and let wait.
    limits: Mapping[str, int]

    @property
    def grpc(self) -> bool:
        return any(route.grpc for route in self.routes.values())

    @property
    def calls(self) -> int:
        return sum(route.calls for route in self.routes.values())


@dataclass(frozen=True)
class Profile:
    """What a process, or several workers of one, saw in ``seconds``."""

    seconds: float
    workers: int
    workload: str | None
    mode: str
    services: Mapping[str, ServiceProfile] = field(default_factory=dict)


def read(document: Mapping[str, Any], source: str) -> Profile:
    """The profile in a stats document. Raises ``NoDocument`` for figures that cannot be, and where there was no traffic."""
    try:
        profile = _profile(document)
    except _Wrong as error:
        raise NoDocument(f"{source} cannot be used: {error}; take it anew from the process") from None
    if not any(service.calls for service in profile.services.values()):
        raise NoDocument(f"{source} has no calls at all: let the program run under traffic (mode: OBSERVE changes nothing), and ask again")
    if profile.seconds <= 0:
        raise NoDocument(f"{source} has calls in no time: 'seconds' must be more than 0; take it anew from the process")
    return profile


class _Wrong(Exception):
    """A figure that cannot be; the text names its place."""


def _profile(document: Mapping[str, Any]) -> Profile:
    snapshot = document["snapshot"]
    workers = document.get("workers")
    workload, mode = snapshot.get("workload"), snapshot.get("mode")
    return Profile(
        seconds=float(document["seconds"]), workers=max(1, len(workers)) if isinstance(workers, list) else 1,
        workload=workload if _is_name(workload) else None, mode=mode if mode in ("ENFORCE", "OBSERVE") else "OBSERVE",
        services={
            name: _service(name, _Block(value, f"services.{name}"))
            for name, value in _Block(snapshot, "snapshot").block("services").items() if _is_name(name)
        },
    )


def _service(name: str, found: _Block) -> ServiceProfile:
    routes = {route: _Block(value, f"{found.place}.routes.{route}") for route, value in found.block("routes").items()}
    endpoints = {address: _Block(value, f"{found.place}.endpoints.{address}") for address, value in found.block("endpoints").items()}
    limits = {route: _Block(value, f"{found.place}.concurrency.{route}") for route, value in found.block("concurrency").items()}
    return ServiceProfile(
        name, {route: _route(route, block) for route, block in routes.items() if route == "*" or _is_name(route)},
        {address: (block.count("consecutive5xx"), block.count("ejections")) for address, block in endpoints.items()},
        {route: block.count("maxRequests") + block.count("maxPending") for route, block in limits.items()},
    )


def _route(name: str, found: _Block) -> RouteProfile:
    durations, of_attempts = found.block("durations"), found.block("attemptDurations")
    bounds = durations.bounds()
    succeeded, failed = durations.histogram("succeeded", bounds), durations.histogram("failed", bounds)
    verdicts = found.block("attemptsByVerdict")
    attempts_failed = of_attempts.histogram("failed", of_attempts.bounds() or bounds)
    calls, retries = found.count("calls"), found.count("retries")
    ended = [each.number for each in (succeeded, failed) if each is not None]
    outcomes = found.items_of("outcomes")
    lost = max(verdicts.count("FAILURE") + verdicts.count("UNSENT"), *(each.number for each in (attempts_failed, failed) if each), 0)
    return RouteProfile(
        name, max(calls, sum(ended)), found.count("inFlight"), succeeded, failed,
        max(found.count("attempts"), sum(ended), lost),
        of_attempts.histogram("succeeded", of_attempts.bounds() or bounds),
        lost, retries, _added(found.block("rejected"), found.block("wouldReject")), sum(found.block("faults").counts().values()),
        any(isinstance(each, dict) and str(each.get("of", "")).startswith("/") for each in outcomes),
    )


def _added(*blocks: _Block) -> dict[str, int]:
    total: dict[str, int] = {}
    for block in blocks:
        for reason, count in block.counts().items():
            total[reason] = total.get(reason, 0) + count
    return total


def _is_name(text: object) -> bool:
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


class _Block:
    """A part of the document, with its place for complaints. What is missing is empty."""

    def __init__(self, value: object, place: str) -> None:
        if not isinstance(value, dict):
            raise _Wrong(f"{place} is not an object")
        self._value: dict[str, Any] = value
        self.place = place

    def items(self) -> list[tuple[str, Any]]:
        return list(self._value.items())

    def block(self, key: str) -> _Block:
        found = self._value.get(key)
        return _Block({} if found is None else found, f"{self.place}.{key}")

    def items_of(self, key: str) -> list[Any]:
        found = self._value.get(key)
        if not isinstance(found, list | None):
            raise _Wrong(f"{self.place}.{key} is not a list")
        return found or []

    def count(self, key: str) -> int:
        found = self._value.get(key, 0)
        if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < 2**63:
            raise _Wrong(f"{self.place}.{key} is not a count")
        return found

    def counts(self) -> dict[str, int]:
        return {key: self.count(key) for key in self._value}

    def bounds(self) -> list[float]:
        found = self.items_of("bounds")
        if not all(_finite(bound) for bound in found) or any(low >= high for low, high in zip([0.0, *found], found, strict=False)):
            raise _Wrong(f"{self.place}.bounds are not seconds in ascending order")
        return [float(bound) for bound in found]

    def histogram(self, key: str, bounds: list[float]) -> Histogram | None:
        counts = self.items_of(key)
        if not counts:
            return None
        if len(counts) != len(bounds) + 1:
            raise _Wrong(f"{self.place}.{key} has {len(counts)} counts for {len(bounds)} bounds")
        numbered = _Block({str(at): count for at, count in enumerate(counts)}, f"{self.place}.{key}").counts()
        seconds = self._value.get(f"{key}Seconds", 0.0)
        if not _finite(seconds) or seconds < 0:
            raise _Wrong(f"{self.place}.{key}Seconds is not a number of seconds")
        return Histogram(bounds, list(numbered.values()), float(seconds))


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)
