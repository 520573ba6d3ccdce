"""From what client and services noted to the figures of one plane in one scenario."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from resilmesh.compare.planes import Observation
from resilmesh.compare.scenarios import Scenario
from resilmesh.compare.stats import quantile
from resilmesh.compare.traffic import REFUSALS, Note

#: Recovered: from the first of this many successful calls in a row after the outage.
RECOVERED_CALLS = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """One plane in one scenario; several rounds are added up. Times in seconds."""

    calls: int
    succeeded: int
    #: Of successful calls, from when each was due.
    latencies: list[float]
    #: For each call, the requests that services saw of it.
    attempts: list[int]
    #: Calls refused before anything was sent, by reason.
    rejections: Counter[str]
    #: Calls that failed otherwise, by status or reason.
    failures: Counter[str]
    versions: Counter[str]
    ejections: int | None
    #: From the end of the outage; None without an outage, infinite when it never came.
    recovery: float | None
    requests: int
    requests_in_outage: int
    most_at_once: int
    #: How late calls began, at the 99th percentile: large when the client could not keep up with the schedule.
    late: float

    @property
    def success_rate(self) -> float:
        return self.succeeded / self.calls

    @property
    def attempts_per_call(self) -> float:
        return self.requests / self.calls

    def as_json(self) -> dict[str, Any]:
        return {
            "calls": self.calls,
            "succeeded": self.succeeded,
            "success_rate": self.success_rate,
            "latency_ms": {f"p{percent}": _ms(quantile(self.latencies, percent / 100)) for percent in (50, 90, 99)},
            "attempts_per_call": self.attempts_per_call,
            "calls_by_attempts": {str(number): count for number, count in sorted(Counter(self.attempts).items())},
            "rejections": dict(self.rejections.most_common()),
            "failures": dict(self.failures.most_common()),
            "versions": dict(sorted(self.versions.items())),
            "ejections": self.ejections,
            "recovery_s": self.recovery if self.recovery is None or math.isfinite(self.recovery) else None,
            "recovered": None if self.recovery is None else math.isfinite(self.recovery),
            "requests": self.requests,
            "requests_in_outage": self.requests_in_outage,
            "most_at_once": self.most_at_once,
            "late_ms_p99": _ms(self.late),
        }


def measure(observations: Sequence[Observation], scenario: Scenario) -> Measured:
    """The figures of one plane from its run, or from all of its rounds."""
    notes = [note for observation in observations for note in observation.notes]
    good = [note for note in notes if _succeeded(note)]
    bad = [note for note in notes if not _succeeded(note)]
    rejections = Counter(note.reason for note in bad if note.reason in REFUSALS)
    _tell_circuit_from_limit(rejections, sum(observation.circuit_open for observation in observations))
    ejections = [observation.ejections for observation in observations if observation.ejections is not None]
    return Measured(
        calls=len(notes),
        succeeded=len(good),
        latencies=[note.latency for note in good],
        attempts=[observation.seen.calls[str(number)] for observation in observations for number in range(len(observation.notes))],
        rejections=rejections,
        failures=Counter(note.reason or f"{note.status} of the service" for note in bad if note.reason not in REFUSALS),
        versions=Counter(note.version for note in notes if note.version),
        ejections=sum(ejections) if ejections else None,
        recovery=None if scenario.outage_end is None else _recovery(notes, scenario.outage_end),
        requests=sum(observation.seen.requests for observation in observations),
        requests_in_outage=sum(observation.seen.in_outage for observation in observations),
        most_at_once=max(observation.seen.most_at_once for observation in observations),
        late=quantile([note.late for note in notes], 0.99),
    )


def _tell_circuit_from_limit(rejections: Counter[str], circuit_open: int) -> None:
    moved = min(circuit_open, rejections["limit reached"])
    rejections.update({"circuit open": moved, "limit reached": -moved})
    for reason in ("circuit open", "limit reached"):
        if not rejections[reason]:
            del rejections[reason]


def _succeeded(note: Note) -> bool:
    return not note.reason and note.status < 500


def _recovery(notes: Sequence[Note], outage_end: float) -> float:
    """Seconds from ``outage_end`` to the first of ``RECOVERED_CALLS`` successes in a row."""
    after = sorted((note for note in notes if note.due >= outage_end), key=lambda note: note.due)
    run = 0
    for place, note in enumerate(after):
        run = run + 1 if _succeeded(note) else 0
        if run == RECOVERED_CALLS:
            return after[place - RECOVERED_CALLS + 1].due - outage_end
    return math.inf


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(seconds * 1000, 3)
