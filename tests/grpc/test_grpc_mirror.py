"""``mirror`` over gRPC: one copy a call, which its caller never waits for, and of which nothing is left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import resilmesh_grpc
from resilmesh import Mesh
from resilmesh.drive.context import DEADLINE
from resilmesh.drive.copies import MOST_COPIES
from tests.grpc.grpc_driver import HOST, mesh_of, until, until_async
from tests.grpc.grpc_service import HANG, OK, GrpcService, status
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

pytestmark = pytest.mark.usefixtures("clean")


def copies_service(other: GrpcService, more: str = "") -> str:
    return f"""{{service: copies}}
- name: copies
  protocol: GRPC
  endpoints: [{{address: "{other.address}"}}]
  {more}"""


@pytest.fixture
def mesh(service: GrpcService, other: GrpcService) -> Iterator[Mesh]:
    blocks = {"retries": "{maxRetries: 2, retryOn: [unavailable], backoff: {base: 1ms}}", "mirror": copies_service(other)}
    with mesh_of(service, **blocks) as mesh:
        yield mesh


def counted(mesh: Mesh) -> tuple[int, dict[str, int]]:
    shown = mesh.snapshot()["services"]["shop"]["routes"]["*"]
    return shown["mirrored"], shown["mirrorsDropped"]


def test_each_call_is_copied_once_whatever_becomes_of_either(mesh: Mesh, service: GrpcService, other: GrpcService) -> None:
    service.play([status("UNAVAILABLE"), status("UNAVAILABLE"), OK])
    other.play([status("INTERNAL"), OK])
    with resilmesh_grpc.channel(mesh, HOST) as channel:
        stub = ShopStub(channel)
        assert stub.Buy(Order(text="tea"), metadata=(("x-own", "1"),)).text.endswith("tea")
        assert len(list(stub.Watch(Order(number=3, text="three")))) == 3
        assert stub.Buy.future(Order(text="later")).result(10).text.endswith("later")
        assert until(lambda: len(other.seen) == 3)
        assert until(lambda: all(each.over.is_set() for each in other.seen))
        assert sorted((each.method, each.messages[0].text) for each in other.seen) == [("Buy", "later"), ("Buy", "tea"), ("Watch", "three")]
        assert [each.metadata["x-own"] for each in other.seen if each.messages[0].text == "tea"] == ["1"]
        assert channel._caller.subchannels.opened() != []  # type: ignore[attr-defined]  # those of copies do not count
    assert counted(mesh) == (3, {})


@pytest.mark.anyio
async def test_the_same_for_grpc_aio(mesh: Mesh, service: GrpcService, other: GrpcService) -> None:
    service.play([status("UNAVAILABLE"), status("UNAVAILABLE"), OK])
    other.play([status("INTERNAL"), OK])
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        stub = ShopStub(channel)
        assert (await stub.Buy(Order(text="tea"))).text.endswith("tea")
        assert len([each async for each in stub.Watch(Order(number=3, text="three"))]) == 3
        assert await until_async(lambda: len(other.seen) == 2 and all(each.over.is_set() for each in other.seen))
    assert sorted((each.method, each.messages[0].text) for each in other.seen) == [("Buy", "tea"), ("Watch", "three")]
    assert counted(mesh) == (2, {})


def test_nobody_waits_for_a_copy_and_a_closed_channel_ends_it(mesh: Mesh, other: GrpcService) -> None:
    other.play(HANG)
    begun = time.monotonic()
    with resilmesh_grpc.channel(mesh, HOST) as channel:
        stub = ShopStub(channel)
        for _ in range(6):  # more than there are threads to send copies
            stub.Buy(Order())
        list(stub.Watch(Order(number=1)))
        assert until(lambda: len(other.seen) == 4)
    assert time.monotonic() - begun < 10


@pytest.mark.anyio
async def test_a_closed_aio_channel_ends_its_copies(mesh: Mesh, other: GrpcService) -> None:
    other.play(HANG)
    async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
        await asyncio.gather(*(ShopStub(channel).Buy(Order()) for _ in range(6)))
        assert await until_async(lambda: len(other.seen) == 6)
    assert await until_async(lambda: all(each.over.is_set() for each in other.seen))
    assert await until_async(lambda: len(asyncio.all_tasks()) <= 2)


def test_a_copy_has_nothing_of_its_callers_time(mesh: Mesh, other: GrpcService) -> None:
    token = DEADLINE.set(mesh.clock.monotonic() + 5)
    try:
        with resilmesh_grpc.channel(mesh, HOST) as channel:
            ShopStub(channel).Buy(Order(), timeout=4)
            assert until(lambda: len(other.seen) == 1)
    finally:
        DEADLINE.reset(token)
    assert other.seen[0].remaining is not None
    assert 10 < other.seen[0].remaining < 16  # 15 s, where the call has no timeout in the policy


def test_what_is_not_copied_is_counted(mesh: Mesh, service: GrpcService, other: GrpcService) -> None:
    plain = grpc.insecure_channel(service.address)
    with resilmesh_grpc.channel(mesh, HOST) as channel, resilmesh_grpc.intercept(plain, mesh, target=HOST) as intercepted:
        stub = ShopStub(channel)
        stub.Collect(iter([Order()]))
        list(stub.Chat([Order()]))
        ShopStub(intercepted).Buy(Order())
        assert counted(mesh) == (0, {"streamed": 2, "intercepted": 1})
        other.play(HANG)
        for _ in range(MOST_COPIES + 3):
            stub.Buy(Order())
        assert counted(mesh) == (MOST_COPIES, {"streamed": 2, "intercepted": 1, "busy": 3})


def test_an_endpoint_that_leaves_takes_the_copies_channel_along(mesh: Mesh, service: GrpcService, other: GrpcService) -> None:
    with resilmesh_grpc.channel(mesh, HOST) as channel:
        stub = ShopStub(channel)
        stub.Buy(Order())
        assert until(lambda: other.seen and other.seen[0].over.is_set())
        subchannels: Any = channel._caller.subchannels  # type: ignore[attr-defined]  # which nobody else can ask
        assert {key[2] for key in subchannels._by_key} == {None, "shop.test-shadow"}
        with mesh_of(service) as plain:
            mesh.apply_policy(plain.table.policy)
        stub.Buy(Order())
        assert {key[2] for key in subchannels._by_key} == {None}
