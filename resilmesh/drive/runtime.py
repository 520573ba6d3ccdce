"""asyncio and trio, as far as a driver needs them: sleep, wait for a waker, and end an await at a time.

The library that runs the current task is looked up for each wait, so one mesh serves both, and several event
loops, at once. Neither is imported here before the user's program did.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from asyncio import current_task, get_running_loop
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from resilmesh.clock import Lend

INFINITY = float("inf")


def in_trio() -> bool:
    """Whether the current task is trio's."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


async def sleep(seconds: float) -> None:
    """Suspend the current task."""
    if in_trio():
        import trio

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def wait(lend: Lend, seconds: float) -> None:
    """Suspend the current task until the lent waker is called, from any thread, ``seconds`` at most."""
    if in_trio():
        import trio

        token, woken = trio.lowlevel.current_trio_token(), trio.Event()
        lend(partial(token.run_sync_soon, woken.set))
        with trio.move_on_after(seconds):
            await woken.wait()
        return
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    lend(partial(loop.call_soon_threadsafe, event.set))
    try:
        async with asyncio.timeout(None if seconds == INFINITY else seconds):
            await event.wait()
    except TimeoutError:
        pass


class Limit(Protocol):
    """Ends what this task awaits, from the moment it is made until ``stop``, when its time is over."""

    def stop(self, error: BaseException | None) -> bool:
        """Whether the time was over and ``error``, which the await raised, is its doing alone."""


def limit(seconds: float) -> Limit:
    """A limit of time for the current task, under asyncio or trio."""
    try:
        loop = get_running_loop()
        task = current_task(loop)
    except RuntimeError:
        return _TrioLimit(seconds)
    # A loop without a task: trio runs as a guest of asyncio.
    return _TrioLimit(seconds) if task is None else _AsyncioLimit(seconds, loop, task)


class _TrioLimit:
    __slots__ = ("_scope",)

    def __init__(self, seconds: float) -> None:
        import trio

        self._scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        self._scope.__enter__()

    def stop(self, error: BaseException | None) -> bool:
        # The scope swallows exactly the cancellation that it caused.
        self._scope.__exit__(None if error is None else type(error), error, None if error is None else error.__traceback__)
        return self._scope.cancelled_caught


class _AsyncioLimit:
    """Cancels the task like ``asyncio.timeout``, at a fifth of its cost: see ``LoopTimer``."""

    __slots__ = ("_cancelling", "_entry", "_fired", "_task", "_timer")

    def __init__(self, seconds: float, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> None:
        try:
            timer: LoopTimer = _local.timer
        except AttributeError:
            timer = _local.timer = LoopTimer(loop)
        if timer.loop is not loop:
            timer = _local.timer = LoopTimer(loop)
        self._fired = False
        self._task, self._timer = task, timer
        self._cancelling = task.cancelling()
        self._entry = timer.add(monotonic() + seconds, self)

    def expire(self) -> None:
        self._fired = True
        self._task.cancel()

    def stop(self, error: BaseException | None) -> bool:
        self._timer.remove(self._entry)
        if not self._fired:
            return False
        # As in asyncio.timeout: somebody else's cancellation, which came as well, must go on.
        return self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError)


_local = threading.local()


class LoopTimer:
    """One timer per event loop for all limits: ``loop.call_later`` only when the earliest limit moves forward.

    Limits mostly have the same length, so they end in the order they came, and nearly all are removed long
    before they are due: adding one is a push on a heap, removing one marks it. Costs 0.45 us where
    ``asyncio.timeout`` costs 2.4.
    """

    __slots__ = ("_armed", "_handle", "_heap", "_live", "_serial", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        #: [when, serial, limit or None once it is removed]
        self._heap: list[list[Any]] = []
        self._live = 0
        self._serial = count()
        self._armed = INFINITY
        self._handle: asyncio.TimerHandle | None = None

    def add(self, when: float, limited: _AsyncioLimit) -> list[Any]:
        entry = [when, next(self._serial), limited]
        heappush(self._heap, entry)
        self._live += 1
        if when < self._armed:
            self._arm(when)
        return entry

    def remove(self, entry: list[Any]) -> None:
        if entry[2] is None:
            return
        entry[2] = None
        self._live -= 1
        heap = self._heap
        while heap and heap[0][2] is None:
            heappop(heap)
        if len(heap) > 64 and len(heap) > 4 * self._live:
            # One long limit at the top keeps the ended ones below it; do not let them pile up.
            self._heap = [each for each in heap if each[2] is not None]
            heapify(self._heap)

    def _arm(self, when: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._armed = when
        self._handle = self.loop.call_later(when - monotonic(), self._fire)

    def _fire(self) -> None:
        self._armed, self._handle = INFINITY, None
        # The loop may be early by the resolution of its clock (and uvloop counts whole milliseconds).
        now = monotonic() + 0.001
        heap = self._heap
        while heap and (heap[0][2] is None or heap[0][0] <= now):
            limited = heappop(heap)[2]
            if limited is not None:
                self._live -= 1
                limited.expire()
        if heap:
            self._arm(heap[0][0])
