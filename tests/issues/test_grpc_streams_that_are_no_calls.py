"""Below an interceptor that makes a generator of a stream, as instrumentation does, our streams asked it for what only a call has."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import resilmesh_grpc
from resilmesh import Mesh
from tests.grpc.grpc_driver import FULL, HOST, held, mesh_of, until
from tests.grpc.grpc_service import OK, GrpcService, Say, status
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub
from tests.parity.scripted import refusing


class Generates(grpc.UnaryStreamClientInterceptor, grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc, type-arg]  # as grpc has it
    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Iterator[Any]:
        yield from continuation(details, request)

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(details, request)


@pytest.fixture
def service() -> Iterator[GrpcService]:
    with GrpcService() as service:
        yield service


@pytest.fixture
def mesh(service: GrpcService) -> Iterator[Mesh]:
    with mesh_of(service, **FULL) as mesh:
        yield mesh
        assert until(lambda: held(mesh) == 0), mesh.snapshot()


@pytest.fixture
def stub(service: GrpcService, mesh: Mesh) -> Iterator[ShopStub]:
    with grpc.insecure_channel(service.address) as plain:
        yield ShopStub(resilmesh_grpc.intercept(grpc.intercept_channel(plain, Generates()), mesh, target=HOST))


def test_its_messages_and_its_end(stub: ShopStub, service: GrpcService) -> None:
    service.play([status("UNAVAILABLE", messages=0), OK])
    call = stub.Watch(Order(number=3))
    ended: list[bool] = []
    assert call.add_callback(lambda: ended.append(True))
    assert [each.number for each in call] == [0, 1, 2]
    assert call.code() is grpc.StatusCode.OK
    assert ended == [True]
    assert len(service.seen) == 2


def test_its_failure(stub: ShopStub, service: GrpcService) -> None:
    service.play(status("ABORTED", messages=1, details="no more"))
    call = stub.Watch(Order(number=3))
    next(call)
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is call.code() is grpc.StatusCode.ABORTED
    assert call.details() == "no more"


def test_its_deadline_its_cancellation_and_its_loss(stub: ShopStub, service: GrpcService) -> None:
    service.play(Say(messages=1, how="hang"))
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Watch(Order(), timeout=0.1))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    call = stub.Watch(Order())
    next(call)
    assert call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    lost = stub.Watch(Order())
    next(lost)
    del lost
    gc.collect()
    assert until(lambda: all(each.over.is_set() for each in service.seen))


def test_a_connection_that_failed_is_known_below_interceptors(service: GrpcService) -> None:
    with refusing() as nobody, mesh_of(nobody, **FULL) as mesh, grpc.insecure_channel(nobody) as plain:
        guarded = resilmesh_grpc.intercept(grpc.intercept_channel(plain, Generates()), mesh, target=HOST)
        events: list[Any] = []
        mesh.subscribe(events.append)
        with pytest.raises(grpc.RpcError) as caught:
            ShopStub(guarded).Buy(Order())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert [each.detail["verdict"] for each in events if "verdict" in each.detail][:3] == ["UNSENT"] * 3, events
