"""A policy from a profile: its figures, its reasons, and that it always loads."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import resilmesh
from resilmesh.policy.check import check
from resilmesh.policy.document import read as read_policy
from resilmesh.policy.load import load_text
from resilmesh.state.stats import BOUNDS
from resilmesh.suggest.advice import readable
from resilmesh.suggest.profile import _profile, read
from resilmesh.suggest.write import data, scalar, text
from resilmesh.telemetry.asking import NoDocument
from resilmesh.telemetry.quantiles import Histogram
from resilmesh.testing import ManualClock

POLICY = """
apiVersion: resilmesh/v1
mesh: {workload: checkout, mode: OBSERVE}
services:
- name: ledger
  endpoints: [{address: "10.0.1.11:8080"}, {address: "10.0.1.12:8080", labels: {"on": "yes"}}]
  routes: [{name: book}, {name: list}]
- name: quiet
"""


def observed(calls: int = 1000, *, policy: str = POLICY, failing: float = 0.01, route: str | None = "book") -> dict[str, Any]:
    """The document of a program that called the ledger, each call 95 ms, some ten a second."""
    clock, rng = ManualClock(), random.Random(1)
    mesh = resilmesh.Mesh.from_text(policy, clock=clock)

    @mesh.guard("ledger", route=route)
    def book() -> None:
        clock.advance(0.095)
        if rng.random() < failing:
            raise OSError("refused")

    for _ in range(calls):
        with contextlib.suppress(OSError):
            book()
    return mesh.telemetry.document()


def values(document: dict[str, Any], policy: str | None = None) -> dict[tuple[str | None, str], dict[str, Any]]:
    written = None if policy is None else read_policy(policy, "policy").data
    return {(each["route"], each["key"]): each for each in data(read(document, "profile"), written)}


def loads(document: dict[str, Any], policy: str | None = None) -> str:
    """The suggestion, which the checker and a mesh accept."""
    made = text(read(document, "profile"), None if policy is None else read_policy(policy, "policy").data, "profile", policy and "policy")
    mistakes = [each for each in check(load_text(made)) if each.severity == "error"]
    assert not mistakes, made
    resilmesh.Mesh.from_text(made, clock=ManualClock()).close()
    return made


def test_every_value_has_the_measurement_behind_it() -> None:
    found = values(observed())
    timeout = found["book", "timeout"]
    assert timeout["value"] == "400ms"
    assert "calls that succeeded was 99.9 ms; x2" in timeout["why"]  # in the bucket from 90 to 100 ms
    assert found["book", "retries.perTryTimeout"]["value"] == "200ms"
    assert found[None, "concurrency.maxRequests"]["value"] == 14  # one in flight, all the time
    assert "Little's law" in found[None, "concurrency.maxRequests"]["why"]
    assert found[None, "circuitBreaker.failureRateThreshold"]["value"] == 50
    assert all(each["why"] for each in found.values())


def test_what_is_suggested_loads_and_stands_beside_its_reason() -> None:
    made = loads(observed())
    lines = made.splitlines()
    at = lines.index("    timeout: 400ms")
    assert lines[at - 1].strip().startswith("#")
    assert "idempotent" not in made
    assert "quiet: no calls in the profile" in made


def test_of_too_few_calls_it_says_how_many_are_needed() -> None:
    found = values(observed(50))
    assert found["book", "timeout"]["value"] is None
    assert "200 of them" in found["book", "timeout"]["why"]
    assert not any(each["suggested"] for each in found.values())
    assert "# no timeout: only" in loads(observed(50))


def test_a_quantile_in_the_bucket_without_a_bound_gives_no_timeout() -> None:
    document = observed()
    durations = document["snapshot"]["services"]["ledger"]["routes"]["book"]["durations"]
    durations["succeeded"] = [*[0] * len(BOUNDS), 1000]
    timeout = values(document)["book", "timeout"]
    assert timeout["value"] is None
    assert "above 100 s, in the last bucket, which has no bound" in timeout["why"]


def test_one_endpoint_is_never_ejected() -> None:
    alone = POLICY.replace(', {address: "10.0.1.12:8080", labels: {"on": "yes"}}', "")
    assert values(observed())[None, "outlierDetection.consecutive5xxErrors"]["suggested"]
    assert "another one to turn to" in values(observed(policy=alone))[None, "outlierDetection"]["why"]


def test_a_service_in_trouble_gets_neither_retries_nor_a_breaker() -> None:
    found = values(observed(failing=0.5))
    assert found["book", "retries"]["value"] is None
    assert found[None, "circuitBreaker"]["value"] is None
    assert "good day" in found[None, "circuitBreaker"]["why"]
    loads(observed(failing=0.5))


def test_of_a_limit_that_was_exceeded_it_suggests_twice_that() -> None:
    document = observed()
    ledger = document["snapshot"]["services"]["ledger"]
    ledger["concurrency"] = {"*": {"maxRequests": 40, "maxPending": 5, "inFlight": 0, "pending": 0}}
    ledger["routes"]["book"]["wouldReject"] = {"ConcurrencyExceeded": 3}
    assert values(document)[None, "concurrency.maxRequests"]["value"] == 90


@pytest.mark.parametrize("seen", [0, 7, 300])
def test_a_limit_is_never_below_what_was_seen(seen: int) -> None:
    document = observed()
    document["snapshot"]["services"]["ledger"]["routes"]["book"]["inFlight"] = seen
    assert values(document)[None, "concurrency.maxRequests"]["value"] >= max(14, seen)


def test_no_suggestion_would_reject_the_traffic_that_it_was_made_from() -> None:
    made = loads(observed()).replace("mode: OBSERVE", "mode: ENFORCE")
    again = observed(policy=made)["snapshot"]["services"]["ledger"]["routes"]["book"]
    assert again["rejected"] == {}
    assert again["calls"] == 1000


def test_a_policy_that_is_given_is_kept() -> None:
    policy = """
