"""The policy's ``inbound`` block in front of a WSGI application.

    app = resilmesh.inbound.wsgi.Middleware(app, mesh)

Who the caller is it learns from the socket, where the server puts it into the environment (gunicorn's ``gunicorn.socket``, werkzeug's
``werkzeug.socket``), or from a ``Connection`` under ``resilmesh.connection``. A request waits (for a slot, for an injected delay) in
the thread that would serve it.
"""

from __future__ import annotations

import http
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

from resilmesh.drive.sync import start
from resilmesh.identity.gate import Connection
from resilmesh.inbound.asgi import CONNECTION
from resilmesh.inbound.connections import of_tls
from resilmesh.inbound.serving import Arrival, Reply, Serving, let_in
from resilmesh.telemetry.served import has_instrumentation

if TYPE_CHECKING:
    from resilmesh.mesh import Mesh

Environment = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environment, StartResponse], Iterable[bytes]]

#: Where a server puts the target as it came; without it an escaped slash cannot be told from a slash any more.
_RAW = ("RAW_URI", "REQUEST_URI")
_SOCKETS = ("gunicorn.socket", "werkzeug.socket")


class Middleware:
    """Wraps ``app``; refuses what ``resilmesh.inbound.asgi.Middleware`` does. A new policy holds from the next request on."""

    def __init__(self, app: Application, mesh: Mesh) -> None:
        if not callable(app):
            raise TypeError(f"the first argument is the WSGI application, not {app!r}")
        self._app = app
        self._mesh = mesh
        mesh.telemetry.attach()

    def __call__(self, environ: Environment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request, or refuse it."""
        arrival = _arrival(environ)
        serving = let_in(self._mesh, arrival, traced_within=self._mesh.telemetry.tracing is not None and has_instrumentation(self._app))
        if isinstance(serving, Reply):
            return _reply(start_response, serving)
        try:
            reply = None if serving.call is None else serving.outcome(start(serving.call, self._mesh.clock))
        except BaseException:
            serving.served.over(0, "cancelled")
            raise
        if reply is not None:
            return _reply(start_response, reply)
        return self._serve(environ, start_response, serving, arrival)

    def _serve(self, environ: Environment, start_response: StartResponse, serving: Serving, arrival: Arrival) -> Iterable[bytes]:
        def watched(status: str, *arguments: Any) -> Any:
            serving.responded(int(status[:3]))
            return start_response(status, *arguments)

        serving.begin(arrival)
        try:
            body = self._app(_seen(environ, serving), watched)
        except BaseException as error:
            serving.done(error)
            raise
        finally:
            serving.end()
        return Body(body, serving, arrival)


class Body:
    """The application's body: each part is made within the request's context, and the request is over when it is closed."""

    def __init__(self, parts: Iterable[bytes], serving: Serving, arrival: Arrival) -> None:
        self._parts = parts
        self._iterator: Iterator[bytes] | None = None
        self._serving = serving
        self._arrival = arrival
        self._over = False

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> bytes:
        self._serving.begin(self._arrival)
        try:
            if self._iterator is None:
                self._iterator = iter(self._parts)
            return next(self._iterator)
        except BaseException as error:
            self._end(None if isinstance(error, StopIteration) else error)
            raise
        finally:
            self._serving.end()

    def close(self) -> None:
        """As a server does it, whatever became of the request."""
        self._serving.begin(self._arrival)
        try:
            getattr(self._parts, "close", lambda: None)()
        finally:
            self._serving.end()
            self._end(None)

    def _end(self, error: BaseException | None) -> None:
        if not self._over:
            self._over = True
            self._serving.done(error)


def _arrival(environ: Environment) -> Arrival:
    headers = [(key[5:].replace("_", "-").lower(), value) for key, value in environ.items() if key.startswith("HTTP_")]
    headers += [(key.replace("_", "-").lower(), environ[key]) for key in ("CONTENT_TYPE", "CONTENT_LENGTH") if environ.get(key)]
    raw = next((environ[key] for key in _RAW if environ.get(key)), None)
    if raw is None:
        path = (environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")).encode("latin-1")
        raw = quote(path, safe="/!$&'()*+,;=:@~") or "/"
    return Arrival(environ["REQUEST_METHOD"], raw, headers, environ.get(CONNECTION) or _connection(environ))


def _connection(environ: Environment) -> Connection:
    socket = next((environ[key] for key in _SOCKETS if key in environ), None)
    port = environ.get("SERVER_PORT", "")
    return of_tls(socket, environ.get("REMOTE_ADDR") or None, (environ.get("SERVER_NAME", ""), int(port)) if port.isdigit() else None)


def _seen(environ: Environment, serving: Serving) -> Environment:
    """The environment that the application gets."""
    seen = dict(environ)
    for key in [key for key in seen if key == "HTTP_X_FORWARDED_CLIENT_CERT"]:
        del seen[key]
    for name, value in serving.headers:
        if name == "x-forwarded-client-cert":
            seen["HTTP_X_FORWARDED_CLIENT_CERT"] = value
    script = environ.get("SCRIPT_NAME", "")
    path = unquote_to_bytes(serving.path).decode("latin-1")
    if script and not (path == script or path.startswith(script + "/")):
        script = ""  # the path does not lie below it any more
    seen["SCRIPT_NAME"], seen["PATH_INFO"] = script, path[len(script) :]
    for key in _RAW:
        if key in seen:
            _, question, query = str(seen[key]).partition("?")
            seen[key] = serving.path + question + query
    return seen


def _reply(start_response: StartResponse, reply: Reply) -> Iterable[bytes]:
    body = reply.body.encode()
    headers = [("content-length", str(len(body))), *([("content-type", "text/plain")] if body else []), *reply.headers]
    start_response(f"{reply.status} {http.HTTPStatus(reply.status).phrase}", headers)
    return [body]
