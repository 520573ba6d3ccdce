"""START HERE: a policy as the bootstrap of a real Envoy.

One listener takes the application's plain HTTP and routes by Host; each service becomes a cluster (``clusters``) and
routes (``routes``, ``match``) with the filters that they switch on (``filters``). What Envoy cannot do, or does
otherwise, is a note (``notes``), never silence.

    policy                              Envoy
    hosts                               virtual hosts; a port is a condition of the routes
    service, endpoints                  a cluster; without endpoints one that calls the request's own host
    route                               a route for each match; two where retries depend on the method
    rateLimit                           a filter for each bucket, switched on by its routes
    concurrency                         the cluster's limits; on a route a cluster of its own
    outbound                            the virtual host `*`
    tls, mesh.identity                  the cluster's transport socket, and the files that it reads (``tls``)
    mode OFF, OBSERVE                   a route that only forwards

The bootstrap is plain data: YAML or JSON, and xDS resources too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resilmesh.envoy.clusters import MAX_HEADERS, MAX_HEADERS_KB, passthrough, socket_address
from resilmesh.envoy.filters import fault_filter, host_lookup_filter, router
from resilmesh.envoy.match import TYPE, Claim, claims_by_domain, port_is
from resilmesh.envoy.notes import Note, notes_on
from resilmesh.envoy.routes import Routes
from resilmesh.envoy.tls import IdentityFiles
from resilmesh.envoy.tracing import collector_cluster, flushing, tracing

if TYPE_CHECKING:
    from resilmesh.policy.model import Policy

Json = dict[str, Any]
Address = tuple[str, int]

#: A request body up to this size can be sent again. Envoy's own limit is 1 MiB, above which it silently never retries.
REPLAYABLE_BODY_BYTES = 64 * 1024 * 1024

#: Says what Envoy made of each request: its response flags and the reason.
_ACCESS_LOG_FORMAT = (
    '{"method":"%REQ(:METHOD)%","path":"%REQ(:PATH)%","authority":"%REQ(:AUTHORITY)%","status":%RESPONSE_CODE%,"flags":"%RESPONSE_FLAGS%",'
    '"details":"%RESPONSE_CODE_DETAILS%","attempts":"%UPSTREAM_REQUEST_ATTEMPT_COUNT%","endpoint":"%UPSTREAM_HOST%","ms":%DURATION%}\n'
)


@dataclass(frozen=True, slots=True)
class Translation:
    """``bootstrap`` for Envoy, and ``notes`` on whatever Envoy will not do as the library does."""

    bootstrap: Json
    notes: list[Note]


def translate(
    policy: Policy, *, listen: Address = ("127.0.0.1", 0), admin: Address = ("127.0.0.1", 0), access_log: str | None = None,
    identity: IdentityFiles | None = None, collector: Address | None = None,
) -> Translation:
    """Translate a policy that ``check`` accepts. Port 0 lets the system choose; ``access_log`` is a file to write.

    ``identity``: the files of this workload's certificate; absent, those that ``mesh.identity`` names, or those in ``/run/identity``.
    ``collector``: where Envoy sends its spans, as OTLP over gRPC (``tracing``); absent, it makes none.
    """
    routes = Routes(policy, identity or IdentityFiles.of_policy(policy))
    virtual_hosts = _virtual_hosts(policy, routes)
    clusters = list(routes.clusters.values())
    if routes.uses_passthrough:
        clusters.append(passthrough())
    calls_requested_host = any("cluster_type" in each for each in clusters)
    filters = [
        # The library's order: an injected delay holds nothing, a throttled call is not looked up.
        *([fault_filter()] if routes.uses_fault else []),
        *routes.buckets.filters(),
        *([host_lookup_filter()] if calls_requested_host else []),
        router(),
    ]
    workload = policy.mesh.workload or "resilmesh"
    traced = {} if collector is None else tracing(workload)
    bootstrap: Json = {
        "node": {"id": workload, "cluster": workload},
        "admin": {"address": socket_address(*admin)},
        "static_resources": {"listeners": [_listener(listen, virtual_hosts, filters, access_log, traced)], "clusters": clusters},
    }
    if collector is not None:
        clusters.append(collector_cluster(collector))
        bootstrap |= flushing()
    return Translation(bootstrap, notes_on(policy))


def _virtual_hosts(policy: Policy, routes: Routes) -> list[Json]:
    # A service without hosts is for `mesh.guard`, which no sidecar sees.
    of_service = {index: routes.of_service(index) for index, service in enumerate(policy.services) if service.hosts}
    claims = claims_by_domain((host, index) for index in of_service for host in policy.services[index].hosts or ())
    claims.setdefault("*", [])
    made = []
    for domain, claimed in claims.items():
        found = [route for claim in claimed for route in _claimed(of_service, claim)]
        if not claimed or claimed[-1][0] is not None:
            found.append(_unclaimed(policy, routes))
        made.append({
            "name": domain, "domains": [domain], "request_body_buffer_limit": REPLAYABLE_BODY_BYTES, "routes": found,
        })
    return made


def _claimed(of_service: dict[int, list[Json]], claim: Claim) -> list[Json]:
    port, service = claim
    if port is None:
        return of_service[service]
    return [
        {**route, "match": {**route["match"], "headers": [port_is(port), *route["match"].get("headers", ())]}}
        for route in of_service[service]
    ]


def _unclaimed(policy: Policy, routes: Routes) -> Json:
    # The kill switch opens the registry too.
    if policy.mesh.outbound == "ALLOW_ANY" or policy.mesh.mode != "ENFORCE":
        return routes.passthrough()
    # What Istio's BlackHoleCluster answers: 502 and no body.
    return {"match": {"prefix": "/"}, "direct_response": {"status": 502}}


def _listener(address: Address, virtual_hosts: list[Json], filters: list[Json], access_log: str | None, traced: Json) -> Json:
    manager: Json = {
        "@type": TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "egress",
        # Nothing about the traffic is changed that the policy does not say.
        "generate_request_id": False,
        "server_header_transformation": "PASS_THROUGH",
        # No limit of time that nobody wrote (Envoy: 5 minutes of silence).
        "stream_idle_timeout": "0s",
        # A body that the deadline cuts off is seen to be cut off soon, not a second later.
        "delayed_close_timeout": "0.1s",
        # Neither methods nor headers are refused: the service will say what it does not want.
        "http_protocol_options": {"allow_custom_methods": True},
        "max_request_headers_kb": MAX_HEADERS_KB,
        "common_http_protocol_options": {"max_headers_count": MAX_HEADERS},
        "route_config": {"name": "egress", "ignore_port_in_host_matching": True, "virtual_hosts": virtual_hosts},
        "http_filters": filters,
        **traced,
    }
    if access_log is not None:
        manager["access_log"] = [_access_log(access_log)]
    return {
        "name": "egress",
        "address": socket_address(*address),
        "traffic_direction": "OUTBOUND",
        # With it a second Envoy on this port would silently take half of the calls.
        "enable_reuse_port": False,
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}],
    }


def _access_log(path: str) -> Json:
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": TYPE + "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {"text_format_source": {"inline_string": _ACCESS_LOG_FORMAT}},
        },
    }