apiVersion: resilmesh/v1
mesh: {workload: checkout, mode: OBSERVE}
defaults: {retryBudget: {percent: 7}}
services:
- name: ledger
  hosts: [ledger.prod.svc, "*.ledger.svc"]
  endpoints: [{address: "10.0.1.11:8080"}, {address: "10.0.1.12:8080", labels: {"on": "yes", "n": "1e3"}}]
  circuitBreaker: {failureRateThreshold: 20}
  routes:
  - name: book
    match: [{method: [GET, POST], path: {prefix: /book}, headers: {x-tenant: {exact: "no"}}}]
    timeout: 3s
  - {name: list, match: {path: /list}}
"""
    document = observed(policy=policy)
    made = loads(document, policy)
    before, after = read_policy(policy, "before").data, read_policy(made, "after").data
    ledger = after["services"][0]
    for key in ("name", "hosts", "endpoints", "circuitBreaker"):
        assert ledger[key] == before["services"][0][key]
    assert ledger["routes"][0]["match"] == before["services"][0]["routes"][0]["match"]
    assert ledger["routes"][0]["timeout"] == "3s"
    assert after["defaults"] == before["defaults"]
    assert "# timeout is kept as it is. Measured: would be 400ms" in made
    assert "# circuitBreaker is kept as it is. Measured:" in made
    assert "# retryBudget is that of the defaults. Measured:" in made
    assert "retryBudget" not in ledger
    assert ledger["concurrency"] == {"maxRequests": 14}


def test_a_route_without_figures_does_not_inherit_those_of_other_requests() -> None:
    document = observed(route=None)
    ledger = read_policy(loads(document, POLICY), "made").data["services"][0]
    assert ledger["timeout"] == "400ms"
    assert [route["timeout"] for route in ledger["routes"]] == [None, None]


@pytest.mark.parametrize(("change", "words"), [
    (lambda found: found["snapshot"].update(services={}), "no calls at all"),
    (lambda found: found["snapshot"].update(services=[]), "services is not an object"),
    (lambda found: found["snapshot"]["services"]["ledger"]["routes"]["book"].update(calls="many"), "book.calls is not a count"),
    (lambda found: found["snapshot"]["services"]["ledger"]["routes"]["book"]["durations"].update(succeeded=[1]), "has 1 counts"),
    (lambda found: found["snapshot"]["services"]["ledger"]["routes"]["book"]["durations"].update(bounds=[2, 1]), "ascending"),
    (lambda found: found.update(seconds=0), "calls in no time"),
])
def test_a_document_that_cannot_be_is_refused_with_its_place(change: Any, words: str) -> None:
    document = observed(10)
    change(document)
    with pytest.raises(NoDocument, match=words):
        read(document, "profile")


def test_a_document_without_the_optional_keys_will_do() -> None:
    document = observed()
    book = document["snapshot"]["services"]["ledger"]["routes"]["book"]
    for key in ("attempts", "attemptDurations", "outcomes", "wouldReject", "retries"):
        book.pop(key)
    found = values(document)
    assert found["book", "timeout"]["value"] == "200ms"
    assert found["book", "retries.perTryTimeout"]["why"] == "the profile has no durations of attempts"
    loads(document)


COUNT = st.integers(0, 10) | st.integers(0, 10**7)
NAME = st.sampled_from(["ledger", "yes", "1e3", "null", "0x10", "a-b.c_d", "12:30".replace(":", "-"), "on"])


@st.composite
def profiles(draw: st.DrawFn) -> dict[str, Any]:
    bounds = sorted(draw(st.sets(st.floats(1e-6, 1e9), max_size=5)))
    counts = st.lists(COUNT, min_size=len(bounds) + 1, max_size=len(bounds) + 1)
    histograms = st.fixed_dictionaries({
        "bounds": st.just(bounds), "succeeded": counts, "failed": counts,
        "succeededSeconds": st.floats(0, 1e12), "failedSeconds": st.floats(0, 1e3),
    })
    routes = st.dictionaries(NAME | st.just("*"), st.fixed_dictionaries({"calls": COUNT, "inFlight": COUNT}, optional={
        "durations": histograms, "attemptDurations": histograms, "attempts": COUNT, "retries": COUNT,
        "attemptsByVerdict": st.dictionaries(st.sampled_from(["FAILURE", "UNSENT"]), COUNT),
        "wouldReject": st.dictionaries(st.sampled_from(["CircuitOpen", "ConcurrencyExceeded"]), COUNT),
        "outcomes": st.just([{"of": "/shop.v1.Inventory/Get"}]),
    }), max_size=3)
    services = st.dictionaries(NAME, st.fixed_dictionaries({"routes": routes}, optional={
        "endpoints": st.dictionaries(st.sampled_from("abc"), st.fixed_dictionaries({"consecutive5xx": COUNT, "ejections": COUNT})),
        "concurrency": st.just({"*": {"maxRequests": 10**6, "maxPending": 10**6}}),
    }), min_size=1, max_size=3)
    return {"seconds": draw(st.floats(1e-3, 1e9)), "workers": [1] * draw(st.integers(0, 3)), "snapshot": {
        "workload": draw(NAME), "mode": draw(st.sampled_from(["ENFORCE", "OBSERVE", "OFF", None])), "services": draw(services),
    }}


@settings(max_examples=60, deadline=None)
@given(profiles())
def test_any_profile_gives_a_policy_that_loads(document: dict[str, Any]) -> None:
    if not any(service.calls for service in _profile(document).services.values()):
        with pytest.raises(NoDocument, match="no calls"):
            read(document, "profile")
        return
    made = loads(document)
    assert loads(document, made)


@given(st.floats(0.01, 1e6))
def test_a_duration_is_rounded_up_and_not_by_much(seconds: float) -> None:
    from resilmesh.units import parse_duration

    assert seconds * 0.9999 <= parse_duration(readable(seconds)) <= seconds * 1.5


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20))
def test_a_text_is_read_again_as_it_was(words: str) -> None:
    assert read_policy(f"key: {scalar(words)}\n", "text").data == {"key": words}


def test_a_quantile_is_interpolated_within_its_bucket() -> None:
    found = Histogram([1.0, 2.0], [0, 100, 0], 150.0).quantile(0.5)
    assert found == (1.5, 1.0, 2.0)
    assert found.coarse
    assert Histogram([1.0, 2.0], [0, 0, 0], 0.0).quantile(0.5) is None
    assert Histogram([1.0], [5, 1], 9.0).since(Histogram([1.0], [4, 0], 5.0)) == ([1.0], [1, 1], 4.0)
    assert Histogram([1.0], [2, 1], 9.0).since(Histogram([1.0], [4, 0], 5.0)).number == 3  # it has begun anew
    assert Histogram([1.0, 2.0], [3, 2, 1], 9.0).longer(1.0) == 3
