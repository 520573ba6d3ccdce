"""Rate limit: a token bucket that refills continuously, kept as one number (GCRA).

``_due`` is the time at which the bucket would be full again. A call may go while the bucket holds a token,
that is while ``_due - now <= (burst - 1) * interval``, and moves ``_due`` one interval on. The same figures
as Envoy's local rate limit, which also refills continuously (ENVOY.md 2f: a token each ``per / requests``).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
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


#: A value longer than this is remembered by its hash, so that a caller cannot fill the memory with long ones.
_LONGEST_VALUE = 128


class RateLimitByValue:
    """A bucket of the same figures for each value of a request header; requests without the header share one.

    At most ``max_values`` buckets are kept: the one that was unused for longest goes first, and its value begins with a
    full one when it comes again. The one of requests without the header is none of those. Values are never shown: they may
    be secrets.
    """

    __slots__ = ("_buckets", "_lock", "_without", "burst", "evicted", "header", "max_values", "per", "requests")

    def __init__(self, header: str, requests: int, per: float, burst: int, max_values: int) -> None:
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str | int, RateLimit] = OrderedDict()
        self._without = RateLimit(requests, per, burst)
        self.header = header
        self.evicted = 0
        self.requests, self.per, self.burst, self.max_values = requests, per, burst, max_values

    def retune(self, requests: int, per: float, burst: int, max_values: int) -> None:
        """New figures for every bucket, from the next call on."""
        with self._lock:
            self.requests, self.per, self.burst, self.max_values = requests, per, burst, max_values
            # A list, made in one go: a call may move a bucket to the end meanwhile.
            for bucket in [self._without, *self._buckets.values()]:
                bucket.retune(requests, per, burst)
            self._shrink()

    def of(self, value: str | None) -> RateLimit:
        """The bucket of a value. Without a lock for one that is there."""
        if value is None:
            return self._without
        key = value if len(value) <= _LONGEST_VALUE else hash(value)
        bucket = self._buckets.get(key)
        if bucket is None:
            return self._open(key)
        try:
            self._buckets.move_to_end(key)
        except KeyError:  # it was just evicted: this call is its last
            return bucket
        return bucket

    def _open(self, key: str | int) -> RateLimit:
        with self._lock:
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = RateLimit(self.requests, self.per, self.burst)
                self._shrink()
            return bucket

    def _shrink(self) -> None:
        while len(self._buckets) > self.max_values:
            self._buckets.popitem(last=False)
            self.evicted += 1

    def after_fork(self) -> None:
        self._lock = threading.Lock()

    def snapshot(self, now: float) -> dict[str, Any]:
        return {
            "requests": self.requests, "per": self.per, "burst": self.burst, "header": self.header, "values": len(self._buckets),
            "evicted": self.evicted,
        }


class LimitsByValue:
    """The rate limits of a plan, some of which choose their bucket by a request header."""

    __slots__ = ("_limits", "headers")

    def __init__(self, limits: Sequence[RateLimit | RateLimitByValue]) -> None:
        self._limits = tuple(limits)
        #: The request headers whose values ``of`` takes, in order.
        self.headers = tuple(limit.header for limit in limits if isinstance(limit, RateLimitByValue))

    def of(self, values: Sequence[str | None]) -> RateLimit | AllOf:
        """The buckets of one request; a value that is missing is that of a request without the header."""
        given = iter(values)
        chosen = [limit.of(next(given, None)) if isinstance(limit, RateLimitByValue) else limit for limit in self._limits]
        return chosen[0] if len(chosen) == 1 else AllOf(chosen)
