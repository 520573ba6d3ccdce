"""A raw HTTP/1.1 service on 127.0.0.1 that does what a script says: answers, drips, hangs, resets.

Each request takes the next act of ``service.script``, and ``OK`` when the script is at its end.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Seen:
    """A request as the service saw it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int


Act = Callable[[socket.socket, Seen], bool]
"""Plays one answer; whether the connection goes on."""


def answer(status: int = 200, body: bytes = b"ok", headers: dict[str, str] | None = None, delay: float = 0.0) -> Act:
    def act(connection: socket.socket, seen: Seen) -> bool:
        time.sleep(delay)
        lines = [f"HTTP/1.1 {status} Scripted"]
        all_headers = {"content-length": str(len(body)), **(headers or {})}
        lines += [f"{name}: {value}" for name, value in all_headers.items()]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if seen.method == "HEAD" else body))
        return True

    return act


def raw(*parts: bytes, every: float = 0.0, then_close: bool = True) -> Act:
    """Sends the parts, one each ``every`` seconds."""

    def act(connection: socket.socket, seen: Seen) -> bool:
        for part in parts:
            connection.sendall(part)
            time.sleep(every)
        return not then_close

    return act


def drip_head(every: float = 0.05) -> Act:
    """Never more than one byte of the headers at a time."""
    return raw(*(bytes([byte]) for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), every=every, then_close=False)


def drip_body(parts: int = 100, every: float = 0.05) -> Act:
    return raw(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % parts, *[b"x"] * parts, every=every, then_close=False)


def hang(seconds: float = 5.0) -> Act:
    def act(connection: socket.socket, seen: Seen) -> bool:
        connection.settimeout(seconds)
        with contextlib.suppress(OSError):
            connection.recv(1)
        return False

    return act


def close(connection: socket.socket, seen: Seen) -> bool:
    return False


def reset(connection: socket.socket, seen: Seen) -> bool:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


OK = answer()


@dataclass
class Service:
    script: list[Act] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    #: Everything after the script.
    otherwise: Act = OK
    #: Speaks TLS with it.
    tls: ssl.SSLContext | None = None

    def __post_init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.add(connection)
                number = self.connections
            threading.Thread(target=self._serve, args=(connection, number), daemon=True).start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        if self.tls is not None:
            try:
                secured = self.tls.wrap_socket(connection, server_side=True)
            except OSError:
                secured = connection  # the client does not trust us, and has gone
            with self._lock:
                self._open.discard(connection)
                self._open.add(secured)
            connection = secured
        # ValueError: a request that breaks off in the middle of a chunk.
        with connection, contextlib.suppress(OSError, ValueError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            reader = connection.makefile("rb")
            with reader:
                while (seen := _read_request(reader, number)) is not None:
                    with self._lock:
                        self.seen.append(seen)
                        act = self.script.pop(0) if self.script else self.otherwise
                    if not act(connection, seen):
                        break
        with self._lock:
            self._open.discard(connection)

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._open)

    def stop(self) -> None:
        """No new connections, and those that exist end."""
        # shutdown, because close alone leaves a blocked accept() waiting.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)


def _read_request(reader, number: int) -> Seen | None:  # type: ignore[no-untyped-def]
    start = reader.readline()
    if not start.strip():
        return None
    method, target, _ = start.decode().split(" ", 2)
    headers: dict[str, str] = {}
    while (line := reader.readline().strip()):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int(reader.readline(), 16):
            body += reader.read(size)
            reader.readline()
        reader.readline()
    else:
        body = reader.read(int(headers.get("content-length", "0")))
    return Seen(method, target, headers, body, number)


def unused_port() -> int:
    """A port of 127.0.0.1 that refuses connections (as long as nothing else takes it)."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
