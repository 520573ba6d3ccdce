"""Every span, attribute and event that calls produce is in the catalogue, which the reference is made of."""

from __future__ import annotations

import httpx
import pytest

import resilmesh
from resilmesh import Mesh, inbound
from resilmesh.engine.events import EVENTS
from resilmesh.telemetry.catalogue import SPANS
from tests.telemetry.spans import Spans

POLICY = """
apiVersion: resilmesh/v1
services:
- name: stock
  hosts: [stock.test]
  endpoints: [{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]
  circuitBreaker: {failureRateThreshold: 60, minimumNumberOfCalls: 12}
  outlierDetection: {consecutive5xxErrors: 2, maxEjectionPercent: 50}
  retries: {maxRetries: 2, retryOn: [5xx], idempotent: true, backoff: {base: 1ms}}
  retryBudget: {percent: 10, minRetriesPerSecond: 3, ttl: 10s}
  fault: {scope: ATTEMPT, delay: {fixedDelay: 1ms, percent: 20}, abort: {httpStatus: 503, percent: 10}}
  mirror: {service: copies, percent: 100}
  routes: [{name: read, match: [{method: GET}]}]
- {name: copies, endpoints: [{address: "10.0.0.9:80"}]}
- {name: jobs, retries: {maxRetries: 1, retryOn: [5xx], idempotent: true, backoff: {base: 1ms}}, rateLimit: {requests: 6, per: 1h}}
"""


@pytest.fixture(scope="module")
def spans():
    spans, answers = Spans(), [200, 503, 503, 503, 503, 503, 200, 503, 503, 503]
    mesh = Mesh.from_text(POLICY, seed=3)
    mesh.telemetry.use(tracer_provider=spans.provider)
    sent = []

    def answer(request):
        sent.append(request)
        if len(sent) % 7 == 0:
            raise httpx.ReadError("broken")
        return httpx.Response(answers[len(sent) % len(answers)])

    with httpx.Client(transport=resilmesh.http.Transport(mesh, httpx.MockTransport(answer))) as client:
        for _ in range(30):
            try:
                client.get("http://stock.test/items")
            except httpx.HTTPError:
                continue
    for _ in range(8):
        try:
            mesh.call("jobs", lambda: 1 / 0)
        except Exception:
            continue
    app = inbound.wsgi.Middleware(lambda environ, start: (start("200 OK", []), [b""])[1], mesh)
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "SERVER_NAME": "a", "SERVER_PORT": "1", "HTTP_HOST": "a"}
    body = app(environ, lambda status, headers: None)
    list(body)
    body.close()
    return spans.ended


@pytest.mark.parametrize("kind", ["CLIENT", "INTERNAL", "SERVER"])
def test_what_a_span_tells_is_in_the_catalogue(spans, kind):
    found = [span for span in spans if span.kind.name == kind]
    assert found
    attributes = {name for each in SPANS if each.kind == kind for name in each.attributes}
    events = {f"resilmesh.{name}" for each in SPANS if each.kind == kind for name in each.events}
    assert {name for span in found for name in span.attributes} <= attributes
    assert {event.name for span in found for event in span.events} <= events


def test_the_traffic_made_nearly_everything_happen(spans):
    told = {event.name.removeprefix("resilmesh.") for span in spans for event in span.events}
    assert told >= {"backoff", "circuit_changed", "endpoint_ejected", "retry_refused", "fault_injected", "call_rejected", "attempt_ended",
                    "mirrored"}


def test_events_of_spans_are_events_of_the_mesh():
    known = {each.name for each in EVENTS}
    assert {name for each in SPANS for name in each.events} <= known
