"""Sliding windows: the last N outcomes, or the outcomes of the last N seconds.

Decides nothing; the circuit breaker computes rates from ``calls``, ``failures`` and ``slow``. Both windows
roll lazily, when they are written or read. A time window has ten buckets, so it forgets in steps of a
tenth of its length: it covers between nine tenths and the whole of it.
"""

from __future__ import annotations

import threading
from typing import Protocol

#: Buckets of a time window. Envoy's admission control has one a second, resilience4j too; ten make a window
#: of one second useful as well.
BUCKETS = 10

_FAILED, _SLOW = 1, 2


class Window(Protocol):
    """What both windows offer. ``failures`` may be read at any time; after ``roll`` it is exact."""

    #: Failures in the window, and slow calls: zero for both lets the breaker skip everything else.
    failures: int
    slow: int

    def success(self, now: float) -> None: ...

    def record(self, now: float, *, failed: bool, slow: bool) -> None: ...

    def roll(self, now: float) -> None: ...

    def after_fork(self) -> None: ...

    @property
    def calls(self) -> int: ...


class CountWindow:
    """The last ``size`` outcomes in a ring, a byte each."""

    __slots__ = ("_at", "_calls", "_ring", "failures", "size", "slow")

    def __init__(self, size: int) -> None:
        self.size = size
        self._ring = bytearray(size)
        self._at = 0
        self._calls = 0
        self.failures = 0
        self.slow = 0

    @property
    def calls(self) -> int:
        return self._calls

    def success(self, now: float) -> None:
        # No call from here to the last line: see the rules in this package's docstring.
        at = self._at
        self._at = at + 1 if at + 1 < self.size else 0
        if self._calls < self.size:
            self._calls += 1
        if self._ring[at]:
            self._evict(at)

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        at = self._at
        self._at = at + 1 if at + 1 < self.size else 0
        if self._calls < self.size:
            self._calls += 1
        if self._ring[at]:
            self._evict(at)
        self._ring[at] = (_FAILED if failed else 0) | (_SLOW if slow else 0)
        self.failures += failed
        self.slow += slow

    def _evict(self, at: int) -> None:
        old = self._ring[at]
        self._ring[at] = 0
        self.failures -= old & _FAILED
        self.slow -= old >> 1

    def roll(self, now: float) -> None:
        """A count window does not depend on time."""

    def after_fork(self) -> None:
        """It has no lock."""


class TimeWindow:
    """The outcomes of the last ``seconds``, in ten buckets."""

    __slots__ = ("_current", "_ends", "_lock", "_past", "_past_calls", "_width", "failures", "seconds", "slow")

    def __init__(self, seconds: float) -> None:
        self._lock = threading.Lock()
        self.seconds = seconds
        self._width = seconds / BUCKETS
        self._ends = 0.0
        #: calls, failures, slow of the bucket that is being filled.
        self._current = [0, 0, 0]
        self._past: list[list[int]] = []
        self._past_calls = 0
        self.failures = 0
        self.slow = 0

    @property
    def calls(self) -> int:
        return self._past_calls + self._current[0]

    def success(self, now: float) -> None:
        if now >= self._ends:
            self.roll(now)
        self._current[0] += 1

    def record(self, now: float, *, failed: bool, slow: bool) -> None:
        if now >= self._ends:
            self.roll(now)
        self._current[0] += 1
        self._current[1] += failed
        self._current[2] += slow
        self.failures += failed
        self.slow += slow

    def roll(self, now: float) -> None:
        """Close buckets that are over and forget the ones that left the window."""
        if now < self._ends:
            return  # nearly always, and without the lock
        with self._lock:
            if now < self._ends:
                return
            gap = now - self._ends
            if gap >= self.seconds:
                kept: list[list[int]] = []
                empty, self._ends = BUCKETS, now + self._width
            else:
                empty = int(gap / self._width)
                kept = self._past[-(BUCKETS - 2 - empty):] if empty < BUCKETS - 2 else []
                self._ends += (empty + 1) * self._width
            calls, failures, slow = (sum(bucket[i] for bucket in kept) for i in range(3))
            padding = [[0, 0, 0]] * min(empty, BUCKETS - 1)
            # No call from here on: a success on another thread counts in the old bucket or in the new one.
            last, self._current = self._current, [0, 0, 0]
            if empty < BUCKETS - 1:
                kept = [*kept, last, *padding]
                calls, failures, slow = calls + last[0], failures + last[1], slow + last[2]
            self._past, self._past_calls, self.failures, self.slow = kept, calls, failures, slow

    def after_fork(self) -> None:
        self._lock = threading.Lock()
