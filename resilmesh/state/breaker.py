"""Circuit breaker: whether a service is worth calling, decided from what calls to it turned out to be.

    state        event                                            next         who may call
    CLOSED       a rate reaches its threshold, or                 OPEN         everybody
                 consecutiveFailures in a row
    OPEN         waitDurationInOpenState is over, at the          HALF_OPEN    nobody
                 next call
    HALF_OPEN    enough probes failed to reach the threshold      OPEN         as many probes as permitted
                 all probes are in, below the threshold           CLOSED

**Permits.** Every call carries the permit it was given, and a permit belongs to one generation: all calls of
one closed period share one object, each probe has its own. A result is compared with the permit of *now* by
identity, so a stale answer (from before the circuit opened, or from an earlier half-open) is dropped,
whichever way it turned out.

**Probes are leases.** A probe that is never answered (its caller was cancelled, its process forked) expires by
itself after the time its attempt may take, and another may go. A cancelled or foreign-error probe returns its
lease and counts for nothing. A late answer of an expired probe still counts while its half-open period lasts,
or a service slower than the lease could never close the circuit.

**Odd on purpose.** A success can open the circuit: it may be the call that reaches minimumNumberOfCalls, or the
window may have forgotten older successes. Half-open opens as soon as the failures suffice, whatever the rest
of the probes will say, but waits for all of them to close: to be wrong about the first costs one rejection, about
the second an outage.

**Forced.** An operator may set the circuit, until he sets it to AUTO: OPEN lets nobody through; CLOSED lets everybody
through and counts nothing; METRICS_ONLY lets everybody through and counts, and says when it would have opened. resilience4j's
FORCED_OPEN, DISABLED and METRICS_ONLY. Back to AUTO the circuit is closed and begins to count anew.

    forced         ``permit``                       what calls carry            what their results do
    OPEN           None                             nothing: they are refused
    CLOSED         None                             ``_ALWAYS``, of no period   dropped, like any stale one's
    METRICS_ONLY   that of the closed period        the same                    counted; ``_judge`` does not open

Rules for editors: ``success`` is the path of nearly every call, so it takes no lock; every change of state goes
through ``_enter`` under the lock, and the notification goes out after the lock is released.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from resilmesh.state.window import CountWindow, TimeWindow, Window

CircuitState = Literal["CLOSED", "OPEN", "HALF_OPEN"]
#: What an operator may say in place of the calls; AUTO is the calls again.
Force = Literal["OPEN", "CLOSED", "METRICS_ONLY", "AUTO"]

#: old state, new state, reason, now. METRICS_ONLY says "CLOSED", "CLOSED" when it would have opened.
Notify = Callable[[str, str, str, float], None]


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """The policy's circuitBreaker block. Rates are percents, durations seconds."""

    failure_rate: float | None
    slow_rate: float | None
    slow_seconds: float
    consecutive: int | None
    time_based: bool
    window_size: float
    minimum_calls: int
    wait_open: float
    half_open_permits: int
    count_throttled: bool

    def window(self) -> Window:
        return TimeWindow(self.window_size) if self.time_based else CountWindow(int(self.window_size))

    def required_calls(self) -> int:
        """A count window can never hold more calls than its size."""
        return self.minimum_calls if self.time_based else min(self.minimum_calls, int(self.window_size))


class Permit:
    """The right to one result. A closed period has one for all of its calls, a probe one of its own."""

    __slots__ = ("expires",)

    def __init__(self, expires: float = float("inf")) -> None:
        self.expires = expires


#: What calls carry while the circuit is forced closed: it belongs to no period, so no result of theirs counts.
_ALWAYS = Permit()


