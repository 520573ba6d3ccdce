"""Closing a channel under a stream without an answer never returned: its end asked for metadata on the thread that reads it."""

from __future__ import annotations

import threading

import resilmesh_grpc
from tests.grpc.grpc_driver import HOST, held, mesh_of, until
from tests.grpc.grpc_service import HANG, GrpcService
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub


def test_closing_under_a_stream_ends() -> None:
    with GrpcService(HANG) as service:
        mesh = mesh_of(service, concurrency="{maxRequests: 5}")
        channel = resilmesh_grpc.channel(mesh, HOST)
        stream = ShopStub(channel).Watch(Order(number=0))
        assert until(lambda: service.seen)
        closing = threading.Thread(target=channel.close, daemon=True)
        closing.start()
        closing.join(20)
        assert not closing.is_alive()
        assert until(lambda: held(mesh) == 0)
        assert stream.done()
