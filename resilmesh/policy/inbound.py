"""``inbound``: this workload as a service, with Istio's words and rules for mutual TLS and authorization.

Enforced by the middlewares of ``resilmesh.inbound`` and by the interceptors of gRPC servers (``resilmesh_grpc.server_interceptor``).
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from resilmesh.policy.blocks import Concurrency, Fault, RateLimit
from resilmesh.policy.fields import LISTED, Block, Name, field, library_only, maps_to, shaped


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise PydanticCustomError("network", "{problem}", {"problem": str(error)}) from None
    return text


IpBlock = Annotated[str, AfterValidator(_network)]
#: Exact, `prefix*`, `*suffix`, or `*` for whatever is there.
Pattern = Annotated[str, Field(min_length=1, max_length=8192)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Source(Block):
    """Who calls. Every key that is present must hold."""

    principals: list[Pattern] | None = field(
        "SPIFFE IDs without the scheme, such as shop.example/ns/prod/sa/web; exact, prefix*, *suffix or *. Absent: anyone.", None,
        envoy=maps_to("rbac.principals.authenticated"), min_length=1,
    )
    not_principals: list[Pattern] | None = field("None of these.", None, envoy=maps_to("rbac.principals.not_id"), min_length=1)
    namespaces: list[Pattern] | None = field(
        "Namespaces of the caller's SPIFFE ID.", None, envoy=maps_to("rbac.principals.authenticated"), min_length=1,
    )
    not_namespaces: list[Pattern] | None = field("None of these.", None, envoy=maps_to("rbac.principals.not_id"), min_length=1)
    ip_blocks: list[IpBlock] | None = field(
        "Addresses the connection comes from.", None, envoy=maps_to("rbac.principals.direct_remote_ip"), min_length=1,
    )
    not_ip_blocks: list[IpBlock] | None = field("None of these.", None, envoy=maps_to("rbac.principals.not_id"), min_length=1)
    remote_ip_blocks: list[IpBlock] | None = field(
        "Addresses of the original caller, by X-Forwarded-For of a trusted proxy.", None, envoy=maps_to("rbac.principals.remote_ip"),
        min_length=1,
    )
    not_remote_ip_blocks: list[IpBlock] | None = field("None of these.", None, envoy=maps_to("rbac.principals.not_id"), min_length=1)


class Operation(Block):
    """What is called. Every key that is present must hold."""

    hosts: list[Pattern] | None = field(
        "Host header, without case.", None, envoy=maps_to("rbac.permissions.header[:authority]"), min_length=1,
    )
    not_hosts: list[Pattern] | None = field("None of these.", None, envoy=maps_to("rbac.permissions.not_rule"), min_length=1)
    ports: list[Port] | None = field("Ports of this workload.", None, envoy=maps_to("rbac.permissions.destination_port"), min_length=1)
    not_ports: list[Port] | None = field("None of these.", None, envoy=maps_to("rbac.permissions.not_rule"), min_length=1)
    methods: list[Pattern] | None = field(
        "HTTP methods; gRPC is POST.", None, envoy=maps_to("rbac.permissions.header[:method]"), min_length=1,
    )
    not_methods: list[Pattern] | None = field("None of these.", None, envoy=maps_to("rbac.permissions.not_rule"), min_length=1)
    paths: list[Pattern] | None = field(
        "Normalised paths: exact, prefix*, *suffix, or templates with {*} for one segment and {**} for any number; "
        "gRPC is /service/method.",
        None, envoy=maps_to("rbac.permissions.url_path"), min_length=1,
    )
    not_paths: list[Pattern] | None = field("None of these.", None, envoy=maps_to("rbac.permissions.not_rule"), min_length=1)


class Condition(Block):
    """One further condition on an attribute of the request."""

    key: Annotated[str, shaped(
        "request.headers[name], source.ip, remote.ip, source.namespace, source.principal, destination.ip, destination.port "
        "or connection.sni",
        r"^(request\.headers\[[A-Za-z0-9!#$%&'*+.^_`|~-]+\]|source\.(ip|namespace|principal)|remote\.ip|destination\.(ip|port)|connection\.sni)$",
    )] = field("Istio's name of the attribute.", envoy=maps_to("rbac.permissions or rbac.principals"))
    values: list[Pattern] | None = field("Values, of which one must match.", None, envoy=maps_to("rbac"), min_length=1)
    not_values: list[Pattern] | None = field("Values, of which none may match.", None, envoy=maps_to("rbac"), min_length=1)


class AuthorizationRule(Block):
    """Matches a request when one of ``from``, one of ``to`` and all of ``when`` do. Without any key it matches every request."""

    from_: list[Source] | None = field("Who calls; one of them.", None, envoy=maps_to("rbac.policies.principals"), min_length=1)
    to: list[Operation] | None = field("What is called; one of them.", None, envoy=maps_to("rbac.policies.permissions"), min_length=1)
    when: list[Condition] | None = field("Further conditions; all of them.", None, envoy=maps_to("rbac.policies"), min_length=1)


class AuthorizationPolicy(Block):
    """Istio's AuthorizationPolicy: DENY is asked before ALLOW; without any ALLOW policy everything is allowed."""

    name: Name = field("Unique; what decisions and refusals name.", envoy=maps_to("rbac.policies key"))
    action: Literal["ALLOW", "DENY", "AUDIT"] = field("What a match means.", "ALLOW", envoy=maps_to("rbac.action"), source="Istio: ALLOW")
    mode: Literal["ENFORCE", "OBSERVE"] = field(
        "OBSERVE: the decision is logged and counted, nothing is refused.", "ENFORCE", envoy=maps_to("rbac.shadow_rules"),
    )
    rules: list[AuthorizationRule] | None = field(
        "Rules, of which one must match. Absent: none ever does, so that ALLOW alone allows nothing.", None, envoy=maps_to("rbac.policies"),
    )


