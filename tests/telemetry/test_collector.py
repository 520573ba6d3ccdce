"""The collector takes what OpenTelemetry's own exporters send, by either protocol, and says in words what it cannot use."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind

from resilmesh.compare.collector import Collector, CollectorError

TRACE, ROOT, CHILD = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7"
DELTA = {Counter: AggregationTemporality.DELTA, Histogram: AggregationTemporality.DELTA}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as receiving:
        yield receiving


def span_exporter(collector: Collector, protocol: str) -> GrpcSpans | HttpSpans:
    if protocol == "grpc":
        return GrpcSpans(endpoint=collector.grpc_endpoint, insecure=True)
    return HttpSpans(endpoint=collector.http_endpoint + "/v1/traces", compression=Compression(protocol))


@pytest.mark.parametrize("protocol", ["grpc", "none", "gzip", "deflate"])
def test_spans_of_the_sdk(collector: Collector, protocol: str) -> None:
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    provider.add_span_processor(SimpleSpanProcessor(span_exporter(collector, protocol)))
    tracer = provider.get_tracer("tests")

    def attempt() -> None:
        attributes = {"http.request.resend_count": 1, "all": [1, 2]}
        with tracer.start_as_current_span("GET", kind=SpanKind.CLIENT, attributes=attributes) as span:
            span.add_event("backoff", {"seconds": 0.025})
            raise ZeroDivisionError

    with tracer.start_as_current_span("GET /orders", kind=SpanKind.SERVER), pytest.raises(ZeroDivisionError):
        attempt()
    provider.shutdown()
    assert collector.wait_for(lambda: len(collector.spans) == 2, 5)
    (root,), = collector.traces().values()
    (child,) = root.children
    assert (root.span.kind, root.span.parent_id, root.span.service, root.orphan) == ("SERVER", "", "shop", False)
    assert (child.span.kind, child.span.status, child.span.scope) == ("CLIENT", "ERROR", "tests")
    assert child.span.attributes == {"http.request.resend_count": 1, "all": [1, 2]}
    assert [event.name for event in child.span.events] == ["backoff", "exception"]
    assert 0 < child.span.seconds < root.span.seconds
    text = collector.render(root.span.trace_id)
    assert "2 spans of 1 service (shop)" in text
    assert "  GET /orders [shop, server]\n" in text
    assert "    GET [shop, client] ERROR ZeroDivisionError" in text
    assert "* backoff seconds=0.025" in text


@pytest.mark.parametrize("temporality", [{}, DELTA], ids=["cumulative", "delta"])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_metrics_of_the_sdk(collector: Collector, protocol: str, temporality: dict[type, Any]) -> None:
    exporter = GrpcMetrics(endpoint=collector.grpc_endpoint, insecure=True, preferred_temporality=temporality) if protocol == "grpc" \
        else HttpMetrics(endpoint=collector.http_endpoint + "/v1/metrics", preferred_temporality=temporality)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=1e9)
    views = [View(instrument_name="exponential", aggregation=ExponentialBucketHistogramAggregation())]
    provider = MeterProvider([reader], views=views)
    meter = provider.get_meter("tests")
    counter, gauge = meter.create_counter("calls"), meter.create_gauge("tokens")
    histograms = [
        meter.create_histogram("explicit", explicit_bucket_boundaries_advisory=[0.1, 1, 10]), meter.create_histogram("exponential"),
    ]
    for _ in range(2):
        counter.add(3, {"route": "a"})
        counter.add(1, {"route": "b"})
        gauge.set(7)
        for histogram in histograms:
            for number in range(1, 101):
                histogram.record(number / 100)
        provider.force_flush()
    provider.shutdown()
    assert collector.total("calls", {"route": "a"}) == 6
    assert collector.total("calls") == 8
    assert collector.total("calls", {"nothing": None}) == 0
    assert [point.value for point in collector.find("tokens")] == [7]
    for name in ("explicit", "exponential"):
        (point,) = collector.find(name)
        assert (point.count, point.least, point.most) == (200, 0.01, 1.0)
        assert point.value == pytest.approx(101)
        assert point.quantile(0.5) == pytest.approx(0.5, rel=0.05)
        assert point.quantile(1) == pytest.approx(1.0)
        assert point.quantile(0) == pytest.approx(0.01)


def body(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"scope": {"name": "by hand"}, "spans": list(spans)}], "unknown": 1}]}


def span(span_id: str, parent: str = "", **more: Any) -> dict[str, Any]:
    return {"traceId": TRACE, "spanId": span_id, "parentSpanId": parent, "name": "n", "kind": 3,
            "startTimeUnixNano": "1700000000000000000", "endTimeUnixNano": "1700000000250000000", **more}


def test_json_and_what_never_came(collector: Collector) -> None:
    packed = gzip.compress(json.dumps(body(span(CHILD, parent=ROOT, status={"code": 2, "message": "a\x1b[2Jb"}))).encode())
    for _ in range(2):  # an exporter that heard no answer sends again
        headers = {"content-type": "application/json", "content-encoding": "gzip"}
        answer = httpx.post(collector.http_endpoint + "/v1/traces", content=packed, headers=headers)
        assert (answer.status_code, answer.json()) == (200, {})
    (found,) = collector.spans
    assert (found.trace_id, found.span_id, found.parent_id, found.kind, found.start) == (TRACE, CHILD, ROOT, "CLIENT", 1.7e9)
    text = collector.render(TRACE)
    assert f"(its parent, span {ROOT}, never came)" in text
    assert r"ERROR a\x1b[2Jb" in text
    assert "250.0 ms" in text


def test_parents_in_a_circle_are_shown(collector: Collector) -> None:
    httpx.post(collector.http_endpoint + "/v1/traces", json=body(span(ROOT, parent=CHILD), span(CHILD, parent=ROOT)))
    assert {node.span.span_id for node in collector.traces()[TRACE]} == {ROOT, CHILD}


@pytest.mark.parametrize(("path", "kind", "encoding", "content", "status", "words"), [
    ("/v1/traces", "application/x-protobuf", None, b"\xff\xff", 400, "is no protobuf message"),
    ("/v1/traces", "application/json", None, b"{", 400, "in JSON"),
    ("/v1/traces", "application/json", None, b"[" * 100_000, 400, "in JSON"),
    ("/v1/traces", "application/json", None, b"[]", 400, "in JSON"),
    ("/v1/traces", "application/json", None, json.dumps(body(span("00"))).encode(), 400, "spanId of span 'n' is not 8 bytes"),
    ("/v1/traces", "application/json", None, json.dumps(body(span(None))).encode(), 400, "in JSON"),  # type: ignore[arg-type]  # so wrong
    ("/v1/traces", "application/json", "gzip", b"{}", 400, "is not gzip"),
    ("/v1/traces", "application/json", "gzip", gzip.compress(b"{}")[:-4], 400, "is cut off"),
    ("/v1/traces", "application/json", "br", b"{}", 415, "Content-Encoding br"),
    ("/v1/traces", "text/plain", None, b"{}", 415, "text/plain is not understood"),
    ("/v1/spans", "application/json", None, b"{}", 404, "nothing is at /v1/spans"),
])
def test_what_cannot_be_used_is_refused_in_words(
    collector: Collector, path: str, kind: str, encoding: str | None, content: bytes, status: int, words: str,
) -> None:
    headers = {"content-type": kind, **({} if encoding is None else {"content-encoding": encoding})}
    answer = httpx.post(collector.http_endpoint + path, content=content, headers=headers)
    assert answer.status_code == status
    assert words in answer.text
    assert collector.spans == []


def test_a_wrong_message_over_grpc(collector: Collector) -> None:
    with grpc.insecure_channel(collector.grpc_endpoint.removeprefix("http://")) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
        with pytest.raises(grpc.RpcError) as refused:
            export(b"\xff\xff", timeout=5)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "is no protobuf message" in refused.value.details()


@pytest.mark.parametrize("which", ["grpc", "http"])
def test_a_port_that_is_taken(collector: Collector, which: str) -> None:
    endpoint = collector.grpc_endpoint if which == "grpc" else collector.http_endpoint
    port = int(endpoint.rpartition(":")[2])
    with pytest.raises(CollectorError, match=f"127.0.0.1:{port}"), Collector(**{f"{which}_port": port}):
        pass


def test_nothing_grows_for_ever() -> None:
    with Collector(keep=2) as collector:
        httpx.post(collector.http_endpoint + "/v1/traces", json=body(*(span(f"{number:016x}") for number in range(1, 6))))
    assert collector.span_count == 5
    assert [each.span_id[-1] for each in collector.spans] == ["4", "5"]


def test_waiting_has_an_end(collector: Collector) -> None:
    assert not collector.wait_for(lambda: bool(collector.spans), 0.05)
