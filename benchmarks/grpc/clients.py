"""What a program may put around a grpcio channel, blocking and grpc.aio: name to a channel for the same generated stub.

Every channel has a connection of its own (``OWN_CONNECTION``): grpcio would let channels with equal arguments share one.
Whoever limits time limits it to 5 s, and whoever retries makes three attempts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
from opentelemetry.instrumentation.grpc import aio_client_interceptors, client_interceptor
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import resilmesh_grpc
from resilmesh import Mesh

try:  # for Python 3.12 and newer
    import grpc_client_kit as kit
except ImportError:
    kit = None

HOST = "shop.test"
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
TRIES, SECONDS = 3, 5.0

#: One endpoint, as everybody else has one; it is picked, counted and judged for every attempt, as one of many would be.
FULL = """
apiVersion: resilmesh/v1
mesh: {{mode: {mode}}}
defaults:
  timeout: 5s
  retryBudget: {{percent: 20, minRetriesPerSecond: 10, ttl: 10s}}
services:
- name: shop
  hosts: [shop.test, 127.0.0.1]
  protocol: GRPC
  endpoints: [{{address: "127.0.0.1:{port}"}}]
  loadBalancer: LEAST_REQUEST
  connectTimeout: 1s
  outlierDetection: {{consecutive5xxErrors: 5}}
  concurrency: {{maxRequests: 64, maxPending: 32, maxPendingWait: 200ms}}
  circuitBreaker: {{slidingWindow: {{type: TIME_BASED, size: 10s}}, minimumNumberOfCalls: 20}}
  routes:
  - name: collect
    match: [{{path: {{exact: /resilmesh.test.v1.Shop/Collect}}}}]
    timeout: 2s
  - name: shop
    match: [{{path: {{prefix: /resilmesh.test.v1.Shop/}}}}]
    timeout: 5s
    rateLimit: {{requests: 1000000, per: 1s}}
    retries: {{maxRetries: 2, perTryTimeout: 2s, retryOn: [connect-failure, reset, unavailable], backoff: {{base: 25ms, max: 250ms}}}}
"""

#: What of the policy grpcio's own service config can say.
SERVICE_CONFIG = json.dumps({
    "methodConfig": [{
        "name": [{"service": "resilmesh.test.v1.Shop"}],
        "timeout": "5s",
        "retryPolicy": {
            "maxAttempts": TRIES, "initialBackoff": "0.025s", "maxBackoff": "0.25s", "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        },
    }],
    "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.2},
})


class Nowhere(SpanExporter):
    """Spans are made and batched, and then forgotten."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def _recording() -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


def _mesh(port: int, mode: str) -> Mesh:
    return Mesh.from_text(FULL.format(port=port, mode=mode))


def _target(port: int, mode: str) -> str:
    """Under OFF a call goes where its channel says."""
    return HOST if mode == "ENFORCE" else f"127.0.0.1:{port}"


class Empty(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """Passes calls on."""

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(client_call_details, request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(client_call_details, request)


class AioEmpty(grpc.aio.UnaryUnaryClientInterceptor):
    """Passes calls on."""

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(client_call_details, request)


class AioEmptyStream(grpc.aio.UnaryStreamClientInterceptor):
    """The same for streams: grpc.aio registers an interceptor for one kind of call."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(client_call_details, request)


def channels(port: int) -> Mapping[str, grpc.Channel]:
    """Blocking."""

    def plain(*options: tuple[str, Any]) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{port}", (*OWN_CONNECTION, *options))

    def ours(mode: str) -> grpc.Channel:
        return resilmesh_grpc.channel(_mesh(port, mode), _target(port, mode), options=OWN_CONNECTION)

    return {
        "grpcio": plain(),
        "grpcio, again": plain(),
        "an empty interceptor": grpc.intercept_channel(plain(), Empty()),
        "resilmesh, mode OFF": ours("OFF"),
        "resilmesh": ours("ENFORCE"),
        "service config": plain(("grpc.service_config", SERVICE_CONFIG)),
        "OpenTelemetry": intercept_channel(plain(), client_interceptor(_recording())),
    }


def aio_channels(port: int) -> Mapping[str, grpc.aio.Channel]:
    """Asynchronous; to be called on the event loop."""

    def plain(*interceptors: Any, options: tuple[tuple[str, Any], ...] = ()) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"127.0.0.1:{port}", (*OWN_CONNECTION, *options), interceptors=interceptors or None)

    def ours(mode: str) -> grpc.aio.Channel:
        return resilmesh_grpc.aio_channel(_mesh(port, mode), _target(port, mode), options=OWN_CONNECTION)

    made = {
        "grpcio": plain(),
        "grpcio, again": plain(),
        "an empty interceptor": plain(AioEmpty(), AioEmptyStream()),
        "resilmesh, mode OFF": ours("OFF"),
        "resilmesh": ours("ENFORCE"),
        "service config": plain(options=(("grpc.service_config", SERVICE_CONFIG),)),
        "OpenTelemetry": plain(*aio_client_interceptors(_recording())),
    }
    if kit is not None:
        chain = kit.flatten_interceptors([
            kit.AsyncTimeoutInterceptor(SECONDS), kit.AsyncCircuitBreakerInterceptor(), kit.AsyncRetryInterceptor(TRIES),
        ])
        made["grpc-client-kit"] = plain(*chain)
    return made
