"""The effective plan of one route, value by value, each with the place it was written at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resilmesh.policy.blocks import Backoff, CircuitBreaker, RateLimit
from resilmesh.policy.document import Path
from resilmesh.policy.fields import Block
from resilmesh.policy.resolve import CALL_BLOCKS, ROUTE_BLOCKS, SERVICE_BLOCKS, Effective, effective
from resilmesh.units import format_duration

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from resilmesh.policy.load import Loaded
    from resilmesh.policy.matching import Match, PathMatch, StringMatch
    from resilmesh.policy.model import Service


@dataclass(frozen=True, slots=True)
class Value:
    """One value of a plan. ``name`` is its path below the route; ``source`` is ``file:line:column`` or what else it comes from.

    ``unit`` is what a number counts (``percent``, ``requests``); a duration is text with its unit.
    """

    name: str
    value: Any
    source: str
    unit: str = ""


BUILT_IN = "built-in default"
UNSET = "not set"


def explain(loaded: Loaded, service_index: int, route_index: int | None) -> list[Value]:
    """Every value that applies to a route of a service (``None``: to requests that no route matches)."""
    return list(_Explanation(loaded, effective(loaded.policy, service_index, route_index), service_index).values())


def matched_host(service: Service, host: str, port: int) -> tuple[int, str] | None:
    """Which of the service's hosts a request's host matches most specifically: its index and text. IPv6 comes without brackets."""
    host = f"[{host}]" if ":" in host else host.lower()
    names = [name.lower() for name in service.hosts or ()]
    labels = host.split(".")
    suffixes = [suffix for start in range(1, len(labels)) for suffix in _with_port("*." + ".".join(labels[start:]), port)]
    for candidate in (*_with_port(host, port), *suffixes, "*"):
        if candidate in names:
            return names.index(candidate), candidate
    return None


def _with_port(host: str, port: int) -> tuple[str, str]:
    return f"{host}:{port}", host


class _Explanation:
    def __init__(self, loaded: Loaded, plan: Effective, service_index: int) -> None:
        self._loaded = loaded
        self._plan = plan
        self._service: Path = ("services", service_index)

    def values(self) -> Iterator[Value]:
        policy, plan = self._loaded.policy, self._plan
        yield Value("mode", plan.mode, self._origin("mode"))
        yield from self._own(policy.mesh, ("mesh",), "local_replies")
        yield from self._own(plan.service, self._service, "protocol", "endpoints", "subsets")
        for name in (*CALL_BLOCKS, *SERVICE_BLOCKS, *ROUTE_BLOCKS):
            value = getattr(plan, name)
            field = next(type(level).model_fields[name] for level in self._levels() if name in type(level).model_fields)
            key = field.alias or name
            if value is None:
                yield Value(key, None, self._origin(name) if name in plan.origin else UNSET)
            else:
                yield from self._flat(key, value, field, plan.origin.get(name))

    def _levels(self) -> tuple[Block, ...]:
        route = self._plan.route
        return (self._plan.service,) if route is None else (route, self._plan.service)

    def _own(self, block: Block, path: Path, *names: str) -> Iterator[Value]:
        """Values that only one level has."""
        for name in names:
            field = type(block).model_fields[name]
            key = field.alias or name
            written = name in block.model_fields_set
            value = getattr(block, name)
            if value is not None:
                yield from self._flat(key, value, field, (*path, key) if written else None)

    def _flat(self, name: str, value: Any, field: FieldInfo, path: Path | None) -> Iterator[Value]:
        """``value`` and what is inside it, one scalar each; ``path`` is ``None`` below a built-in default."""
        if isinstance(value, Block):
            for attribute, inner in type(value).model_fields.items():
                key = inner.alias or attribute
                written = path is not None and attribute in value.model_fields_set
                item = getattr(value, attribute)
                if not written and (derived := self._derived(value, attribute)) is not None:
                    yield Value(f"{name}.{key}", *derived)
                elif written or item is not None:
                    yield from self._flat(f"{name}.{key}", item, inner, (*path, key) if written and path is not None else None)
        elif isinstance(value, list) and value and isinstance(value[0], Block):
            for index, item in enumerate(value):
                yield from self._flat(f"{name}[{index}]", item, field, None if path is None else (*path, index))
        else:
            yield Value(name, _shown(value, field), BUILT_IN if path is None else self._place(path), _unit(field))

    def _derived(self, block: Block, attribute: str) -> tuple[Any, str] | None:
        """What an absent value means, and why, where that depends on other values of the plan."""
        derive = _DERIVED.get((type(block), attribute))
        return derive(block, self._plan) if derive is not None else None

    def _origin(self, name: str) -> str:
        path = self._plan.origin.get(name)
        return BUILT_IN if path is None else self._place(path)

    def _place(self, path: Path) -> str:
        line, column = self._loaded.places.line_column(path)
        return f"{self._loaded.source}:{line}:{column}" if line else self._loaded.source


def _shown(value: Any, field: FieldInfo) -> Any:
    """A value as the file would write it: durations with their unit."""
    if isinstance(value, float) and (_unit(field) == "duration" or field.alias == "size"):
        return format_duration(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _unit(field: FieldInfo) -> str:
    extra = field.json_schema_extra
    return str(extra.get("x-unit", "")) if isinstance(extra, dict) else ""


def _bucket(limit: RateLimit, plan: Effective) -> tuple[str, str]:
    return ("ROUTE", "it stands on the route") if plan.owned_by_route("rate_limit") else ("SERVICE", "it stands above the routes")


def _minimum(breaker: CircuitBreaker, plan: Effective) -> tuple[int, str] | None:
    size = breaker.sliding_window.size
    return (size, "never more than the window's size") if isinstance(size, int) and size < breaker.minimum_number_of_calls else None


_DERIVED: dict[tuple[type[Block], str], Callable[[Any, Effective], tuple[Any, str] | None]] = {
    (Backoff, "max"): lambda backoff, plan: (format_duration(10 * backoff.base), "ten times backoff.base"),
    (RateLimit, "burst"): lambda limit, plan: (limit.requests, "as many as requests"),
    (RateLimit, "scope"): _bucket,
    (CircuitBreaker, "minimum_number_of_calls"): _minimum,
}


def described(match: Match) -> str:
    """A match in one line: ``method GET, path prefix /v1, header x-tenant exact acme``."""
    conditions = []
    if match.method is not None:
        conditions.append("method " + " or ".join(match.method))
    if match.path is not None:
        conditions.append("path " + _comparison(match.path))
    conditions += [f"header {name} {_comparison(wanted)}" for name, wanted in (match.headers or {}).items()]
    conditions += [f"query {name} {_comparison(wanted)}" for name, wanted in (match.query or {}).items()]
    if match.grpc is not None:
        conditions.append(f"gRPC {match.grpc.service or '*'}/{match.grpc.method or '*'}")
    return ", ".join(conditions) or "every request"


def _comparison(wanted: StringMatch | PathMatch) -> str:
    written = ((key, value) for key, value in wanted if value is not None)
    return next((f"{key} {str(value).lower() if isinstance(value, bool) else value}" for key, value in written), "")
