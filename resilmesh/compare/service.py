"""One endpoint of the test bed: a real HTTP and gRPC server that does what its script says, and counts.

It runs in a process of its own (``python service.py``, nothing but the standard library; ``service_http2`` and ``h2`` too
when a connection begins in HTTP/2). On stdin it
gets its ``Script`` as a line of JSON and answers on stdout with its port; when stdin ends it ends, so
that it cannot outlive the comparison. What happens to a request is drawn from the seed, the endpoint's
name, the header ``x-call`` and how often this endpoint has seen that call: every plane meets the same luck.

Two paths are the test bed's own and are not counted: ``PUT /.testbed/epoch`` (the monotonic second from which
outages are reckoned) and ``GET /.testbed/counts``. Calls named ``warm-up`` are answered at once and not counted.
An endpoint that refuses has a port and does not listen at it, so that nobody else can.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import math
import os
import random
import socket
import struct
import sys
import time
from collections import Counter, deque
from dataclasses import astuple, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

CONTROL = "/.testbed/"
WARM_UP = "warm-up"
#: Added to every answer of an endpoint. An answer without it was made by the library or by Envoy.
SERVED_BY = "x-served-by"
VERSION = "x-version"
_BODY = b'{"sku":"A-1","in_stock":true}'
#: How a connection begins that speaks HTTP/2 from the start.
_HTTP2 = b"PRI * HTTP/2.0\r\n"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
#: As a word of a script: all is well, over HTTP and over gRPC.
GOOD = frozenset({"200", "OK"})

Headers = tuple[tuple[str, str], ...]


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
        return "brown-out" if self.outcome in GOOD else "outage"


@dataclass(frozen=True, slots=True)
class Script:
    """What an endpoint does with requests.

    ``outcomes`` maps what happens to its share of requests, 0 to 1: a status such as ``"503"`` (of gRPC ``"UNAVAILABLE"`` or
    ``"INTERNAL"``), ``"reset"`` (RST once the request is read), ``"close"`` (FIN), ``"hang"`` (no answer ever) or, of a stream of
    gRPC messages, ``"cut"`` (UNAVAILABLE after half of them). The rest is answered 200 or OK. Over HTTP/2 a
    reset is one of the stream, and so is a close: a connection is shared.
    ``capacity`` requests are worked on at once, ``queue`` more wait their turn, the next is answered 503 or UNAVAILABLE.
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
    #: Of a stream of gRPC messages.
    messages: int = 20
    #: Whom it fails, over gRPC, it asks to come back after so many milliseconds.
    pushback: int | None = None
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes of a request: the script's word for it, and what the answer carries. The signature says which endpoint's it is."""

    outcome: str
    body: bytes
    signature: Headers = ()
    messages: int = 1
    pushback: int | None = None


class Exchange(Protocol):
    """Where the answer to one request goes. ``good`` and ``overloaded`` are its protocol's words for a script."""

    good: str
    overloaded: str

    def answer(self, what: Answer) -> None: ...


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
            self._answer(connection, connection.good)
        else:
            self._serve(connection, request)

    def _control(self, connection: Exchange, request: Request) -> None:
        match request.method, request.path.removeprefix(CONTROL):
            case "PUT", "epoch":
                self._epoch = float(request.body)
                connection.answer(Answer("200", b"{}"))
            case "GET", "counts":
                connection.answer(Answer("200", json.dumps(self.counts()).encode()))
            case _:
                connection.answer(Answer("404", b"{}"))

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
        outcome, latency = self._fate(call, elapsed, connection.good)
        arrival = Arrival(call, elapsed)
        self._arrivals.append(arrival)
        if self._script.capacity is None or self._working < self._script.capacity:
            self._work(connection, outcome, latency, arrival)
        elif len(self._waiting) < self._script.queue:
            self._waiting.append((connection, outcome, latency, arrival))
        else:
            self._finish(connection, connection.overloaded, arrival)

    def _fate(self, call: str, elapsed: float, good: str) -> tuple[str, float]:
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
        return good, script.latency.draw(rng)

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
        self._answer(connection, outcome)

    def _answer(self, connection: Exchange, outcome: str) -> None:
        script = self._script
        connection.answer(Answer(
            outcome, _BODY, ((SERVED_BY, script.name), (VERSION, script.version)), script.messages, script.pushback))


class Connection(asyncio.Protocol):
    """Just enough HTTP/1.1: one request at a time, bodies by Content-Length, keep-alive."""

    good, overloaded = "200", "503"

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
            streams = _http2().Streams(self._endpoint, self._transport, Request)
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
            self._write("411", b"{}", ())
            self._transport.close()
            return
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return
        self._received = rest[length:]
        method, path, _ = first.split(" ", 2)
        self._busy = True
        self._endpoint.handle(self, Request(method, path, headers, rest[:length]))

    def answer(self, what: Answer) -> None:
        if self._transport.is_closing():
            return
        if what.outcome == "reset":
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
        elif what.outcome == "close":
            self._transport.close()
        elif what.outcome != "hang":
            self._write(what.outcome, what.body, what.signature)

    def _write(self, status: str, body: bytes, headers: Headers) -> None:
        fixed = ("content-type", "application/json"), ("content-length", str(len(body)))
        lines = "".join(f"{name}: {value}\r\n" for name, value in (*fixed, *headers))
        self._transport.write(f"HTTP/1.1 {status} \r\n{lines}\r\n".encode("latin-1") + body)
        self._busy = False
        self._next()


def _http2() -> ModuleType:
    """The module beside this one, by its path: as a script this one is in no package."""
    if "service_http2" not in sys.modules:
        spec = importlib.util.spec_from_file_location("service_http2", Path(__file__).with_name("service_http2.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules["service_http2"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["service_http2"]


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
