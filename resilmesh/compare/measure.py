"""From what client and services noted to the figures of one plane in one scenario."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from resilmesh.compare.planes import Observation
from resilmesh.compare.says import Says, relative_errors, together, truth
from resilmesh.compare.scenarios import Edit, Scenario
from resilmesh.compare.stats import Spread, quantile
from resilmesh.compare.traffic import REFUSALS, Note

SUCCEEDED, REJECTED, FAILED = "succeeded", "rejected: ", "failed: "
#: Ends the name of a figure that adds those of the same beginning up.
IN_ALL = ", in all"
#: Recovered: from the first of this many successful calls in a row after the outage.
RECOVERED_CALLS = 20


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the caller and the services saw it. Seconds; ``attempts`` counts requests by the endpoint that saw them."""

    outcome: str
    latency: float
    late: float
    version: str
    attempts: Counter[str]
    #: Of the attempts, those that came during a scripted outage.
    in_outage: int


@dataclass(frozen=True, slots=True)
class Figure:
    """One number about a run, or about several runs added up. ``unit`` is ``%``, ``ms``, ``s`` or nothing."""

    value: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """One plane in one scenario: one run, or several rounds added up. Times in seconds; None where a plane has no such thing.

    The tuples after ``calls`` have one value for each round, but ``change`` one for each edit.
    """

    #: By round, by the call's number: the same place is the same call on every plane.
    calls: list[Call]
    #: Endpoints taken out by outlier detection.
    ejections: tuple[int, ...] | None
    #: From the end of the outage; None without an outage, infinite when it never came.
    recovery: tuple[float, ...] | None
    #: From the edit of the policy to the first call under the new one; infinite when it never came.
    change: tuple[float, ...] | None
    #: Requests that one endpoint worked on at once.
    most_at_once: tuple[int, ...]
    #: Retries and injected faults, as the plane itself counted them.
    retries: tuple[int, ...] | None
    delays: tuple[int, ...] | None
    #: Of the callers' certificates, likewise.
    renewals: tuple[int, ...] | None = None
    #: What the plane's own telemetry says of all rounds, and what is true; None where it has none.
    says: Says | None = None
    true: Says | None = None

    @property
    def rounds(self) -> int:
        return len(self.most_at_once)

    @property
    def latencies(self) -> list[float]:
        """Of successful calls, from when each was due."""
        return [call.latency for call in self.calls if call.outcome == SUCCEEDED]

    @property
    def requests(self) -> int:
        return sum(call.attempts.total() for call in self.calls)

    @property
    def requests_in_outage(self) -> int:
        return sum(call.in_outage for call in self.calls)

    @property
    def late(self) -> float:
        """How late calls began, at the 99th percentile: large when every worker was busy, or the machine was."""
        return quantile([call.late for call in self.calls], 0.99)

    @property
    def succeeded(self) -> int:
        return len(self.latencies)

    @property
    def success_rate(self) -> float:
        return self.succeeded / len(self.calls)

    @property
    def attempts_per_call(self) -> float:
        return self.requests / len(self.calls)

    @property
    def rejections(self) -> Counter[str]:
        """Calls refused before anything was sent, by reason."""
        return self._of_kind(REJECTED)

    @property
    def failures(self) -> Counter[str]:
        """Calls that failed otherwise, by status or reason."""
        return self._of_kind(FAILED)

    @property
    def idle(self) -> frozenset[str]:
        """Blocks of the policy that certainly did nothing here."""
        acted = {
            "retries": self.retries is None or any(self.retries),
            "outlierDetection": self.ejections is None or any(self.ejections),
            "circuitBreaker": any(reason.startswith("circuit open") for reason in self.rejections),
            "rateLimit": any(reason.startswith("rate limited") for reason in self.rejections),
        }
        acted["retryBudget"] = acted["retries"]
        return frozenset(block for block, did in acted.items() if not did)

    def _of_kind(self, kind: str) -> Counter[str]:
        return Counter(call.outcome.removeprefix(kind) for call in self.calls if call.outcome.startswith(kind))

    @property
    def versions(self) -> Counter[str]:
        return Counter(call.version for call in self.calls if call.version)

    @property
    def endpoints(self) -> Counter[str]:
        """Requests by endpoint."""
        return Counter(chain.from_iterable(call.attempts.elements() for call in self.calls))

    def figures(self) -> dict[str, Figure]:
        """Every figure by its name, in the order of the report. What did not happen at all is left out."""
        count = len(self.calls)
        latencies = self.latencies
        found = {"calls": Figure(count), "success": _share(self.succeeded, count)}
        for percent in (50, 90, 99):
            if latencies:
                found[f"latency p{percent}"] = Figure(quantile(latencies, percent / 100) * 1000, "ms")
        found["attempts per call"] = Figure(self.attempts_per_call)
        if len(self.endpoints) > 1:
            found |= {f"requests to {name}": _share(requests, count) for name, requests in sorted(self.endpoints.items())}
        for kind, counts in (("rejections", self.rejections), ("failures", self.failures)):
            if counts:
                found[f"{kind}{IN_ALL}"] = _share(counts.total(), count)
            found |= {f"{kind}: {reason}": _share(number, count) for reason, number in sorted(counts.items())}
        if len(self.versions) > 1 or self.change is not None:
            found |= {f"answered by {version}": _share(number, count) for version, number in sorted(self.versions.items())}
        if self.delays is not None and any(self.delays):
            found["delays injected"] = _share(sum(self.delays), count)
        if self.requests_in_outage:
            found["requests during the outage"] = Figure(self.requests_in_outage / self.rounds)
        found["most at once at an endpoint"] = Figure(_mean(self.most_at_once))
        for name, values, unit in (
            ("ejections", self.ejections, ""), ("retries, by its own count", self.retries, ""),
            ("renewals, by its own count", self.renewals if self.renewals and any(self.renewals) else None, ""),
            ("time to recover", self.recovery, "s"), ("time until the new policy", self.change, "s"),
        ):
            if values is not None:
                found[name] = Figure(_mean(values), unit)
        if self.late > _WORTH_SAYING:
            found["start of calls late, p99"] = Figure(self.late * 1000, "ms")
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "calls": len(self.calls),
            "succeeded": self.succeeded,
            "success_rate": self.success_rate,
            "latency_ms": {f"p{percent}": _ms(quantile(self.latencies, percent / 100)) for percent in (50, 90, 99)},
            "attempts_per_call": self.attempts_per_call,
            "calls_by_attempts": {
                str(number): count for number, count in sorted(Counter(call.attempts.total() for call in self.calls).items())
            },
            "rejections": dict(self.rejections.most_common()),
            "failures": dict(self.failures.most_common()),
            "versions": dict(sorted(self.versions.items())),
            "requests": self.requests,
            "requests_by_endpoint": dict(sorted(self.endpoints.items())),
            "requests_in_outage": self.requests_in_outage,
            "most_at_once": max(self.most_at_once),
            "late_ms_p99": _ms(self.late),
            "truth": None if self.true is None else self.true.as_json(),
            "telemetry": None if self.says is None or self.true is None else {
                **self.says.as_json(), "relative_error": relative_errors(self.says, self.true),
            },
            **{
                name: None if values is None else [_finite(value) for value in values]
                for name, values in (
                    ("ejections", self.ejections), ("retries", self.retries), ("delays_injected", self.delays),
                    ("renewals", self.renewals),
                    ("recovery_s", self.recovery), ("policy_change_s", self.change),
                )
            },
        }


