"""The inbound middleware in front of a WSGI application: by the environment alone, and under a server of the standard library over TLS."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import httpx
import pytest

import resilmesh
from resilmesh import Mesh
from resilmesh.identity import Fixed, SpiffeId
from resilmesh.identity.gate import Connection
from resilmesh.identity.tls import ANYBODY, LiveContext
from tests.identity.pki import INVENTORY, WEB, Authority

ROOT = Authority()
WHO = SpiffeId.parse(WEB)


class Application:
    """Remembers what it saw, and answers in two parts."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.callers: list[Any] = []
        self.closed = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.seen.append(environ)
        self.callers.append(resilmesh.inbound.caller())
        start_response("200 OK", [("content-type", "text/plain")])
        return self._body()

    def _body(self) -> Iterable[bytes]:
        try:
            self.callers.append(resilmesh.inbound.caller())
            yield b"he"
            yield b"llo"
        finally:
            self.closed += 1


def mesh_of(inbound: str) -> Mesh:
    return Mesh.from_text(f"apiVersion: resilmesh/v1\ninbound: {inbound}\n", identity=Fixed(ROOT.identity(INVENTORY)))


def call(mesh: Mesh, app: Any, **environ: Any) -> tuple[str, str]:
    """The status line and the body."""
    lines: list[str] = []
    base = {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": "/", "REMOTE_ADDR": "10.1.2.3", "SERVER_NAME": "a"}
    parts = resilmesh.inbound.wsgi.Middleware(app, mesh)({**base, **environ}, lambda status, headers: lines.append(status))
    body = b"".join(parts)
    getattr(parts, "close", lambda: None)()
    return lines[0], body.decode()


def test_the_application_knows_who_calls_until_its_body_ends() -> None:
    app = Application()
    with mesh_of("{mtls: STRICT}") as mesh:
        environ = {"resilmesh.connection": Connection("10.1.2.3", WHO), "HTTP_X_FORWARDED_CLIENT_CERT": "URI=spiffe://evil.example/x"}
        assert call(mesh, app, PATH_INFO="/a//b", **environ) == ("200 OK", "hello")
        assert mesh.snapshot()["inbound"]["calls"]["inFlight"] == 0
    assert [str(each.identity) for each in app.callers] == [WEB, WEB]
    assert app.seen[0]["PATH_INFO"] == "/a/b"
    assert app.seen[0]["HTTP_X_FORWARDED_CLIENT_CERT"].endswith(f"URI={WEB}")
    assert app.closed == 1
    assert resilmesh.inbound.caller() is None


@pytest.mark.parametrize(("inbound", "environ", "status"), [
    ("{mtls: STRICT}", {}, "403 Forbidden"),
    ("{mtls: STRICT, trustedProxies: [10.0.0.0/8]}", {"HTTP_X_FORWARDED_CLIENT_CERT": f"URI={WEB}"}, "200 OK"),
    ("{mtls: STRICT, trustedProxies: [10.9.0.0/16]}", {"HTTP_X_FORWARDED_CLIENT_CERT": f"URI={WEB}"}, "403 Forbidden"),
    ("{}", {"RAW_URI": "/a%2fb?x=1", "PATH_INFO": "/a/b"}, "400 Bad Request"),
    ("{}", {"PATH_INFO": "/a%2fb"}, "400 Bad Request"),  # decoded once by the server: it was escaped twice
    ("{}", {"PATH_INFO": "/caf\xc3\xa9"}, "200 OK"),
    ("{}", {"PATH_INFO": "/\xff"}, "400 Bad Request"),
    ("{authorization: [{name: a, action: DENY, rules: [{to: [{paths: ['/admin*']}]}]}]}", {"PATH_INFO": "/x/../admin"}, "403 Forbidden"),
    ("{authorization: [{name: a, rules: [{to: [{paths: ['/app/x']}]}]}]}", {"SCRIPT_NAME": "/app", "PATH_INFO": "/x"}, "200 OK"),
    ("{fault: {abort: {httpStatus: 503}}}", {}, "503 Service Unavailable"),
    ("{concurrency: {maxRequests: 1}}", {}, "200 OK"),
])
def test_who_is_let_in(inbound: str, environ: dict[str, Any], status: str) -> None:
    with mesh_of(inbound) as mesh:
        assert call(mesh, Application(), **environ)[0] == status
        assert mesh.snapshot()["inFlight"] == 0


def test_an_application_that_raises_or_is_left_holds_nothing() -> None:
    def raises(environ: Any, start_response: Any) -> Any:
        raise ZeroDivisionError

    with mesh_of("{concurrency: {maxRequests: 1}}") as mesh:
        with pytest.raises(ZeroDivisionError):
            call(mesh, raises)
        app = Application()
        body = resilmesh.inbound.wsgi.Middleware(app, mesh)(
            {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "REMOTE_ADDR": "10.1.2.3"}, lambda status, headers: None,
        )
        assert next(iter(body)) == b"he"
        assert mesh.snapshot()["inFlight"] == 1
        body.close()  # type: ignore[attr-defined]  # as PEP 3333 has it
        assert (mesh.snapshot()["inFlight"], app.closed) == (0, 1)


def test_over_tls() -> None:
    """The server puts the socket where werkzeug does."""
    class Handler(WSGIRequestHandler):
        def get_environ(self) -> dict[str, Any]:
            return {**super().get_environ(), "werkzeug.socket": self.connection}

        def log_message(self, *arguments: object) -> None:
            pass

    app = Application()
    with mesh_of("{mtls: STRICT}") as mesh:
        server = make_server("127.0.0.1", 0, resilmesh.inbound.wsgi.Middleware(app, mesh), WSGIServer, Handler)
        server.socket = resilmesh.inbound.server_context(mesh).wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            context = LiveContext(Fixed(ROOT.identity(WEB)), serves=False, accepted=ANYBODY, now=time.time)
            assert httpx.get(f"https://127.0.0.1:{server.server_port}/", verify=context).text == "hello"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
    assert str(app.callers[0].identity) == WEB
