"""What can be guarded, and that it stays what it was."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock

import anyio.lowlevel
import pytest

from resilmesh import Mesh, UnknownService
from resilmesh.testing import ManualClock
from tests.drive.guarding import RETRY, idle, mesh_of, policy, stats

MESH = mesh_of(timeout="1s")
guard = MESH.guard("svc")


class Flaky:
    """Fails the first time it is asked, in every form that a callable has."""

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, *values: Any) -> tuple[Any, ...]:
        self.asked += 1
        if self.asked == 1:
            raise ConnectionError("the first one")
        return values


def forms(flaky: Flaky, mesh: Mesh) -> dict[str, Callable[..., Any]]:
    """Every form of a sync callable, guarded: each is called with 2, and gives its own first argument and 2."""
    guard = mesh.guard("svc")

    @guard
    def function(value: int) -> Any:
        return flaky.answer(value)

    class Owner:
        @guard
        def method(self, value: int) -> Any:
            return flaky.answer(self, value)[1:]

        @guard
        @classmethod
        def outside_class(cls, value: int) -> Any:
            assert cls is Owner
            return flaky.answer(value)

        @classmethod
        @guard
        def inside_class(cls, value: int) -> Any:
            assert cls is Owner
            return flaky.answer(value)

        @guard
        @staticmethod
        def outside_static(value: int) -> Any:
            return flaky.answer(value)

        @staticmethod
        @guard
        def inside_static(value: int) -> Any:
            return flaky.answer(value)

        def __call__(self, value: int) -> Any:
            return flaky.answer(value)

    owner = Owner()
    return {
        "function": function, "method": owner.method, "unbound": functools.partial(Owner.method, owner),
        "classmethod outside": Owner.outside_class, "classmethod inside": Owner.inside_class,
        "classmethod on instance": owner.outside_class, "staticmethod outside": Owner.outside_static,
        "staticmethod inside": Owner.inside_static,
        "staticmethod on instance": owner.outside_static, "partial": guard(functools.partial(flaky.answer)),
        "bound method": guard(flaky.answer), "instance": guard(owner), "lambda": guard(lambda value: (flaky.answer(), value)[1:]),
    }


def async_forms(flaky: Flaky, mesh: Mesh) -> dict[str, Callable[..., Any]]:
    """The same for coroutine functions."""
    guard = mesh.guard("svc")

    async def plain(value: int) -> Any:
        await anyio.lowlevel.checkpoint()
        return flaky.answer(value)

    class Owner:
        @guard
        async def method(self, value: int) -> Any:
            return await plain(value)

        @guard
        @classmethod
        async def outside_class(cls, value: int) -> Any:
            assert cls is Owner
            return await plain(value)

        @classmethod
        @guard
        async def inside_class(cls, value: int) -> Any:
            assert cls is Owner
            return await plain(value)

        @guard
        @staticmethod
        async def outside_static(value: int) -> Any:
            return await plain(value)

        @staticmethod
        @guard
        async def inside_static(value: int) -> Any:
            return await plain(value)

        async def __call__(self, value: int) -> Any:
            return await plain(value)

    owner = Owner()
    return {
        "function": guard(plain), "method": owner.method, "classmethod outside": Owner.outside_class,
        "classmethod inside": Owner.inside_class, "staticmethod outside": Owner.outside_static,
        "staticmethod inside": Owner.inside_static, "partial": guard(functools.partial(plain)), "instance": guard(Owner()),
        "partial of an instance": guard(functools.partial(Owner())), "bound method": guard(Owner().__call__),
    }


@pytest.mark.parametrize("form", forms(Flaky(), MESH))
def test_every_form_of_a_function_is_called_again(form: str) -> None:
    flaky, mesh = Flaky(), mesh_of(clock=ManualClock(), retries=RETRY)
    assert forms(flaky, mesh)[form](2) == (2,)
    assert flaky.asked == 2
    assert (stats(mesh)["retries"], stats(mesh)["succeeded"], idle(mesh)) == (1, 1, True)


@pytest.mark.anyio
@pytest.mark.parametrize("form", async_forms(Flaky(), MESH))
async def test_every_form_of_a_coroutine_function_is_awaited_again(form: str) -> None:
    flaky, mesh = Flaky(), mesh_of(clock=ManualClock(), retries=RETRY, timeout="5s")
    guarded = async_forms(flaky, mesh)[form]
    assert inspect.iscoroutinefunction(guarded) or form in ("partial", "instance", "partial of an instance")
    assert await guarded(2) == (2,)
    assert flaky.asked == 2
    assert (stats(mesh)["retries"], stats(mesh)["succeeded"], idle(mesh)) == (1, 1, True)


@pytest.mark.anyio
async def test_a_mock_of_a_coroutine_function_can_be_guarded() -> None:
    mock = AsyncMock(side_effect=[ConnectionError, 5])
    mesh = mesh_of(clock=ManualClock(), retries=RETRY)
    assert await mesh.guard("svc")(mock)() == 5
    assert mock.await_count == 2


@guard
def documented(first: int, *rest: str, flag: bool = True, **more: float) -> list[str]:
    """Its documentation."""
    return [str(first), *rest]


@guard
async def documented_too(first: int, /, second: str = "s") -> None:
    """Its documentation, too."""


def test_a_guarded_function_shows_itself_as_before() -> None:
    assert str(inspect.signature(documented)) == "(first: 'int', *rest: 'str', flag: 'bool' = True, **more: 'float') -> 'list[str]'"
    assert (documented.__name__, documented.__doc__) == ("documented", "Its documentation.")
    assert (documented.__module__, documented.__qualname__) == (__name__, "documented")
    assert inspect.get_annotations(documented, eval_str=True)["return"] == list[str]
    assert inspect.unwrap(documented) is not documented
    assert not inspect.iscoroutinefunction(documented)
    assert str(inspect.signature(documented_too)) == "(first: 'int', /, second: 'str' = 's') -> 'None'"
    assert inspect.iscoroutinefunction(documented_too)
    assert pickle.loads(pickle.dumps(documented)) is documented


def test_arguments_and_result_pass_unchanged() -> None:
    result = object()
    assert documented(1, "a", flag=False, weight=2.0) == ["1", "a"]
    assert guard(lambda *args, **kwargs: (args, kwargs, result))(1, self=2, args=3) == ((1,), {"self": 2, "args": 3}, result)


@pytest.mark.parametrize("thing", [5, "name", None])
def test_what_cannot_be_called_is_refused(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"guard wraps functions, not (int|str|NoneType)"):
        guard(thing)


def test_one_guard_serves_several_functions() -> None:
    mesh = mesh_of()
    guard = mesh.guard("svc")
    first, second = guard(lambda: 1), guard(lambda: 2)
    assert (first(), second(), stats(mesh)["calls"]) == (1, 2, 2)


def test_a_guarded_function_may_call_itself() -> None:
    mesh = mesh_of(timeout="5s", circuitBreaker="{consecutiveFailures: 1}", concurrency="{maxRequests: 50}")

    @mesh.guard("svc")
    def count_down(n: int) -> int:
        return 0 if n == 0 else 1 + count_down(n - 1)

    assert count_down(40) == 40
    assert (stats(mesh)["calls"], stats(mesh)["succeeded"], idle(mesh)) == (41, 41, True)


def test_an_unknown_name_is_an_error_that_lists_what_there_is() -> None:
    mesh = Mesh.from_text(policy(routes="[{name: read}]"))
    with pytest.raises(UnknownService, match="no service 'leger'; it has svc"):
        mesh.guard("leger")
    with pytest.raises(UnknownService, match="no route 'write'; it has read"):
        mesh.guard("svc", route="write")
    with pytest.raises(UnknownService):
        mesh.attempts("leger")


def test_a_route_by_name_has_its_own_policy() -> None:
    mesh = Mesh.from_text(policy(mode="OFF", routes="[{name: read, rateLimit: {requests: 1, per: 1h}}]"))
    calls = [mesh.guard("svc")(lambda: 1), mesh.guard("svc", route="read")(lambda: 1)]
    assert [call() for call in calls] == [1, 1]


def test_mode_off_calls_the_function_and_nothing_else() -> None:
    mesh = mesh_of(mesh="{mode: OFF}", timeout="1s", rateLimit="{requests: 1, per: 1h}")
    guarded = mesh.guard("svc")(lambda: 1)
    assert [guarded() for _ in range(3)] == [1, 1, 1]
    assert mesh.snapshot()["services"]["svc"]["routes"] == {}
