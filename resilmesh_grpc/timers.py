"""What is due later, for callers that have no event loop: one thread for the whole process, there only while something waits."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from time import monotonic

log = logging.getLogger("resilmesh")

#: Seconds that the thread waits for more work before it ends, and after which it looks whether what it waits for was cancelled.
_LINGER = 1.0


class Timer:
    """Something that is due. ``cancel`` at any time, from any thread."""

    __slots__ = ("_what",)

    def __init__(self, what: Callable[[], object]) -> None:
        self._what: Callable[[], object] | None = what

    @property
    def over(self) -> bool:
        """It was called, or cancelled."""
        return self._what is None

    def cancel(self) -> None:
        self._what = None

    def fire(self) -> None:
        what, self._what = self._what, None
        if what is not None:
            try:
                what()
            except Exception:
                log.exception("a timer failed")


class Timers:
    """A heap and the thread that looks after it. What it calls must be quick: everything else that is due waits meanwhile."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._serial = count()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        #: Above this many entries the cancelled ones are thrown away: twice those that were alive the last time.
        self._most = 64

    def after(self, seconds: float, what: Callable[[], object]) -> Timer:
        """Have ``what`` called in ``seconds``, on a thread of its own."""
        timer = Timer(what)
        with self._changed:
            if len(self._heap) > self._most:
                self._tidy()
            heappush(self._heap, (monotonic() + seconds, next(self._serial), timer))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="resilmesh-grpc-timers", daemon=True)
                self._thread.start()
            elif self._heap[0][2] is timer:
                self._changed.notify()
        return timer

    def _tidy(self) -> None:
        self._heap[:] = [each for each in self._heap if not each[2].over]
        heapify(self._heap)
        self._most = max(64, 2 * len(self._heap))

    def _run(self) -> None:
        while True:
            timer = self._next()
            if timer is None:
                return
            timer.fire()
            del timer

    def _next(self) -> Timer | None:
        """Wait for what is due next; ``None``: nothing has been for a while, and the thread ends."""
        with self._changed:
            while True:
                while self._heap and self._heap[0][2].over:
                    heappop(self._heap)
                ahead = self._heap[0][0] - monotonic() if self._heap else _LINGER
                if ahead <= 0:
                    return heappop(self._heap)[2]
                told = self._changed.wait(min(ahead, _LINGER))
                if not told and not self._heap:
                    self._thread = None
                    return None


timers = Timers()


def _after_fork() -> None:
    timers.__init__()  # type: ignore[misc]  # its thread stayed in the parent, and its lock may be held for ever


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
