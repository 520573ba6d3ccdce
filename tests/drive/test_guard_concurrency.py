"""One mesh for threads, event loops and both libraries at once."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
import trio

from resilmesh import Mesh, Rejected
from tests.drive.guarding import idle, mesh_of, stats

#: Seconds after which a thread that should have ended is said to hang.
HANGS = 30


class Meter:
    """How many are inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = self.most = self.passed = 0

    def enter(self) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def leave(self) -> None:
        with self._lock:
            self.inside -= 1
            self.passed += 1


def at_once(*works: Callable[[], Any]) -> None:
    """Run each on a thread of its own; what one raises is raised here."""
    problems: list[BaseException] = []
    together = threading.Barrier(len(works))

    def run(work: Callable[[], Any]) -> None:
        try:
            together.wait(HANGS)
            work()
        except BaseException as problem:
            problems.append(problem)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
        assert not thread.is_alive(), "a thread hangs"
    if problems:
        raise problems[0]


def queued(places: int) -> Mesh:
    return mesh_of(concurrency=f"{{maxRequests: 2, maxPending: {places}, maxPendingWait: 30s}}", timeout="60s")


def test_thirty_two_threads_lose_nothing() -> None:
    mesh = mesh_of(
        timeout="60s", concurrency="{maxRequests: 40}", circuitBreaker="{failureRateThreshold: 90, minimumNumberOfCalls: 100}",
        retries="{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms, max: 1ms}, idempotent: true}",
        rateLimit="{requests: 1000000, per: 1s}", retryBudget="{percent: 100}",
        endpoints='[{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]', loadBalancer="LEAST_REQUEST",
    )

    @mesh.guard("svc")
    def work(number: int) -> int:
        if number % 10 == 0:
            raise LookupError
        return number

    def run() -> None:
        for number in range(100):
            try:
                assert work(number) == number
            except LookupError:
                assert number % 10 == 0

    at_once(*[run] * 32)
    shown = stats(mesh)
    assert (shown["calls"], shown["succeeded"], shown["failed"]) == (3200, 2880, 320)
    assert idle(mesh)


def test_a_limit_holds_for_threads() -> None:
    mesh, meter = queued(100), Meter()

    @mesh.guard("svc")
    def work() -> None:
        meter.enter()
        time.sleep(0.0005)
        meter.leave()

    at_once(*[lambda: [work() for _ in range(10)]] * 12)
    assert (meter.most, meter.passed, idle(mesh)) == (2, 120, True)


async def hold(meter: Meter) -> None:
    meter.enter()
    try:
        await anyio.sleep(0.0005)
    finally:
        meter.leave()


def test_a_limit_holds_for_asyncio_trio_and_threads_together() -> None:
    mesh, meter = queued(1000), Meter()
    guarded = mesh.guard("svc")(hold)

    @mesh.guard("svc")
    def block() -> None:
        meter.enter()
        time.sleep(0.0005)
        meter.leave()

    async def crowd() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(30):
                tasks.start_soon(guarded, meter)

    loops = [lambda: anyio.run(crowd, backend="asyncio"), lambda: anyio.run(crowd, backend="trio")]
    at_once(*loops * 2, *[lambda: [block() for _ in range(15)]] * 2)
    assert (meter.most, meter.passed, meter.inside) == (2, 150, 0)
    assert idle(mesh)


def test_random_cancellations_in_several_loops_lose_no_slot() -> None:
    mesh, meter = queued(1000), Meter()
    guarded = mesh.guard("svc")(hold)

    async def caller(seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await guarded(meter)

    async def crowd(seed: int) -> None:
        draw = random.Random(seed)
        async with anyio.create_task_group() as tasks:
            for _ in range(150):
                tasks.start_soon(caller, draw.uniform(0, 0.03))

    at_once(*[
        lambda backend=backend, seed=seed: anyio.run(crowd, seed, backend=backend)
        for seed, backend in enumerate(["asyncio", "trio", "asyncio"])
    ])
    assert meter.most <= 2
    assert idle(mesh)
    anyio.run(guarded, meter)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_loop_that_ends_while_its_tasks_wait_gives_their_places_up(backend: str) -> None:
    mesh, meter = queued(10), Meter()
    guarded = mesh.guard("svc")(hold)
    waiting, ended = threading.Event(), threading.Event()

    async def abandon() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(guarded, meter)
            await anyio.sleep(0.01)
            waiting.set()
            tasks.cancel_scope.cancel()

    def occupy() -> None:
        for first in mesh.attempts("svc"):
            with first:
                for second in mesh.attempts("svc"):
                    with second:
                        anyio.run(abandon, backend=backend)
        ended.set()

    at_once(occupy)
    assert waiting.is_set()
    assert ended.is_set()
    assert idle(mesh)
    anyio.run(guarded, meter)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a loop that is closed under its tasks complains, as it should
def test_a_slot_for_a_task_whose_loop_is_closed_goes_to_the_next() -> None:
    mesh, meter = queued(10), Meter()
    guarded = mesh.guard("svc")(hold)
    loop = asyncio.new_event_loop()
    tasks = []
    for first in mesh.attempts("svc"):
        with first:
            for second in mesh.attempts("svc"):
                with second:
                    tasks = [loop.create_task(guarded(meter)) for _ in range(3)]
                    loop.run_until_complete(asyncio.sleep(0.01))
                    assert mesh.snapshot()["services"]["svc"]["concurrency"]["*"]["pending"] == 3
                    for task in tasks:
                        task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's way to say that this is on purpose
                    loop.close()
            anyio.run(guarded, meter)
    assert meter.passed == 1
    for task in tasks:
        task.get_coro().close()  # type: ignore[union-attr]  # a coroutine: what the garbage collector would do
    assert idle(mesh)
    anyio.run(guarded, meter)


def test_trio_as_a_guest_of_asyncio() -> None:
    """Both libraries on one thread: each wait belongs to the library whose task it is."""
    mesh, results = mesh_of(timeout="20ms", concurrency="{maxRequests: 1, maxPending: 5, maxPendingWait: 10s}"), []

    @mesh.guard("svc")
    async def hang() -> None:
        await anyio.sleep_forever()

    async def attempt(name: str) -> None:
        try:
            await hang()
        except TimeoutError:
            results.append(name)

    async def host() -> None:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        trio.lowlevel.start_guest_run(
            attempt, "trio", run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe, done_callback=done.set_result,
        )
        await attempt("asyncio")
        (await done).unwrap()

    asyncio.run(host())
    assert sorted(results) == ["asyncio", "trio"]
    assert idle(mesh)


def test_rejections_from_many_threads_add_up() -> None:
    mesh = mesh_of(rateLimit="{requests: 100, per: 1h}")
    guarded = mesh.guard("svc")(lambda: 1)
    passed: list[int] = []

    def run() -> None:
        for _ in range(50):
            with suppress(Rejected):
                passed.append(guarded())

    at_once(*[run] * 8)
    shown = stats(mesh)
    assert 100 <= len(passed) <= 108, "a token may be taken twice by threads that look in the same instant, not more"
    assert shown["succeeded"] + shown["rejected"]["RateLimited"] == shown["calls"] == 400
    assert idle(mesh)
