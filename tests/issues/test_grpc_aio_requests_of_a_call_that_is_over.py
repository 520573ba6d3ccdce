"""The task by which grpc.aio sends requests outlived its attempt, and asyncio told of it: "Task was destroyed but it is pending!"."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

import resilmesh_grpc
from tests.grpc.grpc_driver import FULL, HOST, mesh_of, until_async
from tests.grpc.grpc_service import GrpcService, status
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub
from tests.parity.scripted import refusing, unanswering


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def endless() -> AsyncIterator[Order]:
    while True:
        yield Order()
        await asyncio.sleep(0.01)


def senders() -> list[Any]:
    return [task for task in asyncio.all_tasks() if "_consume_request_iterator" in repr(task)]


@pytest.mark.anyio
async def test_attempts_that_never_connect_leave_no_task() -> None:
    with refusing() as nobody, mesh_of(nobody, **FULL) as mesh:
        async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
            for call in (ShopStub(channel).Collect([Order()]), ShopStub(channel).Collect(endless())):
                with pytest.raises(grpc.aio.AioRpcError):
                    await call
            assert await until_async(lambda: not senders()), senders()


@pytest.mark.anyio
@pytest.mark.mesh_leaks("off")
async def test_a_conversation_that_is_forgotten_leaves_no_task() -> None:
    with GrpcService() as service, mesh_of(service, **FULL) as mesh:
        async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
            call = ShopStub(channel).Chat(endless())
            await anext(aiter(call))
            del call
            gc.collect()
            assert await until_async(lambda: not senders()), senders()
            assert await until_async(service.seen[0].over.is_set)


@pytest.mark.anyio
async def test_an_iterable_that_goes_on_after_the_end_is_not_waited_for() -> None:
    with GrpcService(status("ABORTED", messages=0)) as service, mesh_of(service, **FULL) as mesh:
        async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await anext(aiter(ShopStub(channel).Chat(endless())))
            assert caught.value.code() is grpc.StatusCode.ABORTED
            assert await until_async(lambda: not senders()), senders()


@pytest.mark.anyio
async def test_who_writes_learns_of_a_time_out_before_there_is_a_connection() -> None:
    """grpc.aio has writers wait for a connection that a cancelled call never gets."""
    with unanswering() as nobody, mesh_of(nobody, retries="{maxRetries: 0, perTryTimeout: 200ms, retryOn: [unavailable]}") as mesh:
        async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
            for method in ("Chat", "Collect"):
                call = getattr(ShopStub(channel), method)()
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await asyncio.wait_for(call.write(Order()), 10)
                assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            call = ShopStub(channel).Chat()
            writing = asyncio.ensure_future(call.write(Order()))
            await asyncio.sleep(0.02)
            call.cancel()
            await asyncio.wait([writing], timeout=10)
            assert writing.cancelled()
