"""A future that waited for a slot kept the timer of that wait, which woke it again in the middle of its attempt."""

from __future__ import annotations

import time

import resilmesh_grpc
from tests.grpc.grpc_driver import HOST, held, mesh_of, until
from tests.grpc.grpc_service import GrpcService, Say
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub


def test_a_future_that_got_its_slot_in_time_makes_one_attempt() -> None:
    with GrpcService(Say(delay=0.15)) as service:
        mesh = mesh_of(service, concurrency="{maxRequests: 1, maxPending: 5, maxPendingWait: 200ms}")
        with resilmesh_grpc.channel(mesh, HOST) as channel:
            stub = ShopStub(channel)
            first, second = stub.Buy.future(Order(text="tea")), stub.Buy.future(Order(text="milk"))
            assert first.result(10).text.endswith("tea")
            assert second.result(10).text.endswith("milk")
            time.sleep(0.25)  # beyond the time that the second would have waited, and the limits of its attempt
            assert len(service.seen) == 2
            assert until(lambda: held(mesh) == 0)
