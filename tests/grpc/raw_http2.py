"""A server on 127.0.0.1 that speaks HTTP/2 by hand, for what a grpc server cannot be made to do to its caller: refuse or reset a stream, go
away, answer with HTML, close the connection after the headers, send a message byte by byte.

A script is a list of steps for each stream, played from its headers on by a thread of its own:

    with RawHttp2([[Reset(ErrorCodes.REFUSED_STREAM)], answer(Receipt(text="tea"))]) as server:
        with grpc.insecure_channel(server.address) as channel:
            ShopStub(channel).Buy(Order())
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes
from hyperframe.frame import GoAwayFrame

Header = tuple[str, str]


class Message(Protocol):
    def SerializeToString(self) -> bytes: ...  # protobuf's name


@dataclass(frozen=True)
class Read:
    """Wait until the caller has closed its side of the stream, or reset it."""


@dataclass(frozen=True)
class Wait:
    """Seconds; ends early when the caller resets the stream."""

    seconds: float


@dataclass(frozen=True)
class Headers:
    """Response headers, by default those with which a gRPC response begins; ``end``: there is nothing after them."""

    status: int = 200
    headers: tuple[Header, ...] = (("content-type", "application/grpc"),)
    end: bool = False


@dataclass(frozen=True)
class Data:
    """Bytes as they are. ``gap``: seconds after each byte, which then is a frame of its own."""

    data: bytes
    gap: float = 0.0
    end: bool = False


@dataclass(frozen=True)
class Trailers:
    """The end of a gRPC response: the status as a number, and what else."""

    status: int = 0
    headers: tuple[Header, ...] = ()


@dataclass(frozen=True)
class Reset:
    """RST_STREAM."""

    code: ErrorCodes = ErrorCodes.CANCEL


@dataclass(frozen=True)
class GoAway:
    """GOAWAY: streams above ``last`` were not processed, says the server. The connection stays open."""

    last: int = 0
    code: ErrorCodes = ErrorCodes.NO_ERROR


@dataclass(frozen=True)
class Close:
    """The connection, without a word; ``reset``: by TCP RST."""

    reset: bool = False


Step = Read | Wait | Headers | Data | Trailers | Reset | GoAway | Close
Steps = Sequence[Step]


def framed(message: Message | bytes) -> bytes:
    """A message as gRPC sends it: not compressed, its length, its bytes."""
    content = message if isinstance(message, bytes) else message.SerializeToString()
    return struct.pack(">BI", 0, len(content)) + content


def answer(*messages: Message | bytes) -> Steps:
    """A response that is in order: headers, the messages, OK."""
    return [Read(), Headers(), *(Data(framed(each)) for each in messages), Trailers()]


def failure(status: int, details: str = "", *more: Header) -> Steps:
    """Trailers only: a status in the headers, as a grpc server answers a call that it does not want."""
    headers = (("content-type", "application/grpc"), ("grpc-status", str(status)), ("grpc-message", details), *more)
    return [Read(), Headers(headers=headers, end=True)]


def html(status: int, body: bytes = b"<h1>no</h1>") -> Steps:
    """What a proxy in between says."""
    return [Read(), Headers(status, (("content-type", "text/html"), ("content-length", str(len(body))))), Data(body, end=True)]


@dataclass
class Seen:
    """A stream as it arrived."""

    path: str
    headers: dict[str, str] = field(repr=False)
    stream_id: int
    #: Of the server, from 0: which connection it came by.
    connection: int
    #: ``time.monotonic()`` at arrival.
    at: float = field(repr=False)
    #: What was received so far, with gRPC's framing.
    body: bytes = field(default=b"", repr=False)
    #: The code by which the caller reset the stream.
    reset: int | None = None
    #: Set at the end of the caller's side: half-close, reset, connection lost.
    ended: threading.Event = field(default_factory=threading.Event, repr=False)
    #: Set when the caller has reset the stream or the connection is lost.
    gone: threading.Event = field(default_factory=threading.Event, repr=False)


#: Steps for the stream and how many came before it; or a list of steps of which the last is repeated.
Script = Callable[[Seen, int], Steps] | Sequence[Steps]


class RawHttp2:
    """Listens from ``__enter__`` to ``__exit__``. A thread for each connection and for each stream."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        self.seen: list[Seen] = []

    def __enter__(self) -> RawHttp2:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
        for connection in self._connections:
            connection.close()
        for connection in self._connections:
            connection.join()

    @property
    def connections(self) -> int:
        """How many were ever accepted."""
        return len(self._connections)

    def play(self, script: Script) -> None:
        """Forget what was seen and follow ``script`` from now on. Connections stay."""
        with self._lock:
            self._script, self.seen = script, []

    def arrive(self, seen: Seen) -> Steps:
        with self._lock:
            before = len(self.seen)
            self.seen.append(seen)
            script = self._script
        return script(seen, before) if callable(script) else script[min(before, len(script) - 1)]

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(self, accepted, len(self._connections))
            self._connections.append(connection)
            connection.start()


