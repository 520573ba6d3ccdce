"""A run over time, from constructed notes. No process is started here."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from resilmesh.compare.planes import Observation, Use
from resilmesh.compare.polling import Look
from resilmesh.compare.scenarios import SCENARIOS, Scenario
from resilmesh.compare.series import Buckets, scripted, series
from resilmesh.compare.service import Arrival
from resilmesh.compare.testbed import Seen
from resilmesh.compare.traffic import Happened, Note

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
OUTAGE = BY_NAME["outage"]

#: Four calls: one good; one good that a retry made so; one refused; one that took a bucket and a half and failed.
NOTES = [
    Note(0, 0.01, 0.0, 0.020, 200, "v1", "a", ""),
    Note(1, 0.05, 0.01, 0.040, 200, "v1", "b", ""),
    Note(2, 0.12, 0.0, 0.001, 503, "", "", "circuit open"),
    Note(3, 0.15, 0.0, 0.150, 503, "v1", "a", ""),
]
ARRIVALS = {
    "a": [Arrival("0", 0.011, 0.029), Arrival("1", 0.061, 0.065), Arrival("3", 0.151, 0.299)],
    "b": [Arrival("1", 0.070, 0.088)],
}


def observed(plane: str, **changes: Any) -> Observation:
    seen = Seen(requests=4, calls=Counter({"0": 1, "1": 2, "3": 1}), arrivals=ARRIVALS)
    return replace(Observation(plane, NOTES, seen, Use(0, 0, 0), None, names={"127.0.0.1:1": "a", "127.0.0.1:2": "b"}), **changes)


def test_every_list_has_a_value_for_each_bucket() -> None:
    found = series(observed("bare"), OUTAGE)
    assert found["start_s"] == [0.0, 0.1, 0.2, 0.3]
    lists = [found[name] for name in ("due", "succeeded", "ended", "in_flight", "retries", "amplification", "at_services")]
    lists += [*found["errors"].values(), *found["latency_ms"].values(), *found["requests"].values()]
    assert {len(each) for each in lists} == {4}


def test_calls_are_counted_when_they_were_due_by_what_became_of_them() -> None:
    found = series(observed("bare"), OUTAGE)
    assert found["due"] == [2, 2, 0, 0]
    assert found["succeeded"] == [2, 0, 0, 0]
    assert found["errors"] == {"failed: 503 of the service": [0, 1, 0, 0], "rejected: circuit open": [0, 1, 0, 0]}
    assert found["ended"] == [2, 1, 0, 1]
    assert found["in_flight"] == [0, 1, 1, 0]
    assert found["latency_ms"]["p50"] == [30.0, None, None, None]
    assert found["latency_ms"]["p99"][0] == pytest.approx(39.8)


def test_requests_are_counted_when_and_where_they_came() -> None:
    found = series(observed("bare"), OUTAGE)
    assert found["requests"] == {"a": [2, 1, 0, 0], "b": [1, 0, 0, 0]}
    assert found["retries"] == [1, 0, 0, 0]
    assert found["amplification"] == [1.5, 0.5, None, None]
    assert found["at_services"] == [0, 1, 0, 0]


def test_the_librarys_circuits_and_ejections_are_those_of_its_events_one_for_each_process() -> None:
    first = [
        Happened(0.13, "circuit_changed", {"old": "CLOSED", "new": "OPEN", "reason": "rate"}),
        Happened(0.14, "endpoint_ejected", {"endpoint": "127.0.0.1:1", "reason": "5", "seconds": 0.1}),
        Happened(0.31, "circuit_changed", {"old": "OPEN", "new": "HALF_OPEN", "reason": "waited"}),
    ]
    second = [
        Happened(0.05, "endpoint_ejected", {"endpoint": "127.0.0.1:1", "reason": "5", "seconds": 0.1}),
        Happened(0.25, "endpoint_returned", {"endpoint": "127.0.0.1:1"}),
    ]
    found = series(observed("library", events=[first, second]), OUTAGE)
    assert found["watched"] == "events"
    assert found["circuit"] == [["CLOSED", "OPEN", "OPEN", "HALF_OPEN"], ["CLOSED"] * 4]
    assert found["ejected"] == {"a": [1, 2, 1, 1], "b": [0, 0, 0, 0]}


def test_a_sidecars_ejections_are_those_that_were_seen_last() -> None:
    looks = [Look(0.02, frozenset()), Look(0.12, frozenset({"127.0.0.1:2"})), Look(0.33, frozenset())]
    found = series(observed("sidecar", looks=looks), OUTAGE)
    assert found["watched"] == "polled"
    assert found["circuit"] is None
    assert found["ejected"] == {"a": [0, 0, 0, 0], "b": [0, 1, 1, 0]}


@pytest.mark.parametrize(("plane", "scenario"), [("bare", OUTAGE), ("library-off", OUTAGE), ("library", BY_NAME["steady"])])
def test_where_nothing_was_watched_nothing_is_said(plane: str, scenario: Scenario) -> None:
    found = series(observed(plane), scenario)
    assert (found["watched"], found["circuit"], found["ejected"]) == (None, None, None)


def test_without_such_a_block_there_is_no_such_state() -> None:
    found = series(observed("library", events=[[]]), BY_NAME["flaky"])
    assert (found["watched"], found["circuit"], found["ejected"]) == ("events", None, None)


def test_marks_are_what_was_scripted_and_what_came_of_it() -> None:
    assert scripted(OUTAGE) == [{"at_s": 1.0, "what": "outage of a, b begins"}, {"at_s": 2.7, "what": "outage of a, b ends"}]
    assert scripted(BY_NAME["retry-storm"])[0]["what"] == "brown-out of a begins"
    edited = series(
        observed("library", edited=[0.6012], events=[[Happened(1.25, "policy_applied", {"revision": 2})]]), BY_NAME["live-policy-change"],
    )
    assert edited["marks"] == [{"at_s": 0.6012, "what": "policy edited"}, {"at_s": 1.25, "what": "new policy in force"}]
    assert series(observed("bare"), BY_NAME["live-policy-change"])["marks"] == []


def test_a_time_on_the_edge_belongs_to_the_bucket_that_begins_there() -> None:
    buckets = Buckets(0.3)
    # 0.1 + 0.2 is a hair above 0.3, and 0.3 / 0.1 a hair below 3.
    assert [buckets.of(at) for at in (0.0, 0.1, 0.1 + 0.2, 0.3, 0.0999, 9.0, -1.0)] == [0, 1, 3, 3, 0, 3, 0]
