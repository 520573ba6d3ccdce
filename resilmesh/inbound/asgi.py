"""The policy's ``inbound`` block in front of an ASGI application.

    app = resilmesh.inbound.asgi.Middleware(app, mesh)

It is the outermost of all middlewares: what stands above it sees requests that it would refuse. Who the caller is it learns from
``resilmesh.inbound.uvicorn``, or from what else puts a ``Connection`` into the scope; other servers tell nobody
(docs/how-to/inbound-servers.md).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from resilmesh.drive.aio import start
from resilmesh.identity.gate import Connection
from resilmesh.inbound.serving import Arrival, Reply, Serving, let_in
from resilmesh.telemetry.served import has_instrumentation

if TYPE_CHECKING:
    from resilmesh.mesh import Mesh

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: Where in a scope the ``Connection`` is, for which ASGI has no name.
CONNECTION = "resilmesh.connection"


class Middleware:
    """Wraps ``app``. A new policy holds from the next request on.

    Refused are: with 400 a path of two meanings; with 403 who may not come in (Envoy's body ``RBAC: access denied``); with 429
    and 503 who is one too many. The application gets the path in its one form, and of the caller's certificate
    (``x-forwarded-client-cert``) what is true. A WebSocket is refused before it is accepted.
    """

    def __init__(self, app: Application, mesh: Mesh) -> None:
        if not callable(app):
            raise TypeError(f"the first argument is the ASGI application, not {app!r}")
        self._app = app
        self._mesh = mesh
        mesh.telemetry.attach()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        arrival = _arrival(scope)
        serving = let_in(self._mesh, arrival, traced_within=self._mesh.telemetry.tracing is not None and has_instrumentation(self._app))
        if isinstance(serving, Reply):
            await _reply(scope, send, serving)
            return
        await self._serve(_seen(scope, serving), receive, send, serving, arrival)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, serving: Serving, arrival: Arrival) -> None:
        error: BaseException | None = None
        try:
            reply = None if serving.call is None else serving.outcome(await start(serving.call, self._mesh.clock))
        except BaseException:
            serving.served.over(0, "cancelled")
            raise
        if reply is not None:
            await _reply(scope, send, reply)
            return

        async def watched(message: MutableMapping[str, Any]) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                serving.responded(message.get("status", 101))
            await send(message)

        serving.begin(arrival)
        try:
            await self._app(scope, receive, watched)
        except BaseException as raised:
            error = raised
            raise
        finally:
            serving.end()
            serving.done(error)


def _arrival(scope: Scope) -> Arrival:
    headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    connection = scope.get(CONNECTION)
    if connection is None:
        client, server = scope.get("client"), scope.get("server")
        at = (server[0], server[1]) if server and server[1] is not None else None
        connection = Connection(source=client[0] if client else None, server=at)
    raw = scope.get("raw_path")
    target = scope["path"].encode().decode("latin-1") if raw is None else raw.decode("latin-1")
    return Arrival(scope.get("method", "GET"), _escaped(scope["path"]) if raw is None else target, headers, connection)


def _escaped(path: str) -> str:
    """Of a server that gives only the decoded path: escaped again, so that it is read as it is meant."""
    from urllib.parse import quote

    return quote(path, safe="/!$&'()*+,;=:@~")


def _seen(scope: Scope, serving: Serving) -> Scope:
    """The scope that the application gets."""
    seen = dict(scope)
    seen["path"] = unquote(serving.path)
    seen["raw_path"] = serving.path.encode("latin-1")
    seen["headers"] = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in serving.headers]
    return seen


async def _reply(scope: Scope, send: Send, reply: Reply) -> None:
    if scope["type"] == "websocket":
        # Before it is accepted: a server answers the handshake with 403.
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    body = reply.body.encode()
    headers = [("content-length", str(len(body))), *([("content-type", "text/plain")] if body else []), *reply.headers]
    encoded = [(name.encode(), value.encode()) for name, value in headers]
    await send({"type": "http.response.start", "status": reply.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
