"""What a clock is. Everything below the drivers takes ``now`` and ``rng`` as arguments; the drivers take theirs from a ``Clock``.

The real one is ``resilmesh.drive.system.SystemClock``; a test passes ``resilmesh.testing.ManualClock`` and nothing sleeps.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

#: Takes a waker, which may be called from any thread, and must then end the wait.
Lend = Callable[[Callable[[], object]], None]


class Limit(Protocol):
    """Ends what this task awaits, from the moment it is made until ``stop``, when its time is over."""

    def stop(self, error: BaseException | None) -> BaseException | None:
        """What is left of ``error``, which the await raised, when the limit's own doing is taken out; ``None``: nothing."""

    def strike(self) -> None:
        """Its time is over. Called on the loop of the task; does nothing after ``stop``."""


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

    def limit(self, seconds: float) -> Limit:
        """Have what this task awaits end after ``seconds``, by a cancellation of its own library."""

    def scope(self, seconds: float) -> AbstractContextManager[object]:
        """The same as a block: an anyio cancel scope, which anyio's shields stop."""
