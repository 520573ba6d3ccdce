"""Retry budget: how many retries the traffic of the last ``ttl`` has paid for (Finagle's RetryBudget).

Every call deposits ``percent / 100`` of a retry when it starts; ``min_retries_per_second * ttl`` are there
whatever the traffic; a retry takes one. Deposits and withdrawals leave the balance ``ttl`` after they came,
in steps of a tenth of it.
"""

from __future__ import annotations

import threading
from typing import Any

from resilmesh.state.window import TimeWindow


class RetryBudget:
    """``percent`` of calls, plus a floor. Deposits take no lock; a withdrawal, which follows a failure, does."""

    __slots__ = ("_deposits", "_lock", "_withdrawals", "min_retries_per_second", "percent", "ttl")

    def __init__(self, percent: float, min_retries_per_second: int, ttl: float) -> None:
        self._lock = threading.Lock()
        self._deposits = TimeWindow(ttl)
        self._withdrawals = TimeWindow(ttl)
        self.percent, self.min_retries_per_second, self.ttl = percent, min_retries_per_second, ttl

    def retune(self, percent: float, min_retries_per_second: int, ttl: float) -> None:
        """New figures from the next decision on; a new ``ttl`` starts with an empty memory."""
        if ttl != self.ttl:
            self._deposits, self._withdrawals = TimeWindow(ttl), TimeWindow(ttl)
        self.percent, self.min_retries_per_second, self.ttl = percent, min_retries_per_second, ttl

    def deposit(self, now: float) -> None:
        """A call starts."""
        self._deposits.success(now)

    def withdraw(self, now: float) -> bool:
        """Pay for a retry, if the balance allows one."""
        with self._lock:
            # A hair of slack: five deposits of 20 % pay for one retry, whatever binary fractions say.
            if self.balance(now) < 1 - 1e-9:
                return False
            self._withdrawals.success(now)
            return True

    def balance(self, now: float) -> float:
        """Retries that could be paid for now."""
        self._deposits.roll(now)
        self._withdrawals.roll(now)
        floor = self.min_retries_per_second * self.ttl
        return floor + self._deposits.calls * self.percent / 100 - self._withdrawals.calls

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._deposits.after_fork()
        self._withdrawals.after_fork()

    def snapshot(self, now: float) -> dict[str, Any]:
        return {
            "percent": self.percent, "minRetriesPerSecond": self.min_retries_per_second, "ttl": self.ttl,
            "balance": round(self.balance(now), 6),
        }
