"""Spans of an Envoy, sent to an OpenTelemetry collector by OTLP over gRPC."""

from __future__ import annotations

from typing import Any

from resilmesh.envoy.clusters import duration, socket_address
from resilmesh.envoy.match import TYPE

Json = dict[str, Any]
Address = tuple[str, int]

#: The cluster of the collector. No service can be called so.
COLLECTOR = "/collector"

_CONNECT_TIMEOUT = 1.0
_EVERY_REQUEST = {"value": 100.0}  # percent


def tracing(service: str) -> Json:
    """What a connection manager needs to trace: one span for each request, below it one for each attempt.

    ``service``: whose spans they are. A caller that says whether it records its trace is believed; of a trace that begins here every
    request is recorded.
    """
    return {
        # Whether a request is traced Envoy writes into its id: one without an id never is.
        "generate_request_id": True,
        "tracing": {
            "client_sampling": _EVERY_REQUEST, "random_sampling": _EVERY_REQUEST, "overall_sampling": _EVERY_REQUEST,
            "spawn_upstream_span": True,
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": TYPE + "envoy.config.trace.v3.OpenTelemetryConfig",
                    "grpc_service": {"envoy_grpc": {"cluster_name": COLLECTOR}, "timeout": duration(1)},
                    "service_name": service,
                },
            },
        },
    }


def collector_cluster(address: Address) -> Json:
    """Where the spans are sent: HTTP/2 in plain text."""
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "name": COLLECTOR, "type": "STRICT_DNS", "dns_lookup_family": "V4_PREFERRED", "connect_timeout": duration(_CONNECT_TIMEOUT),
        "load_assignment": {
            "cluster_name": COLLECTOR, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address(*address)}}]}],
        },
        "typed_extension_protocol_options": {kind: {"@type": TYPE + kind, "explicit_http_config": {"http2_protocol_options": {}}}},
    }


def flushing() -> Json:
    """The bootstrap's runtime: spans are sent as they end. By default Envoy waits for five of them, or five seconds."""
    layer = {"tracing.opentelemetry.flush_interval_ms": 100, "tracing.opentelemetry.min_flush_spans": 1}
    return {"layered_runtime": {"layers": [{"name": "tracing", "static_layer": layer}]}}
