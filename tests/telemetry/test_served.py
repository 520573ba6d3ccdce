"""What is told of requests that are served: figures and SERVER spans, of ASGI and WSGI, beside OpenTelemetry's own middlewares."""

from __future__ import annotations

import pytest

from resilmesh import Mesh, inbound
from tests.telemetry.spans import Spans

INBOUND = "apiVersion: resilmesh/v1\ninbound: {rateLimit: {requests: 3, per: 1h}}\n"
TRACEPARENT = f"00-{0xABC:032x}-{0xDEF:016x}-01"


@pytest.fixture
def spans():
    return Spans()


@pytest.fixture
def mesh(spans):
    mesh = Mesh.from_text(INBOUND)
    mesh.telemetry.use(tracer_provider=spans.provider)
    return mesh


async def _app(scope, receive, send):
    if scope["path"] == "/broken":
        raise RuntimeError("secret")
    await send({"type": "http.response.start", "status": 404 if scope["path"] == "/none" else 200, "headers": []})
    if scope["path"] == "/half":
        raise RuntimeError("half")
    await send({"type": "http.response.body", "body": b"ok"})


async def _ask(app, path, **headers):
    sent = []
    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"token=secret", "http_version": "1.1",
        "scheme": "http", "headers": [(b"host", b"here"), *((name.encode(), value.encode()) for name, value in headers.items())],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request"}

    await app(scope, receive, send)
    return sent[0]["status"]


def _durations(mesh):
    return {
        (dict(point.attributes).get("http.response.status_code"), dict(point.attributes).get("error.type")): sum(point.counts)
        for point in mesh.telemetry.points()["http.server.request.duration"]
    }


@pytest.mark.anyio
async def test_a_request_is_a_server_span_in_its_callers_trace(mesh, spans):
    app = inbound.asgi.Middleware(_app, mesh)
    assert await _ask(app, "/items", traceparent=TRACEPARENT) == 200
    [span] = spans.ended
    assert (span.kind.name, span.name, span.context.trace_id, span.parent.span_id) == ("SERVER", "GET", 0xABC, 0xDEF)
    assert span.attributes == {
        "http.request.method": "GET", "url.path": "/items", "client.address": "127.0.0.1", "http.response.status_code": 200,
    }


@pytest.mark.anyio
async def test_every_end_is_counted_once(mesh, spans):
    app = inbound.asgi.Middleware(_app, mesh)
    assert await _ask(app, "/none") == 404
    with pytest.raises(RuntimeError):
        await _ask(app, "/broken")
    with pytest.raises(RuntimeError):
        await _ask(app, "/half")
    assert await _ask(app, "/items") == 429
    assert await _ask(app, "/a/%2e%2e/b%00") == 400
    assert _durations(mesh) == {
        (404, None): 1, (500, "RuntimeError"): 1, (200, "incomplete_body"): 1, (429, None): 1, (400, None): 1,
    }
    assert [span.status.status_code.name for span in spans.ended] == ["UNSET", "ERROR", "ERROR", "UNSET", "UNSET"]


@pytest.mark.anyio
async def test_calls_of_the_application_are_part_of_the_trace(mesh, spans):
    import httpx

    import resilmesh

    called = Mesh.from_text("apiVersion: resilmesh/v1\nservices:\n- {name: stock, hosts: [stock.test]}\n")
    called.telemetry.use(tracer_provider=spans.provider)
    transport = resilmesh.http.AsyncTransport(called, httpx.MockTransport(lambda request: httpx.Response(200)))

    async def app(scope, receive, send):
        async with httpx.AsyncClient(transport=transport) as client:
            await client.get("http://stock.test/")
        await _app(scope, receive, send)

    await _ask(inbound.asgi.Middleware(app, mesh), "/items", traceparent=TRACEPARENT)
    assert spans.tree == ["SERVER GET -", "  CLIENT GET stock -"]


@pytest.mark.anyio
async def test_without_an_inbound_block_requests_are_told_all_the_same(spans):
    mesh = Mesh.from_text("apiVersion: resilmesh/v1\nservices: []\n")
    assert await _ask(inbound.asgi.Middleware(_app, mesh), "/items") == 200
    assert _durations(mesh) == {(200, None): 1}


def _wsgi(app, path):
    status = []
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "SCRIPT_NAME": "", "SERVER_NAME": "here", "SERVER_PORT": "80", "HTTP_HOST": "here",
        "REMOTE_ADDR": "127.0.0.1", "HTTP_TRACEPARENT": TRACEPARENT, "wsgi.url_scheme": "http", "SERVER_PROTOCOL": "HTTP/1.1",
    }
    body = app(environ, lambda line, headers, *rest: status.append(line))
    content = b"".join(body)
    getattr(body, "close", lambda: None)()
    return status[0], content


def test_wsgi_to_the_end_of_its_body(mesh, spans):
    seen = []

    def app(environ, start_response):
        start_response("200 OK", [])
        seen.append(len(spans.ended))
        yield b"o"
        seen.append(len(spans.ended))
        yield b"k"

    assert _wsgi(inbound.wsgi.Middleware(app, mesh), "/items") == ("200 OK", b"ok")
    assert seen == [0, 0]
    [span] = spans.ended
    assert (span.kind.name, span.context.trace_id) == ("SERVER", 0xABC)
    assert _durations(mesh) == {(200, None): 1}


class TestBesideOpenTelemetrysOwn:
    """There is one SERVER span, and it is theirs."""

    @pytest.mark.anyio
    async def test_around_us(self, mesh, spans):
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        app = OpenTelemetryMiddleware(inbound.asgi.Middleware(_app, mesh), tracer_provider=spans.provider)
        await _ask(app, "/items", traceparent=TRACEPARENT)
        servers = [span for span in spans.ended if span.kind.name == "SERVER"]
        assert [span.instrumentation_scope.name for span in servers] == ["opentelemetry.instrumentation.asgi"]

    @pytest.mark.anyio
    async def test_within(self, mesh, spans):
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

        app = inbound.asgi.Middleware(OpenTelemetryMiddleware(_app, tracer_provider=spans.provider), mesh)
        await _ask(app, "/items", traceparent=TRACEPARENT)
        [server] = [span for span in spans.ended if span.kind.name == "SERVER"]
        assert server.instrumentation_scope.name == "opentelemetry.instrumentation.asgi"
        assert (server.context.trace_id, server.parent.span_id) == (0xABC, 0xDEF)

    @pytest.mark.parametrize("within", [True, False])
    def test_of_wsgi(self, mesh, spans, within):
        from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

        def app(environ, start_response):
            start_response("200 OK", [])
            return [b"ok"]

        if within:
            made = inbound.wsgi.Middleware(OpenTelemetryMiddleware(app, tracer_provider=spans.provider), mesh)
        else:
            made = OpenTelemetryMiddleware(inbound.wsgi.Middleware(app, mesh), tracer_provider=spans.provider)
        _wsgi(made, "/items")
        servers = [span for span in spans.ended if span.kind.name == "SERVER"]
        assert [span.instrumentation_scope.name for span in servers] == ["opentelemetry.instrumentation.wsgi"]
