"""The clock that programs test themselves with."""

from __future__ import annotations

import threading
import time

import anyio
import pytest

from resilmesh import ConcurrencyExceeded
from resilmesh.testing import ManualClock
from tests.drive.guarding import idle, mesh_of

pytestmark = pytest.mark.anyio


async def test_it_moves_only_when_it_is_told_to() -> None:
    clock = ManualClock(start=5, wall=1000)
    assert (clock.monotonic(), clock.wall()) == (5, 1000)
    clock.advance(2.5)
    assert (clock.monotonic(), clock.wall()) == (7.5, 1002.5)
    clock.sleep(1)
    await clock.sleep_async(2)
    assert (clock.monotonic(), clock.sleeps) == (10.5, [1, 2])
    with pytest.raises(ValueError, match="time does not go backwards"):
        clock.advance(-1)


@pytest.mark.parametrize("bounded", [True, False])
async def test_a_wait_ends_when_a_slot_is_given(bounded: bool) -> None:
    clock = ManualClock(patience=10)
    wait = "60s" if bounded else "null"
    mesh = mesh_of(clock=clock, concurrency=f"{{maxRequests: 1, maxPending: 2, maxPendingWait: {wait}}}")
    entered, leave = threading.Event(), threading.Event()

    @mesh.guard("svc")
    def hold() -> None:
        entered.set()
        leave.wait(10)

    def free_it_later() -> None:
        while mesh.snapshot()["services"]["svc"]["concurrency"]["*"]["pending"] < 2:
            time.sleep(0.001)
        leave.set()

    threads = [threading.Thread(target=hold, daemon=True), threading.Thread(target=free_it_later, daemon=True)]
    threads[0].start()
    entered.wait(10)
    threads[1].start()
    waiting = threading.Thread(target=mesh.guard("svc")(lambda: None), daemon=True)
    waiting.start()

    async def nothing() -> None:
        """Takes no time."""

    await mesh.guard("svc")(nothing)()
    waiting.join(10)
    threads[0].join(10)
    assert idle(mesh)
    assert clock.monotonic() == 1000, "nobody waited in vain"


async def test_a_wait_in_vain_takes_no_time_but_the_clocks() -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, concurrency="{maxRequests: 1, maxPending: 1, maxPendingWait: 60s}")

    async def nothing() -> None:
        """Takes no time."""

    for attempt in mesh.attempts("svc"):
        with attempt:
            began = time.monotonic()
            with pytest.raises(ConcurrencyExceeded):
                mesh.guard("svc")(lambda: None)()
            with pytest.raises(ConcurrencyExceeded):
                await mesh.guard("svc")(nothing)()
            assert time.monotonic() - began < 5
    assert clock.monotonic() == 1120


async def test_a_limit_that_strikes_in_real_time_is_the_deadline_whatever_the_clock_says() -> None:
    mesh = mesh_of(clock=ManualClock(), timeout="10ms")
    with pytest.raises(TimeoutError, match="timeout of 10ms"):
        await mesh.guard("svc")(anyio.sleep_forever)()
    with pytest.raises(TimeoutError, match="timeout of 10ms"):  # noqa: PT012  # the loop is the statement
        async for attempt in mesh.attempts("svc"):
            with attempt:
                await anyio.sleep_forever()
    assert idle(mesh)
