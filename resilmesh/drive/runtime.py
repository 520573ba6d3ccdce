"""asyncio and trio, as far as a driver needs them: sleep, wait for a waker, and end an await at a time.

The library that runs the current task is looked up for each wait, so one mesh serves both, and several event
loops, at once. Neither is imported here before the user's program did.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from asyncio import current_task, get_running_loop
from collections.abc import Callable
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyio import CancelScope

    from resilmesh.clock import Lend, Limit

INFINITY = float("inf")


def in_trio() -> bool:
    """Whether the current task is trio's."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


def in_event_loop() -> bool:
    """Whether whatever runs here keeps an event loop from turning."""
    try:
        get_running_loop()
    except RuntimeError:
        return in_trio()
    return True


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


def caller() -> Callable[[Callable[[], object]], object]:
    """Has what it is given called soon, on the loop of the current task, from any thread."""
    if in_trio():
        import trio

        return trio.lowlevel.current_trio_token().run_sync_soon
    return get_running_loop().call_soon_threadsafe


def scope(seconds: float) -> CancelScope:
    """A cancel scope of anyio that ends after ``seconds``."""
    from anyio import CancelScope, current_time

    return CancelScope(deadline=current_time() + seconds)


def limit(seconds: float) -> Limit:
    """A limit of time for the current task, under asyncio or trio."""
    try:
        loop = get_running_loop()
        task = current_task(loop)
    except RuntimeError:
        return _TrioLimit(seconds)
    if task is None:  # a loop without a task: trio runs as a guest of asyncio
        return _TrioLimit(seconds)
    try:
        timer: LoopTimer = _local.timer
    except AttributeError:
        timer = _local.timer = LoopTimer(loop)
    if timer.loop is not loop:
        timer = _local.timer = LoopTimer(loop)
    limited = _AsyncioLimit(timer, task, task.cancelling())
    when = monotonic() + seconds
    heap = timer.heap
    if len(heap) > timer.most:
        timer.tidy()
    heappush(heap, (when, next(_serial), limited))
    if when < timer.armed:
        timer.arm(when)
    return limited


class _TrioLimit:
    __slots__ = ("_scope",)

    def __init__(self, seconds: float) -> None:
        import trio

        self._scope = trio.CancelScope(deadline=trio.current_time() + seconds)
        self._scope.__enter__()

    def stop(self, error: BaseException | None) -> BaseException | None:
        # The scope takes out exactly the cancellation that it caused, which may be one of several exceptions of a nursery.
        try:
            caught = self._scope.__exit__(None if error is None else type(error), error, None if error is None else error.__traceback__)
        except BaseException as rest:
            return rest
        return None if caught else error

    def strike(self) -> None:
        self._scope.cancel()


class _AsyncioLimit:
    """Cancels the task like ``asyncio.timeout``, at a third of its cost: see ``LoopTimer``."""

    __slots__ = ("cancelling", "fired", "over", "task", "timer")

    def __init__(self, timer: LoopTimer, task: asyncio.Task[Any], cancelling: int) -> None:
        self.timer = timer
        self.task = task
        self.cancelling = cancelling
        self.fired = False
        self.over = False

    def stop(self, error: BaseException | None) -> BaseException | None:
        self.over = True
        heap = self.timer.heap
        if heap and heap[0][2].over:
            self.timer.tidy()
        if not self.fired:
            return error
        # As in asyncio.timeout: somebody else's cancellation, which came as well, must go on.
        alone = self.task.uncancel() <= self.cancelling
        return None if alone and isinstance(error, asyncio.CancelledError) else error

    def strike(self) -> None:
        if not self.over and not self.fired:
            self.fired = True
            self.task.cancel()


_local = threading.local()
_serial = count()


class LoopTimer:
    """One timer per event loop for all limits: ``loop.call_later`` only when the earliest limit moves forward.

    Limits mostly have the same length, so they end in the order they came, and nearly all are over long
    before they are due: adding one is a push on a heap, ending one marks it, and the marked ones at the top are
    thrown away.
    """

    __slots__ = ("_handle", "armed", "heap", "loop", "most")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        #: when it is due, a serial number so that limits are never compared, the limit
        self.heap: list[tuple[float, int, _AsyncioLimit]] = []
        #: When the loop will call; inf: it will not.
        self.armed = INFINITY
        #: Above this many entries they are tidied: twice those that were alive the last time.
        self.most = 64
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, when: float) -> None:
        """Have the loop call at ``when``."""
        if self._handle is not None:
            self._handle.cancel()
        self.armed = when
        self._handle = self.loop.call_later(when - monotonic(), self._fire)

    def tidy(self) -> None:
        """Throw away limits that are over: at the top, and all of them when too many have piled up below a long one."""
        heap = self.heap
        while heap and heap[0][2].over:
            heappop(heap)
        if len(heap) > self.most:
            heap[:] = [each for each in heap if not each[2].over]
            heapify(heap)
            self.most = max(64, 2 * len(heap))

    def _fire(self) -> None:
        self.armed, self._handle = INFINITY, None
        # The loop may be early by the resolution of its clock (and uvloop counts whole milliseconds).
        now = monotonic() + 0.001
        heap = self.heap
        while heap and (heap[0][2].over or heap[0][0] <= now):
            heappop(heap)[2].strike()
        if heap and heap[0][0] != INFINITY:
            self.arm(heap[0][0])
