"""A call that was cancelled while its next attempt was being sent left that attempt running."""

from __future__ import annotations

import threading
from typing import Any

import grpc
import pytest

import resilmesh_grpc
from tests.grpc.grpc_driver import HOST, held, mesh_of, until
from tests.grpc.grpc_service import HANG, GrpcService, status
from tests.grpc.protos.shop_pb2 import Order, Receipt


@pytest.mark.parametrize("kind", ["future", "stream"])
def test_an_attempt_that_is_sent_while_its_call_is_cancelled_is_cancelled_too(kind: str) -> None:
    calls: list[Any] = []
    serialized: list[Order] = []

    def serialize(order: Order) -> bytes:
        serialized.append(order)
        if len(serialized) == 2:
            cancelling = threading.Thread(target=calls[0].cancel)
            cancelling.start()
            cancelling.join(10)
        return order.SerializeToString()

    with GrpcService([status("UNAVAILABLE"), HANG]) as service:
        mesh = mesh_of(service, retries="{retryOn: [unavailable], backoff: {base: 50ms}}")
        with resilmesh_grpc.channel(mesh, HOST) as channel:
            if kind == "future":
                calls.append(channel.unary_unary("/resilmesh.test.v1.Shop/Buy", serialize, Receipt.FromString).future(Order(), timeout=20))
                with pytest.raises(grpc.FutureCancelledError):
                    calls[0].result(10)
            else:
                calls.append(channel.unary_stream("/resilmesh.test.v1.Shop/Watch", serialize, Receipt.FromString)(Order(), timeout=20))
                with pytest.raises(grpc.RpcError) as caught:
                    next(calls[0])
                assert caught.value.code() is grpc.StatusCode.CANCELLED
                assert calls[0].time_remaining() > 5, "it was the deadline that ended it"
            assert until(lambda: len(serialized) == 2)
            [subchannel] = channel._caller.subchannels._by_key.values()
            assert until(lambda: subchannel.in_flight == 0)
            assert held(mesh) == 0, mesh.snapshot()
