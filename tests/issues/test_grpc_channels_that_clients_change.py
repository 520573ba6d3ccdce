"""Clients of Google's services add interceptors to a grpc.aio channel after it was made, in attributes that ours did not have."""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
import pytest

import resilmesh_grpc
from tests.grpc.grpc_driver import FULL, HOST, mesh_of
from tests.grpc.grpc_service import OK, GrpcService, status
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

#: The attributes, and what is put there.
KINDS: dict[str, Any] = {
    "unary_unary": grpc.aio.UnaryUnaryClientInterceptor, "unary_stream": grpc.aio.UnaryStreamClientInterceptor,
    "stream_unary": grpc.aio.StreamUnaryClientInterceptor, "stream_stream": grpc.aio.StreamStreamClientInterceptor,
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def spy(kind: str, name: str, seen: list[str]) -> Any:
    """An interceptor that says that it was there."""
    async def intercept(self: Any, continuation: Any, details: Any, request: Any) -> Any:
        seen.append(name)
        return await continuation(details, request)

    return type("Spy", (KINDS[kind],), {f"intercept_{kind}": intercept})()


@pytest.mark.anyio
@pytest.mark.parametrize("given", [False, True], ids=["a channel of ours", "a channel that exists"])
async def test_interceptors_added_to_the_channel_see_every_attempt(given: bool) -> None:
    seen: list[str] = []
    with GrpcService([status("UNAVAILABLE"), OK]) as service, mesh_of(service, **FULL) as mesh:
        first = spy("unary_unary", "first", seen)
        if given:
            plain = grpc.aio.insecure_channel(service.address, interceptors=[first])
            channel = resilmesh_grpc.intercept(plain, mesh, target=HOST)
        else:
            channel = resilmesh_grpc.aio_channel(mesh, HOST, interceptors=[first])
        async with channel:
            stub = ShopStub(channel)
            for kind in KINDS:
                getattr(channel, f"_{kind}_interceptors").append(spy(kind, f"added {kind}", seen))
            assert (await stub.Buy(Order(text="tea"))).text == "tea"
            assert seen == ["first", "added unary_unary"] * 2
            assert [each.number async for each in stub.Watch(Order(number=2))] == [0, 1]
            assert (await stub.Collect(iter([Order()]))).number == 1
            assert len([each async for each in stub.Chat(iter([Order()]))]) == 1
            assert seen[4:] == ["added unary_stream", "added stream_unary", "added stream_stream"]


@pytest.mark.anyio
async def test_what_instruments_grpc_finds_interceptors_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    make = grpc.aio.insecure_channel

    def instrumented(*args: Any, **options: Any) -> Any:
        options["interceptors"] = [spy("unary_unary", "instrument", seen), *(options.get("interceptors") or ())]
        return make(*args, **options)

    monkeypatch.setattr(grpc.aio, "insecure_channel", instrumented)
    with GrpcService(OK) as service, GrpcService(OK) as other, mesh_of(service, other, **FULL) as mesh:
        async with resilmesh_grpc.aio_channel(mesh, HOST, interceptors=[spy("unary_unary", "ours", seen)]) as channel:
            for _ in range(4):
                await ShopStub(channel).Buy(Order())
        assert service.seen
        assert other.seen
    assert seen == ["instrument", "ours"] * 4
