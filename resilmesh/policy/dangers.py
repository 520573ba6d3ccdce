"""What a policy may say and its author had better not: dangerous settings, and settings without effect. All are warnings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from resilmesh.policy import codes
from resilmesh.policy.covers import Earlier, impossible
from resilmesh.policy.document import Path
from resilmesh.policy.report import Report
from resilmesh.policy.resolve import Effective, effective
from resilmesh.units import format_duration

if TYPE_CHECKING:
    from resilmesh.policy.model import Concurrency, Match, OutlierDetection, Policy, Route, Service, Subset

#: Retry words that only gRPC has.
GRPC_WORDS = {"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}
_UNSAFE = {"POST", "PATCH"}


def find(report: Report, policy: Policy) -> None:
    """Add every danger of ``policy`` to ``report``."""
    has_grpc = any(service.protocol == "GRPC" for service in policy.services)
    if policy.inbound is not None and policy.inbound.concurrency is not None:
        _queue(report, ("inbound", "concurrency"), policy.inbound.concurrency)
    for index, service in enumerate(policy.services):
        plans = [effective(policy, index, number) for number in range(len(service.routes or ()))]
        own = effective(policy, index, None)
        for plan in (own, *plans):
            _retries(report, plan, has_grpc)
            _times(report, plan)
            if plan.concurrency is not None:
                _queue(report, plan.origin["concurrency"], plan.concurrency)
            _starved_window(report, plan)
        _never_slow(report, [own, *plans])
        _outlier_detection(report, own)
        for plan in (own, *plans):
            _joined_path(report, plan)
        if not service.hosts and service.protocol != "GRPC":  # which a channel may call by the service's name
            _http_only(report, ("services", index), service)
        _subsets(report, ("services", index), service)
        _routes(report, ("services", index), service)
        if policy.mesh.outbound == "REGISTRY_ONLY" and "*" in (service.hosts or ()):
            place = ("services", index, "hosts", (service.hosts or []).index("*"))
            message = f"host '*' of service {service.name!r} leaves 'outbound: REGISTRY_ONLY' nothing to refuse"
            report.add(codes.OPEN_REGISTRY, place, message)


def selects(subset: Subset, service: Service) -> bool:
    """Whether some endpoint of the service carries all labels of the subset."""
    return any(subset.labels.items() <= endpoint.labels.items() for endpoint in service.endpoints or ())


# ------------------------------------------------------------------------------------------------- retries


def _retries(report: Report, plan: Effective, has_grpc: bool) -> None:
    retries = plan.retries
    if retries is None or retries.max_retries == 0:
        return
    place = plan.origin["retries"]
    if plan.retry_budget is None:
        report.add(
            codes.NO_BUDGET, place,
            f"retries without a 'retryBudget': in an outage each call becomes {1 + retries.max_retries} attempts",
        )
    grpc = plan.service.protocol == "GRPC"
    if retries.idempotent and plan.service.hosts and not grpc and (unsafe := _unsafe_methods(plan)):
        methods = " and ".join(sorted(unsafe))
        report.add(codes.UNSAFE_RETRY, (*place, "idempotent"), f"{methods} of {_named(plan)} may be sent twice")
    if grpc and place[0] != "defaults":
        for number, word in enumerate(retries.retry_on):
            if isinstance(word, int) or word == "retriable-4xx":
                message = f"{word!r} is an HTTP status, and service {plan.service.name!r} is GRPC"
                report.add(codes.FOREIGN_RETRY_WORD, (*place, "retryOn", number), message)
    if grpc or not plan.service.hosts or (place[0] == "defaults" and has_grpc):
        return
    for number, word in enumerate(retries.retry_on):
        if word in GRPC_WORDS:
            message = f"{word!r} is a gRPC status, and service {plan.service.name!r} is {plan.service.protocol}"
            report.add(codes.FOREIGN_RETRY_WORD, (*place, "retryOn", number), message)


def _unsafe_methods(plan: Effective) -> set[str]:
    """Of POST and PATCH those that the plan's route matches. gRPC's POST does not count: it says nothing of the call."""
    if plan.route is None:
        caught = any(route.match is None for route in plan.service.routes or ())
        return set() if caught else _UNSAFE
    matches = plan.route.match
    if matches is None:
        return _UNSAFE
    return _UNSAFE & {method for match in matches if match.grpc is None for method in match.method or _UNSAFE}


# --------------------------------------------------------------------------------------------------- times


def _times(report: Report, plan: Effective) -> None:
    """Limits of time inside a shorter ``timeout``. An injected delay does not count: it comes before the timeout."""
    if plan.timeout is None:
        return
    outer = plan.origin["timeout"]
    for block, key, seconds in _inner_times(plan):
        origin = plan.origin[block]
        nearer = len(origin) >= len(outer)
        # A block meant for several routes may be too long for one of them: that is no mistake of the block.
        # But a single attempt that is longer than the whole call is, wherever it was written.
        if seconds > plan.timeout and (nearer or block == "retries"):
            name = key or str(origin[-1])
            report.add(
                codes.SHORT_TIMEOUT, (origin if not key else (*origin, key)) if nearer else outer,
                f"{name} of {format_duration(seconds)} never passes: the timeout of {_named(plan)} is {format_duration(plan.timeout)}",
            )


def _inner_times(plan: Effective) -> Iterator[tuple[str, str, float]]:
    """Block, its key where the time is inside it, seconds."""
    if plan.retries is not None and plan.retries.per_try_timeout is not None:
        yield "retries", "perTryTimeout", plan.retries.per_try_timeout
    if plan.concurrency is not None and plan.concurrency.max_pending_wait is not None:
        yield "concurrency", "maxPendingWait", plan.concurrency.max_pending_wait
    if plan.idle_timeout is not None:
        yield "idle_timeout", "", plan.idle_timeout
    if plan.connect_timeout is not None:
        yield "connect_timeout", "", plan.connect_timeout


# --------------------------------------------------------------------- breakers, outlier detection, subsets


def _queue(report: Report, path: Path, limit: Concurrency) -> None:
    if limit.max_pending_wait is not None and limit.max_pending == 0:
        report.add(codes.WAIT_WITHOUT_QUEUE, (*path, "maxPendingWait"), "'maxPendingWait' without 'maxPending'")


def _starved_window(report: Report, plan: Effective) -> None:
    breaker = plan.circuit_breaker
    if breaker is None or not isinstance(breaker.sliding_window.size, float):
        return
    if breaker.failure_rate_threshold is None and breaker.slow_call_rate_threshold is None:
        return
    if plan.owned_by_route("rate_limit") and not plan.owned_by_route("circuit_breaker"):
        return  # the breaker sees calls of other routes too
    attempts = 1 + (plan.retries.max_retries if plan.retries is not None else 0)
    for limit in plan.rate_limit or ():
        burst = limit.requests if limit.burst is None else limit.burst
        most = attempts * (burst + limit.requests / limit.per * breaker.sliding_window.size)
        if most < breaker.minimum_number_of_calls:
            place = (*plan.origin["circuit_breaker"], "minimumNumberOfCalls")
            report.add(
                codes.STARVED_WINDOW, place,
                f"the rate limit lets at most {int(most)} attempts into the window, and {breaker.minimum_number_of_calls} are needed",
            )


def _never_slow(report: Report, plans: list[Effective]) -> None:
    """A breaker that every plan behind it times out of before a call is slow."""
    sharing: dict[Path, list[Effective]] = {}
    for plan in plans:
        if plan.circuit_breaker is not None and plan.circuit_breaker.slow_call_rate_threshold is not None:
            sharing.setdefault(plan.origin["circuit_breaker"], []).append(plan)
    for place, behind in sharing.items():
        breaker = behind[0].circuit_breaker
        longest = max(_longest_attempt(plan) for plan in behind)
        if breaker is not None and longest < breaker.slow_call_duration_threshold:
            slow = format_duration(breaker.slow_call_duration_threshold)
            report.add(
                codes.NEVER_SLOW, (*place, "slowCallDurationThreshold"),
                f"no call can last {slow}: it ends after {format_duration(longest)}",
            )


def _longest_attempt(plan: Effective) -> float:
    per_try = plan.retries.per_try_timeout if plan.retries is not None else None
    return min(float("inf") if limit is None else limit for limit in (plan.timeout, per_try))


def _outlier_detection(report: Report, plan: Effective) -> None:
    outlier, endpoints = plan.outlier_detection, plan.service.endpoints
    if outlier is None:
        return
    place = plan.origin["outlier_detection"]
    if outlier.consecutive_5xx_errors is None and outlier.consecutive_gateway_errors is None and (
        outlier.consecutive_local_origin_failures is None
    ) and outlier.success_rate is None and outlier.failure_percentage is None:
        report.add(codes.NEVER_EJECTS, place, "'outlierDetection' counts nothing", "set 'consecutive5xxErrors' or another count")
    if endpoints and len(endpoints) * outlier.max_ejection_percent < 100:
        report.add(
            codes.NEVER_EJECTS, (*place, "maxEjectionPercent"),
            f"{outlier.max_ejection_percent:g} percent of the {len(endpoints)} endpoints of service {plan.service.name!r} is less than one",
            f"at least {math.ceil(100 / len(endpoints))}",
        )
    if endpoints:
        _rates(report, place, outlier, plan.service.name, len(endpoints))


def _rates(report: Report, place: Path, outlier: OutlierDetection, service: str, size: int) -> None:
    """Rates that can never tell an outlier among ``size`` endpoints."""
    rate = outlier.success_rate
    for key, block in (("successRate", rate), ("failurePercentage", outlier.failure_percentage)):
        if block is not None and block.minimum_hosts > size:
            message = f"service {service!r} has {size} endpoints, fewer than the 'minimumHosts' of {block.minimum_hosts}"
            report.add(codes.TOO_FEW_ENDPOINTS, (*place, key, "minimumHosts"), message, f"at most {size}")
    # One bad endpoint of n lies sqrt(n - 1) deviations below the mean, and several lie less.
    if rate is not None and rate.minimum_hosts <= size and rate.stdev_factor >= math.sqrt(size - 1):
        message = f"among {size} endpoints none is ever {rate.stdev_factor:g} standard deviations below the mean"
        hint = f"less than {math.sqrt(size - 1):.3g}" if size > 1 else ""
        report.add(codes.TOO_FEW_ENDPOINTS, (*place, "successRate", "stdevFactor"), message, hint)


#: Blocks that need a request or a response.
_HTTP_BLOCKS = ("rewrite", "mirror", "headers", "fallback", "classify")


def _http_only(report: Report, path: Path, service: Service) -> None:
    levels: list[tuple[Path, Service | Route]] = [(path, service)]
    levels += [((*path, "routes", number), route) for number, route in enumerate(service.routes or ())]
    for place, level in levels:
        for name in _HTTP_BLOCKS:
            if getattr(level, name) is not None:
                report.add(codes.HTTP_ONLY, (*place, name), f"{name!r} needs HTTP, and service {service.name!r} has no hosts")


def _joined_path(report: Report, plan: Effective) -> None:
    rewrite = plan.rewrite
    if rewrite is None or rewrite.path is None or rewrite.path_regex is not None:
        return
    matches = [None] if plan.route is None or plan.route.match is None else [each.path for each in plan.route.match]
    for path in matches:
        prefix = "/" if path is None else path.prefix
        if prefix is not None and prefix.endswith("/") != rewrite.path.endswith("/"):
            message = f"of {prefix + 'x' if prefix.endswith('/') else prefix + '/x'} the service gets " + (
                rewrite.path + ("x" if prefix.endswith("/") else "/x")
            )
            report.add(codes.JOINED_PATH, (*plan.origin["rewrite"], "path"), message)
            return


def _subsets(report: Report, path: Path, service: Service) -> None:
    used = {target.subset for level in (service, *(service.routes or ())) for target in level.split or () if target.weight}
    for number, subset in enumerate(service.subsets or ()):
        # A share of traffic for such a subset is an error, and reported where the share is.
        if subset.name not in used and not selects(subset, service):
            report.add(
                codes.EMPTY_SUBSET, (*path, "subsets", number), f"no endpoint of service {service.name!r} is in subset {subset.name!r}",
            )


# -------------------------------------------------------------------------------------------------- routes


def _routes(report: Report, path: Path, service: Service) -> None:
    if not service.hosts:
        return  # a guarded function names its route; nothing is matched
    earlier = Earlier()
    for number, route in enumerate(service.routes or ()):
        place = (*path, "routes", number)
        possible = _possible_matches(report, place, route.match, service)
        if possible is None or possible:
            if by := earlier.covering(possible):
                names = " and ".join(repr(name) for name in by)
                come = "come" if len(by) > 1 else "comes"
                report.add(codes.SHADOWED, place, f"route {route.name!r} can never match: {names} {come} first")
            earlier.add(number, route.name, possible)


def _possible_matches(report: Report, place: Path, matches: list[Match] | None, service: Service) -> list[Match] | None:
    if matches is None:
        return None
    possible = []
    for number, match in enumerate(matches):
        path = (*place, "match", number)
        if reason := impossible(match):
            report.add(codes.CONTRADICTORY_MATCH, path, f"no request can match: {reason}")
        elif match.grpc is not None and service.protocol == "HTTP1":
            report.add(codes.GRPC_MATCH, (*path, "grpc"), f"service {service.name!r} is HTTP1, which carries no gRPC")
        else:
            possible.append(match)
    return possible


def _named(plan: Effective) -> str:
    return f"service {plan.service.name!r}" if plan.route is None else f"route {plan.route.name!r} of service {plan.service.name!r}"