#: Why nothing of ``inbound`` is in an Envoy's configuration.
NO_INGRESS = library_only("Envoy's ingress listener has no such part here.")


class Inbound(Block):
    """What applies to the requests that this workload serves: by ASGI and WSGI servers with resilmesh's middleware, by gRPC servers with
    its interceptor."""

    mtls: Literal["STRICT", "PERMISSIVE", "DISABLE"] = field(
        "STRICT: callers must prove an identity. PERMISSIVE: they may. DISABLE: nobody has one. No mode of the mesh opens it.",
        "PERMISSIVE",
        envoy=maps_to("listener.filter_chains.transport_socket"), source="Istio: PERMISSIVE",
    )
    trusted_proxies: list[IpBlock] | None = field(
        "Proxies whose X-Forwarded-For and X-Forwarded-Client-Cert are believed. Absent: none.", None,
        envoy=library_only("Envoy trusts by hop count and by listener."), min_length=1,
    )
    rate_limit: Annotated[list[RateLimit], Field(min_length=1), LISTED] | None = field(
        "Token bucket for all requests, or a list of them of which each must have a token. A request that is refused is answered 429, with "
        "retry-after; a gRPC call ends in RESOURCE_EXHAUSTED, with grpc-retry-pushback-ms.", None,
        envoy=NO_INGRESS, scope="this process",
    )
    concurrency: Concurrency | None = field(
        "Bounds the requests served at once; a stream is served until it ends. A request that is refused is answered 503; a gRPC call "
        "ends in RESOURCE_EXHAUSTED.", None,
        envoy=library_only("Envoy bounds what it sends, not what it receives."), scope="this process",
    )
    fault: Fault | None = field(
        "Injects failures for drills. Of scope ATTEMPT it stands in the application's place, below the limits.", None, envoy=NO_INGRESS,
    )
    authorization: list[AuthorizationPolicy] | None = field(
        "Who may call what.", None, envoy=maps_to("envoy.filters.http.rbac"), min_length=1,
    )
