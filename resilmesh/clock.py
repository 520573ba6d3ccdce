"""The one place where the library reads a clock or draws a lot.

Everything below the adapters takes ``now`` and ``rng`` as arguments; the adapters take theirs from a
``Clock``. A test passes ``ManualClock`` (in ``resilmesh.testing``) and nothing sleeps.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A source of time that can also pass it."""

    def monotonic(self) -> float:
        """Seconds that never go backwards; the origin has no meaning."""

    def wall(self) -> float:
        """Seconds since the Unix epoch, for dates that come from outside (an HTTP-date)."""

    def sleep(self, seconds: float) -> None:
        """Block this thread for ``seconds``."""

    async def sleep_async(self, seconds: float) -> None:
        """Suspend this task for ``seconds``, under asyncio or trio."""


class SystemClock:
    """The operating system's clocks."""

    # Plain functions, not methods: `clock.monotonic()` is on the path of every call.
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    sleep = staticmethod(time.sleep)

    async def sleep_async(self, seconds: float) -> None:
        from resilmesh.drive.runtime import sleep

        await sleep(seconds)


SYSTEM: Clock = SystemClock()
