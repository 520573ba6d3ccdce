"""Keeps one certificate fresh: again at half its life, at once when the bundle changes, and with a backoff when it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from resilmesh.identity.spiffe import IdentityError

if TYPE_CHECKING:
    from resilmesh.identity.svid import Lives

#: Seconds between two looks at the bundle, and at the clock: a machine that was asleep finds itself late.
LOOK = 30.0
#: Seconds until a renewal that failed is tried again: doubled each time, up to the second one.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


def keep_fresh(
    issued: Lives, renew: Callable[[], Lives], stale: Callable[[], bool], *, wait: Callable[[float], object], now: Callable[[], float],
    rng: Callable[[], float], say: Callable[[str], object],
) -> None:
    """Renew for as long as nothing but ``IdentityError`` and ``OSError`` is raised; these are said, and tried again.

    ``stale``: whether the bundle that went with the last one is no longer the authority's. ``wait`` takes seconds, ``now`` gives seconds
    since the epoch, ``rng`` from 0 to 1.
    """
    from resilmesh.identity.svid import renew_at

    due, failures = renew_at(issued, rng), 0
    while True:
        try:
            left = due - now()
            if left > 0 and not stale():
                wait(min(left, LOOK))
                continue
            issued = renew()
        except (IdentityError, OSError) as error:
            failures += 1
            pause = min(FIRST_PAUSE * 2 ** (failures - 1), LONGEST_PAUSE) * (0.5 + 0.5 * rng())
            say(f"the renewal failed: {error}; the old certificate {_left(issued.not_after - now())}; again in {pause:.1f} s")
            wait(pause)
        else:
            due, failures = renew_at(issued, rng), 0


def _left(seconds: float) -> str:
    return f"is good for {seconds:.0f} s more" if seconds > 0 else f"has ended {-seconds:.0f} s ago"
