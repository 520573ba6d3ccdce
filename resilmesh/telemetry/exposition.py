"""``mesh.prometheus()``: what Prometheus scrapes, wherever the program serves it.

    app.mount("/metrics", mesh.prometheus())                            ASGI (Starlette, FastAPI)
    DispatcherMiddleware(app, {"/metrics": mesh.prometheus().wsgi})     WSGI (werkzeug, Flask)
    mesh.prometheus().text()                                            anything else
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import TYPE_CHECKING, Any, Protocol

from resilmesh.telemetry.prometheus import OPENMETRICS, TEXT, accepts_openmetrics

if TYPE_CHECKING:
    from resilmesh.telemetry.telemetry import Telemetry

log = logging.getLogger("resilmesh")


class Told(Protocol):
    """What of a mesh is needed here, and kept alive by it."""

    @property
    def telemetry(self) -> Telemetry: ...


class Exposition:
    """The metrics of a mesh as an application. A scraper that asks for OpenMetrics gets that, with exemplars; it answers GET and HEAD."""

    def __init__(self, mesh: Told) -> None:
        self._mesh = mesh
        self._telemetry = mesh.telemetry
        self._warned = False

    def text(self, *, openmetrics: bool = False) -> str:
        """What a scrape gets; of all workers, where they share a directory."""
        return self._telemetry.text(openmetrics=openmetrics)

    def answer(self, method: str, accept: str) -> tuple[int, str, bytes]:
        """Status, content type and body."""
        if method not in ("GET", "HEAD"):
            return 405, "text/plain", b"GET or HEAD\n"
        openmetrics = accepts_openmetrics(accept)
        body = self.text(openmetrics=openmetrics).encode()
        return 200, OPENMETRICS if openmetrics else TEXT, b"" if method == "HEAD" else body

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: Callable[[], Awaitable[Any]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]] | None = None,
    ) -> None:
        """ASGI."""
        if send is None:
            raise TypeError("this is an ASGI application: the WSGI one is mesh.prometheus().wsgi")
        if scope["type"] != "http":
            return
        accept = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"accept"), "")
        status, kind, body = self.answer(scope["method"], accept)
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def wsgi(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI."""
        if environ.get("wsgi.multiprocess") and not self._telemetry.shared and not self._warned:
            self._warned = True
            log.warning(
                "this server has several workers, and this scrape tells of one of them: "
                "set RESILMESH_STATS_DIR to a new directory before it starts, and each tells of all"
            )
        status, kind, body = self.answer(environ["REQUEST_METHOD"], environ.get("HTTP_ACCEPT", ""))
        words = {200: "200 OK", 405: "405 Method Not Allowed"}[status]
        start_response(words, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]
