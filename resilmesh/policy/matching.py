"""How the model matches requests: by method, path, headers, query, gRPC service and method."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from resilmesh.policy.fields import LISTED, Block, field, maps_to, shaped, shorthand_for


class StringMatch(Block):
    """How a value is compared. Exactly one key. A bare string is short for ``exact``."""

    exact: str | None = field("Equal, case-sensitive.", None, envoy=maps_to("string_match.exact"))
    prefix: str | None = field("Starts with, textually.", None, envoy=maps_to("string_match.prefix"), min_length=1)
    suffix: str | None = field("Ends with, textually.", None, envoy=maps_to("string_match.suffix"), min_length=1)
    regex: str | None = field("RE2 expression that matches the whole value.", None, envoy=maps_to("string_match.safe_regex"))
    present: bool | None = field(
        "true: the key is there, whatever its value. false: it is absent.", None, envoy=maps_to("present_match")
    )


_PATH = shaped("a path, which begins with /", "^/", max_length=8192)


class PathMatch(Block):
    """How the path is compared, without the query. Exactly one key. A bare string is short for ``exact``."""

    exact: Annotated[str, _PATH] | None = field("Equal, case-sensitive.", None, envoy=maps_to("route.match.path"))
    prefix: Annotated[str, _PATH] | None = field(
        "Starts with, textually, as in Istio: /v1/res matches /v1/reservations.", None, envoy=maps_to("route.match.prefix"),
    )
    regex: str | None = field("RE2 expression that matches the whole path.", None, envoy=maps_to("route.match.safe_regex"))


class GrpcMatch(Block):
    """Matches gRPC calls: POST /service/method."""

    service: str | None = field(
        "Full name of the service, such as shop.v1.Inventory.", None, envoy=maps_to("route.match.path"), min_length=1
    )
    method: str | None = field("Name of the method, such as Reserve.", None, envoy=maps_to("route.match.path"), min_length=1)


ShortString = Annotated[StringMatch, shorthand_for("exact")]
ShortPath = Annotated[PathMatch, shorthand_for("exact")]
Methods = Annotated[
    list[Annotated[str, shaped("a method in upper case, such as GET", r"^[A-Z][A-Z-]*$", max_length=32)]], Field(min_length=1), LISTED,
]
HeaderName = Annotated[str, shaped("a header name in lower case, such as x-tenant", r"^[a-z0-9!#$%&'*+.^_`|~-]+$", max_length=256)]


class Match(Block):
    """One condition of a route: every key that is present must match."""

    method: Methods | None = field(
        "HTTP method or list of methods, upper case.", None, envoy=maps_to("route.match.headers[:method]")
    )
    path: ShortPath | None = field("Path without the query.", None, envoy=maps_to("route.match"))
    headers: dict[HeaderName, ShortString] | None = field(
        "Header name (lower case) to the value wanted. All must match; of a header that is sent several times, one value.",
        None, envoy=maps_to("route.match.headers"),
    )
    query: dict[Annotated[str, Field(min_length=1)], ShortString] | None = field(
        "Query parameter to the value wanted. All must match; of a repeated parameter the first counts. "
        "Compared as sent: %20 is not decoded.",
        None, envoy=maps_to("route.match.query_parameters"),
    )
    grpc: GrpcMatch | None = field("gRPC service and method.", None, envoy=maps_to("route.match.path"))
