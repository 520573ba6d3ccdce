"""For tests of programs that use resilmesh: a clock that only moves when it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable

from resilmesh.clock import Lend

_FOR_EVER = float("inf")


class ManualClock:
    """A ``Clock`` that stands still. ``advance`` moves it; sleeping moves it too, so nothing ever waits for real.

    A wait for a slot of a concurrency limit ends when the slot is granted or, at once, when no time is left: pass
    ``patience`` to give other threads that many real seconds to free one first. A wait that nothing bounds is a real one.
    So are the limits that end an ``await`` (timeout, perTryTimeout): they strike after as many real seconds.
    """

    def __init__(self, start: float = 1000.0, *, wall: float = 1_700_000_000.0, patience: float = 0.0) -> None:
        self._now = start
        self._wall_offset = wall - start
        self._patience = patience
        self._lock = threading.Lock()
        #: Every sleep so far, in seconds.
        self.sleeps: list[float] = []

    def monotonic(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now + self._wall_offset

    def advance(self, seconds: float) -> None:
        """Move on by ``seconds`` (0 or more)."""
        if seconds < 0:
            raise ValueError("time does not go backwards")
        with self._lock:
            self._now += seconds

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.advance(seconds)

    def wait(self, lend: Lend, seconds: float) -> None:
        event = threading.Event()
        lend(event.set)
        if not event.wait(None if seconds == _FOR_EVER else self._patience):
            self.advance(seconds)

    async def sleep_async(self, seconds: float) -> None:
        from resilmesh.drive import runtime

        self.sleep(seconds)
        await runtime.sleep(0)

    async def wait_async(self, lend: Lend, seconds: float) -> None:
        from resilmesh.drive import runtime

        woken = threading.Event()

        def lend_both(waker: Callable[[], object]) -> None:
            def wake() -> None:
                woken.set()
                waker()

            lend(wake)

        await runtime.wait(lend_both, _FOR_EVER if seconds == _FOR_EVER else self._patience)
        if not woken.is_set():
            self.advance(seconds)
