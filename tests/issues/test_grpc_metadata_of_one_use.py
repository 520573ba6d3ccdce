"""Metadata that the caller gave as an iterator was gone when a route had looked at it, or when the first attempt had sent it."""

from __future__ import annotations

import pytest

import resilmesh_grpc
from tests.grpc.grpc_driver import HOST, mesh_of
from tests.grpc.grpc_service import OK, GrpcService, status
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

RETRIES = "{maxRetries: 1, retryOn: [unavailable], backoff: {base: 1ms}}"
ROUTES = f"[{{name: mine, match: [{{headers: {{x-own: {{present: true}}}}}}], retries: {RETRIES}}}]"


@pytest.mark.parametrize("style", ["call", "with_call", "future", "stream"])
def test_it_is_matched_and_sent_with_every_attempt(style: str) -> None:
    with GrpcService([status("UNAVAILABLE", messages=0), OK]) as service, mesh_of(service, routes=ROUTES) as mesh:
        with resilmesh_grpc.channel(mesh, HOST) as channel:
            stub, own = ShopStub(channel), iter([("x-own", "1")])
            if style == "stream":
                assert list(stub.Watch(Order(number=1), metadata=own))
            elif style == "future":
                stub.Buy.future(Order(), metadata=own).result(10)
            elif style == "with_call":
                stub.Buy.with_call(Order(), metadata=own)
            else:
                stub.Buy(Order(), metadata=own)
        assert [each.metadata.get("x-own") for each in service.seen] == ["1", "1"]
