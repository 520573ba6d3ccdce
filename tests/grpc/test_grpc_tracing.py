"""Spans and figures of gRPC calls: unary and streams, blocking and awaited; of the server; beside OpenTelemetry's own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
import pytest

import resilmesh_grpc
from resilmesh import Mesh
from tests.grpc.grpc_driver import HOST, mesh_of
from tests.grpc.grpc_service import OK, GrpcService, status
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub
from tests.telemetry.spans import Spans

RETRIES = "{maxRetries: 2, retryOn: [unavailable], backoff: {base: 1ms}}"


@pytest.fixture
def spans() -> Spans:
    return Spans()


def _mesh(service: GrpcService, spans: Spans, **blocks: str) -> Mesh:
    mesh = mesh_of(service, **blocks)
    mesh.telemetry.use(tracer_provider=spans.provider)
    return mesh


def _name(spans: Spans) -> str:
    return next(span.name for span in spans.ended if span.kind.name == "CLIENT")


def test_a_unary_call_is_one_span(service: GrpcService, spans: Spans) -> None:
    with resilmesh_grpc.channel(_mesh(service, spans), HOST) as channel:
        ShopStub(channel).Buy(Order())
    [span] = spans.ended
    assert (span.kind.name, span.name) == ("CLIENT", span.attributes["rpc.method"])
    assert span.attributes["rpc.method"].endswith("Shop/Buy")
    assert span.attributes["rpc.response.status_code"] == "OK"
    assert span.attributes["resilmesh.endpoint"] == service.address
    [seen] = service.seen
    assert seen.metadata["traceparent"].split("-")[2] == f"{span.context.span_id:016x}"


def test_each_attempt_is_a_span_below_the_calls(service: GrpcService, spans: Spans) -> None:
    service.play([status("UNAVAILABLE"), OK])
    with resilmesh_grpc.channel(_mesh(service, spans, retries=RETRIES), HOST) as channel:
        ShopStub(channel).Buy(Order())
    name = _name(spans)
    assert spans.tree == ["INTERNAL shop - backoff", f"  CLIENT {name} ERROR", f"  CLIENT {name} -"]
    first, second = [span for span in spans.ended if span.kind.name == "CLIENT"]
    assert first.attributes["rpc.response.status_code"] == first.attributes["error.type"] == "UNAVAILABLE"
    assert second.attributes["resilmesh.resend_count"] == 1


def test_a_stream_is_a_span_until_its_end(service: GrpcService, spans: Spans) -> None:
    with resilmesh_grpc.channel(_mesh(service, spans), HOST) as channel:
        messages = iter(ShopStub(channel).Watch(Order(number=3)))
        next(messages)
        assert spans.ended == []
        list(messages)
    [span] = spans.ended
    assert span.attributes["rpc.response.status_code"] == "OK"


async def _awaited(mesh: Mesh, orders: int) -> None:
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        stub: Any = ShopStub(channel)
        for _ in range(orders):
            await stub.Buy(Order())
        async for _ in stub.Watch(Order(number=2)):
            pass


@pytest.mark.anyio
async def test_awaited_calls_are_traced_likewise(service: GrpcService, spans: Spans) -> None:
    service.play([status("UNAVAILABLE"), OK, OK])
    await _awaited(_mesh(service, spans, retries=RETRIES), 1)
    clients = [span for span in spans.ended if span.kind.name == "CLIENT"]
    assert [span.attributes["rpc.response.status_code"] for span in clients] == ["UNAVAILABLE", "OK", "OK"]
    assert len([span for span in spans.ended if span.kind.name == "INTERNAL"]) == 1


def test_durations_are_told_by_method_and_status(service: GrpcService, spans: Spans) -> None:
    service.play([status("NOT_FOUND"), OK])
    mesh = _mesh(service, spans)
    with resilmesh_grpc.channel(mesh, HOST) as channel:
        stub = ShopStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.Buy(Order())
        stub.Buy(Order())
    told = {
        dict(point.attributes)["rpc.response.status_code"]: (dict(point.attributes).get("error.type"), sum(point.counts))
        for point in mesh.telemetry.points()["rpc.client.call.duration"]
    }
    assert told == {"NOT_FOUND": ("NOT_FOUND", 1), "OK": (None, 1)}


def test_streams_tell_the_status_that_ended_them(service: GrpcService, spans: Spans) -> None:
    service.play([status("DATA_LOSS", messages=1)])
    mesh = _mesh(service, spans)
    with resilmesh_grpc.channel(mesh, HOST) as channel, pytest.raises(grpc.RpcError):
        list(ShopStub(channel).Watch(Order(number=3)))
    [point] = mesh.telemetry.points()["rpc.client.call.duration"]
    assert dict(point.attributes)["rpc.response.status_code"] == "DATA_LOSS"
    [span] = spans.ended
    assert (span.attributes["error.type"], span.status.status_code.name) == ("DATA_LOSS", "ERROR")


# ------------------------------------------------------------------------------------------- what is served


@pytest.fixture
def inbound(spans: Spans) -> Mesh:
    mesh = Mesh.from_text("apiVersion: resilmesh/v1\nservices: []\ninbound: {rateLimit: {requests: 2, per: 1h}}\n")
    mesh.telemetry.use(tracer_provider=spans.provider)
    return mesh


def _echo(request: bytes, context: Any) -> bytes:
    if request == b"abort":
        context.abort(grpc.StatusCode.NOT_FOUND, "no")
    return request


class _Handler(grpc.GenericRpcHandler):
    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(_echo)


@pytest.fixture
def served(inbound: Mesh) -> Iterator[grpc.Channel]:
    server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=[resilmesh_grpc.server_interceptor(inbound)], handlers=[_Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(None).wait()


def test_a_served_call_has_a_server_span_and_a_duration(inbound: Mesh, served: grpc.Channel, spans: Spans) -> None:
    call = served.unary_unary("/a.Service/Method")
    parent = f"00-{0xABC:032x}-{0xDEF:016x}-01"
    assert call(b"hello", metadata=[("traceparent", parent)], timeout=10) == b"hello"
    for word, code in ((b"abort", grpc.StatusCode.NOT_FOUND), (b"hello", grpc.StatusCode.RESOURCE_EXHAUSTED)):
        with pytest.raises(grpc.RpcError) as raised:
            call(word, timeout=10)
        assert raised.value.code() is code
    told = {
        dict(point.attributes)["rpc.response.status_code"]: sum(point.counts)
        for point in inbound.telemetry.points()["rpc.server.call.duration"]
    }
    assert told == {"OK": 1, "NOT_FOUND": 1, "RESOURCE_EXHAUSTED": 1}
    first = min((span for span in spans.ended if span.kind.name == "SERVER"), key=lambda span: span.start_time)
    assert (first.name, first.context.trace_id, first.parent.span_id) == ("a.Service/Method", 0xABC, 0xDEF)
    assert [span.attributes["rpc.response.status_code"] for span in spans.ended] == ["OK", "NOT_FOUND", "RESOURCE_EXHAUSTED"]


# ------------------------------------------------------------------------------- beside OpenTelemetry's own


def test_beside_opentelemetrys_instrumentation_there_is_one_span_an_attempt(
    service: GrpcService, spans: Spans, monkeypatch: pytest.MonkeyPatch,
) -> None:
    from opentelemetry import trace
    from opentelemetry.instrumentation.grpc import GrpcInstrumentorClient

    service.play([status("UNAVAILABLE"), OK])
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", spans.provider)  # it asks for no other
    instrumentor = GrpcInstrumentorClient()
    instrumentor.instrument()
    try:
        with resilmesh_grpc.channel(_mesh(service, spans, retries=RETRIES), HOST) as channel:
            ShopStub(channel).Buy(Order())
    finally:
        instrumentor.uninstrument()
    clients = [span for span in spans.ended if span.kind.name == "CLIENT"]
    assert [span.instrumentation_scope.name for span in clients] == ["opentelemetry.instrumentation.grpc"] * 2
    assert [span.attributes["resilmesh.service"] for span in clients] == ["shop"] * 2
    [logical] = [span for span in spans.ended if span.kind.name == "INTERNAL"]
    assert clients[1].parent.span_id == logical.context.span_id


@pytest.mark.anyio
async def test_nor_with_the_awaited_api(service: GrpcService, spans: Spans) -> None:
    from opentelemetry.instrumentation.grpc import GrpcAioInstrumentorClient

    instrumentor = GrpcAioInstrumentorClient()
    instrumentor.instrument(tracer_provider=spans.provider)
    try:
        await _awaited(_mesh(service, spans), 1)
    finally:
        instrumentor.uninstrument()
    clients = [span for span in spans.ended if span.kind.name == "CLIENT"]
    assert [span.instrumentation_scope.name for span in clients] == ["opentelemetry.instrumentation.grpc"] * 2
