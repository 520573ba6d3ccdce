"""``inbound`` and the caller's deadline, by servers of each kind, for every arity: what the caller sees, and that nothing stays behind."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from resilmesh import Mesh
from resilmesh.drive.context import deadline
from resilmesh.engine.events import Event
from tests.grpc.served import ARITIES, KINDS, LONG, Kind, eventually, served

Code = grpc.StatusCode

pytestmark = [pytest.mark.parametrize("kind", KINDS), pytest.mark.filterwarnings("error")]


@pytest.fixture(autouse=True)
def _what_grpc_logs_of_handlers_that_raise(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, "grpc")


def mesh_of(inbound: str, mode: str = "ENFORCE") -> Mesh:
    return Mesh.from_text(f"apiVersion: resilmesh/v1\nmesh: {{mode: {mode}}}\ninbound: {{{inbound}}}")


def calls(mesh: Mesh) -> dict[str, Any]:
    counted: dict[str, Any] = mesh.snapshot()["inbound"]["calls"]
    return counted


def nothing_left(mesh: Mesh) -> None:
    """Every call has ended, and is counted once; nobody holds a slot or stands in the queue."""
    eventually(lambda: calls(mesh)["inFlight"] == 0)
    counted, gate = calls(mesh), mesh.snapshot()["inbound"]["concurrency"]
    ended = ("succeeded", "failed", "abandoned", "ignored")
    assert counted["calls"] == sum(counted[each] for each in ended) + sum(counted["rejected"].values())
    assert gate is None or (gate["inFlight"], gate["pending"]) == (0, 0)


# ------------------------------------------------------------------------------------------------ deadlines


@pytest.mark.parametrize("arity", ["Buy", "Chat"])
@pytest.mark.parametrize("inbound", ["", "inbound: {concurrency: {maxRequests: 9}}"])
def test_outbound_calls_inherit_the_callers_deadline(kind: Kind, arity: str, inbound: str) -> None:
    """Before each message, also the second of a stream; and without one there is none."""
    with served(kind, Mesh.from_text(f"apiVersion: resilmesh/v1\n{inbound}")) as shop:
        answered = shop.ask(arity, "tell", "tell", timeout=10) if arity != "Buy" else shop.ask(arity, "tell", timeout=10)
        assert all(5 < float(each.text) <= 10.1 for each in answered), answered
        answered = shop.ask(arity, "tell", timeout=None)
        assert [each.text for each in answered] == ["inf"]


@pytest.mark.parametrize("arity", ["Buy", "Chat"])
def test_a_deadline_does_not_stay_behind(kind: Kind, arity: str) -> None:
    """The threads of a pool are used again."""
    with served(kind, mesh_of("")) as shop:
        for _ in range(20):
            shop.ask(arity, "tell", timeout=9)
        assert [each.text for each in shop.ask(arity, "tell", timeout=None)] == ["inf"]


@pytest.mark.parametrize("mode", ["OBSERVE", "OFF"])
def test_a_mesh_that_acts_on_nothing_passes_no_deadline_on(kind: Kind, mode: str) -> None:
    with served(kind, mesh_of("", mode)) as shop:
        assert [each.text for each in shop.ask("Buy", "tell", timeout=9)] == ["inf"]


def test_a_guarded_function_inherits_the_deadline(kind: Kind) -> None:
    mesh = Mesh.from_text("apiVersion: resilmesh/v1\nservices: [{name: ledger, timeout: 60s}]")

    @mesh.guard("ledger")
    async def awaited() -> float:
        return deadline() - time.monotonic()

    @mesh.guard("ledger")
    def blocking() -> float:
        return deadline() - time.monotonic()

    with served(kind, mesh, outbound=awaited if kind == "aio" else blocking) as shop:
        assert 5 < float(shop.ask("Buy", "outbound", timeout=10)[0].text) <= 10.1
    assert mesh.snapshot()["inbound"] is None


# ----------------------------------------------------------------------------------------------- rate limit


@pytest.mark.parametrize("arity", ["Buy", "Chat"])
def test_a_rate_limit(kind: Kind, arity: str) -> None:
    mesh = mesh_of("rateLimit: {requests: 2, per: 10s}")
    with served(kind, mesh) as shop:
        for _ in range(2):
            assert shop.ask(arity, "tea")[0].text == "tea"
        error = shop.refused(arity, "tea")
        assert (error.code(), error.details()) == (Code.RESOURCE_EXHAUSTED, "the rate limit has no token left")
        (pushback,) = [value for key, value in error.trailing_metadata() if key == "grpc-retry-pushback-ms"]
        assert 0 < int(pushback) <= 5000
        assert len(shop.entered) == 2
    assert calls(mesh)["rejected"] == {"RateLimited": 1}
    nothing_left(mesh)


def test_a_rate_limit_by_a_key_of_the_metadata(kind: Kind) -> None:
    """The first value counts; calls without the key share a bucket."""
    mesh = mesh_of("rateLimit: {requests: 1, per: 1h, descriptor: {header: x-tenant}}")
    with served(kind, mesh) as shop:
        for tenants, passes in ((["a"], True), (["a"], False), (["b", "a"], True), (["b"], False), ([], True), ([], False)):
            metadata = [("x-tenant", each) for each in tenants]
            if passes:
                shop.ask("Buy", "tea", metadata=metadata)
            else:
                assert shop.refused("Buy", "tea", metadata=metadata).code() is Code.RESOURCE_EXHAUSTED
    assert mesh.snapshot()["inbound"]["rateLimits"]["0 by x-tenant"]["values"] == 2


# ---------------------------------------------------------------------------------------------- concurrency


@pytest.mark.parametrize("arity", ["Buy", "Chat"])
def test_a_slot_is_held_until_the_call_ends(kind: Kind, arity: str) -> None:
    mesh = mesh_of("concurrency: {maxRequests: 1}")
    with served(kind, mesh) as shop:
        held = shop.pool.submit(shop.ask, arity, "hold")
        shop.wait_entered(1)
        error = shop.refused(arity, "tea")
        assert (error.code(), error.details()) == (Code.RESOURCE_EXHAUSTED, "1 calls are in flight and the queue is full")
        shop.release.set()
        assert held.result(LONG)[0].text == "hold"
        nothing_left(mesh)
        assert shop.ask(arity, "tea")[0].text == "tea"
    nothing_left(mesh)
    assert (calls(mesh)["succeeded"], calls(mesh)["rejected"]) == (2, {"ConcurrencyExceeded": 1})


@pytest.mark.parametrize("arity", ["Watch", "Chat"])
def test_a_stream_holds_its_slot_beyond_its_first_message(kind: Kind, arity: str) -> None:
    mesh = mesh_of("concurrency: {maxRequests: 1}")
    with served(kind, mesh) as shop:
        stream = shop.call(arity, "tea", "hold")
        assert next(stream).text == "tea"
        assert shop.refused("Buy", "tea").code() is Code.RESOURCE_EXHAUSTED
        shop.release.set()
        assert [each.text for each in stream] == ["hold"]
    nothing_left(mesh)


# -------------------------------------------------------------------------------------------- cancellations


# -------------------------------------------------------------------------------------- what handlers end in


def test_a_method_that_is_not_there(kind: Kind) -> None:
    mesh = mesh_of("rateLimit: {requests: 1, per: 1h}")
    with served(kind, mesh) as shop:
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                shop.channel.unary_unary("/resilmesh.test.v1.Shop/Sell")(b"")
            assert caught.value.code() is Code.UNIMPLEMENTED  # type: ignore[attr-defined]  # as above
    assert calls(mesh)["calls"] == 0


# ---------------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize("arity", ["Buy", "Chat"])
@pytest.mark.parametrize("scope", ["CALL", "ATTEMPT"])
@pytest.mark.parametrize(("abort", "code"), [
    ("grpcStatus: 7", Code.PERMISSION_DENIED), ("httpStatus: 503", Code.UNAVAILABLE), ("httpStatus: 418", Code.UNKNOWN),
])
def test_an_injected_abort(kind: Kind, arity: str, scope: str, abort: str, code: grpc.StatusCode) -> None:
    mesh = mesh_of(f"concurrency: {{maxRequests: 1}}, fault: {{abort: {{{abort}}}, scope: {scope}}}")
    with served(kind, mesh) as shop:
        error = shop.refused(arity, "tea")
        assert (error.code(), error.details()) == (code, "fault filter abort")
        assert shop.entered == []
    nothing_left(mesh)
    assert calls(mesh)["faults"] == {"abort": 1}


def test_a_share_of_aborts(kind: Kind) -> None:
    mesh = Mesh.from_text("apiVersion: resilmesh/v1\ninbound: {fault: {abort: {grpcStatus: 14, percent: 50}}}", seed=1)
    with served(kind, mesh) as shop:
        ended = [shop.call("Buy", "tea") for _ in range(60)]
        codes = [each.code() for each in ended]
    assert set(codes) == {Code.OK, Code.UNAVAILABLE}
    assert calls(mesh)["faults"]["abort"] == codes.count(Code.UNAVAILABLE)


# ------------------------------------------------------------------------------------------ modes, new policies


@pytest.mark.parametrize("arity", ["Buy", "Chat"])
def test_observe_counts_and_acts_on_nothing(kind: Kind, arity: str) -> None:
    inbound = "rateLimit: {requests: 1, per: 1h}, concurrency: {maxRequests: 1}, fault: {abort: {grpcStatus: 14}}"
    mesh = mesh_of(inbound, "OBSERVE")
    with served(kind, mesh) as shop:
        for _ in range(3):
            assert shop.ask(arity, "tea")[0].text == "tea"
        nothing_left(mesh)
    assert (calls(mesh)["wouldReject"], calls(mesh)["succeeded"], calls(mesh)["faults"]) == ({"RateLimited": 2}, 3, {})


def test_off_does_nothing(kind: Kind) -> None:
    mesh = mesh_of("rateLimit: {requests: 1, per: 1h}", "OFF")
    with served(kind, mesh) as shop:
        for arity in ARITIES:
            assert shop.ask(arity, "tea")[0].text == "tea"
    assert mesh.snapshot()["inbound"] is None


def test_a_new_policy_holds_from_the_next_call_on(kind: Kind) -> None:
    """State is kept: the call in flight holds its slot of a limit that was raised, and the bucket stays as empty as it was."""
    policy = "apiVersion: resilmesh/v1\ninbound: {{concurrency: {{maxRequests: {}}}, rateLimit: {{requests: 4, per: 1h}}}}"
    mesh = Mesh.from_text(policy.format(1))
    with served(kind, mesh) as shop:
        stream = shop.call("Watch", "tea", "hold")
        assert next(stream).text == "tea"
        assert shop.refused("Buy", "tea").code() is Code.RESOURCE_EXHAUSTED
        mesh.apply_text(policy.format(2))
        assert mesh.snapshot()["inbound"]["concurrency"]["inFlight"] == 1
        assert shop.ask("Buy", "tea")[0].text == "tea"
        assert 0.9 < mesh.snapshot()["inbound"]["rateLimits"]["0"]["tokens"] < 1.1
        mesh.apply_text("apiVersion: resilmesh/v1")
        for _ in range(5):
            shop.ask("Buy", "tea")
        assert mesh.snapshot()["inbound"] is None
        shop.release.set()
        assert [each.text for each in stream] == ["hold"]


# ------------------------------------------------------------------------------------------------ health, events


def _with_health(server: Any) -> None:
    service = health.HealthServicer(experimental_non_blocking=True)
    health_pb2_grpc.add_HealthServicer_to_server(service, server)


def test_health_checks_are_left_alone(kind: Kind) -> None:
    mesh = mesh_of("rateLimit: {requests: 1, per: 1h}")
    with served(kind, mesh, also=_with_health) as shop:
        stub = health_pb2_grpc.HealthStub(shop.channel)
        for _ in range(3):
            assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
    assert calls(mesh)["calls"] == 0


def test_health_checks_under_the_policy(kind: Kind) -> None:
    """Also Watch, whose handler returns at once and whose stream goes on: its slot is held until the caller goes."""
    mesh = mesh_of("rateLimit: {requests: 3, per: 1h}, concurrency: {maxRequests: 1}")
    with served(kind, mesh, health=True, also=_with_health) as shop:
        stub = health_pb2_grpc.HealthStub(shop.channel)
        assert stub.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING
        if kind == "sync":  # grpc.aio cannot run such a handler
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            assert shop.refused("Buy", "tea").code() is Code.RESOURCE_EXHAUSTED
            watch.cancel()
            nothing_left(mesh)
        for _ in range(3):
            shop_code = _code(lambda: stub.Check(health_pb2.HealthCheckRequest()))
        assert shop_code is Code.RESOURCE_EXHAUSTED


def _code(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined,no-any-return]  # as above
    return Code.OK


@pytest.mark.parametrize(("arity", "does", "told"), [
    ("Buy", "tea", [("attempt_ended", "OK"), ("call_ended", "SUCCESS")]),
    ("Buy", "raise", [("attempt_ended", "UNKNOWN"), ("call_ended", "FAILURE")]),
    ("Watch", "tea", [("attempt_ended", "OK"), ("call_ended", "SUCCESS")]),
    ("Chat", "raise", [("attempt_ended", "UNKNOWN"), ("call_ended", "FAILURE")]),
])
def test_what_is_told(kind: Kind, arity: str, does: str, told: list[tuple[str, str]]) -> None:
    mesh, events = mesh_of(""), list[Event]()
    mesh.subscribe(events.append)
    with served(kind, mesh) as shop:
        _code(lambda: shop.ask(arity, does))
        nothing_left(mesh)
    assert {each.service for each in events} == {"(inbound)"}
    names = [each.name for each in events]
    assert names == ["call_started", "attempt_started", *(name for name, _ in told)]
    assert [each.detail.get("grpc_status", each.detail["verdict"]) for each in events[2:]] == [word for _, word in told]


