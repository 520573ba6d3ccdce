"""A policy for a channel that exists picked endpoints of the policy that the channel never called, said so in its events, ejected them, and
at last refused calls because no endpoint was healthy."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest

import resilmesh_grpc
from tests.grpc.grpc_driver import HOST, mesh_of
from tests.grpc.grpc_service import GrpcService, status
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

BLOCKS = {"outlierDetection": "{consecutive5xxErrors: 1, maxEjectionPercent: 100}", "retries": "{maxRetries: 1, retryOn: [unavailable]}"}


def codes(seen: list[Any], service: GrpcService, told: list[grpc.StatusCode]) -> None:
    assert told == [grpc.StatusCode.UNAVAILABLE] * 3
    assert len(service.seen) == 6
    assert {event.detail["endpoint"] for event in seen if event.name == "attempt_started"} == {None}
    assert not [event for event in seen if event.name in ("endpoint_ejected", "call_rejected")]


def test_blocking() -> None:
    seen: list[Any] = []
    told = []
    with GrpcService([status("UNAVAILABLE")]) as service, mesh_of("127.0.0.1:1", "127.0.0.1:2", **BLOCKS) as mesh:
        mesh.subscribe(seen.append)
        with resilmesh_grpc.intercept(grpc.insecure_channel(service.address), mesh, target=HOST) as channel:
            for _ in range(3):
                with pytest.raises(grpc.RpcError) as error:
                    ShopStub(channel).Buy(Order())
                told.append(error.value.code())
        codes(seen, service, told)


@pytest.mark.anyio
@pytest.mark.parametrize("way", ["intercept", "interceptors"])
async def test_grpc_aio(way: str) -> None:
    seen: list[Any] = []
    told = []
    with GrpcService([status("UNAVAILABLE")]) as service, mesh_of("127.0.0.1:1", "127.0.0.1:2", **BLOCKS) as mesh:
        mesh.subscribe(seen.append)
        if way == "intercept":
            channel = resilmesh_grpc.intercept(grpc.aio.insecure_channel(service.address), mesh, target=HOST)
        else:
            channel = grpc.aio.insecure_channel(service.address, interceptors=resilmesh_grpc.aio_interceptors(mesh, target=HOST))
        async with channel:
            for _ in range(3):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await ShopStub(channel).Buy(Order())
                told.append(error.value.code())
        codes(seen, service, told)


@pytest.fixture
def anyio_backend() -> str:
    """grpc.aio runs on asyncio only."""
    return "asyncio"
