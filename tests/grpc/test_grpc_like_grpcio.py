"""A channel of ours is to a generated stub what grpcio's own is: each case is made through both, and what the caller is told is compared.

The policy has every block, and none of them has reason to say anything, but for the retries of UNAVAILABLE, which end as the first
attempt did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

import resilmesh_grpc
from resilmesh import Mesh
from tests.grpc.grpc_driver import FULL, HOST, mesh_of
from tests.grpc.grpc_service import HANG, OK, GrpcService, Say, status
from tests.grpc.protos.shop_pb2 import Order, Receipt
from tests.grpc.protos.shop_pb2_grpc import ShopStub

pytestmark = pytest.mark.usefixtures("clean")

ORDER = Order(text="tea", number=3, payload=b"\0\xff")
INITIAL, TRAILING = (("first", "1"), ("first-bin", b"\0\1")), (("last", "1"), ("last", "2"), ("last-bin", b"\xff"))


@dataclass
class Told:
    """What a caller learns of a call."""

    messages: list[Any] = field(default_factory=list)
    error: list[Any] = field(default_factory=list)
    initial: Any = None
    trailing: Any = None
    more: dict[str, Any] = field(default_factory=dict)

    def ask(self, call: Any, *, raised: bool = False) -> None:
        """What a call, or an error, that is over says of itself."""
        self.initial, self.trailing = _pairs(call.initial_metadata()), _pairs(call.trailing_metadata())
        self.more |= {"code": call.code(), "details": call.details()}
        if not raised:  # an error of grpcio's does not know more
            self.more |= {"active": call.is_active(), "kinds": _kinds(call)}


def _pairs(metadata: Any) -> Any:
    return None if metadata is None else [(key, value) for key, value in metadata if key not in ("user-agent", "date")]


def _kinds(error: Any) -> list[Any]:
    return [isinstance(error, kind) for kind in (grpc.RpcError, grpc.Call, grpc.Future)]


def by_call(method: Any, request: Any, **options: Any) -> Told:
    told = Told()
    try:
        told.messages.append(method(request, **options))
    except grpc.RpcError as error:
        told.error = _kinds(error)
        told.ask(error, raised=True)
        told.more["debug"] = isinstance(error.debug_error_string(), str)  # type: ignore[attr-defined]  # of what grpc raises
    return told


def by_with_call(method: Any, request: Any, **options: Any) -> Told:
    told = Told()
    try:
        message, call = method.with_call(request, **options)
        told.messages.append(message)
        told.ask(call)
    except grpc.RpcError as error:
        told.error = _kinds(error)
        told.ask(error, raised=True)
    return told


def by_future(method: Any, request: Any, **options: Any) -> Told:
    told, done = Told(), []
    future = method.future(request, **options)
    future.add_done_callback(done.append)
    try:
        told.messages.append(future.result(timeout=20))
        told.more["exception"] = future.exception()
        told.more["traceback"] = future.traceback()
    except grpc.RpcError as error:
        told.error = _kinds(error)
        told.more["exception"] = type(future.exception()) is type(error)
        told.more["traceback"] = future.traceback() is not None
    told.ask(future)
    told.more |= {"done": future.done(), "cancelled": future.cancelled(), "running": future.running()}
    late: list[Any] = []
    future.add_done_callback(late.append)
    told.more["late"] = late == [future]
    told.more["done with"] = all(each is future for each in done)
    told.more["cancel"] = future.cancel()
    return told


def by_iteration(method: Any, request: Any, **options: Any) -> Told:
    told = Told()
    try:
        call = method(request, **options)
    except grpc.RpcError as error:  # at once: the request cannot even be serialized
        told.ask(error, raised=True)
        return told
    told.more["iterator"] = iter(call) is call
    try:
        for message in call:
            told.messages.append(message)
    except grpc.RpcError as error:
        told.error = _kinds(error)
        told.more["error is the call's"] = error.code() == call.code()  # type: ignore[attr-defined]  # of what grpc raises
    told.ask(call)
    told.more |= {"done": call.done(), "cancelled": call.cancelled(), "running": call.running()}
    return told


def by_next(method: Any, request: Any, **options: Any) -> Told:
    """Metadata first, then one message at a time, and once more after the end."""
    told = Told()
    call = method(request, **options)
    told.more["initial first"] = _pairs(call.initial_metadata())
    while True:
        try:
            told.messages.append(next(call))
        except StopIteration:
            break
        except grpc.RpcError as error:
            told.error = _kinds(error)
            break
    try:
        next(call)
    except (StopIteration, grpc.RpcError) as error:
        told.more["again"] = isinstance(error, grpc.RpcError)
    told.ask(call)
    return told


UNARY, STREAM = (by_call, by_with_call, by_future), (by_iteration, by_next)
#: Method, what it is given, and how it may be called.
ARITIES: dict[str, tuple[Callable[[], Any], tuple[Any, ...]]] = {
    "Buy": (lambda: ORDER, UNARY),
    "Watch": (lambda: ORDER, STREAM),
    "Collect": (lambda: iter([ORDER, ORDER]), UNARY),
    "Chat": (lambda: iter([ORDER, ORDER]), STREAM),
}
STYLES = [(method, style) for method, (_, styles) in ARITIES.items() for style in styles]

#: What the service does, and how it is called.
CASES: dict[str, tuple[Say, dict[str, Any]]] = {
    "ok": (OK, {}),
    "metadata": (Say(initial=INITIAL, trailers=TRAILING), {"metadata": [("k", "v"), ("k-bin", b"\0")]}),
    "status": (status("NOT_FOUND", trailers=TRAILING), {}),
    "initial metadata, then a status": (status("INTERNAL", initial=INITIAL, trailers=TRAILING), {}),
    "a message, then a status": (status("ABORTED", messages=1, initial=INITIAL), {}),
    "deadline": (HANG, {"timeout": 0.06}),
    "deadline after a message": (Say(messages=1, how="hang"), {"timeout": 0.06}),
    "deadline already gone": (OK, {"timeout": -1.0}),
    "time enough": (OK, {"timeout": 15.0, "wait_for_ready": True}),
    "compressed": (OK, {"compression": grpc.Compression.Gzip}),
    "details in Unicode": (status("FAILED_PRECONDITION", details="Zoë, 50% 😀\n"), {}),
}


@pytest.fixture
def mesh(service: GrpcService) -> Iterator[Mesh]:
    with mesh_of(service, **FULL) as mesh:
        yield mesh


@pytest.fixture
def channels(service: GrpcService, mesh: Mesh) -> Iterator[tuple[grpc.Channel, grpc.Channel]]:
    """grpcio's, and ours."""
    with grpc.insecure_channel(service.address, [("grpc.enable_retries", 0)]) as own, resilmesh_grpc.channel(mesh, HOST) as ours:
        yield own, ours


