"""Rate limit: a token bucket that refills continuously, kept as one number (GCRA).

``_due`` is the time at which the bucket would be full again. A call may go while the bucket holds a token,
that is while ``_due - now <= (burst - 1) * interval``, and moves ``_due`` one interval on. The same figures
as Envoy's local rate limit, which also refills continuously (ENVOY.md 2f: a token each ``per / requests``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class RateLimit:
    """``requests`` tokens flow in per ``per`` seconds; the bucket holds ``burst`` and starts full."""

    __slots__ = ("_due", "_interval", "_retuned", "_tolerance", "burst", "per", "requests")

    def __init__(self, requests: int, per: float, burst: int) -> None:
        self._due = float("-inf")
        self._interval = per / requests
        self.retune(requests, per, burst)

    def retune(self, requests: int, per: float, burst: int) -> None:
        """New figures, from the next call on; the tokens that are missing stay missing, as far as the bucket is that big."""
        self.requests, self.per, self.burst = requests, per, burst
        # What is missing is kept as a time, so it can only be converted by somebody who knows what time it is: the
        # next call, which finds every token missing and has to look closer.
        self._retuned = True
        self._tolerance = float("-inf")

    def _settle(self, now: float) -> None:
        # No call in here: two threads that come at once must not convert twice.
        if not self._retuned:
            return
        self._retuned = False
        interval = self.per / self.requests
        missing: float = (self._due - now) / self._interval if self._due > now else 0
        if missing > self.burst:
            missing = self.burst
        self._due = now + missing * interval
        self._interval = interval
        # A millionth of a token of slack: sums of intervals are not exact in binary.
        self._tolerance = (self.burst - 1) * interval + interval * 1e-6

    def take(self, now: float) -> bool:
        """Take a token, if there is one."""
        due = self._due
        if due < now:
            due = now
        if due - now > self._tolerance:
            if not self._retuned:
                return False
            self._settle(now)
            return self.take(now)
        self._due = due + self._interval
        return True

    def give_back(self) -> None:
        """Undo a ``take`` whose call was refused by another limit."""
        self._due -= self._interval

    def retry_after(self, now: float) -> float:
        """Seconds until a token is there; 0 when one is."""
        self._settle(now)
        wait = self._due - now - self._tolerance
        # The slack is not the caller's to use up: he shall find a token after this, whatever the rounding.
        return wait + self._interval * 1e-6 if wait > 0 else 0.0

    def tokens(self, now: float) -> float:
        """Tokens in the bucket."""
        self._settle(now)
        return self.burst - max(0.0, self._due - now) / self._interval

    def after_fork(self) -> None:
        """Nothing is in flight here: a child starts with the tokens its parent had."""

    def snapshot(self, now: float) -> dict[str, Any]:
        return {
            "requests": self.requests, "per": self.per, "burst": self.burst, "tokens": round(self.tokens(now), 6),
        }


class AllOf:
    """Several limits of which each must have a token; a token taken from one is given back when another refuses."""

    __slots__ = ("limits",)

    def __init__(self, limits: Sequence[RateLimit]) -> None:
        self.limits = tuple(limits)

    def take(self, now: float) -> bool:
        for index, limit in enumerate(self.limits):
            if not limit.take(now):
                for taken in self.limits[:index]:
                    taken.give_back()
                return False
        return True

    def retry_after(self, now: float) -> float:
        return max(limit.retry_after(now) for limit in self.limits)
