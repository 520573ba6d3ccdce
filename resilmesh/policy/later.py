"""Blocks that are known and validated but not enforced yet; ``check`` and ``Mesh`` refuse a policy that uses one.

They are complete and documented, so that a policy can be written and reviewed ahead of the version that acts on it.
The fields that hold them carry ``later=True``. A block leaves this file when it is enforced.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from resilmesh.policy.fields import Block, Duration, Name, Percent, approximates, field, library_only, maps_to, shaped
from resilmesh.policy.matching import HeaderName, ShortString

HeaderValue = Annotated[str, shaped("a header value on one line", r"^[^\x00\r\n]*$", max_length=8192)]
SpiffeId = Annotated[str, shaped(
    "a SPIFFE ID, such as spiffe://shop.example/ns/prod/sa/web", r"^spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)+$", max_length=2048,
)]
DnsName = Annotated[str, shaped("a DNS name", r"^[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$", max_length=253)]
Status = Annotated[int, Field(ge=200, le=599)]


class Tls(Block):
    """Transport security towards the service."""

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL"] = field(
        "DISABLE: plain text. SIMPLE: the service proves who it is. MUTUAL: both do.", envoy=maps_to("cluster.transport_socket"),
    )
    identities: list[SpiffeId] | None = field(
        "SPIFFE IDs the service may prove, any of them.", None,
        envoy=maps_to("UpstreamTlsContext.common_tls_context.combined_validation_context.match_typed_subject_alt_names"), min_length=1,
    )
    dns_sans: list[DnsName] | None = field(
        "DNS names the service may prove, where no SPIFFE ID can be checked.", None,
        envoy=maps_to("UpstreamTlsContext.common_tls_context.combined_validation_context.match_typed_subject_alt_names"), min_length=1,
    )


class HeaderOperations(Block):
    """Changes to the headers of one direction, in the order remove, set, add."""

    set: dict[HeaderName, HeaderValue] | None = field("Replaces a header, or adds it.", None, envoy=maps_to("headers_to_add OVERWRITE"))
    add: dict[HeaderName, HeaderValue] | None = field(
        "Adds a value beside those that are there.", None, envoy=maps_to("headers_to_add APPEND_IF_EXISTS_OR_ADD"),
    )
    remove: list[HeaderName] | None = field("Takes headers away.", None, envoy=maps_to("headers_to_remove"), min_length=1)


class HeaderChanges(Block):
    """Header changes, once per call. Istio's ``headers``."""

    request: HeaderOperations | None = field("On what the service gets.", None, envoy=maps_to("route.request_headers_to_add/remove"))
    response: HeaderOperations | None = field("On what the caller gets.", None, envoy=maps_to("route.response_headers_to_add/remove"))


class PathRegexRewrite(Block):
    """Replaces what a regular expression finds in the path."""

    match: str = field("RE2 expression, searched for in the path without the query.", envoy=maps_to("regex_rewrite.pattern"), min_length=1)
    rewrite: str = field("What takes its place; \\\\1 is the first group.", envoy=maps_to("regex_rewrite.substitution"))


class Rewrite(Block):
    """What the service sees in place of the path and host the caller wrote. ``path`` or ``pathRegex``, not both."""

    path: Annotated[str, shaped("a path, which begins with /", "^/", max_length=8192)] | None = field(
        "Replaces what the route's path condition matched: the whole of an exact path, or the prefix.", None,
        envoy=maps_to("route.prefix_rewrite"),
    )
    path_regex: PathRegexRewrite | None = field("Replaces by regular expression.", None, envoy=maps_to("route.regex_rewrite"))
    host: Annotated[str, shaped("a host name with or without a port", r"^[A-Za-z0-9._:\[\]-]+$", max_length=259)] | None = field(
        "Replaces the Host header.", None, envoy=maps_to("route.host_rewrite_literal"),
    )


class Mirror(Block):
    """Sends a copy of a call to another service, once per call; the caller never waits for it or sees its answer."""

    service: Name = field("Name of the service that gets the copy.", envoy=maps_to("request_mirror_policies.cluster"))
    subset: Name | None = field("A subset of it.", None, envoy=library_only("Envoy mirrors to a cluster, not to a subset of it."))
    percent: Percent = field("Share of calls.", 100.0, envoy=maps_to("request_mirror_policies.runtime_fraction"), unit="percent")


class Fallback(Block):
    """A static answer in place of an error."""

    on: Annotated[list[Literal["REJECTED", "DEADLINE", "FAILURE"]], Field(min_length=1)] = field(
        "REJECTED: nothing was sent. DEADLINE: the call's time is over. FAILURE: the last attempt failed. Absent: all three.",
        envoy=library_only("Envoy has no fallback."), factory=lambda: ["REJECTED", "DEADLINE", "FAILURE"],
    )
    status: Status = field("Status of the answer.", 200, envoy=library_only("Envoy has no fallback."))
    headers: dict[HeaderName, HeaderValue] | None = field("Headers of the answer.", None, envoy=library_only("Envoy has no fallback."))
    body: str = field("Body of the answer.", "", envoy=library_only("Envoy has no fallback."), max_length=65536)


class Classify(Block):
    """Which answers count as failures, beside 5xx, towards breakers, outlier detection and budgets."""

    failure_statuses: list[Annotated[int, Field(ge=100, le=599)]] | None = field(
        "Statuses that count as failure.", None, envoy=approximates("outlier_detection", "Envoy counts them for retries only."),
        min_length=1,
    )
    success_statuses: list[Annotated[int, Field(ge=500, le=599)]] | None = field(
        "5xx statuses that do not count as failure.", None, envoy=library_only("Envoy counts every 5xx."), min_length=1,
    )
    failure_headers: dict[HeaderName, ShortString] | None = field(
        "Response headers of which one makes the answer a failure.", None, envoy=maps_to("retry_policy.retriable_headers"), min_length=1,
    )


class SlowStart(Block):
    """Raises the weight of an endpoint that comes back from ejection, little by little."""

    window: Duration = field(
        "How long it takes to full weight.", envoy=maps_to("slow_start_config.slow_start_window"), unit="duration", gt=0,
    )
    aggression: float = field(
        "1: linear in time. Larger: faster at first.", 1.0, envoy=maps_to("slow_start_config.aggression"), source="Envoy: 1.0",
        gt=0, le=100,
    )
    min_weight_percent: Percent = field(
        "Share of its weight that an endpoint has at once.", 10.0, envoy=maps_to("slow_start_config.min_weight_percent"), unit="percent",
        source="Envoy: 10 %",
    )


class Descriptor(Block):
    """What tells the buckets of a rate limit apart."""

    header: HeaderName = field(
        "Request header of which each value has a bucket of its own.", envoy=maps_to("rate_limits.actions.request_headers"),
    )
    max_values: int = field(
        "Buckets kept at once; the longest unused one goes first.", 10_000,
        envoy=maps_to("local_ratelimit.dynamic_descriptors max_entries"),
        unit="buckets", ge=1, le=1_000_000,
    )
