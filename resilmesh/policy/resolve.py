"""Which value of a block applies to a route, and where it was written.

The nearest block wins whole: route, then service, then ``defaults``, then the built-in default. A block
that is written as ``null`` unsets what it would inherit. Only ``mode`` takes the weakest of all levels.
The compiler, the Envoy translator and ``resilmesh explain`` all ask here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from resilmesh.policy.model import (
        CircuitBreaker,
        Classify,
        Concurrency,
        Fallback,
        Fault,
        HeaderChanges,
        LoadBalancer,
        Mirror,
        Mode,
        OutlierDetection,
        Policy,
        RateLimit,
        Retries,
        RetryBudget,
        Rewrite,
        Route,
        Service,
        SplitTarget,
    )

#: Where a value stands in the file: ``("services", 0, "routes", 1, "timeout")``.
Path = tuple[str | int, ...]

#: Blocks by the levels they may stand at, nearest last.
CALL_BLOCKS = (
    "timeout", "idle_timeout", "retries", "circuit_breaker", "rate_limit", "concurrency", "fault", "classify", "fallback", "headers",
)
SERVICE_BLOCKS = ("connect_timeout", "retry_budget", "outlier_detection", "load_balancer")
ROUTE_BLOCKS = ("split", "rewrite", "mirror")

_STRENGTH = {"OFF": 0, "OBSERVE": 1, "ENFORCE": 2}


@dataclass(frozen=True, slots=True)
class Effective:
    """The blocks that apply to one route of a service (``route=None``: a request that no route matches)."""

    service: Service
    route: Route | None
    mode: Mode
    timeout: float | None
    idle_timeout: float | None
    connect_timeout: float | None
    retries: Retries | None
    retry_budget: RetryBudget | None
    circuit_breaker: CircuitBreaker | None
    rate_limit: list[RateLimit] | None
    concurrency: Concurrency | None
    outlier_detection: OutlierDetection | None
    load_balancer: LoadBalancer
    fault: Fault | None
    classify: Classify | None
    fallback: Fallback | None
    headers: HeaderChanges | None
    split: list[SplitTarget] | None
    rewrite: Rewrite | None
    mirror: Mirror | None
    #: Where each block was written; absent for a built-in default.
    origin: dict[str, Path]

    def owned_by_route(self, block: str) -> bool:
        """Whether the block's state is the route's own, because the block stands on the route."""
        return "routes" in self.origin.get(block, ())


def effective(policy: Policy, service_index: int, route_index: int | None) -> Effective:
    """Resolve every block for ``policy.services[service_index]`` and one of its routes, or none of them."""
    service = policy.services[service_index]
    route = None if route_index is None else (service.routes or [])[route_index]
    at_service: Path = ("services", service_index)
    levels: list[tuple[Path, Any]] = [(("defaults",), policy.defaults), (at_service, service)]
    if route is not None:
        levels.append(((*at_service, "routes", cast(int, route_index)), route))
    origin: dict[str, Path] = {}
    values = {name: _nearest(name, levels, origin) for name in (*CALL_BLOCKS, *SERVICE_BLOCKS, *ROUTE_BLOCKS)}
    return Effective(
        service=service, route=route, mode=_weakest_mode(policy, levels, origin), origin=origin, **values,
    )


def _nearest(name: str, levels: list[tuple[Path, Any]], origin: dict[str, Path]) -> Any:
    for path, level in reversed(levels):
        if name in level.model_fields_set:
            origin[name] = (*path, type(level).model_fields[name].alias or name)
            return getattr(level, name)
    # The built-in default; a block that only deeper levels have (split) is absent from `defaults`.
    return getattr(levels[0][1], name, None)


def _weakest_mode(policy: Policy, levels: list[tuple[Path, Any]], origin: dict[str, Path]) -> Mode:
    weakest: Mode = policy.mesh.mode
    if "mode" in policy.mesh.model_fields_set:
        origin["mode"] = ("mesh", "mode")
    for path, level in levels[1:]:
        if level.mode is not None and _STRENGTH[level.mode] <= _STRENGTH[weakest]:
            weakest = level.mode
            origin["mode"] = (*path, "mode")
    return weakest
