"""The policy file, field by field: the one place that documents it.

Read it top down: ``Policy`` holds ``mesh``, ``defaults``, ``services`` and ``inbound``; a service holds
blocks and routes; a route holds a match and blocks. Words are Istio's for routes, outliers, faults,
splits and authorization, and resilience4j's for the failure-rate circuit breaker. This file is the tree;
the blocks that hang on it are in ``matching``, ``blocks``, ``shaping``, ``identity`` and ``inbound``, and can be had from here.

Rules for editors: every field goes through ``field()`` with its unit, source and Envoy mapping; a
default is safe and is written out to Envoy; validation never tightens within ``resilmesh/v1``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from resilmesh.policy.blocks import (
    NO_BREAKER,
    Backoff,
    CircuitBreaker,
    Concurrency,
    Descriptor,
    Endpoint,
    FailurePercentage,
    Fault,
    FaultAbort,
    FaultDelay,
    LoadBalancer,
    OutlierDetection,
    RateLimit,
    Retries,
    RetryAfter,
    RetryBudget,
    RetryWord,
    SlidingWindow,
    SlowStart,
    SplitTarget,
    Subset,
    SuccessRate,
)
from resilmesh.policy.fields import (
    LISTED,
    NEUTRAL,
    Block,
    Duration,
    Labels,
    Name,
    approximates,
    field,
    library_only,
    maps_to,
    shaped,
    shorthand_for,
)
from resilmesh.policy.identity import FederatedBundle, IdentitySource, Tls, TrustDomain
from resilmesh.policy.inbound import (
    AuthorizationPolicy,
    AuthorizationRule,
    Condition,
    Inbound,
    Operation,
    Source,
)
from resilmesh.policy.matching import GrpcMatch, Match, PathMatch, StringMatch
from resilmesh.policy.shaping import (
    NO_FALLBACK,
    Classify,
    Fallback,
    HeaderChanges,
    HeaderOperations,
    Mirror,
    PathRegexRewrite,
    Rewrite,
)

__all__ = [
    "AuthorizationPolicy", "AuthorizationRule", "Backoff", "CallBlocks", "CircuitBreaker", "Classify", "Concurrency", "Condition",
    "Defaults", "Descriptor", "Endpoint", "FailurePercentage", "Fallback", "Fault", "FaultAbort", "FaultDelay", "FederatedBundle",
    "GrpcMatch", "HeaderChanges", "HeaderOperations", "IdentitySource", "Inbound", "Labels", "LoadBalancer", "LocalReplies", "Match",
    "MeshBlock", "Mirror", "Mode", "Name", "Operation", "Outbound", "OutlierDetection", "PathMatch", "PathRegexRewrite", "Policy",
    "Protocol", "RateLimit", "Retries", "RetryAfter", "RetryBudget", "RetryWord", "Rewrite", "Route", "Service", "ServiceBlocks",
    "SlidingWindow", "SlowStart", "Source", "SplitTarget", "StringMatch", "Subset", "SuccessRate", "Tls",
]

_BY_LEVEL = "the level it stands at: a route's own; a service's (or the defaults') for the whole service"

Mode = Literal["ENFORCE", "OBSERVE", "OFF"]
LocalReplies = Literal["RAISE", "RESPOND"]
Outbound = Literal["ALLOW_ANY", "REGISTRY_ONLY"]
Protocol = Literal["HTTP1", "HTTP2", "GRPC"]
Host = Annotated[str, shaped(
    "host, host:port, *.suffix or *",
    r"^(\*|(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?(:[0-9]{1,5})?|\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?)$", max_length=259,
)]


class CallBlocks(Block):
    """Blocks that may stand in ``defaults``, in a service and in a route."""

    timeout: Duration | None = field(
        "Longest time for the whole call: every attempt, every wait, and the response body.", None,
        envoy=approximates(
            "route.timeout",
            "Envoy's begins when the request has been sent. When a backoff does not fit into what is left, the library gives back "
            "the last answer at once; Envoy waits, and answers 504.",
            over_grpc="Envoy's begins when the request has been sent, so never for a stream that the caller keeps open. It answers "
            "UNAVAILABLE, and resets a response that has begun (INTERNAL); the library says DEADLINE_EXCEEDED, and tells the service "
            "by when. When a backoff does not fit into what is left, the library gives back the last status at once; Envoy waits.",
        ),
        unit="duration", source="none unless written (Envoy has 15 s)", gt=0,
    )
    idle_timeout: Duration | None = field(
        "Longest time without a byte of the response.", None,
        envoy=approximates(
            "route.idle_timeout",
            "Envoy's counts bytes of the request too, answers 504 'stream timeout' before the headers, is never retried, ejects nobody.",
            over_grpc="Envoy's counts messages of the request too, answers UNAVAILABLE, resets a response that has begun (INTERNAL), is "
            "never retried, ejects nobody; the library says DEADLINE_EXCEEDED.",
        ),
        unit="duration", gt=0,
    )
    retries: Retries | None = field(
        "Which attempts are repeated.", None,
        envoy=approximates("route.retry_policy", "A body that is streamed, such as a generator, is repeated by Envoy, which buffers it."),
    )
    circuit_breaker: CircuitBreaker | None = field(
        "Stops calling what fails.", None, envoy=NO_BREAKER, scope=_BY_LEVEL,
    )
    rate_limit: Annotated[list[RateLimit], Field(min_length=1), LISTED] | None = field(
        "Token bucket, or a list of them of which each must have a token.", None, envoy=maps_to("envoy.filters.http.local_ratelimit"),
        scope="see rateLimit.scope",
    )
    concurrency: Concurrency | None = field(
        "Bounds the calls in flight.", None,
        envoy=maps_to("cluster.circuit_breakers; a route's are those of a cluster of its own"),
        scope=_BY_LEVEL,
    )
    fault: Fault | None = field("Injects failures for drills.", None, envoy=maps_to("envoy.filters.http.fault"))
    classify: Classify | None = field(
        "Which answers count as failures.", None,
        envoy=maps_to(
            "HttpProtocolOptions.outlier_detection.error_matcher; a route's is that of a cluster of its own",
            over_grpc="Not in Envoy, which judges a gRPC status by a table of its own.",
        ),
    )
    fallback: Fallback | None = field("A static answer in place of an error.", None, envoy=NO_FALLBACK)
    headers: HeaderChanges | None = field(
        "Header changes on requests and responses.", None, envoy=maps_to("route.request_headers_to_add ..."),
    )


class ServiceBlocks(CallBlocks):
    """Blocks that may stand in ``defaults`` and in a service."""

    connect_timeout: Duration | None = field(
        "Longest time to connect to an endpoint, TLS included. Absent: what the client says.", None,
        envoy=maps_to("cluster.connect_timeout"), unit="duration", gt=0,
    )
    retry_budget: RetryBudget | None = field(
        "Bounds retries as a share of calls.", None, scope="the service",
        envoy=approximates("circuit_breakers.thresholds.retry_budget", "Envoy's is instantaneous: a share of the requests in flight."),
    )
    outlier_detection: OutlierDetection | None = field(
        "Ejects endpoints that fail.", None,
        envoy=maps_to(
            "cluster.outlier_detection",
            over_grpc="To Envoy a call whose initial metadata or first message came has succeeded, whatever its status is then.",
        ),
        scope="the endpoint",
    )
    load_balancer: Annotated[LoadBalancer, shorthand_for("policy", {"enum": ["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"]})] = field(
        "How endpoints are chosen. A bare word is short for its policy.", envoy=maps_to("cluster.lb_policy"),
        factory=LoadBalancer, scope="the service",
    )


class Defaults(ServiceBlocks):
    """What applies to every service that does not say otherwise."""


class Route(CallBlocks):
    """What applies to the requests that it matches. The first match of a service wins."""

    name: Name = field("Unique within the service; appears in metrics and errors.")
    match: Annotated[list[Match], Field(min_length=1), LISTED] | None = field(
        "Conditions of which one must hold. Absent: every request.", None, envoy=maps_to("route.match"),
    )
    mode: Mode | None = field(
        "ENFORCE, OBSERVE (decide, act on nothing) or OFF. The weakest of mesh, service and route applies.", None,
        envoy=approximates("the route without policy", "OBSERVE and OFF export a route that only forwards.", exact_for=("ENFORCE",)),
    )
    split: list[SplitTarget] | None = field("Shares of traffic by subset.", None, envoy=maps_to("weighted_clusters"), min_length=1)
    rewrite: Rewrite | None = field("Path and host rewrite.", None, envoy=maps_to("route.prefix_rewrite ..."))
    mirror: Mirror | None = field("Sends a copy elsewhere.", None, envoy=maps_to("route.request_mirror_policies"))


class Service(ServiceBlocks):
    """A logical destination."""

    name: Name = field("Unique; what `mesh.guard` and metrics call it.", envoy=NEUTRAL)
    hosts: list[Host] | None = field(
        "Whose requests these are: host, host:port, *.suffix or *. host:port wins over host, host over the longest suffix, that over *. "
        "Absent: reachable by name only.", None, envoy=maps_to("virtual_host.domains"), min_length=1,
    )
    protocol: Protocol = field(
        "What the service speaks. HTTP2: by ALPN over TLS, by prior knowledge without; needs the h2 package, and a transport of "
        "the client's own kind.",
        "HTTP1",
        envoy=approximates(
            "HttpProtocolOptions.explicit_http_config",
            "Under HTTP1 the library's transport still speaks HTTP/2 where the client was made with http2=True.",
            exact_for=("HTTP1", "HTTP2", "GRPC"),
        ),
    )
    tls: Tls | None = field(
        "Transport security towards the service. Absent: as the URL, or the channel's credentials, say.", None,
        envoy=maps_to("cluster.transport_socket"),
    )
    mode: Mode | None = field(
        "ENFORCE, OBSERVE (decide, act on nothing) or OFF. The weakest of mesh, service and route applies.", None,
        envoy=approximates("the route without policy", "OBSERVE and OFF export a route that only forwards.", exact_for=("ENFORCE",)),
    )
    endpoints: list[Endpoint] | None = field(
        "Addresses. Absent: where the URL says.", None, envoy=maps_to("cluster.load_assignment"), min_length=1,
    )
    subsets: list[Subset] | None = field("Named parts of the endpoints.", None, envoy=maps_to("cluster.lb_subset_config"), min_length=1)
    split: list[SplitTarget] | None = field("Shares of traffic by subset.", None, envoy=maps_to("weighted_clusters"), min_length=1)
    rewrite: Rewrite | None = field("Path and host rewrite.", None, envoy=maps_to("route.prefix_rewrite ..."))
    mirror: Mirror | None = field("Sends a copy elsewhere.", None, envoy=maps_to("route.request_mirror_policies"))
    routes: list[Route] | None = field("First match wins; no match: the service's own blocks.", None, envoy=maps_to("virtual_host.routes"))


class MeshBlock(Block):
    """The process as a whole. Each can be overridden by an argument of Mesh or by the environment (RESILMESH_MODE, ...)."""

    workload: Name | None = field("Name of this workload, in metrics and identity.", None)
    trust_domain: TrustDomain | None = field(
        "SPIFFE trust domain of this workload. A certificate of another is refused. Absent: that of the certificate.", None,
    )
    identity: IdentitySource | None = field(
        "Where this workload's certificate comes from. RESILMESH_IDENTITY overrides it: a directory, or unix:///...",
        None,
    )
    mode: Mode = field(
        "ENFORCE, OBSERVE (decide, act on nothing) or OFF. The weakest of mesh, service and route applies.", "ENFORCE",
        envoy=approximates("the route without policy", "OBSERVE and OFF export a route that only forwards.", exact_for=("ENFORCE",)),
    )
    outbound: Outbound = field(
        "ALLOW_ANY: a host of no service is called without policy. REGISTRY_ONLY: it is refused.", "ALLOW_ANY",
        envoy=maps_to("the catch-all virtual host"), source="Istio: ALLOW_ANY",
    )
    local_replies: LocalReplies = field(
        "RAISE: outcomes made locally are exceptions. RESPOND: they are the responses that Envoy would give.", "RAISE",
        envoy=approximates("Envoy always responds", "RAISE has no counterpart; RESPOND is the same.", exact_for=("RESPOND",)),
    )


class Policy(Block):
    """The whole file."""

    api_version: Literal["resilmesh/v1"] = field("Version of this format.")
    mesh: MeshBlock = field("The process as a whole.", factory=MeshBlock)
    defaults: Defaults = field("Blocks for every service that does not have its own.", factory=Defaults)
    services: list[Service] = field("Destinations.", factory=list)
    inbound: Inbound | None = field(
        "This workload as a service.", None,
        envoy=library_only("The Envoy beside a caller has none of it; `export envoy --inbound` makes the one before a service."),
    )
