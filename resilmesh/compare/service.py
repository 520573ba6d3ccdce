"""One endpoint of the test bed: a real HTTP server that does what its script says, and counts.

It runs in a process of its own (``python service.py``, nothing but the standard library; ``h2`` too when a connection
begins in HTTP/2). On stdin it
gets its ``Script`` as a line of JSON and answers on stdout with its port; when stdin ends it ends, so
that it cannot outlive the comparison. What happens to a request is drawn from the seed, the endpoint's
name, the header ``x-call`` and how often this endpoint has seen that call: every plane meets the same luck.

Two paths are the test bed's own and are not counted: ``PUT /.testbed/epoch`` (the monotonic second from which
outages are reckoned) and ``GET /.testbed/counts``. Calls named ``warm-up`` are answered at once and not counted.
An endpoint that refuses has a port and does not listen at it, so that nobody else can.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Protocol

CONTROL = "/.testbed/"
WARM_UP = "warm-up"
#: Added to every answer of an endpoint. An answer without it was made by the library or by Envoy.
SERVED_BY = "x-served-by"
VERSION = "x-version"
_BODY = b'{"sku":"A-1","in_stock":true}'
#: How a connection begins that speaks HTTP/2 from the start.
_HTTP2 = b"PRI * HTTP/2.0\r\n"
_INTERNAL_ERROR = 2
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Latency:
    """Log-normal time to answer: ``median`` in seconds, ``sigma`` of its logarithm (0: always the median)."""

    median: float = 0.0
    sigma: float = 0.0

    def draw(self, rng: random.Random) -> float:
        return self.median * math.exp(rng.gauss(0.0, self.sigma)) if self.sigma else self.median


@dataclass(frozen=True, slots=True)
class Outage:
    """From ``start`` to ``end`` (seconds of the run) every request ends in ``outcome``, after ``latency``."""

    start: float
    end: float
    outcome: str = "503"
    latency: Latency = Latency()

    @property
    def word(self) -> str:
        """What to call it: a service that only takes longer is not out."""
        return "brown-out" if self.outcome == "200" else "outage"


@dataclass(frozen=True, slots=True)
class Script:
    """What an endpoint does with requests.

    ``outcomes`` maps what happens to its share of requests, 0 to 1: a status such as ``"503"``, ``"reset"`` (RST
    once the request is read), ``"close"`` (FIN) or ``"hang"`` (no answer ever). The rest is answered 200. Over HTTP/2 a
    reset is one of the stream, and so is a close: a connection is shared.
    ``capacity`` requests are worked on at once, ``queue`` more wait their turn, the next is answered 503.
    """

    name: str
    version: str = "v1"
    outcomes: dict[str, float] = field(default_factory=dict)
    latency: Latency = Latency()
    capacity: int | None = None
    queue: int = 0
    outages: tuple[Outage, ...] = ()
    #: Nobody listens: connections are refused.
    refuses: bool = False
    seed: int = 0

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Script:
        outages = tuple(Outage(**{**each, "latency": Latency(**each["latency"])}) for each in data["outages"])
        return cls(**{**data, "latency": Latency(**data["latency"]), "outages": outages})


@dataclass(slots=True)
class Arrival:
    """One request of a call. Seconds of the run; ``ended`` is None as long as there is no answer, for ever after a hang."""

    call: str
    began: float
    ended: float | None = None


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Exchange(Protocol):
    """Where the answer to one request goes."""

    def answer(self, outcome: str, script: Script) -> None: ...
    def write(self, status: int, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> None: ...


class Endpoint:
    """The script's interpreter, and what it has seen. One event loop, so no locks."""

    def __init__(self, script: Script, loop: asyncio.AbstractEventLoop) -> None:
        self._script = script
        self._loop = loop
        self._epoch = time.monotonic()
        self._working = 0
        self._waiting: deque[tuple[Exchange, str, float, Arrival]] = deque()
        self._arrivals: list[Arrival] = []
        self._most_at_once = 0
        self._calls: Counter[str] = Counter()
        self._paths: Counter[str] = Counter()
        self._attempt_headers: Counter[str] = Counter()
        self._outcomes: Counter[str] = Counter()
        self._in_outage = 0
        self.connections = 0

    def handle(self, connection: Exchange, request: Request) -> None:
        if request.path.startswith(CONTROL):
            self._control(connection, request)
        elif request.headers.get("x-call") == WARM_UP:
            connection.answer("200", self._script)
        else:
            self._serve(connection, request)

    def _control(self, connection: Exchange, request: Request) -> None:
        match request.method, request.path.removeprefix(CONTROL):
            case "PUT", "epoch":
                self._epoch = float(request.body)
                connection.write(200, b"{}")
            case "GET", "counts":
                connection.write(200, json.dumps(self.counts()).encode())
            case _:
                connection.write(404, b"{}")

    def counts(self) -> dict[str, Any]:
        return {
            "requests": self._calls.total(), "calls": self._calls, "paths": self._paths, "attempt_headers": self._attempt_headers,
            "outcomes": self._outcomes, "most_at_once": self._most_at_once, "in_outage": self._in_outage,
            "connections": self.connections, "arrivals": [astuple(each) for each in self._arrivals],
        }

    def _serve(self, connection: Exchange, request: Request) -> None:
        call = request.headers.get("x-call", "")
        self._calls[call] += 1
        self._paths[request.path.partition("?")[0]] += 1
        self._attempt_headers[request.headers.get("x-envoy-attempt-count", "none")] += 1
        elapsed = time.monotonic() - self._epoch
        outcome, latency = self._fate(call, elapsed)
        arrival = Arrival(call, elapsed)
        self._arrivals.append(arrival)
        if self._script.capacity is None or self._working < self._script.capacity:
            self._work(connection, outcome, latency, arrival)
        elif len(self._waiting) < self._script.queue:
            self._waiting.append((connection, outcome, latency, arrival))
        else:
            self._finish(connection, "503", arrival)

    def _fate(self, call: str, elapsed: float) -> tuple[str, float]:
        script = self._script
        rng = random.Random(f"{script.seed}/{script.name}/{call}/{self._calls[call]}")  # noqa: S311  repeatable, not secret
        for outage in script.outages:
            if outage.start <= elapsed < outage.end:
                self._in_outage += 1
                return outage.outcome, outage.latency.draw(rng)
        lot = rng.random()
        for outcome, share in script.outcomes.items():
            lot -= share
            if lot < 0:
                return outcome, script.latency.draw(rng)
        return "200", script.latency.draw(rng)

    def _work(self, connection: Exchange, outcome: str, latency: float, arrival: Arrival) -> None:
        self._working += 1
        self._most_at_once = max(self._most_at_once, self._working)
        if latency:
            self._loop.call_later(latency, self._worked, connection, outcome, arrival)
        else:
            self._worked(connection, outcome, arrival)

    def _worked(self, connection: Exchange, outcome: str, arrival: Arrival) -> None:
        # A caller that went away does not shorten the work: real services rarely notice either.
        self._working -= 1
        self._finish(connection, outcome, arrival)
        while self._waiting and self._working < (self._script.capacity or 0):
            self._work(*self._waiting.popleft())

    def _finish(self, connection: Exchange, outcome: str, arrival: Arrival) -> None:
        self._outcomes[outcome] += 1
        if outcome != "hang":
            arrival.ended = time.monotonic() - self._epoch
        connection.answer(outcome, self._script)


