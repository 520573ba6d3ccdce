"""What Prometheus scrapes, read by its own parsers; and every metric of the catalogue appears."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

import resilmesh
from resilmesh import Mesh, inbound
from resilmesh.telemetry.catalogue import METRICS
from resilmesh.telemetry.collect import Durations, Point
from resilmesh.telemetry.prometheus import accepts_openmetrics, prometheus_name, text
from resilmesh.testing import ManualClock

POLICY = """
apiVersion: resilmesh/v1
services:
- name: stock
  hosts: [stock.test]
  endpoints: [{address: "10.0.0.1:80"}]
  circuitBreaker: {failureRateThreshold: 90, minimumNumberOfCalls: 3}
  rateLimit: {requests: 6, per: 1h}
  concurrency: {maxRequests: 10, maxPending: 5}
  retryBudget: {percent: 20, minRetriesPerSecond: 1, ttl: 10s}
  retries: {maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}
  outlierDetection: {consecutive5xxErrors: 3, maxEjectionPercent: 100}
"""


@pytest.fixture
def mesh():
    mesh = Mesh.from_text(POLICY, clock=ManualClock(), seed=1)
    answers = [200, 503, 200, 503, 503, 503, 503, 503]
    inner = httpx.MockTransport(lambda request: httpx.Response(answers.pop(0), content=b"body"))
    with httpx.Client(transport=resilmesh.http.Transport(mesh, inner)) as client:
        for _ in range(8):
            try:
                client.get("http://stock.test/")
            except httpx.HTTPError:
                continue
    return mesh


def _values(families):
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def test_both_formats_say_the_same(mesh):
    first, second = _values(plain(mesh.prometheus().text())), _values(openmetrics(mesh.prometheus().text(openmetrics=True)))
    assert first == second
    attempts = mesh.snapshot()["services"]["stock"]["routes"]["*"]["attempts"]
    assert first["resilmesh_attempts_total", (("resilmesh_service", "stock"),)] == attempts


def test_what_is_told_is_what_the_snapshot_has(mesh):
    told, route = _values(plain(mesh.prometheus().text())), mesh.snapshot()["services"]["stock"]["routes"]["*"]
    where = (("resilmesh_service", "stock"),)
    assert told["resilmesh_retries_total", where] == route["retries"] > 0
    for outcome in ("succeeded", "failed"):
        assert told["resilmesh_calls_total", (("outcome", outcome), *where)] == route[outcome]
        assert told["resilmesh_call_duration_seconds_count", (("outcome", outcome), *where)] == sum(route["durations"][outcome])
    rejected = {dict(labels)["reason"]: value for (name, labels), value in told.items() if name == "resilmesh_rejections_total"}
    assert {reason: count for reason, count in rejected.items() if count} == route["rejected"]


def _everything():
    """A point of every metric."""
    return {
        metric.name: [
            Durations(tuple((name, "x") for name in metric.attributes), [1] * 140, 3.0)
            if metric.kind == "histogram" else Point(tuple((name, "x") for name in metric.attributes), 2)
        ]
        for metric in METRICS
    }


def test_every_metric_of_the_catalogue_can_be_read():
    told = {family.name for family in openmetrics(text(_everything(), openmetrics=True))}
    assert told == {prometheus_name(metric) for metric in METRICS}


def test_no_name_is_told_that_the_catalogue_lacks(mesh):
    assert set(mesh.telemetry.points()) <= {metric.name for metric in METRICS}
    for metric in METRICS:
        for point in mesh.telemetry.points().get(metric.name, ()):
            assert {name for name, _ in point.attributes} <= set(metric.attributes)


@given(st.text(st.characters(exclude_categories=("Cs", "Cc")) | st.sampled_from('"\\\n'), max_size=20))
def test_labels_are_escaped(value):
    points = {"resilmesh.mirrors": [Point((("resilmesh.service", value),), 1)]}
    [family] = plain(text(points))
    assert family.samples[0].labels == {"resilmesh_service": value}


@pytest.mark.parametrize(("accept", "wants"), [
    ("", False), ("text/plain", False), ("application/openmetrics-text; version=1.0.0", True),
    ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3", True),
    ("application/openmetrics-text;q=0,text/plain", False),
])
def test_a_scraper_gets_the_format_that_it_asks_for(accept, wants):
    assert accepts_openmetrics(accept) is wants


def test_over_wsgi_and_with_other_methods(mesh):
    said = []
    body = mesh.prometheus().wsgi({"REQUEST_METHOD": "GET"}, lambda status, headers: said.append((status, dict(headers))))
    assert b"".join(body).startswith(b"# HELP")
    assert said[0][1]["Content-Type"].startswith("text/plain; version=0.0.4")
    body = mesh.prometheus().wsgi({"REQUEST_METHOD": "POST"}, lambda status, headers: said.append((status, {})))
    assert b"".join(body) == b"GET or HEAD\n"
    assert said[1][0].startswith("405")


def test_several_workers_without_a_directory_are_told_once(mesh, caplog):
    metrics = mesh.prometheus()
    for _ in range(2):
        metrics.wsgi({"REQUEST_METHOD": "GET", "wsgi.multiprocess": True}, lambda status, headers: None)
    assert [record.getMessage().partition(":")[0] for record in caplog.records if "several workers" in record.getMessage()] == [
        "this server has several workers, and this scrape tells of one of them",
    ]


@pytest.mark.anyio
async def test_over_asgi(mesh):
    transport = httpx.ASGITransport(mesh.prometheus())
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        answer = await client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")
        assert (await client.head("/metrics")).content == b""
    with pytest.raises(TypeError, match=r"mesh.prometheus\(\).wsgi"):
        await mesh.prometheus()({}, lambda: None)


def test_decisions_about_what_arrives_are_told():
    mesh = Mesh.from_text(
        "apiVersion: resilmesh/v1\ninbound: {authorization: [{name: a, action: ALLOW, rules: [{to: [{methods: [GET]}]}]}]}\n",
    )
    app = inbound.wsgi.Middleware(lambda environ, start: (start("200 OK", []), [b""])[1], mesh)
    for method in ("GET", "POST"):
        environ = {"REQUEST_METHOD": method, "PATH_INFO": "/", "SERVER_NAME": "here", "SERVER_PORT": "80", "HTTP_HOST": "here"}
        list(app(environ, lambda status, headers: None))
    told = {dict(point.attributes)["decision"]: point.value for point in mesh.telemetry.points()["resilmesh.authorization.decisions"]}
    assert told == {"allowed": 1, "denied": 1, "audited": 0, "shadowDenied": 0, "refused": 0}