_OVERTAKEN = 0.05
#: A millisecond or two is the machine's, and of no interest.
_WORTH_SAYING = 0.005


def measure(observations: Sequence[Observation], scenario: Scenario) -> Measured:
    """The figures of one plane from its run, or from all of its rounds."""
    return Measured(
        calls=[call for observation in observations for call in _calls(observation, scenario)],
        ejections=_each(each.decisions.ejections for each in observations),
        recovery=None if scenario.outage_end is None else tuple(_recovery(each.notes, scenario.outage_end) for each in observations),
        # An edit that a run's end came before was not made.
        change=tuple(
            _change(each, edit, at) for each in observations for edit, at in zip(scenario.edits, each.edited, strict=False)
        ) or None,
        most_at_once=tuple(each.seen.most_at_once for each in observations),
        retries=_each(each.decisions.retries for each in observations),
        delays=_each(each.decisions.delays for each in observations),
        renewals=_each(each.decisions.renewals for each in observations),
        says=None if any(each.says is None for each in observations) else together([each.says for each in observations if each.says]),
        true=together([truth(_calls(each, scenario), SUCCEEDED) for each in observations]),
    )


def spread(observations: Sequence[Observation], scenario: Scenario) -> dict[str, Spread]:
    """Each figure's least, median and greatest over the rounds. A reason that did not occur in a round is 0 there."""
    rounds = [measure([each], scenario).figures() for each in observations]
    names = dict.fromkeys(name for figures in rounds for name in figures)
    values = {name: [figures.get(name, Figure(0)).value for figures in rounds] for name in names}
    return {name: Spread.of(each) for name, each in values.items() if all(map(math.isfinite, each))}