class _Connection(threading.Thread):
    def __init__(self, server: RawHttp2, connection: socket.socket, number: int) -> None:
        super().__init__(daemon=True)
        self._server, self._socket, self._number = server, connection, number
        self._lock = threading.Lock()
        #: Guarded by the lock, as is the order of what is written to the socket.
        self._protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._streams: dict[int, Seen] = {}
        self._players: list[threading.Thread] = []

    def close(self, reset: bool = False) -> None:
        with contextlib.suppress(OSError):
            if reset:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)  # wakes the thread that reads, which closes it

    def run(self) -> None:
        with self._socket, contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            with self._lock:
                self._protocol.initiate_connection()
                self._flush()
            while data := self._socket.recv(65536):
                with self._lock:
                    for event in self._protocol.receive_data(data):
                        self._hear(event)
                    self._flush()
        for seen in self._streams.values():
            seen.gone.set()
            seen.ended.set()
        for player in self._players:
            player.join()

    def _flush(self) -> None:
        self._socket.sendall(self._protocol.data_to_send())

    def _hear(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(headers=headers, stream_id=stream_id):
                names = {str(name): str(value) for name, value in headers}
                seen = Seen(names.get(":path", ""), names, stream_id, self._number, time.monotonic())
                self._streams[stream_id] = seen
                player = threading.Thread(target=self._play, args=(seen, self._server.arrive(seen)), daemon=True)
                self._players.append(player)
                player.start()
            case h2.events.DataReceived(data=data, stream_id=stream_id, flow_controlled_length=length):
                self._streams[stream_id].body += data
                self._protocol.acknowledge_received_data(length, stream_id)
            case h2.events.StreamEnded(stream_id=stream_id):
                self._streams[stream_id].ended.set()
            case h2.events.StreamReset(stream_id=stream_id, error_code=code):
                self._streams[stream_id].reset = int(code)
                self._streams[stream_id].gone.set()
                self._streams[stream_id].ended.set()

    def _play(self, seen: Seen, steps: Steps) -> None:
        """Until the caller is gone: what is written then, nobody wants."""
        with contextlib.suppress(OSError, h2.exceptions.ProtocolError):
            for step in steps:
                self._do(seen, step)
                if seen.gone.is_set():
                    return

    def _do(self, seen: Seen, step: Step) -> None:
        match step:
            case Read():
                seen.ended.wait()
            case Wait(seconds):
                seen.gone.wait(seconds)
            case Close(reset):
                self.close(reset)
            case Data(data, gap, end) if gap:
                for at in range(len(data)):
                    self._write(seen, Data(data[at:at + 1], end=end and at == len(data) - 1))
                    if seen.gone.wait(gap):
                        return
            case _:
                self._write(seen, step)

    def _write(self, seen: Seen, step: Step) -> None:
        with self._lock:
            match step:
                case Headers(status, headers, end):
                    self._protocol.send_headers(seen.stream_id, [(":status", str(status)), *headers], end_stream=end)
                case Data(data, _, end):
                    self._protocol.send_data(seen.stream_id, data, end_stream=end)
                case Trailers(status, headers):
                    self._protocol.send_headers(seen.stream_id, [("grpc-status", str(status)), *headers], end_stream=True)
                case Reset(code):
                    self._protocol.reset_stream(seen.stream_id, code)
                case GoAway(last, code):  # by hand: h2 sends nothing more after its own, but streams up to `last` go on
                    self._socket.sendall(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())
            self._flush()
