"""What happened, for whoever subscribed: ``mesh.subscribe(observer)``.

An observer is called with one ``Event`` at a time, on the thread where it happened, outside of any lock.
It should return fast. One that raises is logged once and dropped: telling must not break a call.

``EVENTS`` lists them all, and docs/reference/events.md is made of it (``make reference``).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, MutableMapping
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from resilmesh.state.ledger import Block, Ledger

if TYPE_CHECKING:
    from resilmesh.engine.call import Call, Listener

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


class Kind(NamedTuple):
    """What an event of one name means. ``of``: what it belongs to; for all but a call's, ``call`` and ``attempt`` are 0."""

    name: str
    of: Literal["call", "service", "policy", "identity", "inbound"]
    when: str
    #: What ``detail`` holds, in Markdown.
    detail: str = ""


#: Every event, in the order in which a call meets them.
EVENTS = (
    Kind("call_started", "call", "a call begins",
         "`repetition`, only where a loop outside of the library (an [SDK's own](../how-to/sdks.md)) says that it sends the call again: "
         "how often, from 1"),
    Kind("fault_injected", "call", "a fault of the policy, or of `mesh.inject`, acts",
         "`scope` (CALL, ATTEMPT) and `delay` (seconds) or `status`"),
    Kind("call_queued", "call", "it waits for a slot of the concurrency limit"),
    Kind("attempt_started", "call", "an attempt is sent", "`endpoint`: its address; `None`: where the URL says"),
    Kind("attempt_ended", "call", "it gave its headers or its result, or failed", "`verdict`, `status` (0: none)"),
    Kind("backoff", "call", "a retry was granted", "`seconds` until it"),
    Kind("retry_refused", "call", "a retry that the policy wants was refused", "`reason`: `budget`, `deadline`, `circuit`, `endpoint`"),
    Kind("call_rejected", "call", "the call was refused, nothing was sent", "`reason`: the name of the exception, such as `RateLimited`"),
    Kind("would_reject", "call", "under OBSERVE: it would have been", "`reason`, likewise"),
    Kind("call_ended", "call", "the call is over, its body included", "`verdict`, `seconds` since `call_started`"),
    Kind("fell_back", "call", "a fallback was given in place of the outcome", "`reason`: `REJECTED`, `DEADLINE`, `FAILURE`"),
    Kind("mirrored", "call", "a copy was sent to another service; its own call is told under that service's route `(mirror)`",
         "`to`: its name"),
    Kind("mirror_dropped", "call", "a copy was not sent",
         "`to`, `reason`: `streamed` (a body that can be read only once; over gRPC a stream of requests), "
         "`busy` (too many are on their way), `intercepted` (a gRPC channel that the mesh did not make)"),
    Kind("call_abandoned", "call", "the caller went away: cancelled, or its response was forgotten"),
    Kind("circuit_changed", "service", "a circuit opened, closed, or became half-open",
         "`old`, `new` (CLOSED, OPEN, HALF_OPEN; set by hand: FORCED_OPEN, FORCED_CLOSED, METRICS_ONLY), `reason` in words"),
    Kind("circuit_would_open", "service", "one that is set to METRICS_ONLY would have opened", "`reason` in words"),
    Kind("endpoint_ejected", "service", "outlier detection took an endpoint out",
         "`endpoint`, `reason`: the count that was reached (`consecutive5xxErrors`, `consecutiveGatewayErrors`, "
         "`consecutiveLocalOriginFailures`), or the rate (`successRate`, `failurePercentage`, and of connections "
         "`localOriginSuccessRate`, `localOriginFailurePercentage`); `seconds` (at least)"),
    Kind("endpoint_returned", "service", "it is back. Told when somebody next looks for an endpoint", "`endpoint`"),
    Kind("injection_began", "service", "a program put a fault in by `mesh.inject`",
         "`status` and `delay` (seconds) or None, `percent`, `scope`"),
    Kind("injection_ended", "service", "it took the fault out again", "likewise"),
    Kind("policy_applied", "policy", "a new policy is in force", "`revision`"),
    Kind("policy_refused", "policy", "one was refused; the last good one goes on", "`error`: every mistake, a line each"),
    Kind("authorized", "inbound", "it was decided whether a request that arrived may pass",
         "`workload`, `principal` (the caller's SPIFFE ID without its scheme, or None), `method`, `allowed`, `policy` and `rule` "
         "(counted from 0; None: no rule decided), `audited` (names of AUDIT policies that matched), `shadow` (what policies of mode "
         "OBSERVE would have decided: `allowed`, `policy`, `rule`; None: there are none)"),
    Kind("turned_away", "inbound", "a request that arrived was refused before that: no identity under STRICT, a path of two meanings",
         "`workload`, `reason`"),
    Kind("identity_rotated", "identity", "a new certificate of this workload, or a new trust bundle, is in force",
         "`spiffe_id`, `serial` (hexadecimal), `expires_in` (seconds)"),
    Kind("identity_refused", "identity", "one was refused; the last good one goes on", "`error`"),
    Kind("identity_expiring", "identity", "a third of the certificate's life is left, and nobody has renewed it",
         "`spiffe_id`, `expires_in`"),
    Kind("identity_expired", "identity", "it has expired: every peer refuses it", "`spiffe_id`, `expires_in` (negative)"),
)

