"""A gRPC service on 127.0.0.1 that does what a test says, and remembers what it saw: the ``Shop`` of ``protos/shop.proto``, served by a
real ``grpc.server``. What no such server can be made to do (reset a stream, refuse it, answer with HTML) does ``raw_http2.py``.

    with GrpcService([status("UNAVAILABLE"), OK]) as service:
        with grpc.insecure_channel(service.address) as channel:
            ShopStub(channel).Buy(Order(text="tea"))
        assert [seen.method for seen in service.seen] == ["Buy"]
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any, Literal

import grpc

from tests.grpc.protos.shop_pb2 import Order, Receipt
from tests.grpc.protos.shop_pb2_grpc import ShopServicer, add_ShopServicer_to_server

Metadata = tuple[tuple[str, str | bytes], ...]
#: Remaining times above this are grpc's way to say that a call has no deadline.
_FOREVER = 10_000_000


@dataclass(frozen=True)
class Say:
    """What the service does with one call, in the order of the fields. Durations are seconds."""

    #: Before anything is sent.
    delay: float = 0.0
    #: Initial metadata, sent on their own; None: with the first message or the status, as grpc does unasked.
    initial: Metadata | None = None
    #: How many messages are sent before the end (of ``Collect``: read). None: what is natural, see ``GrpcService``.
    messages: int | None = None
    #: Before each message.
    gap: float = 0.0
    #: ``hang``: nothing more, until the call is cancelled or its deadline has passed.
    how: Literal["end", "hang"] = "end"
    code: grpc.StatusCode = grpc.StatusCode.OK
    details: str = ""
    #: Trailing metadata.
    trailers: Metadata = ()


OK = Say()
HANG = Say(how="hang")


def status(code: str, **more: Any) -> Say:
    """Ends with the status of that name; ``more`` are other fields of ``Say``."""
    return Say(**{"code": grpc.StatusCode[code], "details": f"service says {code}", **more})


@dataclass
class Seen:
    """A call as it arrived."""

    #: "Buy", "Look", "Watch", "Collect", "Chat".
    method: str
    metadata: dict[str, str | bytes] = field(repr=False)
    #: Seconds until the deadline that the caller sent; None: it sent none.
    remaining: float | None
    peer: str = field(repr=False)
    #: ``time.monotonic()`` at arrival.
    at: float = field(repr=False)
    #: Requests read so far.
    messages: list[Order] = field(default_factory=list)
    #: The caller has closed its side of the stream (of unary requests: always).
    half_closed: bool = False
    #: Set when the call is over here, however it ended.
    over: threading.Event = field(default_factory=threading.Event, repr=False)
    #: When the call ended before the service was done with it: cancelled, deadline passed, connection lost.
    cancelled_at: float | None = None


#: What to do with the call and how many came before it; or a list of which the last is repeated.
Script = Callable[[Seen, int], Say] | Sequence[Say] | Say


class GrpcService:
    """Serves from ``__enter__`` to ``__exit__``; ``restart`` in between drops what is in flight and listens on the same port.

    Left to its nature (``Say.messages`` is None), ``Buy`` and ``Look`` answer with the order's content; ``Watch`` sends as many receipts as
    ``number`` says, numbered from 0; ``Collect`` reads to the half-close and answers with how many orders it read (``number``) and their
    texts joined; ``Chat`` answers each order with its content until the half-close. Every receipt's text names this service when
    ``name`` is given: ``name:text``.

    ``also`` is called with each new ``grpc.Server`` before it starts, to add health, reflection or what else a test wants.
    """

    def __init__(
        self, script: Script = OK, *, name: str = "", address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None,
        compression: grpc.Compression | None = None, interceptors: Sequence[Any] = (), also: Callable[[grpc.Server], None] | None = None,
        workers: int = 64,
    ) -> None:
        self._script = script
        self._name, self._credentials, self._compression = name, credentials, compression
        self._interceptors, self._also, self._workers = tuple(interceptors), also, workers
        self._lock = threading.Lock()
        self.address = address
        self.seen: list[Seen] = []

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def __enter__(self) -> GrpcService:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._pool = futures.ThreadPoolExecutor(self._workers)
        self._server = grpc.server(
            self._pool, interceptors=self._interceptors, options=[("grpc.so_reuseport", 0)], compression=self._compression,
        )
        add_ShopServicer_to_server(_Shop(self), self._server)
        if self._also is not None:
            self._also(self._server)
        host = self.address.rpartition(":")[0]
        if self._credentials is None:
            port = self._server.add_insecure_port(self.address)
        else:
            port = self._server.add_secure_port(self.address, self._credentials)
        self.address = f"{host}:{port}"
        self._server.start()

    def stop(self, grace: float | None = None) -> None:
        """Stop listening; calls in flight are cancelled after ``grace`` seconds. Returns when nothing is left of the server."""
        self._server.stop(grace).wait()
        self._pool.shutdown()

    def restart(self) -> None:
        self.stop()
        self.start()

    def play(self, script: Script) -> None:
        """Forget what was seen and follow ``script`` from now on."""
        with self._lock:
            self._script, self.seen = script, []

    def arrive(self, method: str, context: grpc.ServicerContext) -> tuple[Seen, Say]:
        remaining = context.time_remaining()
        seen = Seen(
            method, dict(context.invocation_metadata()), None if remaining is None or remaining > _FOREVER else remaining, context.peer(),
            time.monotonic(),
        )
        with self._lock:
            before = len(self.seen)
            self.seen.append(seen)
            script = self._script
        return seen, _line(script, seen, before)

    def receipt(self, order: Order, number: int | None = None) -> Receipt:
        text = f"{self._name}:{order.text}" if self._name else order.text
        return Receipt(text=text, number=order.number if number is None else number, payload=order.payload)


def _line(script: Script, seen: Seen, before: int) -> Say:
    if isinstance(script, Say):
        return script
    if callable(script):
        return script(seen, before)
    return script[min(before, len(script) - 1)]


class _Call:
    """One call in the hands of the service; as a context manager it tells what ended early from what was finished."""

    def __init__(self, service: GrpcService, method: str, context: grpc.ServicerContext) -> None:
        self._context = context
        self.seen, self.say = service.arrive(method, context)
        self._done = False
        if not context.add_callback(self._ended):
            self._ended()

    def _ended(self) -> None:
        if not self._done:
            self.seen.cancelled_at = time.monotonic()
        self.seen.over.set()

    def begin(self) -> None:
        self._wait(self.say.delay)
        if self.say.initial is not None:
            self._context.send_initial_metadata(self.say.initial)

    def paced(self, receipts: Iterator[Receipt]) -> Iterator[Receipt]:
        """As many of them as the script wants, each after the gap."""
        for receipt in itertools.islice(receipts, self.say.messages):
            self._wait(self.say.gap)
            yield receipt

    def orders(self, arriving: Iterator[Order]) -> Iterator[Order]:
        for order in arriving:
            self.seen.messages.append(order)
            yield order
        self.seen.half_closed = True

    def end(self) -> None:
        """The status. Raises, as grpc wants it, when that is not OK."""
        if self.say.how == "hang":
            self.seen.over.wait()
        self._done = True
        self._context.set_trailing_metadata(self.say.trailers)
        if self.say.code is not grpc.StatusCode.OK:
            self._context.abort(self.say.code, self.say.details)

    def _wait(self, seconds: float) -> None:
        if seconds:
            self.seen.over.wait(seconds)


class _Shop(ShopServicer):
    def __init__(self, service: GrpcService) -> None:
        self._service = service

    def Buy(self, request: Order, context: grpc.ServicerContext) -> Receipt:
        return self._unary("Buy", request, context)

    def Look(self, request: Order, context: grpc.ServicerContext) -> Receipt:
        return self._unary("Look", request, context)

    def Watch(self, request: Order, context: grpc.ServicerContext) -> Iterator[Receipt]:
        call = self._read("Watch", request, context)
        call.begin()
        count = request.number if call.say.messages is None else call.say.messages
        yield from call.paced(self._service.receipt(request, number) for number in range(count))
        call.end()

    def Collect(self, request_iterator: Iterator[Order], context: grpc.ServicerContext) -> Receipt:
        call = _Call(self._service, "Collect", context)
        call.begin()
        orders = list(itertools.islice(call.orders(request_iterator), call.say.messages))
        call.end()
        return self._service.receipt(Order(text="".join(order.text for order in orders)), len(orders))

    def Chat(self, request_iterator: Iterator[Order], context: grpc.ServicerContext) -> Iterator[Receipt]:
        call = _Call(self._service, "Chat", context)
        call.begin()
        yield from call.paced(self._service.receipt(order) for order in call.orders(request_iterator))
        call.end()

    def _unary(self, method: str, request: Order, context: grpc.ServicerContext) -> Receipt:
        call = self._read(method, request, context)
        call.begin()
        call.end()
        return self._service.receipt(request)

    def _read(self, method: str, request: Order, context: grpc.ServicerContext) -> _Call:
        call = _Call(self._service, method, context)
        call.seen.messages.append(request)
        call.seen.half_closed = True
        return call
