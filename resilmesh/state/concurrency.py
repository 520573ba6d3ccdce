"""Concurrency limit: how many calls may be in flight, with a bounded first-in-first-out queue.

A call enters at once while slots are free and nobody waits: `Call.start` takes the slot, without a call between the
question and the taking, and whoever holds it frees it first and then hands out. Otherwise it takes a ticket; a slot that is
given up goes to the oldest ticket, whose waker is called outside the lock. A waker that raises (its event
loop is closed, its caller gone) has its ticket revoked and the slot goes to the next in line.

No slot can be lost between a waiter and a leaver: the waiter first stands in the queue and then looks for a
free slot, the leaver first frees the slot and then looks at the queue, so at least one sees the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

Waker = Callable[[], object]

NEW, WAITING, GRANTED, TAKEN, GONE = "new", "waiting", "granted", "taken", "gone"


class Ticket:
    """A place in the queue, or a slot that came of it. Its owner can give it up at any moment, whatever became of it."""

    __slots__ = ("state", "waker")

    def __init__(self) -> None:
        self.state = NEW
        self.waker: Waker | None = None


class Concurrency:
    """``limit`` slots and ``max_pending`` places in the queue."""

    __slots__ = ("_lock", "in_flight", "limit", "max_pending", "queue")

    def __init__(self, limit: int, max_pending: int) -> None:
        self._lock = threading.Lock()
        self.limit, self.max_pending = limit, max_pending
        self.in_flight = 0
        self.queue: deque[Ticket] = deque()

    def retune(self, limit: int, max_pending: int) -> None:
        """A lowered limit lets the calls in flight finish; a raised one wakes who waits."""
        self.limit, self.max_pending = limit, max_pending
        self.hand_out()

    def wait(self, ticket: Ticket) -> bool:
        """Stand in the queue with a new ticket, which may be granted at once; False when the queue is full."""
        with self._lock:
            if ticket.state is not NEW:
                return False  # given up already, by another thread
            if self.in_flight < self.limit and not self.queue:
                self.in_flight += 1
                ticket.state = GRANTED
                return True
            if len(self.queue) >= self.max_pending:
                return False
            ticket.state = WAITING
            self.queue.append(ticket)
        self.hand_out()
        return True

    def lend(self, ticket: Ticket, waker: Waker) -> None:
        """Have ``waker`` called when the ticket is granted, at once if it is. Any thread may call it."""
        with self._lock:
            ticket.waker = waker
            granted = ticket.state is GRANTED
        if granted:
            waker()

    def claim(self, ticket: Ticket) -> bool:
        """Turn a granted ticket into a slot that is held; False while it is not granted."""
        with self._lock:
            if ticket.state is not GRANTED:
                return False
            ticket.state = TAKEN
            return True

    def give_up(self, ticket: Ticket) -> None:
        """Leave the queue, or give back the slot that was granted or claimed meanwhile. Idempotent."""
        with self._lock:
            was, ticket.state = ticket.state, GONE
            if was is WAITING:
                self.queue.remove(ticket)
        if was is GRANTED or was is TAKEN:
            self.in_flight -= 1
            if self.queue:
                self.hand_out()

    def hand_out(self) -> None:
        """Give free slots to the oldest waiters."""
        while True:
            with self._lock:
                if not self.queue or self.in_flight >= self.limit:
                    return
                # Before the first call (popleft), or a call that begins on another thread could take the same slot.
                self.in_flight += 1
                ticket = self.queue.popleft()
                ticket.state = GRANTED
                waker = ticket.waker
            if waker is None:
                continue
            try:
                waker()
            except Exception:
                self._revoke(ticket)

    def _revoke(self, ticket: Ticket) -> None:
        with self._lock:
            was, ticket.state = ticket.state, GONE
            if was is GRANTED:
                self.in_flight -= 1

    def after_fork(self) -> None:
        """Calls in flight and waiters belong to the parent's threads."""
        self._lock = threading.Lock()
        self.in_flight = 0
        self.queue = deque()

    def snapshot(self, now: float) -> dict[str, Any]:
        return {
            "maxRequests": self.limit, "maxPending": self.max_pending, "inFlight": self.in_flight, "pending": len(self.queue),
        }
