"""What a program may put around an httpx client, sync and async: each gives a function that makes one request and reads it.

Every library that limits time gets the same limits, and every one that retries the same number of tries.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import httpx2
import nopanic
import pyresilience
import stamina
import tenacity
from httpx_retries import Retry, RetryTransport
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

import resilmesh
import resilmesh.http
from benchmarks.http.floor import AsyncFloor, Floor

Get = Callable[[], Any]
GetAsync = Callable[[], Awaitable[Any]]

TRIES, SECONDS = 3, 5.0

FULL = """
apiVersion: resilmesh/v1
mesh: {{mode: {mode}}}
defaults:
  timeout: 5s
  retryBudget: {{percent: 20, minRetriesPerSecond: 10, ttl: 10s}}
services:
- name: items
  hosts: ["127.0.0.1:{port}"]
  endpoints: [{{address: "127.0.0.1:{port}"}}]
  loadBalancer: LEAST_REQUEST
  connectTimeout: 1s
  outlierDetection: {{consecutive5xxErrors: 5}}
  concurrency: {{maxRequests: 64, maxPending: 32, maxPendingWait: 200ms}}
  circuitBreaker: {{slidingWindow: {{type: TIME_BASED, size: 10s}}, minimumNumberOfCalls: 20}}
  routes:
  - name: write
    match: [{{method: [POST, PUT], path: {{prefix: /items}}}}]
    timeout: 2s
  - name: read
    match: [{{method: GET, path: {{prefix: /items}}}}]
    timeout: 5s
    rateLimit: {{requests: 1000000, per: 1s}}
    retries: {{maxRetries: 2, perTryTimeout: 2s, retryOn: [connect-failure, reset, 5xx], backoff: {{base: 25ms, max: 250ms}}}}
"""


class Nowhere(SpanExporter):
    """Spans are made and batched, and then forgotten."""

    def export(self, spans: Any) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def _recording() -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    return provider


def _mesh(port: int, mode: str = "ENFORCE") -> resilmesh.Mesh:
    return resilmesh.Mesh.from_text(FULL.format(port=port, mode=mode))


def _pyresilience() -> Any:
    return pyresilience.resilient(
        retry=pyresilience.RetryConfig(max_attempts=TRIES), circuit_breaker=pyresilience.CircuitBreakerConfig(),
        timeout=pyresilience.TimeoutConfig(seconds=SECONDS),
    )


def _nopanic() -> Any:
    return nopanic.compose(nopanic.retry(TRIES), nopanic.circuit_breaker(), nopanic.timeout(SECONDS))


def _tenacity() -> Any:
    return tenacity.retry(stop=tenacity.stop_after_attempt(TRIES), wait=tenacity.wait_random_exponential(0.025, 0.25), reraise=True)


def _stamina() -> Any:
    return stamina.retry(on=httpx.TransportError, attempts=TRIES)


#: Around the whole request.
DECORATORS: dict[str, Callable[[], Any]] = {
    "tenacity": _tenacity, "stamina": _stamina, "pyresilience": _pyresilience, "nopanic": _nopanic,
}


def sync_clients(port: int, url: str) -> dict[str, tuple[Get, Any]]:
    """Name to a request and the client to close."""
    clients: dict[str, Any] = {
        "httpx": httpx.Client(),
        "httpx, again": httpx.Client(),
        "floor": httpx.Client(transport=Floor()),
        "resilmesh, mode OFF": httpx.Client(transport=resilmesh.http.Transport(_mesh(port, "OFF"))),
        "resilmesh": httpx.Client(transport=resilmesh.http.Transport(_mesh(port))),
        "httpx-retries": httpx.Client(transport=RetryTransport(retry=Retry(total=TRIES - 1, backoff_factor=0.025))),
        "OTel, no SDK": httpx.Client(),
        "OTel, recording": httpx.Client(),
        "httpx2": httpx2.Client(),
        "httpx2 + resilmesh": httpx2.Client(transport=resilmesh.http.Transport(_mesh(port), httpx2.HTTPTransport())),
    }
    HTTPXClientInstrumentor.instrument_client(clients["OTel, no SDK"])
    HTTPXClientInstrumentor.instrument_client(clients["OTel, recording"], tracer_provider=_recording())
    made: dict[str, tuple[Get, Any]] = {}
    for name, client in clients.items():
        made[name] = (lambda get=client.get: get(url).content, client)
    for name, decorator in DECORATORS.items():
        client = httpx.Client()
        made[name] = (decorator()(_request(client, url)), client)
    return made


def _request(client: httpx.Client, url: str) -> Get:
    def request() -> bytes:
        return client.get(url).content

    return request


def async_clients(port: int, url: str) -> dict[str, tuple[GetAsync, Any]]:
    """The same with coroutines."""
    clients: dict[str, Any] = {
        "httpx": httpx.AsyncClient(),
        "httpx, again": httpx.AsyncClient(),
        "floor": httpx.AsyncClient(transport=AsyncFloor()),
        "resilmesh, mode OFF": httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(_mesh(port, "OFF"))),
        "resilmesh": httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(_mesh(port))),
        "httpx-retries": httpx.AsyncClient(transport=RetryTransport(retry=Retry(total=TRIES - 1, backoff_factor=0.025))),
        "OTel, no SDK": httpx.AsyncClient(),
        "OTel, recording": httpx.AsyncClient(),
        "httpx2": httpx2.AsyncClient(),
        "httpx2 + resilmesh": httpx2.AsyncClient(transport=resilmesh.http.AsyncTransport(_mesh(port), httpx2.AsyncHTTPTransport())),
    }
    HTTPXClientInstrumentor.instrument_client(clients["OTel, no SDK"])
    HTTPXClientInstrumentor.instrument_client(clients["OTel, recording"], tracer_provider=_recording())
    made: dict[str, tuple[GetAsync, Any]] = {}
    for name, client in clients.items():
        made[name] = (_request_async(client, url), client)
    for name, decorator in DECORATORS.items():
        client = httpx.AsyncClient()
        made[name] = (decorator()(_request_async(client, url)), client)
    return made


def _request_async(client: httpx.AsyncClient, url: str) -> GetAsync:
    async def request() -> bytes:
        return (await client.get(url)).content

    return request
