"""From text to the model: what the model holds, and what it refuses besides testdata."""

from __future__ import annotations

import copy
import datetime
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from resilmesh.errors import PolicyError
from resilmesh.policy.check import check
from resilmesh.policy.codes import CODES, Diagnostic
from resilmesh.policy.load import load_file, load_text
from resilmesh.policy.model import Backoff, Policy, RateLimit, Retries, Service, SlidingWindow

HEAD = "apiVersion: resilmesh/v1\nservices:\n- name: a\n"


def service(text: str) -> Service:
    return load_text(HEAD + "".join(f"  {line}\n" for line in text.splitlines())).policy.services[0]


def test_values_arrive_in_the_units_of_the_library() -> None:
    loaded = service("timeout: 1m30s\nretryBudget: {percent: 20}\ncircuitBreaker: {slidingWindow: {type: TIME_BASED, size: 250ms}}")
    assert loaded.timeout == 90.0
    assert loaded.retry_budget is not None
    assert loaded.retry_budget.percent == 20.0
    assert loaded.circuit_breaker is not None
    assert loaded.circuit_breaker.sliding_window.size == 0.25


def test_shorthands_are_their_long_forms() -> None:
    short = service(
        "loadBalancer: RANDOM\nrateLimit: {requests: 5}\nroutes:\n"
        "- {name: r, match: {method: GET, path: /a, headers: {x-a: b}, query: {q: c}}}",
    )
    long = service(
        "loadBalancer: {policy: RANDOM}\nrateLimit: [{requests: 5}]\nroutes:\n"
        "- {name: r, match: [{method: [GET], path: {exact: /a}, headers: {x-a: {exact: b}}, query: {q: {exact: c}}}]}",
    )
    assert short == long


def test_keys_that_begin_with_x_are_ignored_in_blocks_only() -> None:
    loaded = service("x-a: {b: [c]}\nendpoints: [{x-b: 1, address: 'a:1', labels: {x-c: d}}]")
    assert loaded == service("endpoints: [{address: 'a:1', labels: {x-c: d}}]")
    assert (loaded.endpoints or [])[0].labels == {"x-c": "d"}


def test_the_file_knows_no_attribute_names() -> None:
    with pytest.raises(PolicyError) as caught:
        service("idle_timeout: 3s\nretries: {retryOn: [5xx], max_retries: 2}")
    assert [each.hint for each in caught.value.diagnostics] == ["did you mean 'idleTimeout'?", "did you mean 'maxRetries'?"]


def test_the_finished_form_of_a_policy() -> None:
    assert check(load_file(Path(__file__).parent / "testdata" / "finished_form.yaml")) == []


def test_a_policy_written_in_code() -> None:
    """Attribute names are Python's, durations are text or timedelta: a bare number is refused here too."""
    retries = Retries(retry_on=["5xx", 503], per_try_timeout="400ms", backoff=Backoff(base=datetime.timedelta(milliseconds=25)))  # type: ignore[arg-type]
    assert (retries.per_try_timeout, retries.backoff.base) == (0.4, 0.025)
    assert SlidingWindow(type="TIME_BASED", size=datetime.timedelta(seconds=2)).size == 2.0  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="no unit"):
        RateLimit(requests=1, per=5)
    policy = Policy(api_version="resilmesh/v1", services=[Service(name="a", retries=retries)])
    again = Policy.model_validate(policy.model_dump(mode="json", by_alias=True, exclude_unset=True), by_alias=True, by_name=False)
    assert again == policy


def test_values_are_immutable() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        service("timeout: 3s").timeout = 4.0


def test_diagnostics_read_as_one_line() -> None:
    diagnostic = Diagnostic("policy.yaml", 3, 7, "RM101", "unknown key 'a'", "did you mean 'b'?")
    assert str(diagnostic) == "policy.yaml:3:7: RM101 unknown key 'a' (did you mean 'b'?)"
    assert str(Diagnostic("policy.yaml", 3, 7, "RM005", "not YAML")) == "policy.yaml:3:7: RM005 not YAML"


def test_an_error_survives_pickling_and_copying() -> None:
    with pytest.raises(PolicyError) as caught:
        load_text("apiVersion: resilmesh/v2\nservice: []\n", "f")
    for again in (pickle.loads(pickle.dumps(caught.value)), copy.copy(caught.value)):
        assert again.diagnostics == caught.value.diagnostics
        assert str(again) == str(caught.value)
    assert len(caught.value.diagnostics) == 2


def test_codes_are_sorted_into_errors_and_warnings() -> None:
    assert {row.severity for code, row in CODES.items() if code < "RM4"} == {"error"}
    assert {row.severity for code, row in CODES.items() if code > "RM4"} == {"warning"}
    assert list(CODES) == sorted(CODES)


def test_loading_imports_no_regular_expressions_that_are_not_used() -> None:
    """RE2 is dear to import; pydantic is not imported before a policy is loaded."""
    program = (
        "import sys, resilmesh.policy.load as load\nassert 'pydantic' not in sys.modules\n"
        "from resilmesh.policy.check import check\n"
        "text = 'apiVersion: resilmesh/v1\\nservices: [{name: a, hosts: [a], routes: [{name: r, match: {path: /a}}, {name: s}]}]'\n"
        "assert check(load.load_text(text)) == []\nassert 're2' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
