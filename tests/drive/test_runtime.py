"""The timer of an event loop: thousands of limits, each exact, and nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import weakref

import pytest

from resilmesh.drive.runtime import _AsyncioLimit, in_trio, limit
from tests.timing import in_time

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]


def kept() -> int:
    """How many limits of this loop are remembered by anything, however the timer keeps them."""
    loop = asyncio.get_running_loop()
    return sum(type(each) is _AsyncioLimit and each.timer.loop is loop for each in gc.get_objects())


async def cut_after(seconds: float) -> float:
    """How late a limit ends a task that waits."""
    began = time.monotonic()
    limited = limit(seconds)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError as error:
        left = limited.stop(error)
    assert left is None
    return time.monotonic() - began - seconds


async def test_thousands_of_limits_with_random_ends() -> None:
    draw = random.Random(3)

    async def one() -> None:
        limited = limit(draw.uniform(0.01, 0.2))
        try:
            await asyncio.sleep(draw.uniform(0, 0.2))
        except asyncio.CancelledError as error:
            left = limited.stop(error)
        else:
            left = limited.stop(None)
        task = asyncio.current_task()
        assert task is not None
        assert (left, task.cancelling()) == (None, 0)

    await asyncio.gather(*(one() for _ in range(3000)))
    assert kept() == 0


async def test_limits_strike_in_order_and_on_time() -> None:
    late = await asyncio.gather(*(cut_after(seconds) for seconds in (0.08, 0.02, 0.05, 0.02, 0.08, 0.01)))
    assert min(late) >= -0.0015
    in_time(sorted(late)[len(late) // 2], 0.02)
    assert kept() == 0


async def test_a_limit_that_is_over_already_strikes_at_the_next_wait() -> None:
    in_time(await cut_after(-1.0), 1.5)
    in_time(await cut_after(0.0), 0.5)


async def test_ended_limits_do_not_pile_up_below_a_long_one() -> None:
    long = limit(1000)
    sizes = []
    for number in range(5000):
        limit(2000).stop(None)
        if number % 500 == 0:
            sizes.append(kept())
    assert max(sizes) <= 140
    assert long.stop(None) is None
    del long
    limit(1).stop(None)
    assert kept() <= 66


async def test_many_that_live_are_kept() -> None:
    limits = [limit(1000 + number) for number in range(500)]
    for _ in range(500):
        limit(10).stop(None)
    assert 500 <= kept() <= 1000
    for limited in limits:
        limited.stop(None)
    del limits, limited
    assert kept() == 0


async def test_one_timer_of_the_loop_serves_all() -> None:
    loop = asyncio.get_running_loop()
    before = len(loop._scheduled)  # type: ignore[attr-defined]  # asyncio's own heap
    limits = [limit(100) for _ in range(1000)]
    assert len(loop._scheduled) <= before + 1  # type: ignore[attr-defined]  # as above
    for limited in limits:
        limited.stop(None)


async def test_an_ended_limit_never_strikes() -> None:
    limit(0.005).stop(None)
    await asyncio.sleep(0.02)


async def test_a_foreign_exception_is_left_as_it_is() -> None:
    limited = limit(10)
    error = LookupError()
    assert limited.stop(error) is error
    limited = limit(10)
    cancelled = asyncio.CancelledError()
    assert limited.stop(cancelled) is cancelled, "not the limit's doing: it has not struck"


async def test_a_task_is_freed_when_it_is_over() -> None:
    async def work() -> None:
        limited = limit(1000)
        await asyncio.sleep(0)
        limited.stop(None)

    task = asyncio.create_task(work())
    reference = weakref.ref(task)
    await task
    del task
    await asyncio.sleep(0)  # the loop lets go of what woke this task
    gc.collect()
    assert reference() is None


async def test_it_is_not_trio() -> None:
    assert not in_trio()


def test_each_loop_of_a_thread_has_its_own(anyio_backend: str) -> None:
    del anyio_backend
    for _ in range(3):
        in_time(asyncio.run(cut_after(0.01)), 0.5)
