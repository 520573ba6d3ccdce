"""Whether the parts of a policy fit together.

``check`` finds these errors and, from ``resilmesh.policy.dangers``, the warnings. The form of each value was
judged when the policy was loaded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from resilmesh.policy import codes, dangers
from resilmesh.policy.blocks import Backoff, CircuitBreaker, Endpoint, Fault, FaultAbort, OutlierDetection, RateLimit, SlidingWindow
from resilmesh.policy.document import Path, shorten
from resilmesh.policy.fields import Block
from resilmesh.policy.identity import IdentitySource, Tls
from resilmesh.policy.inbound import Condition, Inbound
from resilmesh.policy.matching import PathMatch, StringMatch
from resilmesh.policy.regex import compile_regex
from resilmesh.policy.report import Report
from resilmesh.policy.resolve import effective
from resilmesh.policy.shaping import Classify, Fallback, HeaderChanges, HeaderOperations, PathRegexRewrite, Rewrite
from resilmesh.units import format_duration

if TYPE_CHECKING:
    from resilmesh.policy.codes import Diagnostic
    from resilmesh.policy.load import Loaded
    from resilmesh.policy.model import Policy, Service

_PORT = re.compile(r":([0-9]{1,5})$", re.ASCII)
#: Shortest time-based window: it is kept in ten buckets, and a clock's ticks are about a millisecond.
_SHORTEST_WINDOW = 0.1


def check(loaded: Loaded) -> list[Diagnostic]:
    """Every contradiction and danger of a policy, in the order of the text."""
    report = Report(loaded)
    policy = loaded.policy
    for path, block in _walk(policy, ()):
        if (judge := _JUDGES.get(type(block))) is not None:
            judge(report, path, block)
    _names(report, [service.name for service in policy.services], "service", ("services",))
    _hosts(report, policy)
    for index, service in enumerate(policy.services):
        _service(report, policy, index, service)
    dangers.find(report, policy)
    return report.sorted()


def _walk(block: Block, path: Path) -> Iterator[tuple[Path, Block]]:
    """Every block that was written, with its path."""
    yield path, block
    fields = type(block).model_fields
    for name in block.model_fields_set:
        key = fields[name].alias or name
        value: Any = getattr(block, name)
        if isinstance(value, Block):
            yield from _walk(value, (*path, key))
        elif isinstance(value, list | dict):
            for part, item in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(item, Block):
                    yield from _walk(item, (*path, key, part))


# ------------------------------------------------------------------------------------ blocks, each for itself


def _one_key(report: Report, path: Path, block: StringMatch | PathMatch | FaultAbort, keys: tuple[str, ...]) -> bool:
    fields = type(block).model_fields
    written = [str(fields[key].alias) for key in keys if getattr(block, key) is not None]
    if len(written) == 1:
        return True
    found = "has " + " and ".join(written) if written else "has none"
    wanted = ", ".join(str(fields[key].alias) for key in keys)
    report.add(codes.ONE_KEY, path, f"{shorten(str(path[-1]))!r} needs exactly one of {wanted}, and {found}")
    return False


def _regex(report: Report, path: Path, expression: str | None) -> None:
    if expression is None:
        return
    try:
        compile_regex(expression)
    except ValueError as error:
        report.add(codes.BAD_REGEX, path, f"RE2 refuses {shorten(expression)!r}: {shorten(str(error))}")


def _string_match(report: Report, path: Path, match: StringMatch) -> None:
    if _one_key(report, path, match, ("exact", "prefix", "suffix", "regex", "present")):
        _regex(report, (*path, "regex"), match.regex)


def _path_match(report: Report, path: Path, match: PathMatch) -> None:
    if _one_key(report, path, match, ("exact", "prefix", "regex")):
        _regex(report, (*path, "regex"), match.regex)


def _fault_abort(report: Report, path: Path, abort: FaultAbort) -> None:
    _one_key(report, path, abort, ("http_status", "grpc_status"))


def _fault(report: Report, path: Path, fault: Fault) -> None:
    if fault.abort is None and fault.delay is None:
        report.add(codes.NO_FAULT, path, "'fault' has neither 'abort' nor 'delay'")


def _backoff(report: Report, path: Path, backoff: Backoff) -> None:
    if backoff.max is not None and backoff.max < backoff.base:
        longest, base = format_duration(backoff.max), format_duration(backoff.base)
        report.add(codes.BACKOFF, (*path, "max"), f"the longest backoff, {longest}, is shorter than its base, {base}")


def _sliding_window(report: Report, path: Path, window: SlidingWindow) -> None:
    if window.type == "COUNT_BASED" and isinstance(window.size, float):
        report.add(codes.WINDOW, (*path, "size"), "a COUNT_BASED window needs a number of calls as its size", "or write 'type: TIME_BASED'")
    elif window.type == "TIME_BASED" and isinstance(window.size, int):
        problem = "needs a duration as its size" if "size" in window.model_fields_set else "has no size"
        report.add(codes.WINDOW, (*path, "size"), f"a TIME_BASED window {problem}", "such as 'size: 10s'")
    elif isinstance(window.size, float) and window.size < _SHORTEST_WINDOW:
        report.add(codes.WINDOW, (*path, "size"), f"a window of {format_duration(window.size)} is too short", "at least 100ms")


def _circuit_breaker(report: Report, path: Path, breaker: CircuitBreaker) -> None:
    if breaker.failure_rate_threshold is None and breaker.slow_call_rate_threshold is None and breaker.consecutive_failures is None:
        report.add(codes.NO_TRIP, path, "'circuitBreaker' has no condition that opens the circuit")
    window, minimum = breaker.sliding_window, breaker.minimum_number_of_calls
    # The default minimum shrinks with the window; one that was written is meant.
    written = "minimum_number_of_calls" in breaker.model_fields_set
    if written and window.type == "COUNT_BASED" and isinstance(window.size, int) and minimum > window.size:
        report.add(
            codes.UNREACHABLE_MINIMUM, (*path, "minimumNumberOfCalls"), f"a window of {window.size} calls never holds {minimum}",
        )


def _outlier_detection(report: Report, path: Path, outlier: OutlierDetection) -> None:
    if outlier.consecutive_local_origin_failures is not None and not outlier.split_external_local_origin_errors:
        report.add(
            codes.NEEDS_SPLIT_ORIGINS, (*path, "consecutiveLocalOriginFailures"),
            "'consecutiveLocalOriginFailures' needs 'splitExternalLocalOriginErrors: true'",
        )


def _rate_limit(report: Report, path: Path, limit: RateLimit) -> None:
    if limit.scope == "ROUTE" and "routes" not in path:
        report.add(codes.ROUTE_SCOPE, (*path, "scope"), "'scope: ROUTE' stands outside a route")


def _endpoint(report: Report, path: Path, endpoint: Endpoint) -> None:
    _port(report, (*path, "address"), endpoint.address)


def _port(report: Report, path: Path, address: str) -> None:
    if (found := _PORT.search(address)) is not None and not 1 <= int(found[1]) <= 65535:
        report.add(codes.BAD_PORT, path, f"{address!r}: there is no port {found[1]}")


def _rewrite(report: Report, path: Path, rewrite: Rewrite) -> None:
    _something(report, path, rewrite)
    if rewrite.path is not None and rewrite.path_regex is not None:
        report.add(codes.ONE_KEY, path, "'rewrite' has path and pathRegex, and one of them would win")
    if rewrite.host is not None:
        _port(report, (*path, "host"), rewrite.host)


def _path_regex_rewrite(report: Report, path: Path, rewrite: PathRegexRewrite) -> None:
    try:
        groups = compile_regex(rewrite.match).groups
    except ValueError as error:
        report.add(codes.BAD_REGEX, (*path, "match"), f"RE2 refuses {shorten(rewrite.match)!r}: {shorten(str(error))}")
        return
    # As RE2 reads a substitution: a backslash stands before a digit, or before another.
    for found in re.finditer(r"\\(.?)", rewrite.rewrite, re.DOTALL):
        if found[1] in set("0123456789"):
            if int(found[1]) > groups:
                report.add(codes.UNKNOWN_GROUP, (*path, "rewrite"), f"group {found[1]} of {groups} in {shorten(rewrite.match)!r}")
        elif found[1] != "\\":
            report.add(codes.UNKNOWN_GROUP, (*path, "rewrite"), f"a digit or a second backslash must follow a backslash, not '{found[1]}'")


#: How a message is framed, and where it goes.
_UNCHANGEABLE = frozenset({
    "connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade",
})


def _something(report: Report, path: Path, block: Block) -> None:
    if all(getattr(block, name) is None for name in type(block).model_fields):
        report.add(codes.CHANGES_NOTHING, path, f"{shorten(str(path[-1]))!r} does nothing")


def _unchangeable(report: Report, path: Path, names: Collection[str]) -> None:
    for number, name in enumerate(names):
        if name in _UNCHANGEABLE:
            place = (*path, name if isinstance(names, Mapping) else number)
            report.add(codes.UNCHANGEABLE_HEADER, place, f"the header {name!r} cannot be changed")


def _header_operations(report: Report, path: Path, operations: HeaderOperations) -> None:
    _something(report, path, operations)
    _unchangeable(report, (*path, "set"), operations.set or {})
    _unchangeable(report, (*path, "add"), operations.add or {})
    _unchangeable(report, (*path, "remove"), operations.remove or ())


def _classify(report: Report, path: Path, classify: Classify) -> None:
    _something(report, path, classify)
    for number, status in enumerate(classify.success_statuses or ()):
        if status in (classify.failure_statuses or ()):
            report.add(codes.BOTH_WAYS, (*path, "successStatuses", number), f"{status} is among 'failureStatuses' as well")


def _fallback(report: Report, path: Path, fallback: Fallback) -> None:
    _unchangeable(report, (*path, "headers"), fallback.headers or {})
    if fallback.body and fallback.status in (204, 304):
        report.add(codes.BODILESS, (*path, "body"), f"an answer of status {fallback.status} has no body")


def _condition(report: Report, path: Path, condition: Condition) -> None:
    if condition.values is None and condition.not_values is None:
        report.add(codes.ONE_KEY, path, f"the condition on {shorten(condition.key)!r} has neither values nor notValues")


def _inbound(report: Report, path: Path, inbound: Inbound) -> None:
    _names(report, [each.name for each in inbound.authorization or ()], "authorization policy", (*path, "authorization"))


def _tls(report: Report, path: Path, tls: Tls) -> None:
    named = [name for name in ("identities", "dns_sans") if getattr(tls, name)]
    if tls.mode == "DISABLE":
        for name in named:
            key = str(Tls.model_fields[name].alias)
            report.add(codes.NO_TLS, (*path, key), f"{key!r} says what the service must prove, and {path[-1]!r} is DISABLE")
    elif tls.mode == "MUTUAL" and not named:
        report.add(codes.NOBODY_EXPECTED, path, "mutual TLS has neither 'identities' nor 'dnsSans', so that any workload could answer")


def _identity_source(report: Report, path: Path, source: IdentitySource) -> None:
    files = [key for key in ("certificate", "key", "bundle") if getattr(source, key) is not None]
    written = (("directory", source.directory), ("workloadApi", source.workload_api), ("certificate", files))
    ways = [key for key, value in written if value]
    if len(ways) != 1:
        said = f"has {_and(ways)}" if ways else "says nothing"
        report.add(codes.ONE_KEY, path, f"the identity {said}: 'directory', 'workloadApi', or 'certificate', 'key', 'bundle'")
    elif files and len(files) < 3:
        lacking = [key for key in ("certificate", "key", "bundle") if key not in files]
        report.add(codes.MISSING_KEY, path, f"the identity has {_and(files)} and lacks {_and(lacking)}")
    elif source.federated and not files:
        said = f"'federated' stands beside 'certificate', 'key' and 'bundle'; {ways[0]!r} brings its own"
        report.add(codes.ONE_KEY, (*path, "federated"), said)


def _and(keys: list[str]) -> str:
    return " and ".join(map(repr, keys))


_JUDGES: dict[type[Block], Callable[[Report, Path, Any], None]] = {
    StringMatch: _string_match, PathMatch: _path_match, FaultAbort: _fault_abort, Fault: _fault, Backoff: _backoff,
    SlidingWindow: _sliding_window, CircuitBreaker: _circuit_breaker, OutlierDetection: _outlier_detection, RateLimit: _rate_limit,
    Endpoint: _endpoint, Rewrite: _rewrite, PathRegexRewrite: _path_regex_rewrite, Condition: _condition, Inbound: _inbound,
    HeaderChanges: _something, HeaderOperations: _header_operations, Classify: _classify, Fallback: _fallback,
    Tls: _tls, IdentitySource: _identity_source,
}


# --------------------------------------------------------------------------------------- blocks, together


def _names(report: Report, names: list[str], what: str, path: Path, key: str = "name", code: codes.Code = codes.DUPLICATE_NAME) -> None:
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            there = report.line((*path, first[name], key))
            report.add(code, (*path, index, key), f"{what} {name!r} is there already{there}")


def _hosts(report: Report, policy: Policy) -> None:
    owners: dict[str, tuple[str, Path]] = {}
    for index, service in enumerate(policy.services):
        for number, host in enumerate(service.hosts or ()):
            path: Path = ("services", index, "hosts", number)
            _port(report, path, host)
            owner, there = owners.setdefault(host.lower(), (service.name, path))
            if there != path:
                report.add(codes.DUPLICATE_HOST, path, f"host {host!r} belongs to service {owner!r} already{report.line(there)}")


def _service(report: Report, policy: Policy, index: int, service: Service) -> None:
    path: Path = ("services", index)
    inside = f"service {service.name!r}: "
    _names(report, [route.name for route in service.routes or ()], inside + "route", (*path, "routes"))
    _names(report, [subset.name for subset in service.subsets or ()], inside + "subset", (*path, "subsets"))
    addresses = [endpoint.address.lower() for endpoint in service.endpoints or ()]
    _names(report, addresses, inside + "endpoint", (*path, "endpoints"), "address", codes.DUPLICATE_ENDPOINT)
    if service.protocol == "GRPC":
        _not_for_grpc(report, policy, index, service)
        _one_name_over_grpc(report, path, service)
    _splits(report, path, service)
    _mirrors(report, path, policy, service)
    _shared_limits(report, policy, index, service)


def _not_for_grpc(report: Report, policy: Policy, index: int, service: Service) -> None:
    """Blocks that would do nothing for a service that speaks gRPC, wherever they stand."""
    found: dict[Path, str] = {}
    for number in (None, *range(len(service.routes or ()))):
        plan = effective(policy, index, number)
        if plan.fallback is not None:
            found[plan.origin["fallback"]] = "fallback"
        if plan.headers is not None and plan.headers.response is not None:
            found[*plan.origin["headers"], "response"] = "headers.response"
    for place, name in found.items():
        report.add(codes.NOT_FOR_GRPC, place, f"service {service.name!r} speaks gRPC, for which there is no {name!r}")


def _one_name_over_grpc(report: Report, path: Path, service: Service) -> None:
    """grpcio compares a certificate with one host name, and asks nobody else."""
    tls = service.tls
    if tls is None or tls.mode == "DISABLE":
        return
    key, names = ("dnsSans", tls.dns_sans) if tls.dns_sans else ("identities", tls.identities or [])
    if len(names) > 1:
        said = f"service {service.name!r} speaks gRPC, which can compare with one name, not {len(names)}"
        report.add(codes.NOBODY_EXPECTED, (*path, "tls", key), said)


def _splits(report: Report, path: Path, service: Service) -> None:
    subsets = {subset.name: subset for subset in service.subsets or ()}
    levels = [(path, service.split), *(((*path, "routes", number), route.split) for number, route in enumerate(service.routes or ()))]
    for level, split in levels:
        for number, target in enumerate(split or ()):
            place = (*level, "split", number, "subset")
            if (subset := subsets.get(target.subset)) is None:
                known = f"it has {', '.join(subsets)}" if subsets else "it has no subsets"
                report.add(codes.UNKNOWN_SUBSET, place, f"service {service.name!r} has no subset {target.subset!r}", known)
            elif target.weight and not dangers.selects(subset, service):
                report.add(codes.EMPTY_SHARE, place, f"subset {target.subset!r} has weight {target.weight} and no endpoint")
        if split and not any(target.weight for target in split):
            report.add(codes.NO_WEIGHT, (*level, "split"), "the weights of the split add up to 0")


def _mirrors(report: Report, path: Path, policy: Policy, service: Service) -> None:
    levels = [(path, service.mirror), *(((*path, "routes", number), route.mirror) for number, route in enumerate(service.routes or ()))]
    for level, mirror in levels:
        if mirror is None:
            continue
        place = (*level, "mirror")
        target = next((each for each in policy.services if each.name == mirror.service), None)
        if target is None:
            known = f"it has {', '.join(each.name for each in policy.services)}"
            report.add(codes.UNKNOWN_SERVICE, (*place, "service"), f"the policy has no service {mirror.service!r}", known)
        elif (target.protocol == "GRPC") != (service.protocol == "GRPC"):
            speaks = f"service {service.name!r} speaks {service.protocol}, and {target.name!r} {target.protocol}"
            report.add(codes.MIRROR_PROTOCOL, (*place, "service"), speaks)
        elif not target.endpoints:
            report.add(codes.NO_MIRROR_ENDPOINTS, (*place, "service"), f"service {target.name!r} has no endpoints")
        elif mirror.subset is not None:
            subset = next((each for each in target.subsets or () if each.name == mirror.subset), None)
            if subset is None:
                report.add(codes.UNKNOWN_SUBSET, (*place, "subset"), f"service {target.name!r} has no subset {mirror.subset!r}")
            elif not dangers.selects(subset, target):
                report.add(codes.EMPTY_SHARE, (*place, "subset"), f"subset {mirror.subset!r} has no endpoint")


def _shared_limits(report: Report, policy: Policy, index: int, service: Service) -> None:
    """The limits of scope SERVICE in one service are one bucket, wherever they stand."""
    first: tuple[list[RateLimit], Path] | None = None
    for number in (None, *range(len(service.routes or ()))):
        plan = effective(policy, index, number)
        by_route = plan.owned_by_route("rate_limit")
        shared = [each for each in plan.rate_limit or () if each.scope == "SERVICE" or (each.scope is None and not by_route)]
        if not shared:
            continue
        bare = [each.model_copy(update={"scope": "SERVICE"}) for each in shared]
        place = plan.origin["rate_limit"]
        if first is None:
            first = bare, place
        elif bare != first[0]:
            report.add(codes.TWO_LIMITS, place, f"service {service.name!r} has another limit of scope SERVICE{report.line(first[1])}")