def succeeded(note: Note) -> bool:
    """Whether the caller got an answer of a service that is no server error; of gRPC: OK."""
    return not note.reason and (note.status == "OK" if isinstance(note.status, str) else note.status < 500)


def outcome(note: Note) -> str:
    """What became of a call, in words: ``succeeded``, ``rejected: limit reached``, ``failed: 503 of the service``.

    Over gRPC the code that the caller got stands with the reason, ``failed: deadline, DEADLINE_EXCEEDED``: planes may differ in it.
    """
    if succeeded(note):
        return SUCCEEDED
    reason = f"{note.reason}, {note.status}" if note.reason and isinstance(note.status, str) else note.reason
    if note.reason in REFUSALS:
        return REJECTED + reason
    return FAILED + (reason or f"{note.status} of the service")


def _calls(observation: Observation, scenario: Scenario) -> list[Call]:
    attempts: dict[str, Counter[str]] = {}
    failing: Counter[str] = Counter()
    outages = {script.name: script.outages for script in scenario.services}
    for name, arrivals in observation.seen.arrivals.items():
        for each in arrivals:
            attempts.setdefault(each.call, Counter())[name] += 1
            failing[each.call] += int(any(outage.start <= each.began < outage.end for outage in outages[name]))
    return [
        Call(outcome(note), note.latency, note.late, note.version, attempts.get(str(note.number), Counter()), failing[str(note.number)])
        for note in observation.notes
    ]


def _recovery(notes: Sequence[Note], outage_end: float) -> float:
    """Seconds from ``outage_end`` to the first of ``RECOVERED_CALLS`` successes in a row."""
    after = sorted((note for note in notes if note.due >= outage_end), key=lambda note: note.due)
    run = 0
    for place, note in enumerate(after):
        run = run + 1 if succeeded(note) else 0
        if run == RECOVERED_CALLS:
            return after[place - RECOVERED_CALLS + 1].due - outage_end
    return math.inf


def _change(observation: Observation, edit: Edit, edited: float) -> float:
    """Seconds from an edit of the policy to the first call that an endpoint of the new one answered.

    Infinite when that cannot be seen, because the edit before was not in force yet.
    """
    # A call that the edit overtakes may show the new policy already: only calls that were over some time before say what was.
    before = [note for note in observation.notes if note.version and note.due + note.latency < edited - _OVERTAKEN]
    if before and max(before, key=lambda note: note.due).version == edit.version:
        return math.inf
    began = [note.due + note.late for note in observation.notes if note.version == edit.version]
    return min((at - edited for at in began if at >= edited), default=math.inf)


def _each(values: Iterable[Any]) -> tuple[Any, ...] | None:
    found = tuple(values)
    return None if None in found else found


def _share(part: int, whole: int) -> Figure:
    return Figure(part / whole * 100, "%")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ms(seconds: float) -> float | None:
    return None if math.isnan(seconds) else round(seconds * 1000, 3)