@pytest.mark.parametrize("case", CASES)
def test_what_the_caller_is_told(service: GrpcService, channels: tuple[grpc.Channel, grpc.Channel], case: str) -> None:
    say, options = CASES[case]
    service.play(say)
    for method, style in STYLES:
        request = ARITIES[method][0]
        own, ours = (style(getattr(ShopStub(channel), method), request(), **options) for channel in channels)
        if options.get("timeout", 1.0) < 1.0:  # whose words tell that time is up is not agreed upon
            own.more.pop("details"), ours.more.pop("details")
        assert ours == own, f"{method} {style.__name__}"


@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK], ids=lambda code: str(code.name))
def test_each_status(service: GrpcService, channels: tuple[grpc.Channel, grpc.Channel], code: grpc.StatusCode) -> None:
    service.play(status(code.name, trailers=TRAILING))
    for method, style in (("Buy", by_call), ("Watch", by_iteration)):
        own, ours = (style(getattr(ShopStub(channel), method), ORDER) for channel in channels)
        assert ours == own, method


def test_what_the_service_is_told(service: GrpcService, channels: tuple[grpc.Channel, grpc.Channel]) -> None:
    metadata = (("k", "v"), ("k", "w"), ("k-bin", b"\0\1"))
    for channel in channels:
        stub = ShopStub(channel)
        stub.Buy(ORDER, metadata=metadata, timeout=5)
        list(stub.Chat(iter([ORDER, Order()]), metadata=metadata, timeout=5))
    own, ours = service.seen[:2], service.seen[2:]
    for one, other in zip(own, ours, strict=True):
        assert [one.messages, one.half_closed] == [other.messages, other.half_closed]
        for key in ("k", "k-bin", "user-agent"):
            assert one.metadata[key] == other.metadata[key]
        assert one.remaining is not None
        assert other.remaining is not None
        assert abs(one.remaining - other.remaining) < 1


def _raises(*_: Any) -> Any:
    raise RuntimeError("the serializer fails")


