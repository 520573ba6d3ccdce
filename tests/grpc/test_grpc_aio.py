"""The asynchronous API: a channel of our own, a policy for a channel that exists, and interceptors, by a generated stub."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

import resilmesh
import resilmesh_grpc
from resilmesh import Mesh
from tests.grpc.grpc_driver import HOST, held, mesh_of, until_async
from tests.grpc.grpc_service import HANG, OK, GrpcService, Say, status
from tests.grpc.protos.shop_pb2 import Order, Receipt
from tests.grpc.protos.shop_pb2_grpc import ShopStub

pytestmark = pytest.mark.anyio

RETRIES = "{maxRetries: 2, retryOn: [unavailable, connect-failure], backoff: {base: 1ms}}"
#: Fails before the first message, once, when everything was sent: of a status that comes earlier grpc.aio makes INTERNAL.
FAILS_ONCE = [status("UNAVAILABLE", messages=0, delay=0.03), OK]

Open = Callable[[Mesh, GrpcService], Any]


@asynccontextmanager
async def of_ours(mesh: Mesh, service: GrpcService) -> AsyncIterator[ShopStub]:
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        yield ShopStub(channel)


@asynccontextmanager
async def wrapped(mesh: Mesh, service: GrpcService) -> AsyncIterator[ShopStub]:
    async with resilmesh_grpc.intercept(grpc.aio.insecure_channel(service.address), mesh, target=HOST) as channel:
        yield ShopStub(channel)


@asynccontextmanager
async def intercepted(mesh: Mesh, service: GrpcService) -> AsyncIterator[ShopStub]:
    async with grpc.aio.insecure_channel(service.address, interceptors=resilmesh_grpc.aio_interceptors(mesh)) as channel:
        yield ShopStub(channel)


async def _buy(stub: ShopStub) -> list[Receipt]:
    return [await stub.Buy(Order(text="tea"), timeout=10)]


async def _watch(stub: ShopStub) -> list[Receipt]:
    return [each async for each in stub.Watch(Order(number=3), timeout=10)]


async def _watch_by_reading(stub: ShopStub) -> list[Receipt]:
    call = stub.Watch(Order(number=3), timeout=10)
    read = []
    while (message := await call.read()) is not grpc.aio.EOF:
        read.append(message)
    assert await call.code() is grpc.StatusCode.OK
    return read


async def _collect(stub: ShopStub) -> list[Receipt]:
    return [await stub.Collect([Order(), Order()], timeout=10)]


async def _chat(stub: ShopStub) -> list[Receipt]:
    return [each async for each in stub.Chat([Order(text="one"), Order(text="two")], timeout=10)]


@pytest.mark.parametrize("calls", [_buy, _watch, _watch_by_reading, _collect, _chat])
@pytest.mark.parametrize("opens", [of_ours, wrapped, intercepted])
async def test_every_kind_of_call_is_repeated_before_its_first_message(service: GrpcService, opens: Open, calls: Any) -> None:
    mesh = mesh_of(service, retries=RETRIES)
    async with opens(mesh, service) as stub:
        expected = await calls(stub)
        service.play(FAILS_ONCE)
        assert await calls(stub) == expected
    assert len(service.seen) == 2
    if opens is of_ours:  # a channel of grpc's own keeps that to itself, unless its own retries are off
        assert [each.metadata.get("grpc-previous-rpc-attempts") for each in service.seen] == [None, "1"]
    assert mesh.snapshot()["services"]["shop"]["routes"]["*"]["retries"] == 1
    assert held(mesh) == 0


@pytest.mark.parametrize("opens", [of_ours, wrapped, intercepted])
async def test_messages_that_are_written_one_by_one(service: GrpcService, opens: Open) -> None:
    mesh = mesh_of(service, retries=RETRIES)
    async with opens(mesh, service) as stub:
        collect = stub.Collect(timeout=10)
        for _ in range(3):
            await collect.write(Order())
        await collect.done_writing()
        assert (await collect).number == 3
        chat = stub.Chat(timeout=10)
        for text in ("one", "two"):
            await chat.write(Order(text=text))
            assert (await chat.read()).text.endswith(text)
        await chat.done_writing()
        assert await chat.read() is grpc.aio.EOF
    assert held(mesh) == 0


@pytest.mark.parametrize("opens", [of_ours, wrapped, intercepted])
async def test_what_may_have_been_done_and_what_cannot_be_sent_again(service: GrpcService, opens: Open) -> None:
    mesh = mesh_of(service, retries="{maxRetries: 2, retryOn: [unavailable]}")

    async def orders() -> AsyncIterator[Order]:
        yield Order()

    async with opens(mesh, service) as stub:
        service.play(status("UNAVAILABLE"))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stub.Collect(orders(), timeout=10)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(service.seen) == 1


async def test_a_rejection_is_grpcs_error_and_ours(service: GrpcService) -> None:
    mesh = mesh_of(service, rateLimit="{requests: 1, per: 60s}")
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        stub = ShopStub(channel)
        await stub.Buy(Order())
        call = stub.Buy(Order())
        with pytest.raises(resilmesh.RateLimited) as error:
            await call
        assert isinstance(error.value, grpc.aio.AioRpcError)
        assert error.value.code() is await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert 50 < (error.value.retry_after or 0) <= 60
        with pytest.raises(resilmesh.RateLimited):
            _ = [each async for each in stub.Watch(Order())]
    assert held(mesh) == 0


@pytest.mark.parametrize("opens", [of_ours, wrapped, intercepted])
async def test_a_deadline(service: GrpcService, opens: Open) -> None:
    service.play(Say(messages=0, how="hang"))
    mesh = mesh_of(service, timeout="100ms")
    async with opens(mesh, service) as stub:
        for call in (stub.Buy, stub.Watch):
            begun = time.monotonic()
            with pytest.raises(resilmesh.DeadlineExceeded, match="no answer within the timeout of 100ms"):
                await (call(Order()) if call is stub.Buy else call(Order()).read())
            assert time.monotonic() - begun >= 0.099
    assert held(mesh) == 0


async def test_a_deadline_cuts_a_stream_that_flows(service: GrpcService) -> None:
    service.play(Say(messages=2, how="hang"))
    mesh = mesh_of(service, timeout="150ms")
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        call = ShopStub(channel).Watch(Order())
        assert [(await call.read()).number, (await call.read()).number] == [0, 1]
        with pytest.raises(resilmesh.DeadlineExceeded, match="the stream did not end within the timeout of 150ms"):
            await call.read()
    assert held(mesh) == 0


async def test_the_first_message_of_a_stream_is_bounded_by_per_try_timeout(service: GrpcService) -> None:
    service.play([Say(messages=0, how="hang"), OK])
    mesh = mesh_of(service, retries="{maxRetries: 1, perTryTimeout: 80ms, retryOn: [reset], idempotent: true, backoff: {base: 1ms}}")
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        assert len([each async for each in ShopStub(channel).Watch(Order(number=2))]) == 2
    assert len(service.seen) == 2
    assert held(mesh) == 0


@pytest.mark.parametrize("opens", [of_ours, wrapped, intercepted])
async def test_cancelling(service: GrpcService, opens: Open) -> None:
    service.play(HANG)
    mesh = mesh_of(service, concurrency="{maxRequests: 10}")
    async with opens(mesh, service) as stub:
        call = stub.Buy(Order())
        assert await until_async(lambda: len(service.seen) == 1)
        assert call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert call.cancelled()
        assert await call.code() is grpc.StatusCode.CANCELLED
        waiting = asyncio.ensure_future(_first(stub.Watch(Order(number=0))))
        assert await until_async(lambda: len(service.seen) == 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await until_async(lambda: all(each.over.is_set() for each in service.seen))
    assert held(mesh) == 0


async def test_cancelling_in_a_backoff(service: GrpcService) -> None:
    service.play(status("UNAVAILABLE", messages=0, trailers=(("grpc-retry-pushback-ms", "30000"),)))
    mesh = mesh_of(service, retries=RETRIES)
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        for number, method in enumerate((ShopStub(channel).Buy, ShopStub(channel).Watch), 1):
            call = method(Order())
            reading = asyncio.ensure_future(call.read() if hasattr(call, "read") else _await(call))
            assert await until_async(lambda number=number: len(service.seen) == number)  # type: ignore[misc]  # bound here
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
    assert held(mesh) == 0


async def test_calls_that_are_forgotten(service: GrpcService) -> None:
    service.play(HANG)
    mesh = mesh_of(service, concurrency="{maxRequests: 10}")
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        stub = ShopStub(channel)
        calls = [stub.Buy(Order()), stub.Watch(Order(number=5)), stub.Collect(), stub.Chat()]
        assert await until_async(lambda: len(service.seen) >= 2)
        assert held(mesh) > 0
        del calls
        gc.collect()
        assert await until_async(lambda: held(mesh) == 0)


async def test_a_call_that_is_judged_when_it_ends_and_not_when_it_is_awaited(service: GrpcService) -> None:
    mesh = mesh_of(service, concurrency="{maxRequests: 1}")
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        stub = ShopStub(channel)
        first = stub.Buy(Order(text="tea"))
        assert await until_async(lambda: held(mesh) == 0)
        second = stub.Buy(Order(text="milk"))
        assert {(await first).text, (await second).text} == {"a:tea", "a:milk"} or (await first).text != (await second).text


async def test_fallback(service: GrpcService) -> None:
    service.play(status("UNAVAILABLE", messages=0))
    mesh = mesh_of(service)

    async def stand_in(method: str, request: Any, error: BaseException) -> Any:
        assert isinstance(error, grpc.RpcError)
        await asyncio.sleep(0)
        return Receipt(text="none") if method.endswith("Buy") else [Receipt(text="one"), Receipt(text="two")]

    async with resilmesh_grpc.aio_channel(mesh, HOST, fallback=stand_in) as channel:
        stub = ShopStub(channel)
        assert (await stub.Buy(Order())).text == "none"
        assert [each.text async for each in stub.Watch(Order())] == ["one", "two"]
    assert mesh.snapshot()["services"]["shop"]["routes"]["*"]["fallbacks"] == {"FAILURE": 2}


async def test_a_channel_becomes_ready_and_is_shut_down(service: GrpcService) -> None:
    channel = resilmesh_grpc.aio_channel(mesh_of(service), HOST)
    assert channel.get_state() is grpc.ChannelConnectivity.IDLE
    async with asyncio.timeout(10):
        await channel.channel_ready()
    assert channel.get_state() is grpc.ChannelConnectivity.READY
    await channel.close()
    assert channel.get_state() is grpc.ChannelConnectivity.SHUTDOWN
    with pytest.raises(ValueError, match="closed channel"):
        ShopStub(channel).Buy(Order())


async def test_wrap(service: GrpcService) -> None:
    mesh = mesh_of(service, rateLimit="{requests: 1, per: 60s}")
    async with resilmesh.wrap(grpc.aio.insecure_channel(service.address, options=[("grpc.enable_retries", 0)]), mesh) as channel:
        await ShopStub(channel).Buy(Order())  # 127.0.0.1 is no host of the policy
        await ShopStub(channel).Buy(Order())
        assert resilmesh.wrap(channel, mesh) is channel
        with pytest.raises(ValueError, match="another mesh"):
            resilmesh.wrap(channel, mesh_of(service))
    async with resilmesh_grpc.intercept(grpc.aio.insecure_channel(service.address), mesh, target="shop") as channel:
        await ShopStub(channel).Buy(Order())
        with pytest.raises(resilmesh.RateLimited):
            await ShopStub(channel).Buy(Order())


async def _first(call: Any) -> Any:
    return await call.read()


async def _await(call: Any) -> Any:
    return await call
