"""The services of these tests do what a script says and tell what they saw: through grpc's own channel, with nothing of ours in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import grpc
import pytest
from grpc import StatusCode
from h2.errors import ErrorCodes

from tests.grpc.grpc_service import HANG, OK, GrpcService, Say, status
from tests.grpc.protos.shop_pb2 import Order, Receipt
from tests.grpc.protos.shop_pb2_grpc import ShopStub
from tests.grpc.raw_http2 import (
    Close,
    Data,
    GoAway,
    Headers,
    RawHttp2,
    Read,
    Reset,
    Steps,
    Trailers,
    Wait,
    answer,
    failure,
    framed,
    html,
)


@pytest.fixture
def service() -> Iterator[GrpcService]:
    with GrpcService(name="a") as service:
        yield service


@pytest.fixture
def stub(service: GrpcService) -> Iterator[ShopStub]:
    with grpc.insecure_channel(service.address, [("grpc.enable_retries", 0)]) as channel:
        yield ShopStub(channel)


def test_every_arity_by_nature(service: GrpcService, stub: ShopStub) -> None:
    order = Order(text="tea", number=2, payload=b"\0\1")
    assert stub.Buy(order) == stub.Look(order) == Receipt(text="a:tea", number=2, payload=b"\0\1")
    assert [receipt.number for receipt in stub.Watch(order)] == [0, 1]
    assert stub.Collect(iter([order, order])) == Receipt(text="a:teatea", number=2)
    assert [receipt.text for receipt in stub.Chat(iter([order, order]))] == ["a:tea", "a:tea"]
    assert [(seen.method, len(seen.messages), seen.half_closed) for seen in service.seen] == [
        ("Buy", 1, True), ("Look", 1, True), ("Watch", 1, True), ("Collect", 2, True), ("Chat", 2, True),
    ]
    assert all(seen.over.wait(5) and seen.cancelled_at is None for seen in service.seen)


def test_status_with_metadata(service: GrpcService, stub: ShopStub) -> None:
    service.play([status("UNAVAILABLE", trailers=(("k", "v"), ("k-bin", b"\0"))), OK])
    with pytest.raises(grpc.RpcError) as caught:
        stub.Buy(Order(), timeout=5, metadata=[("x", "1")])
    assert (caught.value.code(), caught.value.details()) == (StatusCode.UNAVAILABLE, "service says UNAVAILABLE")
    assert dict(caught.value.trailing_metadata()) == {"k": "v", "k-bin": b"\0"}
    assert stub.Buy(Order(text="again"), timeout=5).text == "a:again"
    assert service.seen[0].metadata["x"] == "1"
    assert service.seen[0].remaining is not None
    assert 3 < service.seen[0].remaining < 5.2  # grpc rounds up what it sends


def test_messages_and_then_the_status(service: GrpcService, stub: ShopStub) -> None:
    service.play(status("INTERNAL", messages=2, initial=(("first", "1"),)))
    call = stub.Watch(Order())
    assert dict(call.initial_metadata())["first"] == "1"
    assert [next(call).number, next(call).number] == [0, 1]
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() is StatusCode.INTERNAL
    with pytest.raises(grpc.RpcError):
        stub.Collect(Order() for _ in range(5))
    assert len(service.seen[1].messages) == 2


def test_hangs_until_cancelled(service: GrpcService, stub: ShopStub) -> None:
    service.play(Say(messages=1, how="hang"))
    call = stub.Watch(Order())
    assert next(call).number == 0
    call.cancel()
    assert service.seen[0].over.wait(5)
    assert service.seen[0].cancelled_at is not None
    service.play(HANG)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Buy(Order(), timeout=0.05)
    assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED


def test_restart_drops_what_is_in_flight(service: GrpcService, stub: ShopStub) -> None:
    service.play([Say(messages=1, how="hang"), OK])
    call, address = stub.Watch(Order()), service.address
    next(call)
    service.restart()
    with pytest.raises(grpc.RpcError) as caught:
        next(call)
    assert caught.value.code() in {StatusCode.UNAVAILABLE, StatusCode.CANCELLED}
    assert service.address == address
    assert stub.Buy(Order(text="up"), wait_for_ready=True, timeout=10).text == "a:up"


CASES: list[tuple[str, Steps, StatusCode]] = [
    ("reset", [Read(), Reset(ErrorCodes.INTERNAL_ERROR)], StatusCode.INTERNAL),
    ("cancel", [Read(), Reset(ErrorCodes.CANCEL)], StatusCode.CANCELLED),
    ("refused", [Reset(ErrorCodes.REFUSED_STREAM)], StatusCode.UNAVAILABLE),
    ("calm", [Read(), Reset(ErrorCodes.ENHANCE_YOUR_CALM)], StatusCode.RESOURCE_EXHAUSTED),
    ("goaway", [Read(), GoAway(0)], StatusCode.UNAVAILABLE),
    ("503", html(503), StatusCode.UNAVAILABLE),
    ("404", html(404), StatusCode.UNIMPLEMENTED),
    ("closed", [Read(), Close()], StatusCode.UNAVAILABLE),
    ("closed by TCP reset", [Read(), Close(reset=True)], StatusCode.UNAVAILABLE),
    ("closed after the headers", [Read(), Headers(), Close()], StatusCode.UNAVAILABLE),
    ("trailers only", failure(8, "full"), StatusCode.RESOURCE_EXHAUSTED),
    ("status after a message", [Read(), Headers(), Data(framed(b"")), Trailers(13)], StatusCode.INTERNAL),
]


@pytest.mark.parametrize(("steps", "code"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_no_grpc_server_does(steps: Steps, code: StatusCode) -> None:
    with RawHttp2([steps]) as server, grpc.insecure_channel(server.address, [("grpc.enable_retries", 0)]) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ShopStub(channel).Buy(Order(), timeout=10)
        assert caught.value.code() is code
        assert server.seen[0].path == "/resilmesh.test.v1.Shop/Buy"


def test_raw_answer_dribbled() -> None:
    receipts = [Receipt(text="x", number=1), Receipt(text="y", number=2)]
    dribble: Steps = [Read(), Headers(), Data(framed(receipts[0]), gap=0.002), Trailers(0, (("k", "v"),))]
    with RawHttp2([dribble, answer(*receipts)]) as server, grpc.insecure_channel(server.address) as channel:
        stub = ShopStub(channel)
        receipt, call = stub.Buy.with_call(Order(), timeout=10)
        assert receipt == receipts[0]
        assert dict(call.trailing_metadata()) == {"k": "v"}
        assert list(stub.Watch(Order(text="z"), timeout=10)) == receipts
        assert server.seen[1].body == framed(Order(text="z"))
        assert server.connections == 1


def test_raw_server_sees_the_cancellation() -> None:
    with RawHttp2([[Headers(), Wait(30)]]) as server, grpc.insecure_channel(server.address) as channel:
        call = ShopStub(channel).Watch(Order(), timeout=10)
        call.initial_metadata()
        call.cancel()
        assert server.seen[0].gone.wait(5)
        assert server.seen[0].reset == ErrorCodes.CANCEL


def test_services_leave_no_thread() -> None:
    before = threading.active_count()
    with GrpcService(HANG) as service, RawHttp2([[Wait(30)]]) as server:
        for address in (service.address, server.address):
            with grpc.insecure_channel(address) as channel:
                call = ShopStub(channel).Buy.future(Order())
                until = time.monotonic() + 5
                while not (service if address == service.address else server).seen and time.monotonic() < until:
                    time.sleep(0.005)
                call.cancel()
    until = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.005)
    assert threading.active_count() == before
