"""Spans of calls over HTTP, under every client and runtime."""

from __future__ import annotations

from types import ModuleType

import pytest
from http_driver import Driver
from http_service import Service, answer, close, raw

import resilmesh
from resilmesh import Mesh
from tests.telemetry.spans import Spans


def _mesh(service: Service, spans: Spans, **blocks: str) -> Mesh:
    lines = [f"  {name}: {value}" for name, value in blocks.items()]
    mesh = Mesh.from_text("\n".join((
        "apiVersion: resilmesh/v1", "services:", "- name: inventory", "  hosts: [inventory.test]",
        f'  endpoints: [{{address: "127.0.0.1:{service.port}"}}]', *lines, "  routes: [{name: read, match: [{method: GET}]}]",
    )), seed=7)
    mesh.telemetry.use(tracer_provider=spans.provider)
    return mesh


def _sampled(traceparent: str) -> bool:
    return bool(int(traceparent[-2:], 16) & 1)


RETRIES = "{maxRetries: 2, retryOn: [5xx, reset], backoff: {base: 1ms}}"


def test_a_call_of_one_attempt_is_one_span(driver: Driver, service: Service) -> None:
    spans = Spans()
    with driver.client(transport=driver.transport(_mesh(service, spans, retries=RETRIES))) as client:
        client.get("http://inventory.test/items?token=secret")
    assert spans.tree == ["CLIENT GET inventory/read -"]
    [span] = spans.ended
    assert span.attributes == {
        "http.request.method": "GET", "server.address": "inventory.test", "server.port": 80, "url.full": "http://inventory.test/items",
        "resilmesh.service": "inventory", "resilmesh.route": "read", "resilmesh.endpoint": f"127.0.0.1:{service.port}",
        "http.response.status_code": 200,
    }
    sent = service.seen[0].headers["traceparent"]
    assert sent.startswith(f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-")
    assert _sampled(sent)


def test_a_call_of_several_attempts_is_a_span_above_them(driver: Driver, service: Service) -> None:
    spans = Spans()
    service.script = [answer(503), close, answer(200)]
    with driver.client(transport=driver.transport(_mesh(service, spans, retries=RETRIES))) as client, \
            spans.tracer.start_as_current_span("job"):
        assert client.get("http://inventory.test/items").status_code == 200
    expected = [
        "INTERNAL job -", "  INTERNAL inventory/read - backoff backoff", "    CLIENT GET inventory/read ERROR",
        "    CLIENT GET inventory/read ERROR", "    CLIENT GET inventory/read -",
    ]
    assert spans.tree == expected
    attempts = [span for span in spans.ended if span.kind.name == "CLIENT"]
    assert [span.attributes.get("http.request.resend_count") for span in attempts] == [None, 1, 2]
    assert [span.attributes.get("error.type") for span in attempts] == ["503", "reset", None]
    sent = [seen.headers["traceparent"].split("-")[2] for seen in service.seen]
    assert sent == [f"{span.context.span_id:016x}" for span in attempts]


def test_the_first_of_several_attempts_that_begin_a_trace_stands_below_the_call_too(driver: Driver, service: Service) -> None:
    spans = Spans()
    service.script = [answer(503), answer(200)]
    with driver.client(transport=driver.transport(_mesh(service, spans, retries=RETRIES))) as client:
        client.get("http://inventory.test/items")
    assert spans.tree == [
        "INTERNAL inventory/read - backoff", "  CLIENT GET inventory/read ERROR", "  CLIENT GET inventory/read -",
    ]


def test_a_span_ends_with_its_body_and_carries_its_error(driver: Driver, service: Service) -> None:
    spans = Spans()
    service.script = [raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")]
    with driver.client(transport=driver.transport(_mesh(service, spans))) as client:
        response = client.open("GET", "http://inventory.test/items")
        assert spans.ended == []
        with pytest.raises(driver.library.RemoteProtocolError):
            client.read(response)
    [span] = spans.ended
    assert span.status.status_code.name == "ERROR"
    assert (span.attributes["http.response.status_code"], span.attributes["error.type"]) == (200, "incomplete_body")


def test_a_rejected_call_is_a_span_with_its_reason(driver: Driver, service: Service) -> None:
    spans = Spans()
    mesh = _mesh(service, spans, rateLimit="{requests: 1, per: 1h}")
    with driver.client(transport=driver.transport(mesh)) as client:
        client.get("http://inventory.test/items")
        spans.clear()
        with pytest.raises(resilmesh.RateLimited):
            client.get("http://inventory.test/items")
    assert spans.tree == ["INTERNAL inventory/read ERROR call_rejected"]
    [span] = spans.ended
    assert (span.attributes["error.type"], span.attributes["resilmesh.attempts"]) == ("RateLimited", 0)


def test_what_an_attempt_brings_about_is_told_by_its_span(driver: Driver, service: Service) -> None:
    spans = Spans()
    service.script = [answer(503)]
    mesh = _mesh(
        service, spans, circuitBreaker="{consecutiveFailures: 1}", outlierDetection="{consecutive5xxErrors: 1, maxEjectionPercent: 100}",
    )
    with driver.client(transport=driver.transport(mesh)) as client:
        client.get("http://inventory.test/items")
    assert spans.tree == ["CLIENT GET inventory/read ERROR circuit_changed endpoint_ejected"]


def test_a_fault_of_the_policy_is_told(driver: Driver, service: Service) -> None:
    spans = Spans()
    mesh = _mesh(service, spans, fault="{delay: {fixedDelay: 1ms, percent: 100}}")
    with driver.client(transport=driver.transport(mesh)) as client:
        client.get("http://inventory.test/items")
    assert spans.tree == ["INTERNAL inventory/read - fault_injected", "  CLIENT GET inventory/read -"]


def test_under_a_parent_that_is_not_sampled_only_the_header_goes_on(library: ModuleType, service: Service) -> None:
    from opentelemetry import trace

    spans = Spans()
    parent = trace.SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(0))
    with library.Client(transport=resilmesh.http.Transport(_mesh(service, spans))) as client, \
            trace.use_span(trace.NonRecordingSpan(parent)):
        client.get("http://inventory.test/items")
    assert spans.ended == []
    assert service.seen[0].headers["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-00"


def test_a_root_that_the_sampler_drops_says_so_to_the_service(library: ModuleType, service: Service) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    spans = Spans(sampler=ALWAYS_OFF)
    service.script = [answer(503), answer(200)]
    with library.Client(transport=resilmesh.http.Transport(_mesh(service, spans, retries=RETRIES))) as client:
        client.get("http://inventory.test/items")
    assert spans.ended == []
    assert not _sampled(service.seen[0].headers["traceparent"])


def test_a_cancelled_call_says_so(service: Service) -> None:
    import asyncio

    import httpx
    from http_service import hang

    spans = Spans()
    service.script = [hang(5.0)]

    async def program() -> None:
        async with httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(_mesh(service, spans))) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await client.get("http://inventory.test/items")

    asyncio.run(program())
    [span] = spans.ended
    assert (span.attributes["error.type"], span.status.status_code.name) == ("cancelled", "ERROR")


class TestBesideOpenTelemetrysOwn:
    """Its instrumentation of httpx makes the spans, and ours say more on them."""

    @pytest.fixture(autouse=True)
    def instrumented(self):
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

        self.spans = Spans()
        instrumentor = HTTPXClientInstrumentor()
        instrumentor.instrument(tracer_provider=self.spans.provider)
        yield
        instrumentor.uninstrument()

    def test_there_is_one_span_an_attempt(self, service: Service) -> None:
        import httpx

        service.script = [answer(503), answer(200)]
        with httpx.Client(transport=resilmesh.http.Transport(_mesh(service, self.spans, retries=RETRIES))) as client:
            client.get("http://inventory.test/items")
        clients = [span for span in self.spans.ended if span.kind.name == "CLIENT"]
        assert [span.instrumentation_scope.name for span in clients] == ["opentelemetry.instrumentation.httpx"] * 2
        assert [span.attributes["resilmesh.service"] for span in clients] == ["inventory"] * 2
        assert [span.attributes.get("http.request.resend_count") for span in clients] == [None, 1]
        sent = [seen.headers["traceparent"].split("-")[2] for seen in service.seen]
        assert sent == [f"{span.context.span_id:016x}" for span in clients]

    @pytest.mark.anyio
    async def test_nor_under_asyncio(self, service: Service) -> None:
        import httpx

        async with httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(_mesh(service, self.spans))) as client:
            await client.get("http://inventory.test/items")
        [span] = self.spans.ended
        assert span.instrumentation_scope.name == "opentelemetry.instrumentation.httpx"
        assert span.attributes["resilmesh.route"] == "read"