SERIALIZERS: dict[str, dict[str, Any]] = {
    "request": {"request_serializer": _raises, "response_deserializer": Receipt.FromString},
    "response": {"request_serializer": Order.SerializeToString, "response_deserializer": _raises},
    "none": {},
}


@pytest.mark.parametrize("which", SERIALIZERS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_serializers_that_fail_and_none_at_all(channels: tuple[grpc.Channel, grpc.Channel], which: str) -> None:
    kinds = {"unary_unary": ("Buy", by_call), "unary_stream": ("Watch", by_iteration)}
    for kind, (method, style) in kinds.items():
        request: Any = ORDER.SerializeToString() if which == "none" else ORDER
        own, ours = (
            style(getattr(channel, kind)(f"/resilmesh.test.v1.Shop/{method}", **SERIALIZERS[which]), request) for channel in channels
        )
        assert ours == own, kind


def test_a_method_that_is_not_there(channels: tuple[grpc.Channel, grpc.Channel]) -> None:
    own, ours = (by_call(channel.unary_unary("/nobody.Knows/This"), b"") for channel in channels)
    assert ours == own
    assert ours.more["code"] is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("metadata", [[("Upper Case", "v")], [("k", "line\nbreak")], [("k",)], [("k", 1)], "text"])
def test_metadata_that_cannot_be_sent(service: GrpcService, channels: tuple[grpc.Channel, grpc.Channel], metadata: Any) -> None:
    """Whatever is raised, it is the same class; and nothing was sent."""
    raised = []
    for channel in channels:
        with pytest.raises(Exception) as caught:  # noqa: PT011  # which one is what the test compares
            ShopStub(channel).Buy(ORDER, metadata=metadata, timeout=5)
        raised.append(type(caught.value))
    assert raised[0] is raised[1]
    assert not service.seen


def test_requests_that_break_off(service: GrpcService, channels: tuple[grpc.Channel, grpc.Channel]) -> None:
    def broken() -> Iterator[Order]:
        yield ORDER
        raise RuntimeError("no more orders")

    for method, style in (("Collect", by_call), ("Collect", by_future), ("Chat", by_iteration)):
        own, ours = (style(getattr(ShopStub(channel), method), broken()) for channel in channels)
        own.messages.clear(), ours.messages.clear()  # whether the first answer is there before the end is a matter of luck
        own.initial = ours.initial = None
        assert ours == own, (method, style)


def test_options_of_the_channel_reach_grpc(service: GrpcService, mesh: Mesh) -> None:
    options = [("grpc.max_receive_message_length", 100), ("grpc.primary_user_agent", "shopper")]
    with (
        grpc.insecure_channel(service.address, options) as own,
        resilmesh_grpc.channel(mesh, HOST, options=options, compression=grpc.Compression.Gzip) as ours,
    ):
        big = Order(payload=b"x" * 1000)
        assert by_call(ShopStub(ours).Buy, big) == by_call(ShopStub(own).Buy, big)
        ours_told = by_call(ShopStub(ours).Buy, big)
        assert ours_told.more["code"] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(service.seen[-1].metadata["user-agent"]).startswith("shopper ")


def test_interceptors_of_grpc_on_a_channel_of_ours(channels: tuple[grpc.Channel, grpc.Channel]) -> None:
    """They are above the policy: one sees a call, however many attempts it has."""
    class Spy(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[misc]  # grpc has no types
        def __init__(self) -> None:
            self.seen: list[str] = []

        def _seen(self, continuation: Any, details: Any, request: Any) -> Any:
            self.seen.append(details.method)
            return continuation(details, request)

        intercept_unary_unary = intercept_unary_stream = _seen

    for channel in channels:
        spy = Spy()
        stub = ShopStub(grpc.intercept_channel(channel, spy))
        assert stub.Buy(ORDER).text == "tea"
        assert stub.Buy.future(ORDER).result().text == "tea"
        assert len(list(stub.Watch(ORDER))) == 3
        assert [name.rpartition("/")[2] for name in spy.seen] == ["Buy", "Buy", "Watch"]


def test_a_closed_channel(channels: tuple[grpc.Channel, grpc.Channel]) -> None:
    for channel in channels:
        stub = ShopStub(channel)
        stub.Buy(ORDER)
        channel.close()
        channel.close()
        for call in (lambda: stub.Buy(ORDER), lambda: stub.Buy.future(ORDER), lambda: stub.Watch(ORDER)):  # noqa: B023  # called at once
            with pytest.raises(ValueError, match=r"closed channel!|Channel closed!"):
                call()
