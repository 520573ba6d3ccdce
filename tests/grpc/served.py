"""A gRPC server of each kind with the library's interceptor, whose handlers do what their requests say.

    with served("aio", mesh) as shop:
        shop.ask("Buy", "hold", timeout=1)

What a request's text says, a word a message, is done before that message is answered:

    hold     wait for ``shop.release``
    left     wait for the call's end, as its caller brings it about, or a thread for ``shop.release``
    raise    an exception
    abort    NOT_FOUND, by abort
    code     NOT_FOUND, by set_code
    tell     answer with the deadline that outbound calls inherit, in seconds from now
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from typing import Any, Literal

import grpc
import grpc.aio

import resilmesh_grpc
from resilmesh import Mesh
from resilmesh.drive.context import deadline
from tests.grpc.protos.shop_pb2 import Order, Receipt
from tests.grpc.protos.shop_pb2_grpc import ShopServicer, ShopStub, add_ShopServicer_to_server

#: A ``grpc.server``, a ``grpc.aio.server``, and one of those with handlers that are no coroutines.
Kind = Literal["sync", "aio", "aio-threads"]
KINDS: tuple[Kind, ...] = ("sync", "aio", "aio-threads")
ARITIES = ("Buy", "Watch", "Collect", "Chat")
#: Nothing here takes longer, not on a machine that stalls either.
LONG = 20.0


class Shop:
    """What is served, and who asks for it."""

    def __init__(self, address: str, handlers: Handlers) -> None:
        self.address = address
        self.entered, self.release, self.ended = handlers.entered, handlers.release, handlers.ended
        self.channel = grpc.insecure_channel(address)
        self.stub = ShopStub(self.channel)
        self.pool = futures.ThreadPoolExecutor(16)

    def call(self, arity: str, *texts: str, timeout: float | None = LONG, metadata: Any = None) -> Any:
        """The call object, which is also its future or its stream. ``texts``: what is done before each message."""
        if arity in ("Collect", "Chat"):
            requests = iter([Order(text=text) for text in texts])
            method = getattr(self.stub, arity)
            return (method if arity == "Chat" else method.future)(requests, timeout=timeout, metadata=metadata)
        order = Order(text=" ".join(texts), number=len(texts))
        method = getattr(self.stub, arity)
        return (method if arity == "Watch" else method.future)(order, timeout=timeout, metadata=metadata)

    def ask(self, arity: str, *texts: str, **more: Any) -> list[Any]:
        """Every message of the answer."""
        call = self.call(arity, *texts, **more)
        return list(call) if arity in ("Watch", "Chat") else [call.result()]

    def refused(self, arity: str, *texts: str, **more: Any) -> Any:
        """The error that the call ends in."""
        try:
            found = self.ask(arity, *texts, **more)
        except grpc.RpcError as error:
            return error
        raise AssertionError(f"{arity} answered {found}")

    def wait_entered(self, count: int) -> None:
        """Until so many handlers have begun."""
        self._until(lambda: len(self.entered) >= count, f"{count} handlers, not {self.entered}")

    def _until(self, holds: Callable[[], bool], what: str) -> None:
        until = time.monotonic() + LONG
        while not holds():
            assert time.monotonic() < until, what
            time.sleep(0.002)


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until something holds, which takes a moment."""
    until = time.monotonic() + LONG
    while not holds():
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.002)


class Handlers(ShopServicer):
    """What both kinds of handler share."""

    def __init__(self) -> None:
        #: A method's name for each message that a handler began to work on.
        self.entered: list[str] = []
        #: The same for each handler that came to its end, whatever that was.
        self.ended: list[str] = []
        self.release = threading.Event()
        self.outbound: Callable[[], Any] = lambda: None

    def answer(self, text: str) -> Receipt:
        return Receipt(text=repr(deadline() - time.monotonic()) if text == "tell" else text)


