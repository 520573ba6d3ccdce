"""Callers that cancel, drop or close at a bad moment, services that restart, policies that change: of none of it anything is left.

What is left is asked by ``clean``: calls and slots of the mesh, threads, connections. Of the awaiting cases the tasks as well.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc import StatusCode

import resilmesh_grpc
from resilmesh import Mesh
from tests.grpc.grpc_driver import FULL, HOST, held, mesh_of, policy, until, until_async
from tests.grpc.grpc_service import HANG, OK, GrpcService, Say, status
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

pytestmark = pytest.mark.usefixtures("clean")

STALLS = Say(messages=1, how="hang")
#: Long enough to be cancelled in.
WAITS = FULL | {"retries": "{maxRetries: 2, retryOn: [unavailable, connect-failure, refused-stream], backoff: {base: 20s, max: 20s}}"}


@pytest.fixture
def mesh(service: GrpcService, other: GrpcService) -> Iterator[Mesh]:
    with mesh_of(service, other, **WAITS) as mesh:
        yield mesh


@pytest.fixture
def seen(service: GrpcService, other: GrpcService) -> Callable[[], int]:
    """How many attempts came to either service."""
    return lambda: len(service.seen) + len(other.seen)


@pytest.fixture
def play(service: GrpcService, other: GrpcService) -> Callable[[Say], None]:
    """Has both do the same."""
    def both(say: Say) -> None:
        service.play(say)
        other.play(say)

    return both


@pytest.fixture
def channel(mesh: Mesh) -> Iterator[grpc.Channel]:
    with resilmesh_grpc.channel(mesh, HOST) as channel:
        yield channel


@pytest.fixture
def stub(channel: grpc.Channel) -> ShopStub:
    return ShopStub(channel)


# ------------------------------------------------------------------------------------------------ blocking


def test_a_future_cancelled_in_the_backoff(stub: ShopStub, mesh: Mesh, play: Any, seen: Any) -> None:
    play(status("UNAVAILABLE"))
    done: list[Any] = []
    future = stub.Buy.future(Order())
    future.add_done_callback(done.append)
    assert until(lambda: seen() == 1)
    assert until(lambda: held(mesh) > 0)
    assert future.cancel()
    with pytest.raises(grpc.FutureCancelledError):
        future.result(timeout=10)
    assert [future.cancelled(), future.code(), seen()] == [True, StatusCode.CANCELLED, 1]
    assert until(lambda: done == [future])


@pytest.mark.parametrize("say", [HANG, STALLS], ids=["before the first message", "in mid-stream"])
def test_a_cancelled_stream(stub: ShopStub, service: GrpcService, other: GrpcService, play: Any, seen: Any, say: Say) -> None:
    play(say)
    call = stub.Watch(Order())
    if say is STALLS:
        next(call)
    call.cancel()
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is call.code() is StatusCode.CANCELLED
    assert call.cancelled()
    assert until(lambda: all(each.over.is_set() for each in service.seen + other.seen))
    assert all(each.cancelled_at is not None for each in service.seen + other.seen)


@pytest.mark.parametrize("read", [True, False], ids=["after a message", "before any"])
def test_a_dropped_iterator(stub: ShopStub, mesh: Mesh, play: Any, read: bool) -> None:
    play(STALLS)
    call = stub.Watch(Order())
    if read:
        next(call)
    del call
    gc.collect()
    assert until(lambda: held(mesh) == 0), mesh.snapshot()


def test_a_dropped_conversation(stub: ShopStub, mesh: Mesh) -> None:
    def orders() -> Iterator[Order]:
        yield Order()
        until(lambda: held(mesh) == 0)

    call = stub.Chat(orders())
    next(call)
    del call
    gc.collect()
    assert until(lambda: held(mesh) == 0), mesh.snapshot()


def test_half_close(stub: ShopStub, service: GrpcService, other: GrpcService) -> None:
    """The requests end, and the responses go on."""
    assert len(list(stub.Chat(iter([Order()] * 3)))) == 3
    assert all(each.half_closed for each in service.seen + other.seen)


def test_services_that_restart_in_mid_stream(stub: ShopStub, service: GrpcService, other: GrpcService, play: Any) -> None:
    play(STALLS)
    call = stub.Watch(Order())
    next(call)
    play(OK)
    service.restart()
    other.restart()
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is StatusCode.UNAVAILABLE
    for number in range(6):
        assert stub.Buy(Order(number=number), timeout=10).number == number


def test_services_that_restart_between_calls(service: GrpcService, other: GrpcService) -> None:
    retries = "{maxRetries: 4, retryOn: [connect-failure, refused-stream, reset], idempotent: true, backoff: {base: 10ms}}"
    with mesh_of(service, other, **FULL | {"retries": retries}) as mesh, resilmesh_grpc.channel(mesh, HOST) as channel:
        stub = ShopStub(channel)
        for _ in range(3):
            for number in range(4):
                assert stub.Buy(Order(number=number), timeout=10).number == number
            service.restart()
            other.restart()


def test_an_endpoint_leaves_the_policy(stub: ShopStub, mesh: Mesh, service: GrpcService, other: GrpcService, play: Any) -> None:
    """Its streams go on to their end, new calls do not go there; then its connection is closed."""
    play(Say(messages=1, how="hang"))
    calls = [stub.Watch(Order()) for _ in range(4)]
    for call in calls:
        next(call)
    there = len(service.seen)
    assert there
    mesh.apply_text(policy(other, **WAITS))
    other.play(OK)
    assert [stub.Buy(Order(text="new")).text for _ in range(4)] == ["other:new"] * 4
    assert len(service.seen) == there
    assert not any(each.over.is_set() for each in service.seen)
    for call in calls:
        call.cancel()
    assert until(lambda: held(mesh) == 0)


def test_a_channel_closed_under_a_call(stub: ShopStub, channel: grpc.Channel, play: Any, seen: Any) -> None:
    play(HANG)
    future = stub.Buy.future(Order())
    assert until(lambda: seen() == 1)
    channel.close()
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        future.result(timeout=10)
    assert future.code() is StatusCode.CANCELLED


# A thread of grpcio's own watches, and fails if the channel is closed while it does.
@pytest.mark.filterwarnings("ignore:Exception in thread:pytest.PytestUnhandledThreadExceptionWarning")
def test_connectivity(channel: grpc.Channel) -> None:
    states: list[Any] = []
    channel.subscribe(states.append, try_to_connect=True)
    grpc.channel_ready_future(channel).result(timeout=10)
    assert until(lambda: grpc.ChannelConnectivity.READY in states)
    channel.unsubscribe(states.append)


# ------------------------------------------------------------------------------------------------ awaiting


@pytest.fixture
async def aio(mesh: Mesh) -> AsyncIterator[ShopStub]:
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        yield ShopStub(channel)
    assert await until_async(lambda: not _tasks()), _tasks()


def _tasks() -> list[asyncio.Task[Any]]:
    """Those of the library and of grpc.aio."""
    files = [(task, getattr(getattr(task.get_coro(), "cr_code", None), "co_filename", "")) for task in asyncio.all_tasks()]
    return [task for task, file in files if "/resilmesh_grpc/" in file or "/grpc/aio/" in file]


@pytest.mark.anyio
async def test_every_arity_and_style(aio: ShopStub) -> None:
    two = [Order(text="a"), Order(text="b")]

    async def orders() -> AsyncIterator[Order]:
        for order in two:
            yield order

    assert (await aio.Buy(Order(text="tea"))).text.endswith("tea")
    assert [receipt.number async for receipt in aio.Watch(Order(number=2))] == [0, 1]
    for requests in (two, iter(two), orders()):
        assert (await aio.Collect(requests)).number == 2
    assert len([receipt async for receipt in aio.Chat(orders())]) == 2
    collecting = aio.Collect()
    for order in two:
        await collecting.write(order)
    await collecting.done_writing()
    assert (await collecting).number == 2
    chat = aio.Chat()
    for order in two:
        await chat.write(order)
        assert (await chat.read()).text.endswith(order.text)
    await chat.done_writing()
    assert await chat.read() is grpc.aio.EOF
    assert await chat.code() is StatusCode.OK


async def _task(call: Any) -> Any:
    return await call


CANCELLED: dict[str, tuple[Say, Callable[[ShopStub], Awaitable[Any]]]] = {
    "a task in the backoff": (status("UNAVAILABLE"), lambda stub: _task(stub.Buy(Order()))),
    "a task in a call": (HANG, lambda stub: _task(stub.Buy(Order()))),
    "a task in a stream": (HANG, lambda stub: _task(stub.Watch(Order()).read())),
    "a call in the backoff": (status("UNAVAILABLE"), lambda stub: stub.Buy(Order())),
    "a call": (HANG, lambda stub: stub.Buy(Order())),
    "a collecting call": (HANG, lambda stub: stub.Collect(iter([Order()]))),
}


@pytest.mark.anyio
@pytest.mark.parametrize("case", CANCELLED)
async def test_cancelled(aio: ShopStub, mesh: Mesh, play: Any, seen: Any, case: str) -> None:
    say, begin = CANCELLED[case]
    play(say)
    work: Any = begin(aio)
    if case.startswith("a task"):
        work = asyncio.ensure_future(work)
    assert await until_async(lambda: seen() == 1)
    assert work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert work.cancelled()
    assert await until_async(lambda: held(mesh) == 0), mesh.snapshot()


@pytest.mark.anyio
async def test_left_in_mid_stream(aio: ShopStub, mesh: Mesh, play: Any) -> None:
    play(STALLS)
    call = aio.Watch(Order())
    await call.read()
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    assert await call.code() is StatusCode.CANCELLED
    async for _ in aio.Watch(Order()):
        break
    chat = aio.Chat()
    await chat.write(Order())
    await chat.read()
    del call, chat, _
    gc.collect()
    assert await until_async(lambda: held(mesh) == 0), mesh.snapshot()


@pytest.mark.anyio
async def test_restarts_in_mid_stream_of_an_awaiting_caller(aio: ShopStub, service: GrpcService, other: GrpcService, play: Any) -> None:
    play(STALLS)
    call = aio.Watch(Order())
    await call.read()
    play(OK)
    for each in (service, other):
        await asyncio.to_thread(each.restart)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is StatusCode.UNAVAILABLE
    for number in range(6):
        assert (await aio.Buy(Order(number=number), timeout=10)).number == number
