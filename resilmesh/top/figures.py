"""From two readings of a program's stats to what is shown: rates, shares of errors, quantiles, levels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from resilmesh.telemetry.quantiles import Histogram

#: From bad to good.
STATES = ("FORCED_OPEN", "OPEN", "HALF_OPEN", "METRICS_ONLY", "FORCED_CLOSED", "CLOSED")
Value = float | int | str | None


@dataclass(frozen=True)
class Row:
    """One service, route or endpoint. What a value means is in ``view.COLUMNS``; ``None``: it has none."""

    kind: str
    name: str
    values: Mapping[str, Value]
    children: tuple[Row, ...] = ()
    #: Of a route everything that is counted: since the program began, and a second in between the readings.
    counters: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """All that one screen needs."""

    header: Mapping[str, Any]
    #: Seconds that rates, errors and quantiles are of: those between the readings, or all that the program has counted.
    seconds: float
    restarted: bool
    services: tuple[Row, ...]


def figures(now: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> Figures:
    """Compare two stats documents. Without an earlier one, or one of another process, the figures are since the program began."""
    restarted = before is not None and (now.get("pid") != before.get("pid") or now["seconds"] < before["seconds"])
    earlier = None if restarted else before
    seconds = now["seconds"] - (0.0 if earlier is None else earlier["seconds"])
    snapshot = now["snapshot"]
    known: Mapping[str, Any] = {} if earlier is None else _of(earlier["snapshot"], "services")
    services = tuple(_service(name, found, _of(known, name), seconds) for name, found in _of(snapshot, "services").items())
    identity = snapshot.get("identity")
    header = {
        **{key: snapshot.get(key) for key in ("workload", "revision", "mode", "inFlight", "refused", "lastRefusal")},
        "uptime": now["seconds"], "workers": len(now.get("workers") or [0]), "pid": now.get("pid"),
        "certificateExpiresIn": identity.get("expiresIn") if isinstance(identity, Mapping) else None,
    }
    return Figures(header, seconds, restarted, services)


def _service(name: str, found: Mapping[str, Any], before: Mapping[str, Any], seconds: float) -> Row:
    routes = {key: (value, _of(_of(before, "routes"), key)) for key, value in _of(found, "routes").items()}
    endpoints = _of(found, "endpoints")
    children = [
        *(
            Row("route", key, {**_traffic([pair], seconds), **_levels(found, key)}, counters=_counters(*pair, seconds))
            for key, pair in routes.items()
        ),
        *(_endpoint(key, value, _of(_of(before, "endpoints"), key), seconds) for key, value in endpoints.items()),
    ]
    budget = found.get("retryBudget")
    return Row("service", name, {
        **_traffic(list(routes.values()), seconds), **_levels(found, None),
        "ejected": sum(bool(each.get("ejected")) for each in endpoints.values()) if endpoints else None,
        "budget": budget.get("balance") if isinstance(budget, Mapping) else None,
    }, tuple(children))


def _traffic(pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]], seconds: float) -> dict[str, Value]:
    """Rates and quantiles of some routes together."""
    succeeded = _together(_since(now, before, "succeeded") for now, before in pairs)
    failed = _together(_since(now, before, "failed") for now, before in pairs)
    ended = _together(each for each in (succeeded, failed) if each is not None)
    number = 0 if ended is None else ended.number
    quantiles = [None if ended is None else ended.quantile(share) for share in (0.5, 0.99)]
    rejected, refused = (
        sum(_more(_of(now, name), _of(before, name), label) for now, before in pairs for label in _of(now, name))
        for name in ("rejected", "retriesRefused")
    )
    return {
        "rate": _each_second(sum(_more(now, before, "calls") for now, before in pairs), seconds),
        "errors": 100 * failed.number / number if number and failed is not None else None,
        "p50": None if quantiles[0] is None else quantiles[0].seconds, "p99": None if quantiles[1] is None else quantiles[1].seconds,
        "inFlight": sum(now.get("inFlight", 0) for now, _ in pairs), "rejected": _each_second(rejected, seconds),
        "retries": _each_second(sum(_more(now, before, "retries") for now, before in pairs), seconds),
        "retriesRefused": _each_second(refused, seconds),
    }


def _levels(found: Mapping[str, Any], route: str | None) -> dict[str, Value]:
    """The worst circuit, the fewest tokens and the queue, of one route or of a whole service (``None``)."""
    breakers = [each["state"] for each in _chosen(found, "circuitBreakers", route)]
    tokens = [limit["tokens"] for each in _chosen(found, "rateLimits", route) for limit in each.values() if "tokens" in limit]
    queues = [each["pending"] for each in _chosen(found, "concurrency", route)]
    return {
        "circuit": min(breakers, key=STATES.index) if breakers else None,
        "tokens": min(tokens) if tokens else None, "queue": sum(queues) if queues else None,
    }


def _chosen(found: Mapping[str, Any], section: str, route: str | None) -> list[Any]:
    return [value for key, value in _of(found, section).items() if route is None or key == route]


def _endpoint(address: str, found: Mapping[str, Any], before: Mapping[str, Any], seconds: float) -> Row:
    return Row("endpoint", address, {
        "rate": _each_second(_more(found, before, "requests"), seconds), "inFlight": found.get("inFlight"),
        "errors": None if found.get("successRate") is None else 100 - found["successRate"],
        "ejected": int(bool(found.get("ejected"))),
    })


def _counters(now: Mapping[str, Any], before: Mapping[str, Any], seconds: float) -> dict[str, tuple[float, float]]:
    """Every counter of a route, those with a label by ``name.label``."""
    found: dict[str, tuple[float, float]] = {}
    for key, value in now.items():
        if isinstance(value, int):
            found[key] = (value, _each_second(_more(now, before, key), seconds))
        elif isinstance(value, Mapping) and key not in ("durations", "attemptDurations"):
            for label, count in value.items():
                found[f"{key}.{label}"] = (count, _each_second(_more(value, _of(before, key), label), seconds))
    return found


def _since(now: Mapping[str, Any], before: Mapping[str, Any], which: str) -> Histogram | None:
    earlier, later = _histogram(before, which), _histogram(now, which)
    return None if later is None else later.since(earlier)


def _histogram(route: Mapping[str, Any], which: str) -> Histogram | None:
    found = _of(route, "durations")
    return Histogram(found["bounds"], found[which], found.get(f"{which}Seconds", 0.0)) if which in found else None


def _together(histograms: Iterable[Histogram | None]) -> Histogram | None:
    total: Histogram | None = None
    for each in histograms:
        if each is not None:
            total = each if total is None else total.plus(each)
    return total


def _more(now: Mapping[str, Any], before: Mapping[str, Any], key: str) -> int:
    return max(0, int(now.get(key, 0)) - int(before.get(key, 0)))


def _each_second(count: int, seconds: float) -> float:
    return count / seconds if seconds > 0 else 0.0


def _of(found: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return found.get(key) or {}
