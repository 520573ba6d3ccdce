"""Asynchronous generator functions as streams: the same, and the deadline is exact."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import warnings
from collections.abc import AsyncGenerator, AsyncIterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import resilmesh
from resilmesh import CircuitOpen, DeadlineExceeded, Mesh
from resilmesh.drive.context import deadline
from resilmesh.testing import ManualClock
from tests.drive.guarding import RETRY, circuit, idle, mesh_of, stats

pytestmark = pytest.mark.anyio


class Trouble(Exception):
    pass


async def rows(*items: Any) -> AsyncGenerator[Any, Any]:
    """Gives the items, raises those that are exceptions, hangs at None, and answers what is sent."""
    for item in items:
        await anyio.lowlevel.checkpoint()
        if isinstance(item, BaseException):
            raise item
        if item is None:
            await anyio.sleep_forever()
        sent = yield item
        while sent is not None:
            sent = yield f"sent {sent}"


def guarded(mesh: Mesh, **options: Any) -> Any:
    return mesh.guard("svc", **options)(rows)


async def every(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


def told(mesh: Mesh) -> dict[str, int]:
    counted = stats(mesh)
    return {name: counted[name] for name in ("succeeded", "failed", "ignored", "abandoned") if counted[name]}


async def test_a_stream_is_one_call() -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}", timeout="9s")
    stream = guarded(mesh)("a", "b", "c")
    assert isinstance(stream, AsyncGenerator)
    assert (aiter(stream) is stream, stats(mesh)["calls"]) == (True, 0)
    with pytest.raises(TypeError, match="can't send non-None value to a just-started async generator"):
        await stream.asend(1)
    assert (await anext(stream), await stream.asend("x"), await anext(stream), idle(mesh)) == ("a", "sent x", "b", False)
    with pytest.raises(resilmesh.ConcurrencyExceeded):
        await anext(guarded(mesh)(1))
    assert (await every(stream), told(mesh), idle(mesh), deadline()) == (["c"], {"succeeded": 1}, True, float("inf"))
    assert (await every(stream), await anext(stream, "default")) == ([], "default")
    await stream.aclose()


async def test_closing_and_throwing() -> None:
    mesh, cleaned = mesh_of(circuitBreaker="{consecutiveFailures: 1}", timeout="9s"), []

    @mesh.guard("svc")
    async def session() -> AsyncIterator[int]:
        try:
            yield 1
        except KeyError:
            yield 2
        finally:
            await anyio.lowlevel.checkpoint()
            cleaned.append(1)

    stream: Any = session()
    await anext(stream)
    await stream.aclose()
    assert (cleaned, told(mesh), idle(mesh)) == ([1], {"succeeded": 1}, True)
    stream = session()
    await anext(stream)
    assert await stream.athrow(KeyError()) == 2
    with pytest.raises(Trouble):
        await stream.athrow(Trouble())
    assert (cleaned, told(mesh), circuit(mesh)["state"]) == ([1, 1], {"succeeded": 1, "ignored": 1}, "CLOSED")
    with pytest.raises(Trouble):  # noqa: PT012  # the block is what is tested
        async with contextlib.asynccontextmanager(session)() as opened:
            assert opened == 1
            raise Trouble
    thrown_into: Any = session()
    with pytest.raises(Trouble):
        await thrown_into.athrow(Trouble())
    assert await every(thrown_into) == []
    untouched: Any = session()
    await untouched.aclose()
    assert (stats(mesh)["calls"], idle(mesh)) == (3, True)


async def test_retries_end_with_the_first_item() -> None:
    mesh, runs = mesh_of(clock=ManualClock(), retries=RETRY), []

    @mesh.guard("svc")
    async def flaky() -> AsyncIterator[int]:
        runs.append(1)
        if len(runs) < 3:
            raise Trouble
        yield 1
        raise Trouble("broken off")

    stream = flaky()
    assert await anext(stream) == 1
    with pytest.raises(Trouble, match="broken off"):
        await anext(stream)
    assert (len(runs), told(mesh), idle(mesh)) == (3, {"failed": 1}, True)


async def test_per_try_timeout_bounds_the_first_item_and_nothing_after_it() -> None:
    mesh = mesh_of(retries="{maxRetries: 1, perTryTimeout: 20ms, retryOn: [5xx], backoff: {base: 1ms}, idempotent: true}")
    runs = []

    @mesh.guard("svc")
    async def slow() -> AsyncIterator[int]:
        runs.append(1)
        if len(runs) == 1:
            await anyio.sleep_forever()
        yield 1
        await anyio.sleep(0.05)
        yield 2

    assert (await every(slow()), len(runs), idle(mesh)) == ([1, 2], 2, True)


@pytest.mark.parametrize("items", [(None,), (1, None)])
async def test_a_stream_that_hangs_is_cut_at_its_deadline(items: tuple[Any, ...]) -> None:
    mesh = mesh_of(timeout="20ms", concurrency="{maxRequests: 1}", circuitBreaker="{consecutiveFailures: 1}")
    with pytest.raises(DeadlineExceeded, match="within the timeout of 20ms"), anyio.fail_after(5):
        await every(guarded(mesh)(*items))
    assert (told(mesh), circuit(mesh)["state"], idle(mesh), deadline()) == ({"failed": 1}, "OPEN", True, float("inf"))


async def test_the_deadline_is_looked_at_before_each_item_too() -> None:
    clock, cleaned = ManualClock(), []
    mesh = mesh_of(clock=clock, timeout="2s")

    @mesh.guard("svc")
    async def endless(error: BaseException | None) -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await anyio.lowlevel.checkpoint()
            cleaned.append(1)
            if error is not None:
                raise error

    for error in (None, Trouble()):
        stream = endless(error)
        await anext(stream)
        clock.advance(2)
        with pytest.raises(DeadlineExceeded, match="the stream did not end within the timeout of 2s") as caught:
            await anext(stream)
        assert caught.value.__cause__ is error
    assert (cleaned, told(mesh), idle(mesh)) == ([1, 1], {"failed": 2}, True)


async def test_an_inherited_deadline_is_not_the_streams_failure() -> None:
    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}")
    stream = guarded(mesh)(1, None)
    with resilmesh.deadline(0.05):
        assert await anext(stream) == 1
    with pytest.raises(DeadlineExceeded, match="that this call inherited"):
        await anext(stream)
    assert (told(mesh), circuit(mesh)["state"]) == ({"ignored": 1}, "CLOSED")


async def test_idle_timeout_bounds_the_time_between_two_items() -> None:
    mesh = mesh_of(timeout="9s", idleTimeout="30ms", concurrency="{maxRequests: 1}")
    stream = guarded(mesh)(1, 2, None)
    assert await anext(stream) == 1
    await anyio.sleep(0.05)  # the caller's own time
    assert await anext(stream) == 2
    with pytest.raises(DeadlineExceeded, match="no item of the stream within the idleTimeout of 30ms"):
        await anext(stream)
    assert (told(mesh), idle(mesh)) == ({"failed": 1}, True)


async def test_a_cancelled_stream_abandons_its_call() -> None:
    for items in ((None,), (1, None)):
        mesh = mesh_of(timeout="9s", concurrency="{maxRequests: 1}")
        stream = guarded(mesh)(*items)
        with anyio.move_on_after(0.02) as scope:
            await every(stream)
        assert (scope.cancelled_caught, told(mesh), idle(mesh), await every(stream)) == (True, {"abandoned": 1}, True, [])


async def test_two_tasks_do_not_ask_at_once() -> None:
    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}")
    go = anyio.Event()

    @mesh.guard("svc")
    async def waiting() -> AsyncIterator[int]:
        await go.wait()
        yield 1

    stream: Any = waiting()
    got: list[Any] = []

    async def ask() -> None:
        got.append(await anext(stream))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        for method in (stream.__anext__, stream.aclose, partial(stream.athrow, Trouble())):
            with pytest.raises(RuntimeError, match="asynchronous generator is already running"):
                await method()
        go.set()
    assert (got, await every(stream), told(mesh), idle(mesh)) == ([1], [], {"succeeded": 1}, True)


async def test_a_forgotten_stream_is_cleaned_up_without_a_word() -> None:
    mesh, cleaned = mesh_of(concurrency="{maxRequests: 1}", timeout="9s"), []

    @mesh.guard("svc")
    async def endless() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            cleaned.append(1)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            async for _item in endless():
                break
            gc.collect()
            assert idle(mesh)
        with anyio.fail_after(5):
            while len(cleaned) < 3:  # noqa: ASYNC110  # the event loop does it when it likes
                await anyio.sleep(0.001)
    assert ([str(each.message) for each in said], told(mesh)) == ([], {"abandoned": 3})


async def test_a_cleanup_of_a_forgotten_stream_may_fail(anyio_backend_name: str, caplog: pytest.LogCaptureFixture) -> None:
    mesh, cleaned = mesh_of(), []

    @mesh.guard("svc")
    async def clumsy() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            cleaned.append(1)
            raise Trouble

    if anyio_backend_name == "asyncio":
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)  # whom the loop tells
    await anext(clumsy())
    gc.collect()
    for _ in range(10):
        await anyio.sleep(0.001)
    assert (cleaned, idle(mesh)) == ([1], True)
    assert anyio_backend_name == "asyncio" or "a stream that was forgotten failed" in caplog.text


async def test_fallbacks() -> None:
    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}")

    async def kept(error: Exception) -> AsyncIterator[str]:
        yield "kept"
        yield type(error).__name__

    async def awaited(error: Exception) -> list[str]:
        await anyio.lowlevel.checkpoint()
        return ["awaited", type(error).__name__]

    assert await every(guarded(mesh, fallback=kept)(Trouble())) == ["kept", "Trouble"]
    assert await every(guarded(mesh, fallback=awaited)(1)) == ["awaited", "CircuitOpen"]
    assert await every(guarded(mesh, fallback=lambda error: "ab")(1)) == ["a", "b"]
    with pytest.raises(CircuitOpen):
        await every(guarded(mesh)(1))
    assert (stats(mesh)["fallbacks"], idle(mesh)) == ({"FAILURE": 1, "REJECTED": 2}, True)


async def test_modes() -> None:
    off, observed = mesh_of(mesh="{mode: OFF}", timeout="1s"), mesh_of(mesh="{mode: OBSERVE}", timeout="1ms", idleTimeout="1ms")
    stream = guarded(off)(1, Trouble())
    assert await anext(stream) == 1
    with pytest.raises(Trouble):
        await anext(stream)
    assert await every(stream) == []
    assert (await every(guarded(observed)(1, 2)), told(observed), idle(observed)) == ([1, 2], {"succeeded": 1}, True)


async def test_every_form() -> None:
    mesh = mesh_of()
    guard = mesh.guard("svc")

    class Owner:
        @guard
        async def method(self, item: int) -> AsyncIterator[int]:
            yield item

        @guard
        @classmethod
        async def of_class(cls, item: int) -> AsyncIterator[int]:
            yield item

        async def __call__(self, item: int) -> AsyncIterator[int]:
            yield item

    owner = Owner()
    forms: list[Any] = [owner.method, Owner.of_class, guard(partial(rows)), guard(owner)]
    assert [await every(form(7)) for form in forms] == [[7]] * len(forms)
    assert (stats(mesh)["succeeded"], idle(mesh)) == (len(forms), True)
