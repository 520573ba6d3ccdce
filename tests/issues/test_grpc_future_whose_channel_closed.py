"""A future that waited for its slot when the channel was closed was never resolved: the timer that woke it failed."""

from __future__ import annotations

import grpc
import pytest

import resilmesh_grpc
from tests.grpc.grpc_driver import HOST, held, mesh_of, until
from tests.grpc.grpc_service import HANG, GrpcService
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub


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
