"""The service, in plain text (``-``) or under mutual TLS with the identity of a directory. Its port comes on stdout."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Any

import uvicorn

import resilmesh


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def main(directory: str) -> None:
    more: dict[str, Any] = {}
    if directory != "-":
        mesh = resilmesh.Mesh.from_text("apiVersion: resilmesh/v1\ninbound: {mtls: STRICT}\n", identity=directory)
        more["ssl_context_factory"] = lambda config, default: resilmesh.inbound.server_context(mesh)
    listener = socket.create_server(("127.0.0.1", 0))
    # asyncio does it for sockets that it makes itself; without it each answer waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, http="h11", loop="asyncio", lifespan="off", log_level="error", access_log=False, **more)
    asyncio.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main(sys.argv[1])
