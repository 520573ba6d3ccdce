"""A future that waited for its slot when the channel was closed was never resolved: the timer that woke it failed."""

from __future__ import annotations

import grpc
import pytest
from h2.errors import ErrorCodes

import resilmesh_grpc
from resilmesh_grpc.subchannels import Subchannel
from tests.grpc.grpc_driver import HOST, held, mesh_of, until
from tests.grpc.grpc_service import HANG, GrpcService
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub
from tests.grpc.raw_http2 import RawHttp2, Read, Reset, Wait


def test_a_future_that_waits_when_its_channel_is_closed_is_cancelled(caplog: pytest.LogCaptureFixture) -> None:
    with GrpcService(HANG) as service:
        mesh = mesh_of(service, concurrency="{maxRequests: 1, maxPending: 5, maxPendingWait: 20s}")
        channel = resilmesh_grpc.channel(mesh, HOST)
        stub = ShopStub(channel)
        first, second = stub.Buy.future(Order()), stub.Buy.future(Order())
        assert until(lambda: len(service.seen) == 1)
        channel.close()
        with pytest.raises((grpc.FutureCancelledError, grpc.RpcError)):
            first.result(10)
        with pytest.raises(grpc.FutureCancelledError):
            second.result(10)
        assert until(lambda: held(mesh) == 0), mesh.snapshot()
        assert not caplog.records


def test_a_future_whose_channel_is_closed_between_two_attempts_ends() -> None:
    """The second attempt of a refused stream is made at once, where grpc tells of the first's end."""
    with RawHttp2([[Read(), Wait(0.3), Reset(ErrorCodes.REFUSED_STREAM)]]) as server, mesh_of(server.address) as mesh:
        channel = resilmesh_grpc.channel(mesh, HOST)
        future = ShopStub(channel).Buy.future(Order())
        assert until(lambda: len(server.seen) == 1)
        future._pending.caller.subchannels.clear()  # closed for calls; what is in flight goes on
        with pytest.raises(grpc.FutureCancelledError):
            future.result(10)
        channel.close()
        assert until(lambda: held(mesh) == 0), mesh.snapshot()


def _raises(*_: object) -> bytes:
    raise RuntimeError("the serializer fails")


def test_a_future_whose_message_cannot_be_written_holds_nothing() -> None:
    with GrpcService() as service:
        mesh = mesh_of(service)
        with resilmesh_grpc.channel(mesh, HOST) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/resilmesh.test.v1.Shop/Buy", request_serializer=_raises).future(Order())
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            assert held(mesh) == 0


def test_a_connection_is_asked_about_whose_channel_was_closed() -> None:
    """Whether an attempt was sent is asked when it has failed, and by then its channel may be closed."""
    with GrpcService() as service, grpc.insecure_channel(service.address) as plain:
        sub = Subchannel(plain, lambda each: None)
        ShopStub(plain).Buy(Order())
        assert sub.connected()
        plain.close()
        assert sub.connected()
