"""Counters and duration histograms of one route: integers of our own, read when somebody looks.

A successful call costs three increments: when it starts, when its attempt is sent, and one in the bucket of its duration, which at
the same time counts it as a success and as finished. Everything else is counted on slower paths.

Most calls are *direct*: one attempt that was sent at once, so that the call took as long as its attempt. Those are counted once, for both;
of all others the call and each attempt have histograms of their own. So

    durations of calls     =  direct + calls
    durations of attempts  =  direct + attempts
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final, NamedTuple

from resilmesh.state.ledger import Block, Ledger

#: Of each decade: at most a seventh apart, so that a quantile read from them is off by a few percent at worst; and 1, 2.5, 5 and 7.5
#: are among them, which are the bounds that OpenTelemetry advises for durations of HTTP and RPC.
_DECADE = (
    1.0, 1.1, 1.2, 1.35, 1.5, 1.7, 1.9, 2.1, 2.3, 2.5, 2.75, 3.0, 3.3, 3.6, 4.0, 4.5, 5.0, 5.5, 6.0, 6.75, 7.5, 8.25, 9.0,
)
#: Upper bounds of the buckets in seconds, from 100 microseconds to 100 seconds; the last bucket has none.
BOUNDS: Final[tuple[float, ...]] = (*(round(each * 10.0**power, 8) for power in range(-4, 2) for each in _DECADE), 100.0)

BUCKETS: Final = len(BOUNDS) + 1


def bucket(seconds: float) -> int:
    """Index of the bucket that a duration falls into."""
    return bisect_left(BOUNDS, seconds)


class Exemplar(NamedTuple):
    """One measurement of many, with the trace that it is part of."""

    seconds: float
    #: When it was measured, in Unix seconds.
    at: float
    trace_id: int
    span_id: int


class Histogram(Block):
    """Durations by bucket, and their sum."""

    __slots__ = ("exemplars",)

    def __init__(self, ledger: Ledger, key: tuple[str, ...]) -> None:
        super().__init__(ledger, key, BUCKETS, 1)
        #: The newest of each bucket, where calls are traced.
        self.exemplars: dict[int, Exemplar] = {}

    def record(self, seconds: float) -> int:
        """Count one; gives its bucket."""
        at = bisect_left(BOUNDS, seconds)
        self.sums[0] += seconds
        self.counts[at] += 1
        return at


# ------------------------------------------------------------------------------------------------ the places

#: Places in ``Stats.counts`` that have a name of their own.
STARTED, ATTEMPTS, RETRIES, OUTER_RETRIES, ABANDONED, IGNORED, MIRRORED, INJECTED, BYTES_SENT, BYTES_RECEIVED = range(10)

_REASONS = ("CircuitOpen", "ConcurrencyExceeded", "NoHealthyEndpoint", "RateLimited")
#: Counters with a label, by their name in the snapshot, and all the values that the label can have.
LABELLED: Final[dict[str, tuple[str, ...]]] = {
    "rejected": _REASONS,
    "wouldReject": _REASONS,
    "retriesRefused": ("budget", "circuit", "deadline", "endpoint"),
    "faults": ("abort", "delay"),
    "fallbacks": ("REJECTED", "DEADLINE", "FAILURE"),
    "mirrorsDropped": ("streamed", "busy", "intercepted"),
    "attemptsByVerdict": ("FAILURE", "UNSENT", "THROTTLED", "IGNORED"),
}
_NAMED = BYTES_RECEIVED + 1
_AT: Final = {pair: _NAMED + at for at, pair in enumerate((name, label) for name, labels in LABELLED.items() for label in labels)}
#: The first bucket of the direct calls that succeeded, which end the row.
SUCCEEDED: Final = _NAMED + len(_AT)
_LENGTH = SUCCEEDED + BUCKETS



def place(name: str, label: str) -> int:
    """Where in ``Stats.counts`` a labelled counter is."""
    return _AT[name, label]


#: The other histograms, made when first needed: of direct calls that failed, and of calls and attempts that are not the same.
DIRECT_FAILED, CALL_SUCCEEDED, CALL_FAILED, ATTEMPT_SUCCEEDED, ATTEMPT_FAILED = (
    "directFailed", "callSucceeded", "callFailed", "attemptSucceeded", "attemptFailed",
)
#: Which histograms add up to what.
CALLS: Final = {"succeeded": ("direct", CALL_SUCCEEDED), "failed": (DIRECT_FAILED, CALL_FAILED)}
ATTEMPTS_OF: Final = {"succeeded": ("direct", ATTEMPT_SUCCEEDED), "failed": (DIRECT_FAILED, ATTEMPT_FAILED)}

#: What an attempt was for (an HTTP method, or the path of a gRPC method), its status (of HTTP a number, of gRPC a name, 0 where there is
#: none, which over gRPC is OK), and what ended it if no status did.
Outcome = tuple[str, int | str, str]
#: So many of them are told apart on one route; whatever comes after counts as this.
MOST_OUTCOMES = 200
OTHER: Final[Outcome] = ("_OTHER", 0, "")


class Outcomes:
    """Durations by outcome; of too many kinds of outcome the last together."""

    __slots__ = ("_kept", "_ledger", "_where")

    def __init__(self, ledger: Ledger, service: str, route: str) -> None:
        self._ledger = ledger
        self._where = (service, route)
        self._kept: dict[Outcome, Histogram] = {}

    def of(self, outcome: Outcome) -> Histogram:
        """The histogram of those that came to this."""
        found = self._kept.get(outcome)
        if found is None:
            if len(self._kept) >= MOST_OUTCOMES and outcome != OTHER:
                return self.of(OTHER)
            what, status, error = outcome
            made = Histogram(self._ledger, ("outcome", *self._where, what, str(status), error))
            found = self._kept.setdefault(outcome, made)
        return found

    def items(self) -> list[tuple[Outcome, Histogram]]:
        """All there are."""
        return list(self._kept.items())


#: What is counted of requests that arrived, in the order of the counts (``identity.gate.Verdicts``).
DECISIONS: Final = ("allowed", "denied", "audited", "shadowDenied", "refused")


class Stats(Block):
    """What happened on one route since the process began. Survives a new policy."""

    __slots__ = ("_ledger", "histograms", "outcomes", "route", "service")

    def __init__(self, ledger: Ledger, service: str, route: str) -> None:
        super().__init__(ledger, ("route", service, route), _LENGTH, 1)
        self._ledger = ledger
        self.service, self.route = service, route
        self.histograms: dict[str, Histogram] = {}
        #: Attempts by what they came to.
        self.outcomes = Outcomes(ledger, service, route)

    # ------------------------------------------------------------------------------------------- counting

    def count(self, name: str, label: str) -> None:
        """Count one more of a labelled counter."""
        at = place(name, label)
        self.counts[at] += 1

    def histogram(self, name: str) -> Histogram:
        """One of those that are made when first needed."""
        found = self.histograms.get(name)
        if found is None:
            found = self.histograms.setdefault(name, Histogram(self._ledger, ("duration", self.service, self.route, name)))
        return found

    # -------------------------------------------------------------------------------------------- reading

    @property
    def finished(self) -> int:
        rejected = sum(self.counts[_AT["rejected", reason]] for reason in _REASONS)
        ended = sum(self._ended(name)[0] for name in CALLS)
        return ended + rejected + self.counts[ABANDONED] + self.counts[IGNORED]

    @property
    def in_flight(self) -> int:
        finished = self.finished  # first: a call that starts and ends in between must not count as less than nothing
        return self.counts[STARTED] - finished

    def labelled(self, name: str) -> dict[str, int]:
        """A labelled counter, without those that are nothing."""
        return {label: count for label in LABELLED[name] if (count := self.counts[_AT[name, label]])}

    def durations(self, parts: tuple[str, str]) -> tuple[list[int], float]:
        """The counts by bucket, and the sum of seconds, of two histograms together."""
        total, seconds = [0] * BUCKETS, 0.0
        for part in parts:
            if part == "direct":
                counts, its = list(self.counts[SUCCEEDED:]), self.sums[0]
            elif part in self.histograms:
                counts, its = list(self.histograms[part].counts), self.histograms[part].sums[0]
            else:
                continue
            total = [left + right for left, right in zip(total, counts, strict=True)]
            seconds += its
        return total, round(seconds, 6)

    def _ended(self, name: str) -> tuple[int, list[int], float]:
        counts, seconds = self.durations(CALLS[name])
        return sum(counts), counts, seconds

    def after_fork(self) -> None:
        """The ledger has begun anew."""

    def snapshot(self, now: float) -> dict[str, Any]:
        """``calls`` is the sum of ``inFlight``, ``succeeded``, ``failed``, ``rejected``, ``abandoned`` and ``ignored``."""
        rejected = self.labelled("rejected")
        abandoned, ignored = self.counts[ABANDONED], self.counts[IGNORED]
        succeeded, of_succeeded, succeeded_seconds = self._ended("succeeded")
        failed, of_failed, failed_seconds = self._ended("failed")
        attempts = {name: self.durations(parts) for name, parts in ATTEMPTS_OF.items()}
        # Read last, so that calls which start and end meanwhile cannot make the difference negative.
        started = self.counts[STARTED]
        return {
            "calls": started,
            "inFlight": started - succeeded - failed - sum(rejected.values()) - abandoned - ignored,
            "succeeded": succeeded,
            "failed": failed,
            "rejected": rejected,
            "wouldReject": self.labelled("wouldReject"),
            "abandoned": abandoned,
            "ignored": ignored,
            "attempts": self.counts[ATTEMPTS],
            "retries": self.counts[RETRIES],
            "retriesRefused": self.labelled("retriesRefused"),
            "outerRetries": self.counts[OUTER_RETRIES],
            "faults": self.labelled("faults"),
            "injectedAttempts": self.counts[INJECTED],
            "fallbacks": self.labelled("fallbacks"),
            "bytesSent": self.counts[BYTES_SENT],
            "bytesReceived": self.counts[BYTES_RECEIVED],
            "mirrored": self.counts[MIRRORED],
            "mirrorsDropped": self.labelled("mirrorsDropped"),
            "attemptsByVerdict": self.labelled("attemptsByVerdict"),
            "outcomes": [
                {"of": what, "status": status, "error": error, "attempts": sum(found.counts), "seconds": round(found.sums[0], 6)}
                for (what, status, error), found in self.outcomes.items()
            ],
            "durations": {
                "bounds": list(BOUNDS), "succeeded": of_succeeded, "failed": of_failed,
                "succeededSeconds": succeeded_seconds, "failedSeconds": failed_seconds,
            },
            "attemptDurations": {
                "succeeded": attempts["succeeded"][0], "failed": attempts["failed"][0],
                "succeededSeconds": attempts["succeeded"][1], "failedSeconds": attempts["failed"][1],
            },
        }
