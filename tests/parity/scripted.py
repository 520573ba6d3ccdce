"""A service on 127.0.0.1 that does what a test says, and remembers what it saw. HTTP/1.1 by hand, so that it can
reset, close, hang or stop in the middle of a body, which no server library allows."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO, Literal


@dataclass(frozen=True)
class Say:
    """What the service does with one request. Durations are seconds."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b"ok"
    #: Before the first byte of the answer.
    delay: float = 0.0
    #: Between the headers and the body.
    body_delay: float = 0.0
    #: ``last``: an answer, after which the connection is closed without a word.
    how: Literal["answer", "last", "reset", "close", "half"] = "answer"


OK = Say()
RESET = Say(how="reset")
CLOSE = Say(how="close")


def status(code: int, **more: object) -> Say:
    return Say(status=code, body=f"service says {code}".encode(), **more)  # type: ignore[arg-type]  # Say's own keywords


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    method: str
    target: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    at: float = field(repr=False)


#: What to do with the request and how many came before it; or a list of which the last is repeated.
Script = Callable[[Seen, int], Say] | Sequence[Say] | Say


class Service:
    """Listens from ``__enter__`` to ``__exit__``; a thread for each connection."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._script: Script = OK
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self.seen: list[Seen] = []
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=256)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def __enter__(self) -> Service:
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._listener.close()
        self._close_connections()

    def play(self, script: Script) -> None:
        """Forget what was seen, drop the connections, and follow ``script`` from now on."""
        self._close_connections()
        with self._lock:
            self._script, self.seen = script, []

    def _close_connections(self) -> None:
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, EOFError), connection.makefile("rb") as stream:
            while self._exchange(connection, _read_request(stream)):
                pass
        with self._lock:
            self._connections.discard(connection)

    def _exchange(self, connection: socket.socket, request: Seen) -> bool:
        """Answer one request; False when the connection is done."""
        with self._lock:
            before = len(self.seen)
            self.seen.append(request)
            script = self._script
        say = _line(script, request, before)
        time.sleep(say.delay)
        if say.how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if say.how in ("reset", "close"):
            return False
        length = [] if say.status == 204 else [("content-length", str(len(say.body)))]
        head = [*length, *say.headers]
        lines = [f"HTTP/1.1 {say.status} X", *(f"{name}: {value}" for name, value in head)]
        connection.sendall("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        time.sleep(say.body_delay)
        if request.method == "HEAD":  # has no body that could stop half-way
            return say.how != "last"
        connection.sendall(say.body if say.how != "half" else say.body[: len(say.body) // 2])
        return say.how == "answer"


def _line(script: Script, request: Seen, before: int) -> Say:
    if isinstance(script, Say):
        return script
    if callable(script):
        return script(request, before)
    return script[min(before, len(script) - 1)]


def _read_request(stream: BinaryIO) -> Seen:
    first = stream.readline().decode("latin-1").split(" ")
    if len(first) != 3 or not first[2].startswith("HTTP/1"):
        raise EOFError
    method, target, _ = first
    headers: dict[str, str] = {}
    while (line := stream.readline().strip()):
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = f"{headers[name.lower()]},{value.strip()}" if name.lower() in headers else value.strip()
    return Seen(method, target, headers, _read_body(stream, headers), time.monotonic())


def _read_body(stream: BinaryIO, headers: dict[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return stream.read(int(headers.get("content-length", "0")))
    body = b""
    while size := int(stream.readline() or b"0", 16):  # a client that goes away ends the body
        body += stream.read(size)
        stream.readline()
    stream.readline()
    return body


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """An address that refuses connections: bound, so that nobody else gets it, and not listening."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


@contextlib.contextmanager
def unanswering() -> Iterator[str]:
    """An address whose connections are never completed: its backlog is full, so that the kernel drops the SYN."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"