def test_a_client_that_is_instrumented_around_us_has_one_span_too(service: Service) -> None:
    import httpx
    from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

    spans = Spans()
    with httpx.Client(transport=resilmesh.http.Transport(_mesh(service, spans))) as client:
        HTTPXClientInstrumentor.instrument_client(client, tracer_provider=spans.provider)
        client.get("http://inventory.test/items")
    [span] = spans.ended
    assert span.instrumentation_scope.name == "opentelemetry.instrumentation.httpx"
    assert span.attributes["resilmesh.service"] == "inventory"
    assert service.seen[0].headers["traceparent"].split("-")[2] == f"{span.context.span_id:016x}"


def test_b3_headers_where_they_are_configured(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from opentelemetry import propagate
    from opentelemetry.propagators.b3 import B3MultiFormat

    monkeypatch.setattr(propagate, "propagators", propagate.propagators)
    before = propagate.get_global_textmap()
    propagate.set_global_textmap(B3MultiFormat())
    try:
        spans = Spans()
        with httpx.Client(transport=resilmesh.http.Transport(_mesh(service, spans))) as client:
            client.get("http://inventory.test/items")
    finally:
        propagate.set_global_textmap(before)
    assert service.seen[0].headers["x-b3-traceid"] == f"{spans.ended[0].context.trace_id:032x}"
    assert "traceparent" not in service.seen[0].headers