class Connection(asyncio.Protocol):
    """Just enough HTTP/1.1: one request at a time, bodies by Content-Length, keep-alive."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._received = b""
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._endpoint.connections += 1

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.startswith(_HTTP2):
            streams = Streams(self._endpoint, self._transport)
            self._transport.set_protocol(streams)
            streams.data_received(self._received)
        else:
            self._next()

    def _next(self) -> None:
        if self._busy or b"\r\n\r\n" not in self._received:
            return
        head, _, rest = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "transfer-encoding" in headers:
            self.write(411, b"{}")
            self._transport.close()
            return
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._received = rest[length:]
        method, path, _ = first.split(" ", 2)
        self._busy = True
        self._endpoint.handle(self, Request(method, path, headers, rest[:length]))

    def answer(self, outcome: str, script: Script) -> None:
        if self._transport.is_closing():
            return
        if outcome == "reset":
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
        elif outcome == "close":
            self._transport.close()
        elif outcome != "hang":
            self.write(int(outcome), _BODY, ((SERVED_BY, script.name), (VERSION, script.version)))

    def write(self, status: int, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in (*_headers(body), *headers))
        self._transport.write(f"HTTP/1.1 {status} \r\n{lines}\r\n".encode("latin-1") + body)
        self._busy = False
        self._next()


class Streams(asyncio.Protocol):
    """Just enough HTTP/2 with prior knowledge: requests side by side."""

    def __init__(self, endpoint: Endpoint, transport: asyncio.Transport) -> None:
        from h2.config import H2Configuration
        from h2.connection import H2Connection

        self._endpoint = endpoint
        self._transport = transport
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self.h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        from h2 import events

        for event in self.h2.receive_data(data):
            match event:
                case events.RequestReceived():
                    self._requests[event.stream_id] = {str(name): str(value) for name, value in event.headers}, bytearray()
                case events.DataReceived():
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    self._requests[event.stream_id][1].extend(event.data)
                case events.StreamEnded():
                    headers, body = self._requests.pop(event.stream_id)
                    request = Request(headers[":method"], headers[":path"], headers, bytes(body))
                    self._endpoint.handle(Stream(self, event.stream_id), request)
                case events.StreamReset():
                    self._requests.pop(event.stream_id, None)
        self.flush()

    def flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self.h2.data_to_send())


class Stream:
    """The answer to one request over HTTP/2."""

    def __init__(self, streams: Streams, number: int) -> None:
        self._streams = streams
        self._number = number

    def answer(self, outcome: str, script: Script) -> None:
        if outcome in ("reset", "close"):
            self._say(lambda: self._streams.h2.reset_stream(self._number, _INTERNAL_ERROR))
        elif outcome != "hang":
            self.write(int(outcome), _BODY, ((SERVED_BY, script.name), (VERSION, script.version)))

    def write(self, status: int, body: bytes, headers: Sequence[tuple[str, str]] = ()) -> None:
        self._say(lambda: self._streams.h2.send_headers(self._number, [(":status", str(status)), *_headers(body), *headers]))
        self._say(lambda: self._streams.h2.send_data(self._number, body, end_stream=True))

    def _say(self, send: Callable[[], None]) -> None:
        from h2.exceptions import ProtocolError

        # The caller may have reset the stream, or left, since it asked.
        with contextlib.suppress(ProtocolError):
            send()
            self._streams.flush()


def _headers(body: bytes) -> tuple[tuple[str, str], ...]:
    return ("content-type", "application/json"), ("content-length", str(len(body)))


async def serve(script: Script) -> None:
    """Serve on a free port of 127.0.0.1, or refuse to, until stdin ends."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    # Nothing more is ever written to our stdin: the only thing that can be read there is its end.
    loop.add_reader(sys.stdin.fileno(), ended.set)
    if script.refuses:
        held = socket.socket()
        held.bind(("127.0.0.1", 0))
    else:
        endpoint = Endpoint(script, loop)
        server = await loop.create_server(lambda: Connection(endpoint), "127.0.0.1", 0, backlog=1024)
        held = server.sockets[0]
    sys.stdout.write(json.dumps({"port": held.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    await ended.wait()
    # A connection may still be in the middle of a long answer; there is nobody left to read it.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(serve(Script.from_json(json.loads(sys.stdin.readline()))))
