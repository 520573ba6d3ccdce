"""What of a policy Envoy does only approximately, or not at all.

Read from the model's own mappings (``x-envoy``), so that this list, the reference page and the comparison's report
cannot disagree. A few differences lie in a combination of fields rather than in one; they stand at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from resilmesh.envoy.clusters import is_address
from resilmesh.envoy.retries import LOST_WORDS
from resilmesh.envoy.routes import has_cluster_of_its_own
from resilmesh.policy.dangers import GRPC_WORDS
from resilmesh.policy.fields import Block, in_envoy
from resilmesh.policy.resolve import Effective, Path, effective

if TYPE_CHECKING:
    from resilmesh.policy.model import HeaderOperations, OutlierDetection, Policy, Retries, Service


@dataclass(frozen=True, slots=True)
class Note:
    """One difference. ``path`` is the place in the policy, ``block`` the same in words, such as ``retries.retryAfter``."""

    path: Path
    block: str
    fidelity: Literal["approximate", "library-only"]
    message: str


def notes_on(policy: Policy) -> list[Note]:
    """Every difference that this policy will meet, in the order of the file."""
    any_grpc = any(service.protocol == "GRPC" for service in policy.services)
    found = [*_in_block(policy.mesh, ("mesh",), any_grpc), *_in_block(policy.defaults, ("defaults",), any_grpc)]
    for index, service in enumerate(policy.services):
        path: Path = ("services", index)
        if not service.hosts:
            message = f"{service.name} has no hosts: it is reachable by name only, so Envoy never sees it"
            found.append(Note(path, "hosts", "library-only", message))
            continue
        found += _in_block(service, path, service.protocol == "GRPC")
        found += _in_combination(policy, index, service)
    if policy.inbound is not None:
        metadata: Any = type(policy).model_fields["inbound"].json_schema_extra
        found.append(Note(("inbound",), "inbound", "library-only", metadata["x-envoy"]["difference"]))
    # Routes that inherit a block would each report it.
    return list(dict.fromkeys(found))


def notes_on_inbound(policy: Policy) -> list[Note]:
    """What an Envoy before the service does otherwise: the part of the policy that ``ingress`` translates."""
    return [] if policy.inbound is None else list(_in_block(policy.inbound, ("inbound",), grpc=False))


def _in_block(block: Block, path: Path, grpc: bool) -> Iterator[Note]:
    """Differences of the fields that are written, and of blocks that are in force without being written."""
    for name, info in type(block).model_fields.items():
        value = getattr(block, name)
        if value is None or (name not in block.model_fields_set and not isinstance(value, Block)):
            continue
        where = (*path, info.alias or name)
        metadata: Any = info.json_schema_extra
        fidelity, difference = in_envoy(metadata, value, grpc=grpc)
        if fidelity in ("approximate", "library-only"):
            yield Note(where, _words(where), fidelity, difference)
        # Below what Envoy does not have at all there is nothing more to say.
        if fidelity != "library-only":
            yield from _below(value, where, grpc)


def _below(value: Any, path: Path, grpc: bool) -> Iterator[Note]:
    if isinstance(value, Block):
        yield from _in_block(value, path, grpc)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _below(each, (*path, index), grpc)


def _words(path: Path) -> str:
    """``("services", 0, "routes", 1, "retries", "retryAfter")`` is ``retries.retryAfter``."""
    start = 2 * sum(level in path for level in ("services", "routes"))
    names = path[start:] if start else path[1:]
    return ".".join(part if isinstance(part, str) else f"[{part}]" for part in names).replace(".[", "[")


def _in_combination(policy: Policy, index: int, service: Service) -> Iterator[Note]:
    path: Path = ("services", index)
    if service.endpoints is None:
        yield Note(
            path, "endpoints", "approximate",
            "without endpoints Envoy calls the request's own host in plain HTTP, on port 80 unless the Host header names one; "
            "a name that cannot be looked up is 503 'DNS resolution failure' and never retried",
        )
    for number, endpoint in enumerate(service.endpoints or ()):
        if not is_address(endpoint):
            yield Note(
                (*path, "endpoints", number, "address"), "endpoints.address", "approximate",
                "a DNS name: to Envoy each of its addresses is an endpoint, and one without any is none; to the library they are one",
            )
    for number in (*range(len(service.routes or ())), None):
        yield from _of_route(policy, index, number)


#: Headers of the connection, which Envoy takes off, and headers that it writes itself, before it looks for a route.
_HEADERS_OF_ENVOY = frozenset({
    "connection", "expect", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "x-forwarded-proto",
})
#: Headers that Envoy keeps one value of, and joins by commas when there are several.
_JOINED_HEADERS = frozenset({
    "accept", "accept-encoding", "authorization", "cache-control", "content-type", "if-none-match", "origin", "pragma", "referer",
    "user-agent", "via", "x-forwarded-for", "x-request-id",
})
#: Headers that gRPC writes itself, on the wire.
_HEADERS_OF_GRPC = frozenset({"content-type", "grpc-accept-encoding", "grpc-encoding", "grpc-timeout", "te", "user-agent"})
_JOINED_OF_ANSWERS = frozenset({"cache-control", "content-type", "server", "via"})


def _of_match(policy: Policy, index: int, route: int) -> Iterator[Note]:
    service = policy.services[index]
    for number, match in enumerate((service.routes or [])[route].match or ()):
        for name in match.headers or ():
            where = ("services", index, "routes", route, "match", number, "headers", name)
            if service.protocol == "GRPC" and name in _HEADERS_OF_GRPC:
                difference = f"gRPC itself writes {name}: Envoy sees it, and the library, which looks at the metadata of the call, does not"
                yield Note(where, f"match.headers.{name}", "approximate", difference)
            elif name in _HEADERS_OF_ENVOY or name.startswith("x-envoy-"):
                yield Note(where, f"match.headers.{name}", "approximate", f"Envoy takes {name} off a request, or writes its own, first")
            elif name in _JOINED_HEADERS:
                yield Note(where, f"match.headers.{name}", "approximate", f"to Envoy a {name} that is sent several times is one value")


def _of_shaping(blocks: Effective) -> Iterator[Note]:
    changes, rewrite = blocks.headers, blocks.rewrite
    for direction in ("request", "response"):
        operations: HeaderOperations | None = getattr(changes, direction, None)
        for operation in () if operations is None else ("set", "add", "remove"):
            for name in getattr(operations, operation) or ():
                if (difference := _difference_of_header(direction, operation, name)) is not None:
                    place = direction, operation, *(() if operation == "remove" else (name,))
                    yield Note((*blocks.origin["headers"], *place), ".".join(("headers", *place)), "approximate", difference)
    if rewrite is not None and rewrite.host is not None and blocks.service.endpoints is None:
        yield Note(
            (*blocks.origin["rewrite"], "host"), "rewrite.host", "approximate",
            "without endpoints Envoy calls the new host; the library the one that the caller wrote",
        )


def _difference_of_header(direction: str, operation: str, name: str) -> str | None:
    """What Envoy does with a change to this header besides."""
    if direction == "response" and operation == "remove" and name == "date":
        return "Envoy writes a date of its own in place of one that is removed"
    if direction == "request" and operation != "remove" and name.startswith("x-envoy-"):
        return f"Envoy may take {name} for an order to itself"
    if operation != "add":
        return None
    if direction == "request" and name == "x-forwarded-proto":
        return f"Envoy has written a {name} of its own already"
    if name in (_JOINED_HEADERS if direction == "request" else _JOINED_OF_ANSWERS):
        return f"Envoy joins the values of {name} to one, by a comma"
    return None


def _of_rates(outlier: OutlierDetection, path: Path) -> Iterator[Note]:
    rate = outlier.success_rate
    if rate is not None and round(1000 * rate.stdev_factor) != 1000 * rate.stdev_factor:
        yield Note(
            (*path, "successRate", "stdevFactor"), "outlierDetection.successRate.stdevFactor", "approximate",
            f"Envoy takes thousandths: {round(1000 * rate.stdev_factor) / 1000:g}",
        )
    if rate is not None and outlier.failure_percentage is not None:
        yield Note(
            path, "outlierDetection", "approximate",
            "Envoy counts an endpoint that successRate and failurePercentage eject at once as two, one of them for good, "
            "so that maxEjectionPercent is reached too soon and then nothing is ejected any more",
        )


def _of_route(policy: Policy, index: int, route: int | None) -> Iterator[Note]:
    if route is not None:
        yield from _of_match(policy, index, route)
    blocks = effective(policy, index, route)
    if blocks.mode != "ENFORCE":
        return
    if blocks.rate_limit is not None and len(blocks.rate_limit) > 1:
        yield Note(
            blocks.origin["rate_limit"], "rateLimit", "approximate",
            "when a later limit of the list refuses, Envoy has spent the tokens of the earlier ones; the library puts them back",
        )
    yield from _of_shaping(blocks)
    if blocks.mirror is not None and blocks.concurrency is not None:
        yield Note(
            blocks.origin["mirror"], "mirror", "approximate",
            "a call that finds no slot may have been copied by Envoy, which looks for one when it has a connection",
        )
    if not blocks.owned_by_route("concurrency") and has_cluster_of_its_own(blocks):
        yield Note(
            blocks.origin["classify"], "classify", "approximate",
            "the route has a cluster of its own in Envoy, so its ejections, its retry budget and its share of the service's concurrency "
            "limit are counted apart from the service's",
        )
    if blocks.owned_by_route("concurrency") and (blocks.outlier_detection or blocks.retry_budget):
        yield Note(
            blocks.origin["concurrency"], "concurrency", "approximate",
            "the route has a cluster of its own in Envoy, so its ejections and its retry budget are counted apart from the service's",
        )
    grpc = blocks.service.protocol == "GRPC"
    if not grpc and blocks.fault is not None and blocks.fault.abort is not None and blocks.fault.abort.http_status in (204, 304):
        yield Note(
            (*blocks.origin["fault"], "abort", "httpStatus"), "fault.abort.httpStatus", "approximate",
            "Envoy sends a body, which an answer of this status does not have: the next request on the connection fails",
        )
    outlier = blocks.outlier_detection
    if outlier is not None and blocks.retries is not None and blocks.retries.max_retries:
        yield Note(
            blocks.origin["outlier_detection"], "outlierDetection", "approximate",
            "when a retry finds no healthy endpoint, the library gives back the last answer; Envoy answers 503 'no healthy upstream'",
        )
    if outlier is not None:
        for name, percent, whole in (
            ("maxEjectionPercent", outlier.max_ejection_percent, int(outlier.max_ejection_percent)),
            ("panicThreshold", outlier.panic_threshold, math.floor(outlier.panic_threshold + 0.5)),
        ):
            if percent != whole:
                yield Note(
                    (*blocks.origin["outlier_detection"], name), f"outlierDetection.{name}", "approximate",
                    f"Envoy takes whole percents: {whole}",
                )
        yield from _of_rates(outlier, blocks.origin["outlier_detection"])
    if blocks.retries is not None:
        yield from _of_words(blocks.retries, blocks.origin["retries"], grpc)


def _of_words(retries: Retries, path: Path, grpc: bool) -> Iterator[Note]:
    words = {str(each) for each in retries.retry_on}
    if grpc and retries.idempotent is None and LOST_WORDS & words:
        yield Note(
            (*path, "idempotent"), "retries.idempotent", "approximate",
            "the library repeats a lost outcome of a method whose idempotency_level says that it may; Envoy does not know the methods",
        )
    if not grpc and GRPC_WORDS & words:
        yield Note(
            (*path, "retryOn"), "retries.retryOn", "approximate",
            "Envoy looks for grpc-status in the headers of every answer; to the library a service of HTTP1 has none",
        )
