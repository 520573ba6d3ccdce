"""What the OpenTelemetry SDK exports of a mesh: counters, gauges and histograms, cumulative and as differences, after a fork."""

from __future__ import annotations

import os

import pytest
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader

from resilmesh import Mesh
from resilmesh.telemetry.catalogue import BY_NAME
from resilmesh.telemetry.prometheus import TOLD_BOUNDS
from resilmesh.testing import ManualClock

POLICY = """
apiVersion: resilmesh/v1
services:
- {name: ledger, circuitBreaker: {consecutiveFailures: 3}, endpoints: [{address: "10.0.0.1:80"}], rateLimit: {requests: 100, per: 1s}}
"""


@pytest.fixture
def mesh():
    return Mesh.from_text(POLICY, clock=ManualClock())


def _book(mesh, seconds=0.02, fails=False):
    @mesh.guard("ledger", idempotent=True)
    def book():
        mesh.clock.advance(seconds)
        if fails:
            raise OSError("no")

    try:
        book()
    except OSError:
        return


def _told(reader):
    data = reader.get_metrics_data()
    return {metric.name: metric.data for scope in data.resource_metrics[0].scope_metrics for metric in scope.metrics}


def _values(data):
    return {point.attributes.get("outcome") or point.attributes.get("state"): point.value for point in data.data_points}


def test_counters_gauges_and_histograms_are_told(mesh):
    reader = InMemoryMetricReader()
    mesh.telemetry.use(meter_provider=MeterProvider([reader]))
    _book(mesh)
    _book(mesh, 0.2)
    for _ in range(3):
        _book(mesh, 0.001, fails=True)
    told = _told(reader)
    assert set(told) <= set(BY_NAME)
    assert _values(told["resilmesh.calls"]) == {"succeeded": 2, "failed": 3, "rejected": 0, "abandoned": 0, "ignored": 0}
    assert told["resilmesh.calls"].is_monotonic
    assert _values(told["resilmesh.circuit.state"]) == {"CLOSED": 0, "OPEN": 1, "HALF_OPEN": 0}
    [point] = [each for each in told["resilmesh.call.duration"].data_points if each.attributes["outcome"] == "succeeded"]
    assert (point.count, round(point.sum, 6)) == (2, 0.22)
    assert tuple(point.explicit_bounds) == TOLD_BOUNDS
    assert {bound: count for bound, count in zip(TOLD_BOUNDS, point.bucket_counts, strict=False) if count} == {0.025: 1, 0.25: 1}


def test_a_reader_that_wants_differences_gets_them(mesh):
    delta = AggregationTemporality.DELTA
    reader = InMemoryMetricReader(preferred_temporality={Histogram: delta, Counter: delta, ObservableCounter: delta})
    mesh.telemetry.use(meter_provider=MeterProvider([reader]))
    _book(mesh)
    first = _told(reader)["resilmesh.call.duration"]
    _book(mesh, 0.5)
    _book(mesh, 0.5)
    second = _told(reader)["resilmesh.call.duration"]
    assert [point.count for point in first.data_points] == [1]
    assert [(point.count, round(point.sum, 6)) for point in second.data_points] == [(2, 1.0)]
    assert second.aggregation_temporality == delta
    assert second.data_points[0].start_time_unix_nano == first.data_points[0].time_unix_nano
    assert "resilmesh.call.duration" not in _told(reader)  # nothing more happened


def test_the_programs_own_metrics_stay_as_they_are(mesh):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    provider.get_meter("program").create_counter("books").add(5)
    mesh.telemetry.use(meter_provider=provider)
    _book(mesh)
    told = _told(reader)
    assert told["books"].data_points[0].value == 5
    assert "resilmesh.calls" in told


def test_two_meshes_in_one_provider(mesh):
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    other = Mesh.from_text(POLICY.replace("ledger", "stock"), clock=ManualClock())
    for each in (mesh, other):
        each.telemetry.use(meter_provider=provider)
    _book(mesh)
    other.call("stock", lambda: None)
    told = _told(reader)["resilmesh.attempts"]
    assert {point.attributes["resilmesh.service"]: point.value for point in told.data_points} == {"ledger": 1, "stock": 1}
    durations = _told(reader)["resilmesh.call.duration"]
    assert {point.attributes["resilmesh.service"]: point.count for point in durations.data_points} == {"ledger": 1, "stock": 1}


def test_a_mesh_that_is_gone_tells_nothing():
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    mesh = Mesh.from_text(POLICY)
    mesh.telemetry.use(meter_provider=provider)
    mesh.close()
    provider.get_meter("program").create_counter("books").add(5)
    assert set(_told(reader)) == {"books"}


def test_a_forked_child_tells_of_itself_alone(mesh):
    reader = InMemoryMetricReader()
    mesh.telemetry.use(meter_provider=MeterProvider([reader], shutdown_on_exit=False))
    _book(mesh)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _book(mesh)
            _book(mesh)
            told = _told(reader)
            told = f"{told['resilmesh.attempts'].data_points[0].value} {told['resilmesh.call.duration'].data_points[0].count}"
            os.write(write, told.encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "2 2"
    os.waitpid(child, 0)
    assert _told(reader)["resilmesh.attempts"].data_points[0].value == 1


def test_exemplars_lead_to_the_trace(service_spans):
    mesh, spans, reader = service_spans
    [point] = [
        point for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics
        if metric.name == "http.client.request.duration" for point in metric.data.data_points
    ]
    [exemplar] = point.exemplars
    [span] = spans.ended
    assert (exemplar.trace_id, exemplar.span_id) == (span.context.trace_id, span.context.span_id)
    assert f'trace_id="{span.context.trace_id:032x}"' in mesh.prometheus().text(openmetrics=True)
    assert "trace_id" not in mesh.prometheus().text()


@pytest.fixture
def service_spans(mesh):
    import httpx

    import resilmesh
    from tests.telemetry.spans import Spans

    mesh = Mesh.from_text("apiVersion: resilmesh/v1\nservices:\n- {name: stock, hosts: [stock.test]}\n")
    spans, reader = Spans(), InMemoryMetricReader()
    mesh.telemetry.use(tracer_provider=spans.provider, meter_provider=MeterProvider([reader]))
    inner = httpx.MockTransport(lambda request: httpx.Response(200))
    with httpx.Client(transport=resilmesh.http.Transport(mesh, inner)) as client:
        client.get("http://stock.test/")
    return mesh, spans, reader
