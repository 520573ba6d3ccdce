"""What applies to a call, as plain data to assert on: ``mesh.describe`` and ``mesh.describe_request``; ``resilmesh explain`` prints it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from resilmesh.policy.explain import Value, described, explain, matched_host
from resilmesh.policy.resolve import effective

if TYPE_CHECKING:
    from resilmesh.inject import Injection
    from resilmesh.policy.load import Loaded

_PORTS = {"http": 80, "https": 443}
#: The source of a value of the mesh block that the program or its environment has set.
OVERRIDE = "an argument of the mesh, or the environment"

#: The decisions about a call in the order they are made (docs/explanation/order.md), and the keys whose values each reads.
ORDER: dict[str, tuple[str, ...]] = {
    "mode": ("mode",),
    "local replies": ("localReplies",),
    "fault, scope CALL": (),
    "deadline": ("timeout",),
    "retry budget": ("retryBudget",),
    "rate limit": ("rateLimit",),
    "concurrency": ("concurrency",),
    "split": ("split", "subsets"),
    "headers, rewrite": ("protocol", "rewrite", "headers"),
    "circuit breaker": ("circuitBreaker",),
    "endpoint": ("endpoints", "loadBalancer", "outlierDetection"),
    "fault, scope ATTEMPT": (),
    "mirror": ("mirror",),
    "send": ("connectTimeout", "idleTimeout"),
    "classify": ("classify",),
    "retry?": ("retries",),
    "fallback?": ("fallback",),
}


@dataclass(frozen=True)
class Decision:
    """One decision that is made about a call, and the values it is made by."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Description:
    """What applies to the calls of a route (``None``: to those that no route matches), in the order of decisions.

    Compare ``values`` to compare plans wherever they were written; two descriptions are equal when the places are, too.
    """

    service: str
    route: str | None
    decisions: tuple[Decision, ...]

    @property
    def values(self) -> dict[str, Any]:
        """By name, such as ``retries.maxRetries``: durations as text (``"3s"``), percents 0-100, what is not set left out."""
        return {each.name: each.value for each in self._all()}

    @property
    def sources(self) -> dict[str, str]:
        """By name, where each value comes from: ``file:line:column``, or in words (``built-in default``, ``mesh.inject``)."""
        return {each.name: each.source for each in self._all()}

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def _all(self) -> Iterator[Value]:
        return (value for decision in self.decisions for value in decision.values)

    def __str__(self) -> str:
        """A table: the decisions, and below each its values, with unit and source."""
        rows = [(f"{self.service}/{self.route or '-'}", "", "")]
        for decision in self.decisions:
            rows.append((decision.name, "", ""))
            rows += [(f"  {each.name}", f"{each.value} {_unit(each)}".rstrip(), each.source) for each in decision.values]
        widths = [min(max(len(row[column]) for row in rows), 48) for column in (0, 1)]
        return "\n".join(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {source}".rstrip() for name, value, source in rows)


@dataclass(frozen=True)
class RequestDescription:
    """Which service and route an HTTP request belongs to, why, and what applies to it."""

    #: ``None``: no service has the host.
    service: str | None
    route: str | None
    #: What matched, or what becomes of a request that belongs to no service.
    why: str
    #: The routes before, which did not match.
    passed_over: tuple[str, ...]
    plan: Description | None


def describe(
    loaded: Loaded, service: int, route: int | None, injections: tuple[Injection, ...], overridden: Collection[str],
) -> Description:
    """Describe the plan of ``services[service].routes[route]``, with the injections that are active and what overrides the mesh block."""
    names = loaded.policy.services[service]
    route_name = None if route is None else (names.routes or [])[route].name
    left = [each for each in explain(loaded, service, route) if each.value is not None]
    of_the_mesh = {"localReplies": "local_replies"}
    if effective(loaded.policy, service, route).origin.get("mode") == ("mesh", "mode"):
        of_the_mesh["mode"] = "mode"
    left = [replace(each, source=OVERRIDE) if of_the_mesh.get(each.name) in overridden else each for each in left]
    decisions = []
    for name, keys in ORDER.items():
        if name.startswith("fault, scope"):
            found = tuple(_faults(left, name.rpartition(" ")[2], [each for each in injections if each.applies_to(names.name, route_name)]))
        else:
            found = tuple(each for each in left if _key(each) in keys)
        if found:
            decisions.append(Decision(name, found))
    return Description(names.name, route_name, tuple(decisions))


def _key(value: Value) -> str:
    return value.name.partition(".")[0].partition("[")[0]


def _faults(values: list[Value], scope: str, injections: list[Injection]) -> Iterator[Value]:
    """The faults of one scope: those of ``mesh.inject``, the last one first, and the policy's."""
    of_scope = [each for each in injections if each.scope == scope]
    for number, each in enumerate(reversed(of_scope)):
        shown = each.shown()
        for name, unit in (("status", ""), ("delay", "seconds"), ("percent", "percent")):
            if shown[name] is not None:
                yield Value(f"inject[{number}].{name}", shown[name], "mesh.inject", unit)
    if any(each.name == "fault.scope" and each.value == scope for each in values):
        yield from (each for each in values if _key(each) == "fault")


def _unit(value: Value) -> str:
    return "" if value.unit == "duration" or isinstance(value.value, str) else value.unit


def describe_request(
    loaded: Loaded, found: tuple[int, int | None] | None, host: str, port: int, injections: tuple[Injection, ...],
    overridden: Collection[str],
) -> RequestDescription:
    """Describe what the matcher ``found`` for a request to ``host``."""
    if found is None:
        return RequestDescription(None, None, of_no_service(loaded, host), (), None)
    service, route = found
    passed_over = tuple(each.name for each in (loaded.policy.services[service].routes or [])[:route])
    why = f"{why_service(loaded, service, host, port)}; {why_route(loaded, service, route)}"
    plan = describe(loaded, service, route, injections, overridden)
    return RequestDescription(plan.service, plan.route, why, passed_over, plan)


# ----------------------------------------------------------------------------------------------- why, in words


def of_no_service(loaded: Loaded, host: str) -> str:
    """What becomes of a request to a host that no service has."""
    refused = loaded.policy.mesh.outbound == "REGISTRY_ONLY"
    outcome = "the call is refused (outbound: REGISTRY_ONLY)" if refused else "the call is made without policy (outbound: ALLOW_ANY)"
    return f"no service has the host {host}: {outcome}"


def why_service(loaded: Loaded, service: int, host: str, port: int) -> str:
    """Which of its hosts a service was found by."""
    matched = matched_host(loaded.policy.services[service], host, port)
    return "" if matched is None else f"its host {matched[1]!r}"


def why_route(loaded: Loaded, service: int, route: int | None) -> str:
    """Which conditions a route was found by."""
    routes = loaded.policy.services[service].routes or []
    if route is None:
        return "no route matches: the service's own blocks" if routes else "the service has no routes"
    match = routes[route].match
    return "first to match: " + (" | ".join(described(each) for each in match) if match else "every request")


def parse_url(text: str) -> tuple[str, int, str]:
    """Host, port, and the path with its query. Raises ``ValueError``."""
    try:
        url = urlsplit(text)
        port = url.port or _PORTS.get(url.scheme)
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}") from None
    if port is None or not url.hostname:
        raise ValueError(f"{text!r} is not a URL such as http://host/path")
    return url.hostname, port, (url.path or "/") + (f"?{url.query}" if url.query else "")


def lower(headers: Mapping[str, str] | None) -> dict[str, str]:
    """Headers as the matcher wants them."""
    return {name.lower(): value for name, value in (headers or {}).items()}