class CircuitBreaker:
    """One circuit. ``permit`` is what a call carries while the circuit is closed, ``None`` while it is not."""

    __slots__ = (
        "_consecutive", "_failed", "_forced", "_leases", "_lock", "_notify", "_opened_at", "_out", "_results", "_slow", "_slow_from",
        "_would_open", "permit", "settings", "state", "window",
    )

    def __init__(self, settings: BreakerSettings, notify: Notify) -> None:
        self._lock = threading.Lock()
        self._notify = notify
        self.settings = settings
        self.window = settings.window()
        self.state: CircuitState = "CLOSED"
        self.permit: Permit | None = Permit()
        self._slow_from = settings.slow_seconds if settings.slow_rate is not None else float("inf")
        self._consecutive = 0
        self._opened_at = 0.0
        #: Probes of this half-open period that hold a place; all that may still answer; what the others said.
        self._leases: list[Permit] = []
        self._out: list[Permit] = []
        self._results = self._failed = self._slow = 0
        self._forced: Force = "AUTO"
        #: METRICS_ONLY has said already that the circuit would be open.
        self._would_open = False

    def force(self, to: Force, now: float) -> None:
        """Set the circuit by hand, or give it back to its calls (AUTO). Survives a new policy."""
        with self._lock:
            if to == self._forced:
                return
            before, self._forced = self._shown, to
            self._would_open = False
            self._enter("OPEN" if to == "OPEN" else "CLOSED", now)
            if to == "CLOSED":
                self.permit = None
            after = self._shown
        self._notify(before, after, "set by hand", now)

    @property
    def _shown(self) -> str:
        """The state as people are told it."""
        return self.state if self._forced == "AUTO" else "METRICS_ONLY" if self._forced == "METRICS_ONLY" else f"FORCED_{self._forced}"

    def retune(self, settings: BreakerSettings) -> None:
        """Thresholds apply at the next decision. Another window starts counting anew; the state stays what it is."""
        with self._lock:
            old, self.settings = self.settings, settings
            self._slow_from = settings.slow_seconds if settings.slow_rate is not None else float("inf")
            if (old.time_based, old.window_size) != (settings.time_based, settings.window_size):
                self.window = settings.window()

    # ------------------------------------------------------------------------------------------- asking

    def acquire(self, now: float, lease: float) -> Permit | None:
        """A permit for one attempt, ``None`` when the circuit refuses it.

        ``lease`` is how long the attempt may take, in seconds; ``inf`` when nothing bounds it.
        """
        permit = self.permit
        if permit is not None:
            return permit
        forced = self._forced
        if forced == "CLOSED":
            return _ALWAYS
        if forced == "OPEN" or (self.state == "OPEN" and now < self._opens_until):
            return None  # without the lock: this is every call to a service that is down
        changed: tuple[CircuitState, CircuitState, str] | None = None
        with self._lock:
            if self._forced == "OPEN":
                return None
            if self.state == "OPEN" and now >= self._opens_until:
                self._enter("HALF_OPEN", now)
                changed = "OPEN", "HALF_OPEN", "waitDurationInOpenState is over"
            elif self.state == "HALF_OPEN" and (decided := self._probes_decide()) is not None:
                # Only after a retune: what the probes said already is enough by the new settings.
                self._enter(decided[0], now)
                changed = "HALF_OPEN", *decided
            if self.state == "HALF_OPEN":
                permit = self._lease(now, lease)
            elif self.state == "CLOSED":
                permit = self.permit
        if changed is not None:
            self._notify(*changed, now)
        return permit

    def _lease(self, now: float, lease: float) -> Permit | None:
        self._leases = [probe for probe in self._leases if probe.expires > now]
        if self._results + len(self._leases) >= self.settings.half_open_permits:
            return None
        # An attempt that nothing bounds is given the time after which an open circuit would try again.
        probe = Permit(now + (lease if lease != float("inf") else max(self.settings.wait_open, 1.0)))
        self._leases.append(probe)
        self._out.append(probe)
        return probe

    def admits(self, now: float) -> bool:
        """Whether a call would be let through at ``now``; changes nothing."""
        if self.permit is not None or self._forced == "CLOSED":
            return True
        with self._lock:
            if self._forced == "OPEN":
                return False
            if self.state == "OPEN":
                return now >= self._opens_until
            decided = self._probes_decide()
            if decided is not None:
                return decided[0] == "CLOSED"
            leased = sum(probe.expires > now for probe in self._leases)
            return self._results + leased < self.settings.half_open_permits

    def retry_after(self, now: float) -> float | None:
        """Seconds after which a rejected call may find the circuit half-open, or a probe's place free; ``None``: nobody knows."""
        if self._forced == "OPEN":
            return None
        if self.state == "OPEN":
            return max(0.0, self._opens_until - now)
        with self._lock:
            return max(0.0, min((probe.expires for probe in self._leases), default=now) - now)

    # ------------------------------------------------------------------------------------------ telling

    def success(self, permit: Permit, now: float, seconds: float) -> None:
        """An attempt succeeded after ``seconds``."""
        if permit is not self.permit:
            self._probed(permit, now, failed=False, slow=seconds >= self._slow_from)
            return
        if seconds >= self._slow_from:
            self._consecutive = 0
            self._count(permit, now, failed=False, slow=True)
            return
        window = self.window
        self._consecutive = 0
        window.success(now)
        if window.failures or window.slow:
            self._judge(permit, now)

    def failure(self, permit: Permit, now: float, seconds: float) -> None:
        """An attempt failed after ``seconds``."""
        if permit is not self.permit:
            self._probed(permit, now, failed=True, slow=seconds >= self._slow_from)
            return
        self._consecutive += 1
        self._count(permit, now, failed=True, slow=seconds >= self._slow_from)

    def throttled(self, permit: Permit, now: float, seconds: float) -> None:
        """The service asked for less: it fails a probe, and counts in the window only if the policy says so."""
        if permit is not self.permit or self.settings.count_throttled:
            self.failure(permit, now, seconds)

    def release(self, permit: Permit) -> None:
        """An attempt that says nothing about the service gives its permit back."""
        if permit is self.permit:
            return
        with self._lock:
            if permit in self._out:
                self._out.remove(permit)
                if permit in self._leases:
                    self._leases.remove(permit)

    # ----------------------------------------------------------------------------------------- deciding

    def _count(self, permit: Permit, now: float, *, failed: bool, slow: bool) -> None:
        self.window.record(now, failed=failed, slow=slow)
        self._judge(permit, now)

    def _judge(self, permit: Permit, now: float) -> None:
        if self._trips(now) is None:
            self._would_open = False
            return  # nearly always, and without the lock
        with self._lock:
            reason = self._trips(now) if permit is self.permit else None
            opens = self._forced == "AUTO"
            if reason is not None and opens:
                self._enter("OPEN", now)
            elif self._would_open:
                reason = None
            else:
                self._would_open = reason is not None
        if reason is not None:
            self._notify("CLOSED", "OPEN" if opens else "CLOSED", reason, now)

    def _trips(self, now: float) -> str | None:
        settings, window = self.settings, self.window
        if settings.consecutive is not None and self._consecutive >= settings.consecutive:
            return f"{self._consecutive} failures in a row"
        window.roll(now)
        calls = window.calls
        if calls < settings.required_calls():
            return None
        if settings.failure_rate is not None and window.failures * 100 >= settings.failure_rate * calls:
            return f"{window.failures} of {calls} calls failed"
        if settings.slow_rate is not None and window.slow * 100 >= settings.slow_rate * calls:
            return f"{window.slow} of {calls} calls were slow"
        return None

    def _probed(self, permit: Permit, now: float, *, failed: bool, slow: bool) -> None:
        changed: tuple[CircuitState, str] | None = None
        with self._lock:
            if permit not in self._out:
                return  # stale: an earlier generation
            self._out.remove(permit)
            if permit in self._leases:
                self._leases.remove(permit)
            self._results += 1
            self._failed += failed
            self._slow += slow
            changed = self._probes_decide()
            if changed is not None:
                self._enter(changed[0], now)
        if changed is not None:
            self._notify("HALF_OPEN", *changed, now)

    def _probes_decide(self) -> tuple[CircuitState, str] | None:
        settings, permits = self.settings, self.settings.half_open_permits
        failure_rate, slow_rate = settings.failure_rate, settings.slow_rate
        if failure_rate is None and settings.consecutive is not None:
            failure_rate = 0.0  # consecutiveFailures knows no rate: one failed probe is enough
        if failure_rate is not None and self._failed and self._failed * 100 >= failure_rate * permits:
            return "OPEN", f"{self._failed} of {permits} probes failed"
        if slow_rate is not None and self._slow and self._slow * 100 >= slow_rate * permits:
            return "OPEN", f"{self._slow} of {permits} probes were slow"
        if self._results >= permits:
            return "CLOSED", f"{permits - self._failed} of {permits} probes succeeded"
        return None

    @property
    def _opens_until(self) -> float:
        return self._opened_at + self.settings.wait_open

    def _enter(self, state: CircuitState, now: float) -> None:
        self.state = state
        self.permit = Permit() if state == "CLOSED" else None
        self._leases, self._out = [], []
        self._results = self._failed = self._slow = 0
        self._consecutive = 0
        if state == "OPEN":
            self._opened_at = now
        elif state == "CLOSED":
            self.window = self.settings.window()

    # ------------------------------------------------------------------------------------------- upkeep

    def after_fork(self) -> None:
        """Calls in flight belong to the parent: their permits and leases end, what was counted stays."""
        self._lock = threading.Lock()
        self.window.after_fork()
        self._leases, self._out = [], []
        # Also when it is None: the fork may have come while another thread was in the middle of `_enter`.
        self.permit = Permit() if self.state == "CLOSED" and self._forced != "CLOSED" else None

    def snapshot(self, now: float) -> dict[str, Any]:
        with self._lock:
            self.window.roll(now)
            calls = self.window.calls
            return {
                "state": self._shown,
                "calls": calls,
                "failures": self.window.failures,
                "slow": self.window.slow,
                "failureRate": round(100 * self.window.failures / calls, 3) if calls else None,
                "consecutiveFailures": self._consecutive,
                "probesOut": sum(probe.expires > now for probe in self._leases),
                "opensFor": round(max(0.0, self._opens_until - now), 6) if self._shown == "OPEN" else None,
            }
