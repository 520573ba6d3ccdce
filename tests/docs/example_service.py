"""The service behind every host that a page names.

It answers any request with 200 and a JSON object of what it saw; a path that holds ``/status/NNN`` with that status. Names are
resolved to 127.0.0.1 and connections to any other address are turned there, so nothing that a page does leaves the machine.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from typing import Any

#: Tells the programs that a page starts where the service listens; ``startup/sitecustomize.py`` reads it.
PORT_VARIABLE = "RESILMESH_EXAMPLE_SERVICE"
LOOPBACK = "127.0.0.1"
#: What every name resolves to: an address for documentation (RFC 5737), which nothing ever reaches.
ELSEWHERE = "192.0.2.1"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self) -> None:
        length = int(self.headers.get("content-length", 0))
        sent = self.rfile.read(length).decode("utf-8", "replace")
        asked = re.search(r"/status/(\d{3})", self.path)
        body = json.dumps({"method": self.command, "path": self.path, "host": self.headers.get("host"), "body": sent}).encode()
        self.send_response(int(asked[1]) if asked else 200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = answer

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@contextlib.contextmanager
def running() -> Iterator[int]:
    """The service on a port of its own, and this process led to it."""
    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
    server.daemon_threads = True
    port = server.server_address[1]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()  # so soon it can be ended
    os.environ[PORT_VARIABLE] = str(port)
    lead_to(port)
    try:
        yield port
    finally:
        server.shutdown()
        server.server_close()


def lead_to(port: int) -> None:
    """From now on every host but this machine is the service at ``port``."""
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def getaddrinfo(host: Any, wanted: Any, *arguments: Any, **more: Any) -> Any:
        if _is_local(host):
            return resolve(host, wanted, *arguments, **more)
        # Not LOOPBACK: some ask for addresses only and connect to the port that the URL names.
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (ELSEWHERE, int(wanted or 0)))]

    def connect_local(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            address = (LOOPBACK, port)
        connect(self, address)

    socket.getaddrinfo = getaddrinfo
    socket.socket.connect = connect_local  # type: ignore[method-assign]


def _is_local(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return name is None or name in ("", "localhost", "::1", "0.0.0.0") or name.startswith("127.")
