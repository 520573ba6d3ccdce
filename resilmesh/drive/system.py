"""The operating system's clock: the one place where the library reads the time or waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from resilmesh.clock import Clock, Lend, Limit


#: Longest wait for a waker, in seconds. A slot may be held by a response that was forgotten; its finalizer must not wake
#: anybody (it may run inside a lock's holder), so whoever waits looks now and then.
_LOOK_AGAIN = 1.0


class SystemClock:
    """The operating system's clocks."""

    # Plain functions, not methods: `clock.monotonic()` is on the path of every call.
    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)
    sleep = staticmethod(time.sleep)

    def wait(self, lend: Lend, seconds: float) -> None:
        event = threading.Event()
        lend(event.set)
        event.wait(min(seconds, _LOOK_AGAIN))

    async def sleep_async(self, seconds: float) -> None:
        from resilmesh.drive import runtime  # brings asyncio, which sync programs do without

        await runtime.sleep(seconds)

    async def wait_async(self, lend: Lend, seconds: float) -> None:
        from resilmesh.drive import runtime

        await runtime.wait(lend, min(seconds, _LOOK_AGAIN))

    @cached_property
    def limit(self) -> Callable[[float], Limit]:
        from resilmesh.drive.runtime import limit

        return limit

    def scope(self, seconds: float) -> AbstractContextManager[object]:
        from resilmesh.drive import runtime

        return runtime.scope(seconds)


SYSTEM: Clock = SystemClock()
