"""A trace through the library, a real Envoy and a service reads as one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import httpx
import pytest
import uvicorn
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

import resilmesh
from resilmesh import Mesh, inbound
from resilmesh.compare.collector import Collector
from resilmesh.compare.otlp import Span
from resilmesh.envoy.process import Envoy
from resilmesh.envoy.translate import translate
from resilmesh.policy.load import load_text

RETRIES = "retries: {maxRetries: 2, retryOn: [5xx], backoff: {base: 1ms}}"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def _provider(collector: Collector, name: str) -> TracerProvider:
    provider = TracerProvider(resource=Resource({"service.name": name}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=collector.grpc_endpoint, insecure=True)))
    return provider


class _Service:
    """Answers 503 first, in an ASGI server that our middleware traces."""

    def __init__(self, collector: Collector) -> None:
        mesh = Mesh.from_text("apiVersion: resilmesh/v1\nservices: []\n")
        mesh.telemetry.use(tracer_provider=_provider(collector, "inventory"))
        self._asked = 0
        config = uvicorn.Config(inbound.asgi.Middleware(self._app, mesh), host="127.0.0.1", port=0, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve()))

    async def _app(self, scope, receive, send):  # type: ignore[no-untyped-def]
        self._asked += 1
        await send({"type": "http.response.start", "status": 503 if self._asked == 1 else 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.01)
        return f"127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()


def _policy(address: str, *blocks: str) -> str:
    lines = [f"  {block}" for block in blocks]
    return "\n".join((
        "apiVersion: resilmesh/v1", "mesh: {workload: shop}", "services:", "- name: inventory", "  hosts: [inventory.test]",
        f'  endpoints: [{{address: "{address}"}}]', *lines,
    )) + "\n"


def test_a_call_that_an_envoy_repeats(collector: Collector) -> None:
    with _Service(collector) as service:
        bootstrap = translate(
            load_text(_policy(service, RETRIES).replace("workload: shop", "workload: gateway")).policy,
            collector=("127.0.0.1", int(collector.grpc_endpoint.rpartition(":")[2])),
        ).bootstrap
        with Envoy(bootstrap) as envoy:
            mesh = Mesh.from_text(_policy(envoy.url.removeprefix("http://")))
            provider = _provider(collector, "shop")
            mesh.telemetry.use(tracer_provider=provider)
            with httpx.Client(transport=resilmesh.http.Transport(mesh)) as client, \
                    provider.get_tracer("shop").start_as_current_span("check out"):
                assert client.get("http://inventory.test/items").status_code == 200
            # The program's, the attempt's, Envoy's own, its two attempts, and what the service says of each.
            assert collector.wait_for(lambda: len(collector.spans) >= 7, 15), [span.name for span in collector.spans]
    [trace] = collector.traces()
    told = collector.render(trace)
    by_id = {span.span_id: span for span in collector.spans}

    def ancestry(span: Span) -> list[str]:
        above = by_id.get(span.parent_id)
        return [*(ancestry(above) if above is not None else ()), str(span.resource["service.name"])]

    paths = sorted("/".join(ancestry(span)) for span in collector.spans)
    through = "shop/shop/gateway"
    assert paths == sorted([
        "shop", "shop/shop", through, f"{through}/gateway", f"{through}/gateway", f"{through}/gateway/inventory",
        f"{through}/gateway/inventory",
    ]), told


def test_a_call_that_the_library_repeats(collector: Collector) -> None:
    with _Service(collector) as service:
        mesh = Mesh.from_text(_policy(service, RETRIES))
        mesh.telemetry.use(tracer_provider=_provider(collector, "shop"))
        with httpx.Client(transport=resilmesh.http.Transport(mesh)) as client:
            assert client.get("http://inventory.test/items").status_code == 200
        assert collector.wait_for(lambda: len(collector.spans) >= 5, 15)
    [trace] = collector.traces()
    told = collector.render(trace)
    names = {span.span_id: span for span in collector.spans}
    [logical] = [span for span in collector.spans if span.parent_id not in names]
    attempts = [span for span in collector.spans if span.parent_id == logical.span_id]
    assert (logical.name, len(attempts)) == ("inventory", 2), told
    assert sorted(names[span.parent_id].name for span in collector.spans if span.resource["service.name"] == "inventory") == [
        "GET inventory", "GET inventory",
    ], told
    assert "backoff" in told
