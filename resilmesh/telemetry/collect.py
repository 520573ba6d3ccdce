"""From what was counted to points of the metrics of the catalogue. Pure: rows and snapshots in, points out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from resilmesh.engine.plan import INBOUND
from resilmesh.state.ledger import BlockKey
from resilmesh.state.stats import (
    ABANDONED,
    ATTEMPTS,
    ATTEMPTS_OF,
    BUCKETS,
    BYTES_RECEIVED,
    BYTES_SENT,
    CALLS,
    DECISIONS,
    IGNORED,
    INJECTED,
    LABELLED,
    MIRRORED,
    OUTER_RETRIES,
    RETRIES,
    STARTED,
    SUCCEEDED,
    Exemplar,
    place,
)
from resilmesh.telemetry.catalogue import BY_NAME

#: In the order of the metric's own; an attribute that says nothing is left out.
Attributes = tuple[tuple[str, str | int], ...]
#: The exact host and the port of a service, by its name.
Address = Callable[[str], tuple[str, int | None]]


class Row(NamedTuple):
    """What a block held when it was read; of several workers the sum."""

    key: BlockKey
    counts: Sequence[int]
    sums: Sequence[float]
    exemplars: Mapping[int, Exemplar] = {}


class Point(NamedTuple):
    """A figure."""

    attributes: Attributes
    value: float


class Durations(NamedTuple):
    """A histogram: counts by the buckets of ``resilmesh.state.stats.BOUNDS``, and the sum in seconds."""

    attributes: Attributes
    counts: Sequence[int]
    seconds: float
    exemplars: Mapping[int, Exemplar] = {}


#: By name of the metric, in the order of the catalogue.
Points = dict[str, list[Point | Durations]]

#: Counters with a place of their own.
_PLAIN = {
    "resilmesh.attempts": ATTEMPTS, "resilmesh.attempts.injected": INJECTED, "resilmesh.retries": RETRIES,
    "resilmesh.retries.outer": OUTER_RETRIES, "resilmesh.mirrors": MIRRORED, "resilmesh.sent": BYTES_SENT,
    "resilmesh.received": BYTES_RECEIVED,
}
#: Counters with a label: by which name they are counted, and what the label is called.
_BY_LABEL = {
    "resilmesh.attempts.unsuccessful": ("attemptsByVerdict", "verdict"),
    "resilmesh.retries.refused": ("retriesRefused", "reason"),
    "resilmesh.rejections": ("rejected", "reason"),
    "resilmesh.rejections.observed": ("wouldReject", "reason"),
    "resilmesh.faults": ("faults", "kind"),
    "resilmesh.fallbacks": ("fallbacks", "reason"),
    "resilmesh.mirrors.dropped": ("mirrorsDropped", "reason"),
}
#: Of these every label is told, though it be nothing: people look for their increase.
_ALWAYS = frozenset(("resilmesh.rejections", "resilmesh.retries.refused"))
#: Events that are counted as they are told, and of which detail the rest of the key is.
_EVENTS = {
    "circuit_changed": ("resilmesh.circuit.transitions", ("state",)),
    "endpoint_ejected": ("resilmesh.endpoint.ejections", ("resilmesh.endpoint", "reason")),
    "policy_applied": ("resilmesh.policy.applied", ()),
    "policy_refused": ("resilmesh.policy.refused", ()),
    "identity_rotated": ("resilmesh.identity.rotations", ()),
    "identity_refused": ("resilmesh.identity.refusals", ()),
}


def collect(rows: Iterable[Row], snapshots: Sequence[Mapping[str, Any]], address: Address) -> Points:
    """The points of every metric that has any. ``snapshots``: of each worker that lives, as ``mesh.snapshot()`` gives them."""
    found: Points = {name: [] for name in BY_NAME}
    routes: dict[tuple[str, str], Row] = {}
    histograms: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        kind, *rest = row.key
        if kind == "route":
            routes[rest[0], rest[1]] = row
        elif kind == "duration":
            histograms.setdefault((rest[0], rest[1]), {})[rest[2]] = row
        elif kind == "outcome":
            _outcome(found, row, rest, address)
        elif kind == "event":
            _event(found, row, rest)
        elif kind == "authorization" and (any(row.counts) or any(each["authorization"] for each in snapshots)):
            found["resilmesh.authorization.decisions"] += [
                Point((("decision", name),), count) for name, count in zip(DECISIONS, row.counts, strict=True)
            ]
    _begin_at_nothing(found, snapshots)
    for where, row in routes.items():
        _route(found, where, row, histograms.get(where, {}))
    gauges: dict[tuple[str, Attributes], list[float]] = {}
    for snapshot in snapshots:
        for name, attributes, value in _gauges(snapshot):
            gauges.setdefault((name, attributes), []).append(value)
    for (name, attributes), values in gauges.items():
        found[name].append(Point(attributes, _combined(name, values)))
    return {name: points for name, points in found.items() if points}


def _begin_at_nothing(found: Points, snapshots: Sequence[Mapping[str, Any]]) -> None:
    """Counters of what is rare are there before it happens: who looks for an increase would miss the first otherwise."""
    wanted: dict[str, list[Attributes]] = {"resilmesh.policy.applied": [()], "resilmesh.policy.refused": [()]}
    wanted["resilmesh.circuit.transitions"] = list(dict.fromkeys(
        (*_where(service, route), ("state", state))
        for snapshot in snapshots for service, sections in snapshot["services"].items() for route in sections["circuitBreakers"]
        for state in ("CLOSED", "OPEN", "HALF_OPEN")
    ))
    for name, all_attributes in wanted.items():
        there = {point.attributes for point in found[name]}
        found[name] += [Point(attributes, 0) for attributes in all_attributes if attributes not in there]


def added_up(name: str, points: Sequence[Point | Durations]) -> list[Point | Durations]:
    """The points of a metric of several meshes: those with the same attributes are one."""
    together: dict[Attributes, list[Point | Durations]] = {}
    for point in points:
        together.setdefault(point.attributes, []).append(point)
    return [each[0] if len(each) == 1 else _one(name, each) for each in together.values()]


def _one(name: str, points: Sequence[Point | Durations]) -> Point | Durations:
    durations = [each for each in points if isinstance(each, Durations)]
    if durations:
        counts = [sum(column) for column in zip(*(each.counts for each in durations), strict=True)]
        exemplars = {at: kept for each in durations for at, kept in each.exemplars.items()}
        return Durations(points[0].attributes, counts, sum(each.seconds for each in durations), exemplars)
    return Point(points[0].attributes, _combined(name, [each.value for each in points if isinstance(each, Point)]))


def _combined(name: str, values: Sequence[float]) -> float:
    kind = BY_NAME[name].kind
    return min(values) if kind == "min" else max(values) if kind == "max" else sum(values)


def _where(service: str, route: str) -> Attributes:
    if service == INBOUND:
        return (("resilmesh.service", INBOUND),)
    return (("resilmesh.service", service), *((("resilmesh.route", route),) if route != "*" else ()))


def _route(found: Points, where: tuple[str, str], row: Row, histograms: Mapping[str, Row]) -> None:
    attributes, counts = _where(*where), row.counts
    if not counts[STARTED]:
        return
    for name, at in _PLAIN.items():
        found[name].append(Point(attributes, counts[at]))
    for name, (labelled, called) in _BY_LABEL.items():
        found[name] += [
            Point((*attributes, (called, label)), counts[place(labelled, label)])
            for label in LABELLED[labelled] if name in _ALWAYS or counts[place(labelled, label)]
        ]
    ended = {"rejected": sum(counts[place("rejected", each)] for each in LABELLED["rejected"])}
    ended["abandoned"], ended["ignored"] = counts[ABANDONED], counts[IGNORED]
    for outcome in CALLS:
        for metric, parts in (("resilmesh.call.duration", CALLS[outcome]), ("resilmesh.attempt.duration", ATTEMPTS_OF[outcome])):
            summed = _together(parts, row, histograms)
            if metric == "resilmesh.call.duration":
                ended[outcome] = sum(summed[0])
            if sum(summed[0]):
                found[metric].append(Durations((*attributes, ("outcome", outcome)), *summed))
    found["resilmesh.calls"] += [Point((*attributes, ("outcome", outcome)), count) for outcome, count in ended.items()]


def _together(parts: tuple[str, str], row: Row, histograms: Mapping[str, Row]) -> tuple[list[int], float]:
    counts, seconds = [0] * BUCKETS, 0.0
    for part in parts:
        if part == "direct":
            its, sums = row.counts[SUCCEEDED:], row.sums
        elif part in histograms:
            its, sums = histograms[part].counts, histograms[part].sums
        else:
            continue
        counts = [left + right for left, right in zip(counts, its, strict=True)]
        seconds += sums[0]
    return counts, seconds


def _outcome(found: Points, row: Row, rest: Sequence[str], address: Address) -> None:
    service, route, what, status, error = rest
    serves, rpc = service == INBOUND, what.startswith("/")
    attributes: dict[str, str | int] = {}
    if rpc:
        status = "OK" if status == "0" and not error else status
        attributes = {"rpc.system.name": "grpc", "rpc.method": what[1:]}
        if status != "0":
            attributes["rpc.response.status_code"] = status
        error = error or (status if status != "OK" else "")
    else:
        attributes = {"http.request.method": what}
        if status != "0":
            attributes["http.response.status_code"] = int(status)
        error = error or (status if int(status) >= (500 if serves else 400) else "")
    if error:
        attributes["error.type"] = error
    if not serves:
        host, port = address(service)
        attributes["server.address"] = host
        if port is not None:
            attributes["server.port"] = port
        attributes.update(_where(service, route))
    name = f"{'rpc' if rpc else 'http'}.{'server' if serves else 'client'}.{'call' if rpc else 'request'}.duration"
    found[name].append(Durations(tuple(attributes.items()), row.counts, row.sums[0], row.exemplars))


def _event(found: Points, row: Row, rest: Sequence[str]) -> None:
    name, service, route, *details = rest
    if name in _EVENTS:
        metric, called = _EVENTS[name]
        where = () if not service else _where(service, route)
        found[metric].append(Point((*where, *zip(called, details, strict=True)), row.counts[0]))


def _gauges(snapshot: Mapping[str, Any]) -> Iterator[tuple[str, Attributes, float]]:
    yield "resilmesh.workers", (), 1
    yield "resilmesh.policy.revision", (), snapshot["revision"]
    if snapshot["identity"] is not None:
        yield "resilmesh.identity.expires_in", (), snapshot["identity"]["expiresIn"]
    for service, sections in snapshot["services"].items():
        yield from _gauges_of(service, sections)
    inbound = snapshot["inbound"]
    if inbound is not None:
        yield "resilmesh.calls.in_flight", _where(INBOUND, "*"), inbound["calls"]["inFlight"]
        if inbound["concurrency"] is not None:
            yield from _concurrency(_where(INBOUND, "*"), inbound["concurrency"])
        for limit, its in inbound["rateLimits"].items():
            if "tokens" in its:
                yield "resilmesh.rate_limit.tokens", (*_where(INBOUND, "*"), ("limit", limit)), its["tokens"]


def _gauges_of(service: str, sections: Mapping[str, Any]) -> Iterator[tuple[str, Attributes, float]]:
    for route, stats in sections["routes"].items():
        if stats["calls"]:
            yield "resilmesh.calls.in_flight", _where(service, route), stats["inFlight"]
    for route, circuit in sections["circuitBreakers"].items():
        where = _where(service, route)
        for state in dict.fromkeys(("CLOSED", "OPEN", "HALF_OPEN", circuit["state"])):
            yield "resilmesh.circuit.state", (*where, ("state", state)), int(circuit["state"] == state)
        if circuit["failureRate"] is not None:
            yield "resilmesh.circuit.failure_rate", where, circuit["failureRate"] / 100
    for route, gate in sections["concurrency"].items():
        yield from _concurrency(_where(service, route), gate)
    for route, limits in sections["rateLimits"].items():
        for limit, its in limits.items():
            if "tokens" in its:
                yield "resilmesh.rate_limit.tokens", (*_where(service, route), ("limit", limit)), its["tokens"]
    if sections["retryBudget"] is not None:
        yield "resilmesh.retry_budget.balance", _where(service, "*"), sections["retryBudget"]["balance"]
    for endpoint, its in sections["endpoints"].items():
        at = (*_where(service, "*"), ("resilmesh.endpoint", endpoint))
        yield "resilmesh.endpoint.ejected", at, int(its["ejected"])
        yield "resilmesh.endpoint.in_flight", at, its["inFlight"]


def _concurrency(where: Attributes, gate: Mapping[str, Any]) -> Iterator[tuple[str, Attributes, float]]:
    yield "resilmesh.concurrency.limit", where, gate["maxRequests"]
    yield "resilmesh.concurrency.in_flight", where, gate["inFlight"]
    yield "resilmesh.concurrency.queued", where, gate["pending"]
