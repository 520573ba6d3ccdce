"""A route's conditions and a service's hosts, as Envoy writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resilmesh.policy.model import GrpcMatch, Match, PathMatch, StringMatch

Json = dict[str, Any]

#: What Envoy's names of types begin with.
TYPE = "type.googleapis.com/"
ANY_PATH: Json = {"prefix": "/"}


def route_match(match: Match | None) -> Json:
    """One condition of a route as a ``RouteMatch``; ``None`` is every request."""
    if match is None:
        return dict(ANY_PATH)
    headers: list[Json] = []
    if match.method is not None:
        headers.append(method_is(match.method))
    headers += [condition(name, wanted) for name, wanted in (match.headers or {}).items()]
    found = dict(ANY_PATH) if match.path is None else _path(match.path)
    if match.grpc is not None:
        # A header condition: the path may already be wanted in a way of its own.
        headers += [method_is(["POST"]), {"name": ":path", "string_match": _regex(_grpc_path(match.grpc) + r"(?:\?.*)?")}]
    if headers:
        found["headers"] = headers
    if match.query is not None:
        found["query_parameters"] = [condition(name, wanted) for name, wanted in match.query.items()]
    return found


def method_is(methods: Sequence[str]) -> Json:
    """A header condition: the method is one of ``methods``."""
    if len(methods) == 1:
        return {"name": ":method", "string_match": {"exact": methods[0]}}
    return {"name": ":method", "string_match": _regex("|".join(re.escape(method) for method in methods))}


def header_absent(name: str) -> Json:
    """A header condition: ``name`` is not there."""
    return {"name": name, "present_match": False}


def port_is(port: int) -> Json:
    """A header condition: the request is for this port. A Host header without one means 80."""
    if port == 80:
        return {"name": ":authority", "string_match": _regex(r"(?:[^:\[]+|\[[^\]]*\])(?::80)?")}
    return {"name": ":authority", "string_match": {"suffix": f":{port}"}}


def condition(name: str, wanted: StringMatch) -> Json:
    """A header or query condition."""
    if wanted.present is not None:
        return {"name": name, "present_match": wanted.present}
    if wanted.regex is not None:
        return {"name": name, "string_match": _regex(wanted.regex)}
    (kind, value), = wanted.model_dump(include={"exact", "prefix", "suffix"}, exclude_none=True).items()
    return {"name": name, "string_match": {kind: value}}


def _path(path: PathMatch) -> Json:
    if path.exact is not None:
        return {"path": path.exact}
    if path.prefix is not None:
        return {"prefix": path.prefix}
    return _regex(path.regex or "")


def _regex(pattern: str) -> Json:
    # Envoy refuses the empty expression, which matches the empty value.
    return {"safe_regex": {"regex": pattern or "()"}}


def _grpc_path(grpc: GrpcMatch) -> str:
    service = r"[^/?]+" if grpc.service is None else re.escape(grpc.service)
    method = r"[^/?]+" if grpc.method is None else re.escape(grpc.method)
    return f"/{service}/{method}"


# ---------------------------------------------------------------------------------------------- hosts

#: A port, or ``None`` for any, and the index of the service whose requests these are.
Claim = tuple[int | None, int]


def claims_by_domain(hosts: Iterable[tuple[str, int]]) -> dict[str, list[Claim]]:
    """Who answers for each domain, first claim first, from pairs of a policy's host and a service's index.

    Envoy finds a virtual host by name (exact, then the longest suffix, then ``*``) and is told to leave the port out,
    because it cannot say "this suffix with any port". So ports are conditions of the routes, and a domain that is
    claimed for some ports only goes on with the claims of the next wider domain.
    """
    own: dict[str, list[Claim]] = {}
    for host, service in hosts:
        name, port = split_host(host)
        own.setdefault(name, []).append((port, service))
    for claims in own.values():
        claims.sort(key=lambda claim: claim[0] is None)  # stable: host:port before host
    return {name: _with_wider(name, own) for name in own}


def _with_wider(name: str, own: dict[str, list[Claim]]) -> list[Claim]:
    found: list[Claim] = []
    for domain in (name, *_wider(name)):
        for claim in own.get(domain, ()):
            found.append(claim)
            if claim[0] is None:
                return found
    return found


def _wider(name: str) -> Iterable[str]:
    labels = name.removeprefix("*.").split(".")
    for start in range(1, len(labels)):
        yield "*." + ".".join(labels[start:])
    if name != "*":
        yield "*"


def split_host(host: str) -> tuple[str, int | None]:
    """``"api.x:8080"`` is ``("api.x", 8080)``; without a port ``None``. Names are lower case."""
    name, colon, port = host.lower().rpartition(":")
    if colon and port.isdigit() and (name.endswith("]") or ":" not in name):
        return name, int(port)
    return host.lower(), None
