"""One run of one plane over time, in buckets of a tenth of a second: ``series`` in the JSON report.

Every list has one value for each bucket, in the order of ``start_s``; ``null`` is a bucket for which there is none.

    {
      "round": 1,                       which of the scenario's rounds this is: the first that was not disturbed, else the first
      "bucket_s": 0.1,
      "start_s": [0.0, 0.1, ...],       where each bucket begins, in seconds of the run

      the calls that were due in the bucket (in a closed loop: that began in it), by what became of them
      "due": [15, 14, ...],             = succeeded + all of errors
      "succeeded": [15, 12, ...],
      "errors": {"rejected: circuit open": [0, 2, ...], "failed: 503 of the service": [...]},
      "latency_ms": {"p50": [4.1, null, ...], "p90": [...], "p99": [...]},     of the successful ones, from when they were due

      "ended": [14, 15, ...],           calls that came to their end in the bucket, whenever they were due: the throughput
      "in_flight": [1, 0, ...],         calls begun and not ended at the bucket's end

      what the services saw
      "requests": {"a": [7, 8, ...], "b": [...]},     arrived in the bucket, by endpoint; no key for one that refuses connections
      "retries": [0, 3, ...],           of these, those that were not the first request of their call
      "amplification": [1.0, 1.4, ...], requests arrived by calls due in the bucket
      "at_services": [1, 1, ...],       requests being worked on or queued at the bucket's end

      what the plane says of itself
      "watched": "events" | "polled" | null,          library | sidecars (every 100 ms) | planes without decisions, and closed loops
      "circuit": [["CLOSED", "OPEN", ...]] | null,    at the bucket's end, a list for each process of the client; null: not watched,
                                                      no circuit breaker in the policy, or a sidecar, which has none
      "ejected": {"a": [0, 1, ...]} | null,           processes that hold the endpoint ejected at the bucket's end; a sidecar is one
      "processes": 1,                   of the client

      "marks": [{"at_s": 1.0, "what": "outage of a, b begins"}]      script and policy edits, and when an edit came into force
    }
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from resilmesh.compare.measure import SUCCEEDED, outcome
from resilmesh.compare.pair import SIDECAR_PAIR
from resilmesh.compare.planes import DEFAULTS, LIBRARY, SIDECAR, Observation
from resilmesh.compare.scenarios import Scenario
from resilmesh.compare.service import Arrival
from resilmesh.compare.stats import quantile
from resilmesh.compare.traffic import Happened, Note

#: Seconds.
BUCKET = 0.1

Json = dict[str, Any]


class Buckets:
    """Where times of the run belong. ``end`` is the last time that must have a place."""

    def __init__(self, end: float) -> None:
        self.count = max(1, math.floor(end / BUCKET + 1e-9) + 1)

    @property
    def starts(self) -> list[float]:
        return [round(index * BUCKET, 3) for index in range(self.count)]

    def of(self, at: float) -> int:
        return min(self.count - 1, max(0, math.floor(at / BUCKET + 1e-9)))

    def count_of(self, times: Iterable[float]) -> list[int]:
        """How many of ``times`` lie in each bucket."""
        found = Counter(map(self.of, times))
        return [found[index] for index in range(self.count)]

    def at_ends(self, changes: Iterable[tuple[float, int]]) -> list[int]:
        """A sum at each bucket's end, from what was added to it when."""
        found: Counter[int] = Counter()
        for at, change in changes:
            found[self.of(at)] += change
        running, ends = 0, []
        for index in range(self.count):
            running += found[index]
            ends.append(running)
        return ends

    def last_of(self, changes: Iterable[tuple[float, str]], first: str) -> list[str]:
        """A state at each bucket's end, from the states that it changed to, in order of time."""
        found = {self.of(at): state for at, state in changes}
        state, ends = first, []
        for index in range(self.count):
            state = found.get(index, state)
            ends.append(state)
        return ends


def series(observation: Observation, scenario: Scenario, round_number: int = 1) -> Json:
    """What the module says, of one run."""
    notes, arrivals = observation.notes, observation.seen.arrivals
    buckets = Buckets(_end(observation))
    by_outcome: dict[str, list[float]] = defaultdict(list)
    for note in notes:
        by_outcome[outcome(note)].append(note.due)
    due = buckets.count_of(note.due for note in notes)
    good = by_outcome.pop(SUCCEEDED, [])
    requests = {name: buckets.count_of(each.began for each in of_one) for name, of_one in arrivals.items()}
    return {
        "round": round_number,
        "bucket_s": BUCKET,
        "start_s": buckets.starts,
        "due": due,
        "succeeded": buckets.count_of(good),
        "errors": {name: buckets.count_of(times) for name, times in sorted(by_outcome.items())},
        "latency_ms": _latencies(buckets, [note for note in notes if outcome(note) == SUCCEEDED]),
        "ended": buckets.count_of(note.due + note.latency for note in notes),
        "in_flight": buckets.at_ends(
            change for note in notes for change in ((note.due + note.late, 1), (note.due + note.latency, -1))
        ),
        "requests": requests,
        "retries": buckets.count_of(_retries(arrivals.values())),
        "amplification": [
            round(sum(came) / calls, 3) if calls else None for calls, *came in zip(due, *requests.values(), strict=True)
        ],
        "at_services": buckets.at_ends(_work(arrivals.values())),
        **_decided(observation, scenario, buckets),
        "processes": scenario.processes,
        "marks": marks(observation, scenario),
    }