class Threads(Handlers):
    def act(self, method: str, text: str, context: Any) -> Receipt:
        self.entered.append(method)
        if text in ("hold", "left"):
            assert self.release.wait(LONG)
        elif text == "raise":
            raise ValueError("of the handler")
        elif text == "abort":
            context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        elif text == "code":
            context.set_code(grpc.StatusCode.NOT_FOUND)
        elif text == "outbound":
            return Receipt(text=str(self.outbound()))
        return self.answer(text)

    def Buy(self, request: Any, context: Any) -> Receipt:
        with self.until_end("Buy"):
            return self.act("Buy", request.text, context)

    def Watch(self, request: Any, context: Any) -> Iterator[Receipt]:
        with self.until_end("Watch"):
            for text in request.text.split():
                yield self.act("Watch", text, context)

    def Collect(self, request: Any, context: Any) -> Receipt:
        with self.until_end("Collect"):
            receipts = [self.act("Collect", each.text, context) for each in request]
            return receipts[-1]

    def Chat(self, request: Any, context: Any) -> Iterator[Receipt]:
        with self.until_end("Chat"):
            for each in request:
                yield self.act("Chat", each.text, context)

    @contextlib.contextmanager
    def until_end(self, method: str) -> Iterator[None]:
        try:
            yield
        finally:
            self.ended.append(method)


class Tasks(Handlers):
    async def act(self, method: str, text: str, context: Any) -> Receipt:
        self.entered.append(method)
        if text == "hold":
            while not self.release.is_set():  # noqa: ASYNC110  # a thread sets it
                await asyncio.sleep(0.002)
        elif text == "left":
            await asyncio.sleep(LONG)
        elif text == "raise":
            raise ValueError("of the handler")
        elif text == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")
        elif text == "code":
            context.set_code(grpc.StatusCode.NOT_FOUND)
        elif text == "outbound":
            return Receipt(text=str(await self.outbound()))
        return self.answer(text)

    async def Buy(self, request: Any, context: Any) -> Receipt:
        try:
            return await self.act("Buy", request.text, context)
        finally:
            self.ended.append("Buy")

    async def Watch(self, request: Any, context: Any) -> AsyncIterator[Receipt]:
        try:
            for text in request.text.split():
                yield await self.act("Watch", text, context)
        finally:
            self.ended.append("Watch")

    async def Collect(self, request: Any, context: Any) -> Receipt:
        try:
            receipts = [await self.act("Collect", each.text, context) async for each in request]
            return receipts[-1]
        finally:
            self.ended.append("Collect")

    async def Chat(self, request: Any, context: Any) -> None:
        try:
            async for each in request:
                await context.write(await self.act("Chat", each.text, context))
        finally:
            self.ended.append("Chat")


@contextlib.contextmanager
def served(
    kind: Kind, mesh: Mesh, *, health: bool = False, outbound: Callable[[], Any] | None = None,
    also: Callable[[Any], object] = lambda server: None,
) -> Iterator[Shop]:
    """A running server. ``outbound``: what a request for "outbound" does; ``also`` adds services to the server."""
    handlers = Tasks() if kind == "aio" else Threads()
    if outbound is not None:
        handlers.outbound = outbound
    with _threads(mesh, handlers, health, also) if kind == "sync" else _loop(mesh, handlers, health, also) as port:
        shop = Shop(f"127.0.0.1:{port}", handlers)
        try:
            yield shop
        finally:
            handlers.release.set()
            shop.pool.shutdown()
            shop.channel.close()


@contextlib.contextmanager
def _threads(mesh: Mesh, handlers: Handlers, health: bool, also: Callable[[Any], object]) -> Iterator[int]:
    with futures.ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool, interceptors=[resilmesh_grpc.server_interceptor(mesh, health=health)])
        add_ShopServicer_to_server(handlers, server)
        also(server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            handlers.release.set()
            server.stop(0).wait(LONG)


@contextlib.contextmanager
def _loop(mesh: Mesh, handlers: Handlers, health: bool, also: Callable[[Any], object]) -> Iterator[int]:
    ports: futures.Future[int] = futures.Future()
    stopping = threading.Event()

    async def serve() -> None:
        pool = futures.ThreadPoolExecutor(16)
        server = grpc.aio.server(pool, interceptors=[resilmesh_grpc.aio_server_interceptor(mesh, health=health)])
        add_ShopServicer_to_server(handlers, server)
        also(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ports.set_result(port)
        while not stopping.is_set():  # noqa: ASYNC110  # a thread sets it
            await asyncio.sleep(0.005)
        await server.stop(0)
        pool.shutdown(wait=False)  # a handler in a thread may wait for this loop

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield ports.result(LONG)
    finally:
        handlers.release.set()
        stopping.set()
        thread.join(LONG)
