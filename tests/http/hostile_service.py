"""A service on 127.0.0.1 that does to its first connections what it is told, and then behaves.

What it does to a connection is an ``Act``: it gets the socket, before anything was read from it. When the client has gone, the
next ``recv`` or ``sendall`` raises, and the act is over: ``gone`` waits for that, so nothing is left open unseen.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator

Act = Callable[[socket.socket], None]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class HostileService:
    """``acts`` are for the first connections, in turn; ``behave`` for every later one, which it gets again and again."""

    def __init__(self, *acts: Act, behave: Act | None = None) -> None:
        self._acts = list(acts)
        self._behave = behave or answering(OK)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            act = self._acts.pop(0) if self._acts else self._behave
            thread = threading.Thread(target=self._serve, args=(connection, act), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, act: Act) -> None:
        connection.settimeout(0.05)
        with connection, contextlib.suppress(OSError):
            act(_Patient(connection, self._stopped))  # type: ignore[arg-type]  # as much of a socket as acts use

    def gone(self, seconds: float = 3.0) -> bool:
        """Whether every connection was closed by the client, or by its act, in so many seconds."""
        until = time.monotonic() + seconds
        for each in list(self._threads):
            each.join(max(0.0, until - time.monotonic()))
        return not any(each.is_alive() for each in self._threads)

    def stop(self) -> None:
        self._stopped.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class _Patient:
    """A socket that waits for as long as its service runs."""

    def __init__(self, inner: socket.socket, stopped: threading.Event) -> None:
        self._inner = inner
        self._stopped = stopped
        self.setsockopt = inner.setsockopt
        self.close = inner.close

    def recv(self, size: int) -> bytes:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                return self._inner.recv(size)
        return b""

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._stopped.is_set():
                raise OSError("stopped")
            with contextlib.suppress(TimeoutError):
                view = view[self._inner.send(view) :]


# ------------------------------------------------------------------------------------------------ acts


def asked(connection: socket.socket) -> None:
    """Read a request, body and all, and nothing of the next, which may have come. Raises ``OSError`` when the client has gone."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += _more(connection, 1)
    length = re.search(rb"content-length: *([0-9]+)", head, re.IGNORECASE)
    left = int(length[1]) if length else 0
    while left > 0:
        left -= len(_more(connection, min(left, 65536)))


def _more(connection: socket.socket, most: int) -> bytes:
    if not (part := connection.recv(most)):
        raise ConnectionError("the client has gone")
    return part


def answering(answer: bytes) -> Act:
    """The same answer to every request, for as long as there are any."""
    def act(connection: socket.socket) -> None:
        while True:
            asked(connection)
            connection.sendall(answer)

    return act


def saying(*parts: bytes, then: Act | None = None) -> Act:
    """Once asked, say this, and close. ``then`` in place of closing."""
    def act(connection: socket.socket) -> None:
        asked(connection)
        for part in parts:
            connection.sendall(part)
        if then is not None:
            then(connection)

    return act


def for_ever(first: bytes, again: Iterable[bytes] | bytes, every: float = 0.0) -> Act:
    """Say ``first`` and then ``again`` and again, until the client has gone."""
    def act(connection: socket.socket) -> None:
        asked(connection)
        connection.sendall(first)
        for part in _repeated(again):
            connection.sendall(part)
            if every:
                time.sleep(every)

    return act


def _repeated(again: Iterable[bytes] | bytes) -> Iterator[bytes]:
    parts = [again] if isinstance(again, bytes) else list(again)
    while True:
        yield from parts


def waiting(connection: socket.socket) -> None:
    """Say nothing, until the client has gone."""
    while connection.recv(65536):
        pass


def resetting(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def unread(connection: socket.socket) -> None:
    """Read nothing, whatever is sent. Ends by itself: who reads nothing does not see that the client has gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    time.sleep(0.4)


def early(answer: bytes, then: Act) -> Act:
    """Answer before the request is read."""
    def act(connection: socket.socket) -> None:
        connection.sendall(answer)
        then(connection)

    return act
