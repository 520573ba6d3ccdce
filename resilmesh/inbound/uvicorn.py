"""uvicorn's protocols, which tell the middleware of their connection: uvicorn itself puts nothing of TLS into a scope.

    uvicorn.Config(app, http="resilmesh.inbound.uvicorn:H11Protocol",
                   ssl_context_factory=lambda config, default: resilmesh.inbound.server_context(mesh))

The address is the connection's own, whatever ``X-Forwarded-For`` made uvicorn put in its place.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol as _H11Protocol
from uvicorn.protocols.utils import get_local_addr, get_remote_addr

from resilmesh.inbound.asgi import CONNECTION
from resilmesh.inbound.connections import of_tls


class Tells:
    """Mixed into a protocol of uvicorn's: each of its scopes has the connection."""

    app: Any

    def connection_made(self, transport: Any) -> None:
        """As uvicorn's."""
        client, server = get_remote_addr(transport), get_local_addr(transport)
        at = (server[0], server[1]) if server is not None and server[1] is not None else None
        connection = of_tls(transport.get_extra_info("ssl_object"), None if client is None else client[0], at)
        app = self.app

        async def told(scope: Any, receive: Any, send: Any) -> None:
            scope[CONNECTION] = connection
            await app(scope, receive, send)

        self.app = told
        super().connection_made(transport)  # type: ignore[misc]  # a mixin: the classes below have it


class H11Protocol(Tells, _H11Protocol):
    """In pure Python."""


def __getattr__(name: str) -> Any:
    """``HttpToolsProtocol``, for whom httptools is there."""
    if name != "HttpToolsProtocol":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    made = type("HttpToolsProtocol", (Tells, HttpToolsProtocol), {"__doc__": "By httptools.", "__module__": __name__})
    globals()[name] = made
    return made
