"""A stream that was cancelled when the service had just ended it raised an error whose code is OK."""

from __future__ import annotations

import grpc
import pytest

import resilmesh_grpc
from resilmesh_grpc.calls import StreamReader
from tests.grpc.grpc_driver import FULL, HOST, held, mesh_of, until
from tests.grpc.grpc_service import GrpcService
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub


def test_a_stream_that_ended_before_it_could_be_cancelled_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody notices the end before the cancellation.
    monkeypatch.setattr(StreamReader, "_terminated", lambda self, number: None)
    with GrpcService() as service, mesh_of(service, **FULL) as mesh, resilmesh_grpc.channel(mesh, HOST) as channel:
        call = ShopStub(channel).Watch(Order(number=1))
        assert next(call).number == 0
        assert call._reader.native.code() is grpc.StatusCode.OK
        call.cancel()
        assert list(call) == []
        assert call.code() is grpc.StatusCode.OK
        assert not call.cancelled()
        assert until(lambda: held(mesh) == 0), mesh.snapshot()