def _end(observation: Observation) -> float:
    times = [note.due + note.latency for note in observation.notes]
    times += [each.began for of_one in observation.seen.arrivals.values() for each in of_one]
    return max(times, default=0.0)


def _latencies(buckets: Buckets, notes: Sequence[Note]) -> dict[str, list[float | None]]:
    found: dict[int, list[float]] = defaultdict(list)
    for note in notes:
        found[buckets.of(note.due)].append(note.latency)
    return {
        f"p{percent}": [
            round(quantile(found[index], percent / 100) * 1000, 3) if index in found else None for index in range(buckets.count)
        ]
        for percent in (50, 90, 99)
    }


def _retries(arrivals: Iterable[Sequence[Arrival]]) -> list[float]:
    """When each request came that was not its call's first, whichever endpoint saw it."""
    seen: set[str] = set()
    again = []
    for each in sorted((each for of_one in arrivals for each in of_one), key=lambda each: each.began):
        if each.call in seen:
            again.append(each.began)
        seen.add(each.call)
    return again


def _work(arrivals: Iterable[Sequence[Arrival]]) -> list[tuple[float, int]]:
    every = [each for of_one in arrivals for each in of_one]
    return [(each.began, 1) for each in every] + [(each.ended, -1) for each in every if each.ended is not None]


def _decided(observation: Observation, scenario: Scenario, buckets: Buckets) -> Json:
    if not scenario.watched or observation.plane not in (LIBRARY, SIDECAR, DEFAULTS, SIDECAR_PAIR):
        return {"watched": None, "circuit": None, "ejected": None}
    outlier = "outlierDetection:" in scenario.policy()
    if observation.plane != LIBRARY:
        return {"watched": "polled", "circuit": None, "ejected": _ejected_as_polled(observation, buckets) if outlier else None}
    return {
        "watched": "events",
        "circuit": [_circuit(of_one, buckets) for of_one in observation.events] if "circuitBreaker:" in scenario.policy() else None,
        "ejected": _ejected_as_told(observation, buckets) if outlier else None,
    }


def _circuit(events: Sequence[Happened], buckets: Buckets) -> list[str]:
    return buckets.last_of(((each.at, each.detail["new"]) for each in events if each.name == "circuit_changed"), "CLOSED")


def _ejected_as_told(observation: Observation, buckets: Buckets) -> dict[str, list[int]]:
    change = {"endpoint_ejected": 1, "endpoint_returned": -1}

    def changes(address: str) -> list[tuple[float, int]]:
        return [
            (each.at, change[each.name]) for of_one in observation.events for each in of_one
            if each.name in change and each.detail["endpoint"] == address
        ]

    return {name: buckets.at_ends(changes(address)) for address, name in observation.names.items()}


def _ejected_as_polled(observation: Observation, buckets: Buckets) -> dict[str, list[int]]:
    def states(address: str) -> list[tuple[float, str]]:
        return [(look.at, str(int(address in look.ejected))) for look in observation.looks]

    return {name: [int(state) for state in buckets.last_of(states(address), "0")] for address, name in observation.names.items()}


_ROOT_STEPS = ("next root announced", "next root signs", "old root retired")


def scripted(scenario: Scenario) -> list[Json]:
    """What the script says will happen in the run."""
    found = [
        (at, f"{what} {word}")
        for what, outage in _outages(scenario) for at, word in ((outage[0], "begins"), (outage[1], "ends"))
    ]
    found += [(edit.at, "policy edited") for edit in scenario.edits]
    if scenario.identities is not None:
        found += zip(scenario.identities.root_steps, _ROOT_STEPS, strict=False)
    return _as_marks(found)


def marks(observation: Observation, scenario: Scenario) -> list[Json]:
    """The same, and what came of it on this plane."""
    found = [(mark["at_s"], mark["what"]) for mark in scripted(scenario) if mark["what"] != "policy edited"]
    if observation.edited:
        found += [(at, "policy edited") for at in observation.edited]
        found += [(each.at, "new policy in force") for of_one in observation.events for each in of_one if each.name == "policy_applied"]
    return _as_marks(found)


def _as_marks(found: Iterable[tuple[float, str]]) -> list[Json]:
    return [{"at_s": round(at, 4), "what": what} for at, what in sorted(found)]


def _outages(scenario: Scenario) -> list[tuple[str, tuple[float, float]]]:
    by_time: dict[tuple[float, float, str], list[str]] = defaultdict(list)
    for script in scenario.services:
        for outage in script.outages:
            by_time[outage.start, outage.end, outage.word].append(script.name)
    return [(f"{word} of {', '.join(names)}", (start, end)) for (start, end, word), names in by_time.items()]

