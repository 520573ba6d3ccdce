"""The one place where the library reads a clock or waits.

Everything below the adapters takes ``now`` and ``rng`` as arguments; the adapters take theirs from a
``Clock``. A test passes ``resilmesh.testing.ManualClock`` and nothing sleeps.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

#: Takes a waker, which may be called from any thread, and must then end the wait.
Lend = Callable[[Callable[[], object]], None]


class Clock(Protocol):
    """A source of time that can also pass it. All durations are seconds."""

    def monotonic(self) -> float:
        """Seconds that never go backwards; the origin has no meaning."""

    def wall(self) -> float:
        """Seconds since the Unix epoch, for dates that come from outside (an HTTP-date)."""

    def sleep(self, seconds: float) -> None:
        """Block this thread."""

    def wait(self, lend: Lend, seconds: float) -> None:
        """Block this thread until the waker is called, ``seconds`` (may be ``inf``) at most."""

    async def sleep_async(self, seconds: float) -> None:
        """Suspend this task, under asyncio or trio."""

    async def wait_async(self, lend: Lend, seconds: float) -> None:
        """Suspend this task until the waker is called, ``seconds`` (may be ``inf``) at most."""


class SystemClock:
    """The operating system's clocks."""

    # Plain functions, not methods: `clock.monotonic()` is on the path of every call.
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    sleep = staticmethod(time.sleep)

    def wait(self, lend: Lend, seconds: float) -> None:
        event = threading.Event()
        lend(event.set)
        event.wait(None if seconds == float("inf") else min(seconds, threading.TIMEOUT_MAX))

    async def sleep_async(self, seconds: float) -> None:
        from resilmesh.drive import runtime

        await runtime.sleep(seconds)

    async def wait_async(self, lend: Lend, seconds: float) -> None:
        from resilmesh.drive import runtime

        await runtime.wait(lend, seconds)


SYSTEM: Clock = SystemClock()
