"""``ManualClock``: a clock that moves when it is told to, or, with ``autojump``, when everybody waits for it.

Whoever waits for a time leaves an *alarm* with the clock: what to call once that time has come. Moving the clock takes
the alarms that are due, in order, and rings them outside of the lock.

    alarm of                 rings by
    sleep, wait (thread)     setting an event that the thread waits for
    sleep_async, wait_async  the waker of ``drive.runtime.wait``
    limit, scope             cancelling what the task awaits, soon, on its own loop

**Who is at work** (autojump). A thread that reads the clock is at work until it waits for it. One whose alarm has rung is
at work before it runs again, so that nobody can jump twice past it. The thread of an event loop waits when every task of
the loop is blocked.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any

from resilmesh.clock import Lend, Limit

if TYPE_CHECKING:
    import asyncio
    from contextlib import AbstractContextManager

_FOR_EVER = float("inf")
#: Real seconds for which a thread that has used the clock, and does not wait for it, is taken to be at work.
_AT_WORK = 0.05


class _Alarm:
    """Something to call when a time has come, unless it is over by then."""

    __slots__ = ("over", "owner", "ring")

    def __init__(self, ring: Callable[[], object], owner: threading.Thread) -> None:
        self.ring = ring
        self.owner = owner
        self.over = False


class ManualClock:
    """A ``Clock`` that stands still. ``advance`` and ``jump`` move it; all durations are seconds.

    ``waits=False`` (the default): a sleep moves the clock itself, so nothing ever waits. For a program that does one
    thing at a time. A wait for a slot of a concurrency limit ends when the slot is granted or, at once, when no time is
    left; a limit that ends an ``await`` (timeout, perTryTimeout) strikes when the clock has passed it, or after as many
    real seconds, so that no test hangs.

    ``waits=True``: a sleep lasts until somebody moves the clock past its end, and so does a limit.

    ``autojump=True`` (implies ``waits``): as soon as every task and every thread that uses the clock waits for it, it jumps
    to the next time that anybody waits for. Tasks and threads then overlap as they would in real time, and take none.

    ``patience``: real seconds that are given to what the clock cannot see. Without ``autojump``: to other threads, to free
    a slot that is waited for. With it: to an event loop whose tasks are all blocked, one of them perhaps on a socket
    or on another thread. A thread that has used the clock and does something else is always given 50 ms.
    """

    def __init__(
        self, start: float = 1000.0, *, wall: float = 1_700_000_000.0, patience: float = 0.0, waits: bool = False, autojump: bool = False,
    ) -> None:
        self._now = start
        self._wall_offset = wall - start
        self._patience = patience
        self._waits = waits or autojump
        self._autojump = autojump
        self._lock = threading.Lock()
        #: when it is due, a serial number so that alarms are never compared, the alarm
        self._alarms: list[tuple[float, int, _Alarm]] = []
        self._serial = count()
        #: Threads that are at work, since when by real time; inf: their alarm has rung, and they have not run yet.
        self._working: dict[threading.Thread, float] = {}
        #: Loops, and runs of trio, that are looked at for having nothing to do.
        self._watched: weakref.WeakSet[Any] = weakref.WeakSet()
        #: Every sleep so far, in seconds.
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        if self._autojump:
            self._work()
        return self._now

    def wall(self) -> float:
        return self._now + self._wall_offset

    # ------------------------------------------------------------------------------------------- moving

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds`` (0 or more). Whoever waited for a time until then goes on."""
        if not seconds >= 0:
            raise ValueError("time does not go backwards")
        with self._lock:
            self._now += seconds
            due = self._due()
        for alarm in due:
            alarm.ring()

    def jump(self, seconds: float | None = None) -> float:
        """``advance``; without an argument to the next time that anybody waits for. Gives the seconds: 0 if nobody waits."""
        if seconds is None:
            with self._lock:
                self._forget()
                seconds = self._alarms[0][0] - self._now if self._alarms else 0.0
        self.advance(seconds)
        return seconds

    def _due(self) -> list[_Alarm]:
        """Take the alarms whose time has come."""
        due = []
        while self._alarms and (self._alarms[0][2].over or self._alarms[0][0] <= self._now):
            alarm = heappop(self._alarms)[2]
            if not alarm.over:
                due.append(alarm)
                if self._autojump:
                    self._working[alarm.owner] = _FOR_EVER
        return due

    def _forget(self) -> None:
        while self._alarms and self._alarms[0][2].over:
            heappop(self._alarms)

    def _alarm(self, seconds: float, ring: Callable[[], object]) -> _Alarm:
        alarm = _Alarm(ring, threading.current_thread())
        if seconds <= 0:
            ring()
        elif seconds != _FOR_EVER:
            with self._lock:
                heappush(self._alarms, (self._now + seconds, next(self._serial), alarm))
        return alarm

    # ------------------------------------------------------------------------------------------- threads

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        if self._waits:
            self._hold(seconds, threading.Event())
        else:
            self.advance(seconds)

    def wait(self, lend: Lend, seconds: float) -> None:
        event = threading.Event()
        lend(event.set)
        if self._waits:
            self._hold(seconds, event)
        elif not event.wait(None if seconds == _FOR_EVER else self._patience):
            self.advance(seconds)

    def _hold(self, seconds: float, event: threading.Event) -> None:
        """Block this thread until the event is set, by its alarm or by somebody else."""
        alarm = self._alarm(seconds, event.set)
        self._rest()
        try:
            while not event.wait(self._look()):
                pass
        finally:
            self._end(alarm)

    def _work(self) -> None:
        """This thread runs."""
        self._working[threading.current_thread()] = time.monotonic()

    def _rest(self) -> None:
        """This thread waits, as far as can be seen: unless an alarm of it has rung of which nothing has come yet."""
        me = threading.current_thread()
        if self._working.get(me) != _FOR_EVER:
            self._working.pop(me, None)

    def _end(self, alarm: _Alarm) -> None:
        alarm.over = True
        if self._autojump:
            self._work()

    def _look(self) -> float | None:
        """Jump if nobody is at work. Gives the real seconds after which to look again; ``None``: there is nothing to look for."""
        if not self._autojump:
            return None
        with self._lock:
            self._forget()
            if not self._alarms:
                return None
            now, patience = time.monotonic(), max(self._patience, _AT_WORK)
            left = 0.0
            for thread, since in list(self._working.items()):
                if not thread.is_alive():
                    del self._working[thread]
                else:
                    # A thread whose alarm has rung will say itself that it runs; until then it is looked at often.
                    left = max(left, 0.001 if since == _FOR_EVER else patience - (now - since))
            if left > 0:
                return left
            self._now = max(self._now, self._alarms[0][0])
            due = self._due()
        for alarm in due:
            alarm.ring()
        return 0.0

    # --------------------------------------------------------------------------------------------- tasks

    async def sleep_async(self, seconds: float) -> None:
        from resilmesh.drive import runtime

        if not self._waits:
            self.sleep(seconds)
            await runtime.sleep(0)
            return
        self.sleeps.append(seconds)
        await self._suspend(seconds, lambda waker: None)

    async def wait_async(self, lend: Lend, seconds: float) -> None:
        from resilmesh.drive import runtime

        if self._waits:
            await self._suspend(seconds, lend)
            return
        woken = threading.Event()

        def lend_both(waker: Callable[[], object]) -> None:
            def wake() -> None:
                woken.set()
                waker()

            lend(wake)

        await runtime.wait(lend_both, _FOR_EVER if seconds == _FOR_EVER else self._patience)
        if not woken.is_set():
            self.advance(seconds)

    async def _suspend(self, seconds: float, lend: Lend) -> None:
        """Suspend this task until its alarm rings, or the lent waker is called."""
        from resilmesh.drive import runtime

        alarms: list[_Alarm] = []

        def lend_both(waker: Callable[[], object]) -> None:
            alarms.append(self._alarm(seconds, waker))
            lend(waker)

        self._watch()
        try:
            await runtime.wait(lend_both, _FOR_EVER)
        finally:
            for alarm in alarms:
                self._end(alarm)

    def limit(self, seconds: float) -> Limit:
        from resilmesh.drive import runtime

        limited = runtime.limit(_FOR_EVER if self._waits else seconds)
        soon = runtime.caller()
        self._watch()
        return _Limit(self, limited, self._alarm(seconds, lambda: soon(limited.strike)))

    def scope(self, seconds: float) -> AbstractContextManager[object]:
        from resilmesh.drive import runtime

        return self._scope(runtime.scope(_FOR_EVER if self._waits else seconds), seconds)

    @contextmanager
    def _scope(self, cancelling: Any, seconds: float) -> Iterator[object]:
        from resilmesh.drive import runtime

        soon = runtime.caller()
        self._watch()
        with cancelling:
            alarm = self._alarm(seconds, lambda: soon(cancelling.cancel))
            try:
                yield cancelling
            finally:
                self._end(alarm)

    # ----------------------------------------------------------------------------- loops that have nothing to do

    def _watch(self) -> None:
        """See to it that the clock jumps when every task of this loop is blocked."""
        from resilmesh.drive import runtime

        if not self._autojump:
            return
        if runtime.in_trio():
            import trio

            token = trio.lowlevel.current_trio_token()
            if token not in self._watched:
                self._watched.add(token)
                trio.lowlevel.spawn_system_task(self._watch_trio, token)
            return
        import asyncio

        loop = asyncio.get_running_loop()
        if loop not in self._watched:
            self._watched.add(loop)
            loop.call_soon(self._watch_asyncio, loop, None)

    async def _watch_trio(self, token: object) -> None:
        import trio
        from trio.testing import wait_all_tasks_blocked

        again: float | None = 0.0
        try:
            while again is not None:
                await trio.sleep(again)
                await wait_all_tasks_blocked(self._patience)
                self._rest()
                again = self._look()
        finally:
            self._watched.discard(token)

    def _watch_asyncio(self, loop: asyncio.AbstractEventLoop, before: dict[Any, Any] | None) -> None:
        """Look at what each task waits for, and a round (or ``patience``) later again: if it is the same, nothing runs."""
        import asyncio

        waits_for = {task: getattr(task, "_fut_waiter", None) for task in asyncio.all_tasks(loop)}
        blocked = all(future is not None and not future.done() for future in waits_for.values())
        again: float | None = 0.0
        if blocked and waits_for == before:
            self._rest()
            again, blocked = self._look(), False
        elif blocked:
            again = self._patience
        if again is None:
            self._watched.discard(loop)
        elif again:
            loop.call_later(again, self._watch_asyncio, loop, waits_for if blocked else None)
        else:
            loop.call_soon(self._watch_asyncio, loop, waits_for if blocked else None)


class _Limit:
    """A limit of the runtime whose end the clock sees to."""

    __slots__ = ("_alarm", "_clock", "_limited")

    def __init__(self, clock: ManualClock, limited: Limit, alarm: _Alarm) -> None:
        self._clock = clock
        self._limited = limited
        self._alarm = alarm

    def stop(self, error: BaseException | None) -> BaseException | None:
        self._clock._end(self._alarm)
        return self._limited.stop(error)

    def strike(self) -> None:
        self._limited.strike()
