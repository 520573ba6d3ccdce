"""Counters and duration histograms of one route: integers of our own, read when somebody looks.

A successful call costs two increments: one when it starts, and one in the bucket of its duration, which at
the same time counts it as a success and as finished. Everything else is counted on slower paths.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

#: Upper bounds of the buckets in seconds; the last bucket has none. OpenTelemetry's advice for HTTP durations
#: starts at 5 ms; calls that never leave the process need finer ones.
BOUNDS: tuple[float, ...] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)


def bucket(seconds: float) -> int:
    """Index of the bucket that a duration falls into."""
    return bisect_left(BOUNDS, seconds)


class Stats:
    """What happened on one route since the process began. Survives a new policy."""

    __slots__ = (
        "abandoned", "discarded", "failed", "failed_seconds", "fallbacks", "faults", "ignored", "mirrored", "mirrors_dropped",
        "outer_retries", "rejected", "retries", "retries_refused", "started", "succeeded", "succeeded_seconds", "verdicts", "would_reject",
    )

    def __init__(self) -> None:
        self.started = 0
        #: Calls by bucket of duration.
        self.succeeded = [0] * (len(BOUNDS) + 1)
        self.failed = [0] * (len(BOUNDS) + 1)
        self.succeeded_seconds = 0.0
        self.failed_seconds = 0.0
        #: Attempts after the first of each call; first attempts follow from the rest.
        self.retries = 0
        self.retries_refused: dict[str, int] = {}
        #: Calls that said they are a repetition of a loop outside of ours.
        self.outer_retries = 0
        self.rejected: dict[str, int] = {}
        self.would_reject: dict[str, int] = {}
        self.faults: dict[str, int] = {}
        #: Outcomes that a fallback stood in for, by reason.
        self.fallbacks: dict[str, int] = {}
        #: Copies that were sent to the service that ``mirror`` names, and those that were not, by reason.
        self.mirrored = 0
        self.mirrors_dropped: dict[str, int] = {}
        #: Attempts by verdict, SUCCESS excepted.
        self.verdicts: dict[str, int] = {}
        self.abandoned = 0
        self.ignored = 0
        #: Calls that crossed a fork: the parent ends them.
        self.discarded = 0

    def count(self, counter: dict[str, int], key: str) -> None:
        """Count ``key``: a slow path, so a lost update between threads is avoided by setdefault first."""
        counter.setdefault(key, 0)
        counter[key] += 1

    @property
    def finished(self) -> int:
        return sum(self.succeeded) + sum(self.failed) + sum(self.rejected.values()) + self.abandoned + self.ignored + self.discarded

    @property
    def in_flight(self) -> int:
        finished = self.finished  # first: a call that starts and ends in between must not count as less than nothing
        return self.started - finished

    def after_fork(self) -> None:
        self.discarded += self.in_flight

    def snapshot(self, now: float) -> dict[str, Any]:
        """``calls`` is the sum of ``inFlight``, ``succeeded``, ``failed``, ``rejected``, ``abandoned``, ``ignored`` and ``discarded``."""
        succeeded, failed, rejected = list(self.succeeded), list(self.failed), dict(self.rejected)
        abandoned, ignored, discarded = self.abandoned, self.ignored, self.discarded
        # Read last, so that calls which start and end meanwhile cannot make the difference negative.
        started = self.started
        return {
            "calls": started,
            "inFlight": started - sum(succeeded) - sum(failed) - sum(rejected.values()) - abandoned - ignored - discarded,
            "succeeded": sum(succeeded),
            "failed": sum(failed),
            "rejected": rejected,
            "wouldReject": dict(self.would_reject),
            "abandoned": abandoned,
            "ignored": ignored,
            "discarded": discarded,
            "retries": self.retries,
            "retriesRefused": dict(self.retries_refused),
            "outerRetries": self.outer_retries,
            "faults": dict(self.faults),
            "fallbacks": dict(self.fallbacks),
            "mirrored": self.mirrored,
            "mirrorsDropped": dict(self.mirrors_dropped),
            "attemptsByVerdict": dict(self.verdicts),
            "durations": {
                "bounds": list(BOUNDS), "succeeded": succeeded, "failed": failed,
                "succeededSeconds": round(self.succeeded_seconds, 6), "failedSeconds": round(self.failed_seconds, 6),
            },
        }
