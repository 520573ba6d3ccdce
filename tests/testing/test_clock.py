"""The clock that programs test themselves with: moved by hand, moved by sleeping, and moved when everybody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from resilmesh import DeadlineExceeded, Mesh
from resilmesh.testing import ManualClock
from tests.drive.guarding import idle, mesh_of
from tests.timing import lasts

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def in_no_time() -> Any:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 5, "nothing here waits for hours"


# ------------------------------------------------------------------------------------------- moved by hand


async def test_a_sleep_lasts_until_somebody_jumps() -> None:
    clock, woke = ManualClock(waits=True), []

    async def sleeper(seconds: float) -> None:
        await clock.sleep_async(seconds)
        woke.append((seconds, clock.monotonic()))

    async with anyio.create_task_group() as tasks:
        for seconds in (3600, 60):
            tasks.start_soon(sleeper, seconds)
        await anyio.wait_all_tasks_blocked()
        assert woke == []
        assert clock.jump() == 60
        await anyio.wait_all_tasks_blocked()
        assert woke == [(60, 1060)]
        clock.jump(4000)
    assert woke == [(60, 1060), (3600, 5060)]
    assert clock.jump() == 0, "nobody waits"


def test_a_thread_sleeps_until_somebody_jumps() -> None:
    clock, woke = ManualClock(waits=True), threading.Event()

    def sleeper() -> None:
        clock.sleep(10)
        woke.set()

    thread = threading.Thread(target=sleeper, daemon=True)
    thread.start()
    while not clock.sleeps:
        time.sleep(0.001)
    clock.jump(9)
    assert not woke.wait(0.05)
    clock.jump(1)
    assert woke.wait(5)
    thread.join(5)


async def test_a_limit_strikes_when_the_clock_passes_it() -> None:
    clock = ManualClock(waits=True)
    mesh = mesh_of(clock=clock, timeout="1h")

    @mesh.guard("svc")
    async def hang() -> None:
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_later, clock, 3600)
        with pytest.raises(DeadlineExceeded, match="timeout of 1h"):
            await hang()
    assert idle(mesh)


async def _later(clock: ManualClock, seconds: float) -> None:
    await anyio.wait_all_tasks_blocked()
    clock.advance(seconds)


async def test_a_limit_strikes_even_where_sleeping_moves_the_clock() -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, timeout="1h", retries="{maxRetries: 1, perTryTimeout: 10m, retryOn: [5xx], idempotent: true}")
    tries: list[float] = []

    @mesh.guard("svc")
    async def work() -> str:
        tries.append(clock.monotonic())
        if len(tries) == 1:
            await clock.sleep_async(601)
            await anyio.lowlevel.checkpoint()
        return "done"

    assert await work() == "done"
    assert len(tries) == 2


async def test_who_comes_back_in_time_is_not_cut_afterwards() -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, timeout="1s")

    @mesh.guard("svc")
    async def late() -> str:
        clock.advance(5)
        return "late, and nobody waited"

    assert await late() == "late, and nobody waited"
    await anyio.sleep(0.01)  # where a cancellation that was left behind would strike


def test_time_does_not_go_backwards() -> None:
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="backwards"):
            ManualClock().jump(wrong)


# ----------------------------------------------------------------------------------------------- autojump


async def test_tasks_that_sleep_overlap_as_in_real_time() -> None:
    clock, told = ManualClock(autojump=True), []

    async def sleeper(name: str, *pauses: float) -> None:
        for pause in pauses:
            await clock.sleep_async(pause)
            told.append((name, clock.monotonic() - 1000))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sleeper, "a", 100, 100, 100)
        tasks.start_soon(sleeper, "b", 150, 149)
        tasks.start_soon(sleeper, "c", 86400)
    assert told == [("a", 100), ("b", 150), ("a", 200), ("b", 299), ("a", 300), ("c", 86400)]


async def test_every_limit_of_time_obeys_it() -> None:
    clock = ManualClock(autojump=True)
    mesh = mesh_of(
        clock=clock, timeout="1h",
        retries="{maxRetries: 2, perTryTimeout: 10m, retryOn: [5xx], backoff: {base: 1ms}, idempotent: true}",
    )

    @mesh.guard("svc")
    async def hang() -> None:
        await anyio.sleep_forever()

    with pytest.raises(DeadlineExceeded, match="perTryTimeout of 10m"):
        await hang()
    assert clock.monotonic() == pytest.approx(1000 + 3 * 600, abs=0.1)
    with pytest.raises(DeadlineExceeded, match="timeout of 1h"):  # noqa: PT012  # the loop is the statement
        async for attempt in mesh_of(clock=clock, timeout="1h").attempts("svc"):
            with attempt:
                await anyio.sleep_forever()
    assert clock.monotonic() == pytest.approx(1000 + 3 * 600 + 3600, abs=0.1)
    assert idle(mesh)


async def test_a_wait_for_a_slot_ends_when_it_is_given_or_in_time() -> None:
    clock = ManualClock(autojump=True)
    mesh = mesh_of(clock=clock, concurrency="{maxRequests: 1, maxPending: 2, maxPendingWait: 60s}")
    done: list[tuple[str, float]] = []

    @mesh.guard("svc")
    async def work() -> None:
        await clock.sleep_async(50)

    async def one() -> None:
        try:
            await work()
            done.append(("worked", clock.monotonic()))
        except Exception as error:
            done.append((type(error).__name__, clock.monotonic()))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(one)
    assert done == [("worked", 1050), ("ConcurrencyExceeded", 1060), ("worked", 1100)]
    assert idle(mesh)


async def test_a_loop_may_wait_for_a_thread_that_sleeps() -> None:
    clock = ManualClock(autojump=True)
    await anyio.to_thread.run_sync(clock.sleep, 3600)
    assert clock.monotonic() == 4600


async def test_patience_leaves_time_for_what_the_clock_cannot_see() -> None:
    clock, socket = ManualClock(autojump=True, patience=0.2), anyio.Event()

    async def arrives() -> None:
        await anyio.to_thread.run_sync(time.sleep, 0.03)
        socket.set()

    mesh = mesh_of(clock=clock, timeout="1h")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(arrives)
        await mesh.guard("svc")(socket.wait)()
    assert clock.monotonic() == 1000, "it came before an hour had been waited for"


def test_threads_that_sleep_overlap_as_in_real_time() -> None:
    clock, told = ManualClock(autojump=True), []
    begin = threading.Barrier(3)

    def sleeper(name: str, *pauses: float) -> None:
        clock.monotonic()
        begin.wait(5)
        for pause in pauses:
            clock.sleep(pause)
            told.append((name, clock.monotonic() - 1000))

    _all_of(lambda: sleeper("a", 100, 100, 100), lambda: sleeper("b", 150, 149), lambda: sleeper("c", 86400))
    assert told == [("a", 100), ("b", 150), ("a", 200), ("b", 299), ("a", 300), ("c", 86400)]


def _all_of(*work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=each, daemon=True) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_one_thread_never_waits() -> None:
    clock = ManualClock(autojump=True)
    with lasts(0, 2):
        for _ in range(1000):
            clock.sleep(3600)
    assert clock.monotonic() == 1000 + 3600 * 1000


def test_a_thread_that_does_something_else_holds_time_up_for_a_moment_only() -> None:
    clock = ManualClock(autojump=True)
    clock.monotonic()  # this thread will join and never wait for the clock
    _all_of(lambda: clock.sleep(7))
    assert clock.monotonic() == 1007


def test_blocking_backoffs_and_a_loop_share_one_time() -> None:
    clock = ManualClock(autojump=True)
    mesh = mesh_of(clock=clock, retries="{maxRetries: 3, retryOn: [5xx], backoff: {base: 10s, max: 10s}, idempotent: true}")

    @mesh.guard("svc")
    def fail() -> None:
        raise ConnectionError

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, _fails(fail))
            await clock.sleep_async(5)

    for backend in ("asyncio", "trio"):
        anyio.run(main, backend=backend)
    assert idle(mesh)
    assert mesh.snapshot()["services"]["svc"]["routes"]["*"]["retries"] == 6


def _fails(function: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with pytest.raises(ConnectionError):
            function()

    return run


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio draws lots for which task runs first
async def test_many_tasks_and_the_same_end_every_time() -> None:
    ends = set()
    for _ in range(3):
        clock = ManualClock(autojump=True)
        mesh = Mesh.from_text(
            "apiVersion: resilmesh/v1\nservices:\n- name: svc\n  timeout: 30s\n  concurrency: {maxRequests: 5, maxPending: 100}\n",
            clock=clock, seed=1,
        )

        @mesh.guard("svc")
        async def work(number: int, clock: ManualClock = clock) -> None:
            await clock.sleep_async(1 + number % 7)

        outcomes: list[str] = []

        async def one(number: int, work: Any = work, outcomes: list[str] = outcomes) -> None:
            try:
                await work(number)
                outcomes.append("ok")
            except DeadlineExceeded:
                outcomes.append("late")

        async with anyio.create_task_group() as tasks:
            for number in range(60):
                tasks.start_soon(one, number)
        assert idle(mesh)
        ends.add((outcomes.count("ok"), outcomes.count("late"), clock.monotonic()))
    assert len(ends) == 1
    assert len(outcomes) == 60
