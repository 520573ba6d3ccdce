"""``mesh.serve_admin("127.0.0.1:9901")``: an HTTP server of the standard library, on threads of its own, for people and tools.

It listens where it is told, on a port or a unix socket (whose file only this user may open). It is not for the open network: it knows no
passwords. A web page of somebody else's can make a browser on this machine ask it, so it refuses a Host that is a name it does not
know, and to change anything for a page of another origin.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import socketserver
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from resilmesh.telemetry.admin import Page, Pages, Wrong, as_json
from resilmesh.telemetry.hystrix import EVERY, Rolling

if TYPE_CHECKING:
    from resilmesh.telemetry.admin import Administered

log = logging.getLogger("resilmesh")

#: Seconds between two tries of a worker to listen where another one does.
_TRY_AGAIN = 1.0
#: Seconds that a client may take to send its request.
_PATIENCE = 10.0


def parse_address(text: str) -> tuple[str, int] | str:
    """Host and port, or the path of a unix socket. Raises ``ValueError``."""
    if text.startswith("unix:"):
        return text.removeprefix("unix:").removeprefix("//")
    if text.startswith(("/", "./")):
        return text
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"an address is HOST:PORT or unix:/PATH, such as 127.0.0.1:9901, not {text!r}")
    return host.strip("[]") or "127.0.0.1", int(port)


class Admin:
    """The running server. ``waits``: where another process listens already, wait until it does not any more."""

    def __init__(self, mesh: Administered, address: str, *, write: bool, waits: bool = False) -> None:
        """Raises ``OSError`` and ``ValueError``."""
        self._mesh = mesh
        self._wanted = parse_address(address)
        self._write = write
        self._waits = waits
        self._stop = threading.Event()
        self._server: Any = None
        if not waits or self._listen():
            self._begin()
        else:
            threading.Thread(target=self._take_over, args=(self._stop,), name="resilmesh-admin", daemon=True).start()

    @property
    def address(self) -> str:
        """Where it listens, with the port that it got."""
        if isinstance(self._wanted, str):
            return f"unix:{self._wanted}"
        host, port = self._wanted if self._server is None else self._server.server_address[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _listen(self) -> bool:
        try:
            self._open()
        except OSError:
            return False
        return True

    def _open(self) -> None:
        self._server = server = _open(self._wanted)
        server.pages = Pages(self._mesh, write=self._write)
        server.mesh = self._mesh
        server.stop = self._stop

    def _begin(self) -> None:
        if self._server is None:
            self._open()
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="resilmesh-admin", daemon=True).start()

    def _take_over(self, stop: threading.Event) -> None:
        log.info("admin: %s is taken, by another worker it seems; this one listens when that has ended", self.address)
        while not stop.wait(_TRY_AGAIN):
            if self._listen():
                self._begin()
                return

    def close(self) -> None:
        """Answer nobody any more. Idempotent."""
        self._stop.set()
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            if isinstance(self._wanted, str):
                _remove(self._wanted)

    def after_fork(self) -> None:
        """In a child: the parent goes on to listen; this one when it has ended."""
        server, self._server = self._server, None
        if server is not None:
            server.socket.close()
        if not self._stop.is_set():
            self._stop = threading.Event()
            threading.Thread(target=self._take_over, args=(self._stop,), name="resilmesh-admin", daemon=True).start()

    def __enter__(self) -> Admin:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _open(wanted: tuple[str, int] | str) -> Any:
    if isinstance(wanted, tuple):
        return (_TcpServer6 if ":" in wanted[0] else _TcpServer)(wanted, _Handler)
    if os.path.exists(wanted):
        _check_unused(wanted)
    before = os.umask(0o177)
    try:
        return _UnixServer(wanted, _Handler)
    finally:
        os.umask(before)


def _check_unused(path: str) -> None:
    """A socket's file that a process left behind is in the way of the next; one that somebody listens on stays."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            _remove(path)
            return
    raise OSError(f"{path} is in use")


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


class _Server(socketserver.ThreadingMixIn):
    daemon_threads = True
    pages: Pages
    mesh: Administered
    stop: threading.Event

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("admin: a request failed", exc_info=True)


class _TcpServer(_Server, socketserver.TCPServer):
    allow_reuse_address = True


class _TcpServer6(_TcpServer):
    address_family = socket.AF_INET6


class _UnixServer(_Server, socketserver.UnixStreamServer):
    pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "resilmesh"
    sys_version = ""
    timeout = _PATIENCE
    server: Any

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        url = urlsplit(self.path)
        try:
            self._check_origin()
            if url.path == "/hystrix.stream" and self.command == "GET":
                self._stream()
                return
            page = self.server.pages.answer(self.command, url.path, dict(parse_qsl(url.query)), self.headers.get("accept", ""))
        except Wrong as wrong:
            page = as_json({"error": str(wrong)}, wrong.status)
        except Exception as error:
            log.exception("admin: %s failed", url.path)
            page = as_json({"error": f"{type(error).__name__}: {error}"}, 500)
        self._send(page)

    def _send(self, page: Page) -> None:
        body = page.body.encode()
        if self.headers.get("content-length", "0") != "0":
            self.close_connection = True  # a body that nobody has read
        self.send_response(page.status)
        self.send_header("Content-Type", page.kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _check_origin(self) -> None:
        host = urlsplit(f"//{self.headers.get('host', '')}").hostname or ""
        if host and host != "localhost" and not _is_address(host) and host != self.server.server_address[0]:
            raise Wrong(403, f"this server is not {host}: ask it by its address")
        if self.command == "POST":
            origin = self.headers.get("origin")
            if origin is not None and urlsplit(origin).netloc != self.headers.get("host"):
                raise Wrong(403, "a page of another origin changes nothing here")

    def _stream(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream;charset=UTF-8")
        self.send_header("Cache-Control", "no-cache, no-store, max-age=0, must-revalidate")
        self.end_headers()
        rolling, mesh = Rolling(), self.server.mesh
        while True:
            commands = list(rolling.commands(time.monotonic(), time.time(), mesh.telemetry.document()["snapshot"]))
            told = "".join(f"data: {json.dumps(each)}\n\n" for each in commands) or "ping: \n\n"
            try:
                self.wfile.write(told.encode())
                self.wfile.flush()
            except OSError:  # the dashboard is gone
                return
            if self.server.stop.wait(EVERY):
                return

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("admin: %s", format % args)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
