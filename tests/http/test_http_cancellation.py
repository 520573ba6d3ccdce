"""A call that is cancelled at any point leaves nothing in flight, and a pool that works.

On httpx 0.28 a bare client does not pass these: a task cancelled while httpcore closes a response leaves a
connection that counts as active for ever (encode/httpcore#1099).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import anyio
import pytest
import trio
from http2_service import Http2Service
from http_driver import mesh_of, nothing_in_flight
from http_service import Service, answer

import resilmesh
from resilmesh import Mesh
from resilmesh.http import AsyncTransport

URL = "http://svc.test/things"
BLOCKS = {
    "timeout": "5s",
    "concurrency": "{maxRequests: 8, maxPending: 8}",
    "circuitBreaker": "{failureRateThreshold: 100}",
    "retries": "{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}, idempotent: true}",
    "retryBudget": "{percent: 100, minRetriesPerSecond: 1000000}",
}


async def _cancelled_at_once(step: int, work: Callable[[], Any]) -> bool:
    return await _asyncio_cancelled_at(step, work, soon=False)


async def _cancelled_soon(step: int, work: Callable[[], Any]) -> bool:
    return await _asyncio_cancelled_at(step, work, soon=True)


async def _asyncio_cancelled_at(step: int, work: Callable[[], Any], *, soon: bool) -> bool:
    """Whether the work was cancelled; False: it was done before its step number ``step``."""
    task = asyncio.ensure_future(_stepped(step, work, soon))
    try:
        await task
    except asyncio.CancelledError:
        return True
    return False


class _Stepper:
    """Wraps a coroutine and counts how often it is resumed; at one count, asks for cancellation while it is suspended."""

    def __init__(self, coroutine: Any, step: int, cancel: Callable[[], None]) -> None:
        self._coroutine, self._left, self._cancel = coroutine, step, cancel

    def __await__(self) -> Any:
        iterator = self._coroutine.__await__()
        value, error = None, None
        while True:
            try:
                yielded = iterator.throw(error) if error is not None else iterator.send(value)
            except StopIteration as stop:
                return stop.value
            self._left -= 1
            if self._left == 0:
                self._cancel()
            value, error = None, None
            try:
                value = yield yielded
            except BaseException as thrown:
                error = thrown


async def _stepped(step: int, work: Callable[[], Any], soon: bool) -> None:
    task = asyncio.current_task()
    assert task is not None
    cancel = task.cancel
    await _Stepper(work(), step, (lambda: asyncio.get_running_loop().call_soon(cancel)) if soon else cancel)


async def _trio_cancelled_at(step: int, work: Callable[[], Any]) -> bool:
    with trio.CancelScope() as scope:
        await _Stepper(work(), step, scope.cancel)
    return scope.cancelled_caught


def _work(how: str) -> Callable[[Any], Any]:
    async def whole(client: Any) -> None:
        response = await client.post(URL, content=b"x" * 1000)
        assert response.status_code in (200, 503)

    async def streamed(client: Any) -> None:
        async with client.stream("GET", URL) as response:
            async for _ in response.aiter_raw():
                pass

    async def left_early(client: Any) -> None:
        async with client.stream("GET", URL) as response:
            async for _ in response.aiter_raw():
                break

    return {"whole": whole, "streamed": streamed, "left early": left_early}[how]


async def _every_step(
    library: ModuleType, mesh: Mesh, cancelled_at: Any, work: Callable[[Any], Any], fresh: bool, options: dict[str, Any]
) -> int:
    """Cancel at step 1, 2, 3 ... until the work is done before that; the number of steps."""
    limits = library.Limits(max_connections=1)
    async with library.AsyncClient(transport=AsyncTransport(mesh, limits=limits, **options), timeout=library.Timeout(5, pool=1)) as client:
        for step in range(1, 1000):
            if fresh:
                # Each step meets a connection that is to be made, too.
                lanes = client._transport._lanes
                for inner in lanes.clear():
                    await inner.aclose()
            was_cancelled = await cancelled_at(step, partial(work, client))
            assert nothing_in_flight(mesh), f"after a cancellation at step {step}"
            # With one connection in all, a pool that lost it would time out here.
            assert (await client.get("http://svc.test/ok")).status_code in (200, 503), f"after a cancellation at step {step}"
            if not was_cancelled:
                return step
    raise AssertionError("no end")


RUNTIMES = {"asyncio": _cancelled_at_once, "asyncio, a moment later": _cancelled_soon, "trio": _trio_cancelled_at}


@pytest.mark.parametrize("fresh", [True, False], ids=["new connections", "warm connection"])
@pytest.mark.parametrize("how", ["whole", "streamed", "left early"])
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.filterwarnings("ignore:.*async_generator object.*:pytest.PytestUnraisableExceptionWarning")  # the clients', under trio
def test_cancelled_at_every_step(library: ModuleType, service: Service, runtime: str, how: str, fresh: bool) -> None:
    body = b"y" * 200_000
    retried = [False]

    def sometimes_503(connection: Any, seen: Any) -> bool:
        retried[0] = not retried[0]
        return answer(503, body)(connection, seen) if retried[0] and seen.method == "POST" else answer(200, body)(connection, seen)

    service.otherwise = sometimes_503
    mesh = mesh_of(service, **BLOCKS)
    steps = anyio.run(_every_step, library, mesh, RUNTIMES[runtime], _work(how), fresh, {}, backend=runtime.partition(",")[0])
    assert steps > 3


@pytest.mark.parametrize("fresh", [True, False], ids=["new connections", "warm connection"])
@pytest.mark.parametrize("path", ["/after/2", "/flood/300000", "/refuse"])
@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.filterwarnings("ignore:.*async_generator object.*:pytest.PytestUnraisableExceptionWarning")  # the clients', under trio
def test_http2_cancelled_at_every_step(library: ModuleType, runtime: str, path: str, fresh: bool) -> None:
    service = Http2Service()
    mesh = mesh_of(service.address, **BLOCKS)

    async def work(client: Any) -> None:
        await client.get("http://svc.test" + path)

    try:
        backend = runtime.partition(",")[0]
        steps = anyio.run(
            _every_step, library, mesh, RUNTIMES[runtime], work, fresh, {"http1": False, "http2": True}, backend=backend
        )
        assert steps >= 3
        if not fresh:
            assert service.connections < steps, "a cancelled call leaves the connection to its neighbours"
    finally:
        service.stop()


# ------------------------------------------------------------------------- many random ends, on few connections


async def _storm(library: ModuleType, mesh: Mesh, ended: Callable[[Any, float], Any], calls: int) -> int:
    """``calls`` calls, 6 at a time on 3 connections, each ended at a random moment; how many were."""
    draw = random.Random(11)
    early = 0
    limits = library.Limits(max_connections=3)
    async with library.AsyncClient(transport=AsyncTransport(mesh, limits=limits), timeout=library.Timeout(5, pool=2)) as client:

        async def some(count: int) -> None:
            nonlocal early
            for _ in range(count):
                was_early = await ended(client, draw.uniform(0.0, 0.025))
                early += was_early

        async with anyio.create_task_group() as group:
            for _ in range(6):
                group.start_soon(some, calls // 6)
        assert nothing_in_flight(mesh)
        with anyio.fail_after(5):
            for _ in range(10):
                assert (await client.get(URL)).status_code == 200
    return early


async def _by_our_deadline(client: Any, seconds: float) -> bool:
    with resilmesh.deadline(seconds):
        try:
            await client.get(URL)
        except resilmesh.DeadlineExceeded:
            return True
    return False


async def _by_asyncio(client: Any, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await client.get(URL)
    except TimeoutError:
        return True
    return False


async def _by_trio(client: Any, seconds: float) -> bool:
    with trio.move_on_after(seconds) as scope:
        await client.get(URL)
    return scope.cancelled_caught


@pytest.mark.parametrize(
    ("runtime", "ended"),
    [("asyncio", _by_our_deadline), ("trio", _by_our_deadline), ("asyncio", _by_asyncio), ("trio", _by_trio)],
    ids=["our deadline, asyncio", "our deadline, trio", "asyncio.timeout", "trio.move_on_after"],
)
@pytest.mark.filterwarnings("ignore:.*async_generator object.*:pytest.PytestUnraisableExceptionWarning")  # the clients', under trio
def test_random_ends_leave_the_pool_usable(library: ModuleType, service: Service, runtime: str, ended: Any) -> None:
    service.otherwise = answer(200, b"z" * 3000, delay=0.002)
    mesh = mesh_of(service, concurrency="{maxRequests: 64}", timeout="5s")
    early = anyio.run(_storm, library, mesh, ended, 600, backend=runtime)
    assert 50 < early < 595, "the moments must fall before, into and after the calls"
