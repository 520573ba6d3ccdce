"""What happened, for whoever subscribed: ``mesh.subscribe(observer)``.

An observer is called with one ``Event`` at a time, on the thread where it happened, outside of any lock.
It should return fast. One that raises is logged once and dropped: telling must not break a call.

    event              detail
    call_started       repetition               (only of a loop outside of ours)
    fault_injected     scope, delay or status
    call_queued
    attempt_started    endpoint
    attempt_ended      verdict, status
    backoff            seconds
    retry_refused      reason: budget, deadline, circuit, endpoint
    call_rejected      reason
    would_reject       reason                   (mode OBSERVE)
    call_ended         verdict, seconds
    call_abandoned
    fell_back          reason: REJECTED, DEADLINE, FAILURE
    mirrored           to
    mirror_dropped     to, reason: streamed, busy
    circuit_changed    old, new, reason         (call and attempt are 0)
    circuit_would_open reason                   (forced METRICS_ONLY)
    endpoint_ejected   endpoint, reason, seconds
    endpoint_returned  endpoint
    injection_began    status, delay, percent, scope    (mesh.inject)
    injection_ended    likewise
    policy_applied     revision
    policy_refused     error
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from resilmesh.engine.call import Call

log = logging.getLogger("resilmesh")


class Event(NamedTuple):
    """One thing that happened. ``at`` is monotonic seconds of the mesh's clock; ``call`` numbers the calls that an observer was told of."""

    at: float
    name: str
    service: str
    route: str | None
    call: int
    attempt: int
    detail: dict[str, Any]


Observer = Callable[[Event], None]


class Hub:
    """Where events go, and where calls that nobody ended wait to be cleaned up. One per mesh."""

    __slots__ = ("_lock", "observers", "orphans", "serial")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Replaced, never mutated: a call reads it once.
        self.observers: tuple[Observer, ...] = ()
        #: Calls whose response was garbage-collected. A finalizer may run inside a lock's holder, so it only appends.
        self.orphans: deque[Call] = deque()
        self.serial = count(1)

    def subscribe(self, observer: Observer) -> Callable[[], None]:
        """Have ``observer`` called from now on; the returned function ends that, once."""
        if not callable(observer):
            raise TypeError(f"an observer is called with each event, and {observer!r} cannot be called")
        with self._lock:
            self.observers = (*self.observers, observer)
        return partial(self._drop, [observer])

    def _drop(self, subscribed: list[Observer]) -> None:
        with self._lock:
            if subscribed:
                left = list(self.observers)
                observer = subscribed.pop()
                for index, each in enumerate(left):
                    if each is observer:
                        del left[index]
                        break
                self.observers = tuple(left)

    def emit(
        self, at: float, name: str, service: str = "", route: str | None = None, call: int = 0, attempt: int = 0, **detail: Any,
    ) -> None:
        observers = self.observers
        if not observers:
            return
        event = Event(at, name, service, route, call, attempt, detail)
        for observer in observers:
            try:
                observer(event)
            except Exception:
                self._drop([observer])
                log.exception("an observer raised at %s and is unsubscribed", name)

    def drain(self, now: float) -> None:
        """Abandon every call that a finalizer left behind."""
        orphans = self.orphans
        while orphans:
            try:
                call = orphans.popleft()
            except IndexError:  # another thread was faster
                return
            call.abandon(now)

    def after_fork(self) -> None:
        """The calls that were left behind are the parent's."""
        self._lock = threading.Lock()
        self.orphans.clear()
