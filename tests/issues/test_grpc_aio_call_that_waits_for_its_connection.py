"""``wait_for_connection()``, which clients of Google's services ask of every stream: by way of interceptors it hung, and a first attempt
that could not connect was the call's end, though the policy repeats it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

import resilmesh_grpc
from tests.grpc.grpc_driver import FULL, HOST, held, mesh_of, until_async
from tests.grpc.grpc_service import GrpcService
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub
from tests.parity.scripted import refusing


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def service() -> Iterator[GrpcService]:
    with GrpcService() as service:
        yield service


@pytest.mark.anyio
async def test_by_way_of_interceptors_a_stream_begins_before_it_is_read(service: GrpcService) -> None:
    with mesh_of(service, **FULL) as mesh:
        interceptors = resilmesh_grpc.aio_interceptors(mesh, target=HOST)
        async with grpc.aio.insecure_channel(service.address, interceptors=interceptors) as channel:
            stub = ShopStub(channel)
            for call in (stub.Watch(Order(number=2)), stub.Chat(iter([Order(), Order()]))):
                await asyncio.wait_for(call.wait_for_connection(), 10)
                assert len([each async for each in call]) == 2
            unread = stub.Watch(Order(number=1))
            assert await until_async(lambda: len(service.seen) == 3)
            unread.cancel()
        assert await until_async(lambda: held(mesh) == 0), mesh.snapshot()


class Awaits(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[misc, type-arg]  # as grpc has it
    """Sees how a stream begins before it passes it on."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        call = await continuation(client_call_details, request)
        await call.wait_for_connection()
        return call


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["channel", "channel of awaiting interceptors", "interceptors"])
async def test_an_attempt_that_does_not_connect_is_repeated(service: GrpcService, way: str) -> None:
    with refusing() as nobody, mesh_of(service, nobody, **FULL) as mesh, mesh_of(nobody, **FULL) as hopeless:
        if way == "interceptors":
            interceptors = [*resilmesh_grpc.aio_interceptors(hopeless, target=HOST), Awaits()]
            channels = [grpc.aio.insecure_channel(nobody, interceptors=interceptors)]
        else:
            above: Any = [Awaits()] if "awaiting" in way else []
            channels = [resilmesh_grpc.aio_channel(each, HOST, interceptors=above) for each in (hopeless, mesh)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(ShopStub(channels[0]).Watch(Order()).wait_for_connection(), 10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        for channel in channels[1:]:
            for _ in range(4):
                call = ShopStub(channel).Watch(Order(number=2))
                await asyncio.wait_for(call.wait_for_connection(), 10)
                assert len([each async for each in call]) == 2
        for channel in channels:
            await channel.close()
        assert await until_async(lambda: held(mesh) == held(hopeless) == 0), mesh.snapshot()
