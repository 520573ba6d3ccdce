"""Those who call over gRPC: every kind of call, blocking and with grpc.aio, read to the end, cancelled, or forgotten; channels that are
closed under them. As ``callers``: whatever a call raises is expected, as long as it is ours or gRPC's.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio

import resilmesh
import resilmesh_grpc
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

TARGET = "shop.test"
#: Calls on one channel before it is closed.
A_CHANNEL = 200
EXPECTED = (grpc.RpcError, grpc.FutureCancelledError, grpc.FutureTimeoutError)


def _orders(count: int) -> Iterator[Order]:
    for number in range(count):
        yield Order(number=number)


def _timeout(rng: random.Random) -> float | None:
    draw = rng.random()
    return 0.0 if draw < 0.01 else 0.02 if draw < 0.05 else None


def _unary(stub: Any, rng: random.Random) -> None:
    draw, order, timeout = rng.random(), Order(number=1), _timeout(rng)
    if draw < 0.5:
        stub.Buy(order, timeout=timeout)
    elif draw < 0.65:
        stub.Look.with_call(order, timeout=timeout, metadata=(("x-user", str(rng.randrange(40))),))
    elif draw < 0.8:
        stub.Buy.future(order, timeout=timeout).result(10)
    else:
        future = stub.Buy.future(order)
        if draw < 0.9:
            future.cancel()
        # and the rest is forgotten


def _sent(stub: Any, rng: random.Random) -> None:
    draw = rng.random()
    if draw < 0.4:
        stub.Collect([Order(number=1), Order(number=2)], timeout=_timeout(rng))
    elif draw < 0.8:
        stub.Collect(_orders(3))
    elif draw < 0.9:
        stub.Collect.future(_orders(3)).result(10)
    else:
        stub.Collect.future(_orders(3)).cancel()


def _read(stub: Any, rng: random.Random) -> None:
    draw = rng.random()
    messages = rng.choice((0, 1, 5, 20))
    stream = stub.Watch(Order(number=messages), timeout=_timeout(rng)) if draw < 0.6 else stub.Chat(_orders(messages))
    fate = rng.random()
    if fate < 0.6:
        for _ in stream:
            pass
    elif fate < 0.8:
        next(stream, None)
        stream.cancel()
    elif fate < 0.9:
        next(stream, None)
    elif fate < 0.95:
        stream.initial_metadata()
    # and what is left of it is forgotten


def blocking(mesh: resilmesh.Mesh, rng: random.Random, calls: int) -> None:
    """Stubs of grpc, a channel after the other."""
    kinds = (_unary, _unary, _unary, _unary, _sent, _read, _read)
    for begun in range(0, calls, A_CHANNEL):
        with resilmesh_grpc.channel(mesh, TARGET) as channel:
            stub = ShopStub(channel)
            for _ in range(min(A_CHANNEL, calls - begun)):
                with suppress(*EXPECTED):
                    rng.choice(kinds)(stub, rng)
            left = [stub.Buy.future(Order()), stub.Watch(Order(number=20))]
        del left


async def _some_orders(count: int) -> AsyncIterator[Order]:
    for number in range(count):
        await asyncio.sleep(0)
        yield Order(number=number)


async def _aio_unary(stub: Any, rng: random.Random) -> None:
    call = stub.Buy(Order(number=1), timeout=_timeout(rng))
    if rng.random() < 0.9:
        await call
    elif rng.random() < 0.5:
        call.cancel()


async def _aio_sent(stub: Any, rng: random.Random) -> None:
    draw = rng.random()
    if draw < 0.5:
        await stub.Collect([Order(number=1), Order(number=2)] if draw < 0.25 else _some_orders(3))
        return
    call = stub.Collect()
    await call.write(Order(number=1))
    if draw < 0.9:
        await call.done_writing()
        await call


async def _aio_read(stub: Any, rng: random.Random) -> None:
    draw = rng.random()
    messages = rng.choice((0, 1, 5, 20))
    call = stub.Watch(Order(number=messages), timeout=_timeout(rng)) if draw < 0.5 else stub.Chat(_some_orders(messages))
    if draw < 0.3 or draw > 0.7:
        async for _ in call:
            if rng.random() < 0.02:
                return
    else:
        await call.read()
        call.cancel()


def awaiting(mesh: resilmesh.Mesh, rng: random.Random, calls: int) -> None:
    """Stubs of grpc.aio, twenty calls at a time as tasks, some of which are cancelled at a random moment."""

    async def one(stub: Any) -> None:
        with suppress(*EXPECTED):
            await rng.choice((_aio_unary, _aio_unary, _aio_unary, _aio_sent, _aio_read))(stub, rng)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        for begun in range(0, calls, A_CHANNEL):
            async with resilmesh_grpc.aio_channel(mesh, TARGET) as channel:
                stub = ShopStub(channel)
                for _ in range(0, min(A_CHANNEL, calls - begun), 20):
                    tasks = [loop.create_task(one(stub)) for _ in range(20)]
                    for task in tasks:
                        if rng.random() < 0.1:
                            loop.call_later(rng.random() * 0.02, task.cancel)
                    for result in await asyncio.gather(*tasks, return_exceptions=True):
                        if isinstance(result, Exception):
                            raise result
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        if left:
            await asyncio.wait(left, timeout=10)
        alive = [task for task in left if not task.done()]
        if alive:
            raise AssertionError(f"{len(alive)} tasks were left: {alive[:3]}")

    asyncio.run(main())


#: By name: who calls, and its share of the calls in thousandths.
GRPC_CALLERS: dict[str, tuple[Callable[[resilmesh.Mesh, random.Random, int], None], int]] = {
    "grpc 1": (blocking, 250), "grpc 2": (blocking, 250), "grpc.aio 1": (awaiting, 250), "grpc.aio 2": (awaiting, 250),
}
