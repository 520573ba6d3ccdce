"""The first call of a stub on a channel that was closed by then crashed the process: grpc was asked to register a method with it.

A segmentation fault is what these tests show when it comes back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

import resilmesh_grpc
from resilmesh import Mesh
from tests.grpc.grpc_driver import HOST, held, mesh_of
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with mesh_of("127.0.0.1:1") as mesh:
        yield mesh
        assert held(mesh) == 0


@pytest.mark.parametrize("which", ["the channel itself", "what stands in for it"])
def test_a_channel_that_exists(mesh: Mesh, which: str) -> None:
    plain = grpc.insecure_channel("127.0.0.1:1")
    guarded = resilmesh_grpc.intercept(plain, mesh, target=HOST)
    stub = ShopStub(guarded)
    (plain if which == "the channel itself" else guarded).close()
    calls: list[Any] = [lambda: stub.Buy(Order()), lambda: stub.Collect.future(iter([Order()])), lambda: stub.Watch(Order())]
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()


@pytest.mark.anyio
@pytest.mark.parametrize("which", ["the channel itself", "what stands in for it"])
async def test_an_asynchronous_channel_that_exists(mesh: Mesh, which: str) -> None:
    plain = grpc.aio.insecure_channel("127.0.0.1:1")
    guarded = resilmesh_grpc.intercept(plain, mesh, target=HOST)
    stub = ShopStub(guarded)
    await (plain if which == "the channel itself" else guarded).close()
    for method in (stub.Buy, stub.Watch):
        with pytest.raises((ValueError, grpc.aio.UsageError), match="closed"):
            method(Order())


def test_channels_of_ours_closed_while_calls_begin(mesh: Mesh) -> None:
    def call(stub: Any) -> None:
        for method in (stub.Buy.future, stub.Watch, stub.Chat):
            try:
                ended.append(method(Order() if method is not stub.Chat else iter([])))
            except ValueError:
                return

    ended: list[Any] = []
    for _ in range(50):
        channel = resilmesh_grpc.channel(mesh, HOST)
        caller = threading.Thread(target=call, args=(ShopStub(channel),))
        caller.start()
        channel.close()
        caller.join()
    for each in ended:
        each.cancel()
