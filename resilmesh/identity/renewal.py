"""Keeps one certificate fresh: again at half its life, at once when the bundle changes, and with a backoff when it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from resilmesh.identity.spiffe import IdentityError

if TYPE_CHECKING:
    from resilmesh.identity.svid import Chain

#: Seconds between two looks at the bundle, and at the clock: a machine that was asleep finds itself late.
LOOK = 30.0
#: Seconds until a renewal that failed is tried again: doubled each time, up to the second one.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


class Schedule:
    """When to renew what was issued. Times are seconds since the epoch; ``rng`` gives from 0 to 1."""

    def __init__(self, issued: Chain, rng: Callable[[], float]) -> None:
        self._rng = rng
        self._due = self._quiet_until = 0.0
        self._failures = 0
        self.renewed(issued)

    def renewed(self, issued: Chain) -> None:
        """It was: from the beginning."""
        from resilmesh.identity.svid import renew_at

        self._due, self._failures, self._quiet_until = renew_at(issued, self._rng), 0, 0.0

    def failed(self, now: float) -> float:
        """It was not; returns the seconds until it is tried again."""
        self._failures = min(self._failures + 1, 30)
        pause = min(FIRST_PAUSE * 2.0 ** (self._failures - 1), LONGEST_PAUSE) * (0.5 + 0.5 * self._rng())
        self._quiet_until = now + pause
        return pause

    def is_due(self, now: float, stale: Callable[[], bool]) -> bool:
        """Whether to renew now. ``stale``: whether the bundle that went with the last one is no longer the authority's."""
        return now >= self._quiet_until and (now >= self._due or stale())

    def left(self, now: float) -> float:
        """Seconds until the next time that it may be due, but for a bundle that changes."""
        return max(self._quiet_until, self._due) - now


def keep_fresh(
    issued: Chain, renew: Callable[[], Chain], stale: Callable[[], bool], *, wait: Callable[[float], object], now: Callable[[], float],
    rng: Callable[[], float], say: Callable[[str], object],
) -> None:
    """Renew for as long as nothing but ``IdentityError`` and ``OSError`` is raised; these are said, and tried again.

    ``stale``: as ``Schedule.is_due``. ``wait`` takes seconds, ``now`` gives seconds since the epoch.
    """
    schedule = Schedule(issued, rng)
    while True:
        try:
            if schedule.is_due(now(), stale):
                issued = renew()
                schedule.renewed(issued)
            pause = min(max(schedule.left(now()), 0.0), LOOK)
        except (IdentityError, OSError) as error:
            pause = schedule.failed(now())
            say(f"the renewal failed: {error}; the old certificate {_left(issued.not_after - now())}; again in {pause:.1f} s")
        wait(pause)


def _left(seconds: float) -> str:
    return f"is good for {seconds:.0f} s more" if seconds > 0 else f"has ended {-seconds:.0f} s ago"
