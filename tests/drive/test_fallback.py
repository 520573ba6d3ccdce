"""``guard(..., fallback=...)``: what stands in for a call that was rejected, cut off, or failed."""

from __future__ import annotations

from typing import Any

import anyio
import anyio.lowlevel
import pytest

from resilmesh import CircuitOpen, DeadlineExceeded, InjectedFault, RateLimited
from resilmesh.testing import ManualClock
from tests.drive.guarding import RETRY, idle, listen, mesh_of, stats

pytestmark = pytest.mark.anyio


class Trouble(Exception):
    pass


def plainly(error: Any) -> Any:
    return "kept", error


async def later(error: Any) -> Any:
    await anyio.lowlevel.checkpoint()
    return "kept", error


class Caller:
    """Calls a guarded function, or a coroutine function with either kind of fallback."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.fallback = later if kind == "awaited" else plainly

    async def __call__(self, mesh: Any, outcome: Any, **options: Any) -> Any:
        options.setdefault("fallback", self.fallback)
        if self.kind == "plain":
            return mesh.guard("svc", **options)(lambda: act(outcome))()

        async def function() -> Any:
            await anyio.lowlevel.checkpoint()
            return act(outcome)

        return await mesh.guard("svc", **options)(function)()


def act(outcome: Any) -> Any:
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


@pytest.fixture(params=["plain", "either", "awaited"])
def call(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)


async def test_a_failure(call: Caller) -> None:
    mesh, error = mesh_of(), Trouble()
    events = listen(mesh)
    assert await call(mesh, error) == ("kept", error)
    assert (stats(mesh)["fallbacks"], stats(mesh)["failed"], idle(mesh)) == ({"FAILURE": 1}, 1, True)
    assert [(each.name, each.detail) for each in events if each.name == "fell_back"] == [("fell_back", {"reason": "FAILURE"})]


async def test_a_success_costs_and_changes_nothing(call: Caller) -> None:
    mesh = mesh_of()
    assert await call(mesh, 7) == 7
    assert stats(mesh)["fallbacks"] == {}


async def test_only_when_the_retries_are_used_up(call: Caller) -> None:
    mesh, error = mesh_of(clock=ManualClock(), retries=RETRY), Trouble()
    assert await call(mesh, error) == ("kept", error)
    assert (stats(mesh)["retries"], stats(mesh)["fallbacks"]) == (2, {"FAILURE": 1})


async def test_a_result_that_is_judged_a_failure(call: Caller) -> None:
    mesh = mesh_of()
    assert await call(mesh, "PENDING", failures=lambda outcome: outcome == "PENDING") == ("kept", "PENDING")


async def test_a_rejection(call: Caller) -> None:
    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}", rateLimit="{requests: 2, per: 1h}")
    given = [(await call(mesh, Trouble()))[1] for _ in range(3)]
    assert [type(each) for each in given] == [Trouble, CircuitOpen, RateLimited]
    assert (stats(mesh)["fallbacks"], idle(mesh)) == ({"FAILURE": 1, "REJECTED": 2}, True)


async def test_a_fault(call: Caller) -> None:
    for scope in ("CALL", "ATTEMPT"):
        mesh = mesh_of(fault=f"{{abort: {{httpStatus: 503}}, scope: {scope}}}")
        assert type((await call(mesh, 1))[1]) is InjectedFault


async def test_what_is_no_failure_gets_none(call: Caller) -> None:
    for options in ({"failures": KeyError}, {"ignore": Trouble}):
        with pytest.raises(Trouble):
            await call(mesh_of(), Trouble(), **options)
    with pytest.raises(KeyboardInterrupt):
        await call(mesh_of(), KeyboardInterrupt())
    for mode in ("OFF", "OBSERVE"):
        with pytest.raises(Trouble):
            await call(mesh_of(mesh=f"{{mode: {mode}}}"), Trouble())


async def test_what_a_fallback_raises_has_the_outcome_as_its_context(call: Caller) -> None:
    def broken(error: Any) -> Any:
        raise LookupError

    def passed_on(error: Any) -> Any:
        raise error

    mesh, error = mesh_of(), Trouble()
    with pytest.raises(LookupError) as caught:
        await call(mesh, error, fallback=broken)
    assert caught.value.__context__ is error
    with pytest.raises(Trouble) as same:
        await call(mesh, error, fallback=passed_on)
    assert same.value is error
    assert (stats(mesh)["fallbacks"], idle(mesh)) == ({}, True)


@pytest.mark.parametrize("fallback", [plainly, later])
async def test_a_deadline(fallback: Any) -> None:
    mesh = mesh_of(timeout="10ms")

    @mesh.guard("svc", fallback=fallback)
    async def hanging() -> Any:
        await anyio.sleep_forever()

    assert type((await hanging())[1]) is DeadlineExceeded
    assert (stats(mesh)["fallbacks"], idle(mesh)) == ({"DEADLINE": 1}, True)


async def test_a_cancelled_call_has_no_fallback() -> None:
    mesh = mesh_of(timeout="9s")
    with anyio.move_on_after(0.01) as scope:
        await mesh.guard("svc", fallback=later)(anyio.sleep_forever)()
    assert (scope.cancelled_caught, stats(mesh)["abandoned"], stats(mesh)["fallbacks"]) == (True, 1, {})


def test_what_cannot_be_a_fallback() -> None:
    with pytest.raises(TypeError, match="fallback is a function of the exception or the result, not 3"):
        mesh_of().guard("svc", fallback=3)  # type: ignore[arg-type]  # the point
    with pytest.raises(TypeError, match="the fallback of what is not awaited cannot be awaited either"):
        mesh_of().guard("svc", fallback=later)(len)
    with pytest.raises(TypeError, match="there is no fallback="):
        mesh_of().attempts("svc", fallback=plainly)  # type: ignore[call-arg]  # the point
