"""The operating system's clock: the one place where the library reads the time or waits."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilmesh.clock import Clock, Lend


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
        from resilmesh.drive import runtime  # brings asyncio, which sync programs do without

        await runtime.sleep(seconds)

    async def wait_async(self, lend: Lend, seconds: float) -> None:
        from resilmesh.drive import runtime

        await runtime.wait(lend, seconds)


SYSTEM: Clock = SystemClock()
