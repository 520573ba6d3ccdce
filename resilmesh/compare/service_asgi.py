"""The test bed's endpoint as an ASGI application under uvicorn: for the scenarios of mutual TLS, where services have a policy, too.

The same server and application on every plane; what differs is ``Hosting``. The test bed asks its questions at a port of their own,
in plain text, whatever callers must prove. Scripts may have statuses, latencies, limits and outages; they cannot reset or hang.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import ssl
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resilmesh.compare.service import Answer, Endpoint


@dataclass(frozen=True, slots=True)
class Hosting:
    """What stands before the application in its own process; nothing at all by default."""

    #: The policy's text: the library's middleware, with what its ``inbound`` says.
    policy: str | None = None
    #: A directory with this service's identity: TLS, under the policy or, without one, as one writes it by hand.
    identity: str | None = None
    #: Seconds by which this service's clock is slow.
    slow: float = 0.0
    #: After so many requests a connection is closed.
    requests_per_connection: int | None = None
    library_path: str = ""


class Turn:
    """Where the answer to one request goes."""

    good, overloaded = "200", "503"

    def __init__(self, answered: asyncio.Future[Answer]) -> None:
        self._answered = answered

    def answer(self, what: Answer) -> None:
        if not self._answered.done():  # the caller may have left
            self._answered.set_result(what)


class Application:
    """ASGI in front of an ``Endpoint``."""

    def __init__(self, endpoint: Endpoint, hosting: Hosting) -> None:
        self._endpoint = endpoint
        self._every = hosting.requests_per_connection
        self._count = itertools.count(1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from resilmesh.compare.service import Request

        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message.get("body", b"")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._endpoint.handle(Turn(answered), Request(scope["method"], path, headers, body))
        what = await answered
        carried = [("content-type", "application/json"), ("content-length", str(len(what.body))), *what.signature]
        if self._every and next(self._count) % self._every == 0:
            carried.append(("connection", "close"))
        await send({
            "type": "http.response.start", "status": int(what.outcome),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in carried],
        })
        await send({"type": "http.response.body", "body": what.body})


def _configuration(app: Application, hosting: Hosting) -> Any:
    import uvicorn

    options: dict[str, Any] = {"lifespan": "off", "log_level": "error", "access_log": False}
    if hosting.policy is not None:
        import resilmesh
        from resilmesh.identity.files import FileSource
        from resilmesh.inbound.serve import configuration

        source = None
        if hosting.identity is not None:
            source = FileSource.of_directory(hosting.identity, now=lambda: time.time() - hosting.slow)
        mesh = resilmesh.Mesh.from_text(hosting.policy, workload="inventory", mode="ENFORCE", identity=source)
        return configuration(app, mesh, **options)
    if hosting.identity is not None:
        options["ssl_context_factory"] = lambda config, default: by_hand(ssl.PROTOCOL_TLS_SERVER, str(hosting.identity))
    return uvicorn.Config(app, http="h11", loop="asyncio", proxy_headers=False, **options)


def by_hand(protocol: int, identity: str) -> ssl.SSLContext:
    """As one would write it without any policy: both sides show a certificate of the authority, and nobody asks whose."""
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(Path(identity, "ca.crt"))
    context.load_cert_chain(Path(identity, "tls.crt"), Path(identity, "tls.key"))
    return context


async def serve(told: dict[str, Any]) -> None:
    """Serve on a free port of 127.0.0.1, and the test bed's questions on another, until stdin ends."""
    import uvicorn

    from resilmesh.compare.service import Connection, Endpoint, Script

    hosting = Hosting(**told["hosting"])
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), os._exit, 0)
    endpoint = Endpoint(Script.from_json(told["script"]), loop)
    control = await loop.create_server(lambda: Connection(endpoint), "127.0.0.1", 0)
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    # asyncio does it for sockets that it makes itself; without it an answer waits 40 ms for an acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    server = uvicorn.Server(_configuration(Application(endpoint, hosting), hosting))
    sys.stdout.write(json.dumps({"port": listener.getsockname()[1], "control": control.sockets[0].getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await server.serve([listener])


if __name__ == "__main__":
    _told = json.loads(sys.stdin.readline())
    sys.path.append(_told["hosting"]["library_path"])
    asyncio.run(serve(_told))
