"""``mesh.call("svc", function, *args)``: one call of a function that is not decorated."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Iterator
from typing import Any
from unittest.mock import AsyncMock

import anyio.lowlevel
import pytest

from resilmesh import CircuitOpen, UnknownService
from resilmesh.testing import ManualClock
from tests.drive.guarding import RETRY, idle, mesh_of, stats


class Trouble(Exception):
    pass


class Owner:
    def __init__(self) -> None:
        self.failed = False

    def method(self, value: int) -> int:
        if not self.failed:
            self.failed = True
            raise Trouble
        return value

    __call__ = method

    async def later(self, value: int) -> int:
        await anyio.lowlevel.checkpoint()
        return self.method(value)


def keyed(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def test_every_name_belongs_to_the_function() -> None:
    names = {"service": 1, "function": 2, "self": 3, "fn": 4, "route": 5, "idempotent": 6, "fallback": 7, "stop": 8, "obj": 9, "args": 10}
    assert mesh_of().call("svc", keyed, 0, **names) == ((0,), names)


@pytest.mark.parametrize("form", ["method", "partial", "instance", "lambda"])
def test_every_form_is_one_call_with_its_retries(form: str) -> None:
    mesh, owner = mesh_of(clock=ManualClock(), retries=RETRY), Owner()
    function = {
        "method": owner.method, "partial": functools.partial(owner.method), "instance": owner,
        "lambda": lambda value: owner.method(value) + 0,
    }[form]
    assert mesh.call("svc", function, 7) == 7
    assert (stats(mesh)["calls"], stats(mesh)["retries"], idle(mesh)) == (1, 1, True)


@pytest.mark.anyio
@pytest.mark.parametrize("form", ["method", "partial", "mock"])
async def test_a_coroutine_function_is_awaited(form: str) -> None:
    mesh, owner = mesh_of(clock=ManualClock(), retries=RETRY, timeout="9s"), Owner()
    function: Any = {
        "method": owner.later, "partial": functools.partial(owner.later), "mock": AsyncMock(side_effect=[Trouble, 7]),
    }[form]
    assert await mesh.call("svc", function, 7) == 7
    assert (stats(mesh)["calls"], stats(mesh)["retries"], idle(mesh)) == (1, 1, True)


@pytest.mark.anyio
async def test_generators_are_streams() -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")

    def rows(count: int) -> Iterator[int]:
        yield from range(count)

    async def rows_later(count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number

    assert list(mesh.call("svc", rows, 3)) == [0, 1, 2]
    assert [number async for number in mesh.call("svc", rows_later, 3)] == [0, 1, 2]
    assert (stats(mesh)["succeeded"], idle(mesh)) == (2, True)


def test_it_shares_the_services_state() -> None:
    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}")
    with pytest.raises(Trouble):
        mesh.call("svc", Owner().method, 1)
    with pytest.raises(CircuitOpen):
        mesh.guard("svc")(lambda: 1)()
    with pytest.raises(CircuitOpen):
        mesh.call("svc", keyed)


def test_a_function_is_wrapped_by_nothing_of_its_own() -> None:
    mesh = mesh_of()
    for _ in range(50):
        mesh.call("svc", lambda: 1)
    assert len(mesh._runners) == 1


def test_an_unknown_service_is_said_each_time_and_does_not_stay() -> None:
    mesh = mesh_of()
    for _ in range(2):
        with pytest.raises(UnknownService, match="no service 'leger'; it has svc"):
            mesh.call("leger", keyed)
    assert mesh._runners == {}