Observer = Callable[[Event], None]

class Traces(Protocol):
    """Who begins the traces of calls."""

    def begin(self, call: Call) -> Listener | None:
        """Who is to be told of a call that starts; ``None``: nobody."""

    def is_instrumented(self, library: str) -> bool:
        """Whether somebody else makes the spans of that client library's attempts."""

    def passes_on(self, carrier: MutableMapping[str, str]) -> None:
        """Of a call that nobody is told of: add the headers of the trace that it is part of."""


#: By what in their detail events of one name are counted apart, where there are few values.
TELLS_APART: dict[str, tuple[str, ...]] = {
    "circuit_changed": ("new",),
    "endpoint_ejected": ("endpoint", "reason"),
    "endpoint_returned": ("endpoint",),
}


class Hub:
    """Where events go, and where calls that nobody ended wait to be cleaned up. One per mesh."""

    __slots__ = ("_ledger", "_lock", "_tallies", "_watchers", "observers", "orphans", "serial", "tracing")

    def __init__(self, ledger: Ledger | None = None) -> None:
        self._lock = threading.Lock()
        self._ledger = ledger or Ledger()
        #: How often each of ``report``'s events happened, by what tells them apart.
        self._tallies: dict[tuple[str, ...], Block] = {}
        #: Replaced, never mutated: a call reads it once.
        self.observers: tuple[Observer, ...] = ()
        #: Begins the trace of each call; ``None``: nobody wants any.
        self.tracing: Traces | None = None
        #: Those who are told of what ``report`` tells, and of no call.
        self._watchers: tuple[Observer, ...] = ()
        #: Calls whose response was garbage-collected. A finalizer may run inside a lock's holder, so it only appends.
        self.orphans: deque[Call] = deque()
        self.serial = count(1)

    def watch(self, observer: Observer) -> None:
        """Have ``observer`` called with what is not of a single call: it costs calls nothing."""
        with self._lock:
            self._watchers = (*self._watchers, observer)

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

    def report(self, at: float, name: str, service: str = "", route: str | None = None, **detail: Any) -> None:
        """Tell of something that is not of a single call: it is counted as well, by its ``TELLS_APART``, and watchers are told."""
        key = ("event", name, service, route or "*", *(str(detail.get(each) or "") for each in TELLS_APART.get(name, ())))
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies.setdefault(key, Block(self._ledger, key, 1, 0))
        tally.counts[0] += 1
        if self._watchers:
            event = Event(at, name, service, route, 0, 0, detail)
            for watcher in self._watchers:
                try:
                    watcher(event)
                except Exception:
                    log.exception("telling of %s failed", name)
        self.emit(at, name, service, route, **detail)

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
        self._lock = threading.Lock()  # the counts are the ledger's business
        self.orphans.clear()
