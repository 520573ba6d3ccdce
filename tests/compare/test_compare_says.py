"""What a plane says of itself, against what client and services noted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from resilmesh import Mesh
from resilmesh.compare.measure import measure
from resilmesh.compare.planes import observe
from resilmesh.compare.says import QUANTILES, Says, of_library, relative_errors, together
from resilmesh.compare.scenarios import SCENARIOS, Open
from resilmesh.testing import ManualClock


def _says(**figures):
    return Says(**{"calls": 10, "attempts": 12, "errors": 1, "retries": 2, "latency": dict.fromkeys(QUANTILES, 0.1), **figures})


def test_relative_errors_are_of_the_truth():
    off = relative_errors(_says(calls=11, errors=None, retries=0, latency={50: 0.11, 90: 0.05, 99: None}), _says())
    assert off == {"calls": 0.1, "attempts": 0.0, "errors": None, "retries": -1.0, "latency": {"p50": 0.1, "p90": -0.5, "p99": None}}


def test_of_nothing_any_figure_is_off_beyond_measure():
    off = relative_errors(_says(errors=3, retries=0), _says(errors=0, retries=0))
    assert (off["errors"], off["retries"]) == (None, 0.0)


def test_rounds_are_added_up():
    told = together([_says(latency=dict.fromkeys(QUANTILES, seconds)) for seconds in (0.1, 0.2, 0.9)])
    assert (told.calls, told.attempts, told.errors, told.retries) == (30, 36, 3, 6)
    assert told.latency == dict.fromkeys(QUANTILES, 0.2)
    assert together([_says(), _says(errors=None)]).errors is None


def test_the_librarys_counters_are_those_since_the_run_began():
    clock = ManualClock()
    mesh = Mesh.from_text(
        "apiVersion: resilmesh/v1\nservices:\n"
        "- {name: stock, retries: {maxRetries: 1, retryOn: [5xx], idempotent: true, backoff: {base: 1ms}}}\n",
        clock=clock, seed=1,
    )
    outcomes = [True]

    @mesh.guard("stock", idempotent=True)
    def look():
        clock.advance(0.05)
        if not outcomes.pop(0):
            raise OSError("no")

    look()
    before = [mesh.snapshot()]
    outcomes += [True, False, True, False, False]
    look()
    look()
    with pytest.raises(OSError, match="no"):
        look()
    told = of_library(before, [mesh.snapshot()])
    assert (told.calls, told.attempts, told.errors, told.retries) == (3, 5, 1, 2)
    assert told.latency[50] == pytest.approx(0.1, rel=0.1)
    assert of_library([], []) is None


@pytest.mark.parametrize("plane", ["library", "sidecar"])
def test_what_is_counted_is_what_happened(plane):
    [flaky] = [each for each in SCENARIOS if each.name == "flaky"]
    scenario = replace(flaky, traffic=Open(rate=150, duration=1.0))
    measured = measure([observe(plane, scenario, client="httpx", seed=3)], scenario)
    off = relative_errors(measured.says, measured.true)
    assert {name: off[name] for name in ("calls", "attempts", "errors", "retries")} == dict.fromkeys(
        ("calls", "attempts", "errors", "retries"), 0.0,
    )
    assert measured.true.retries > 10
    told = measured.as_json()
    assert told["truth"]["calls"] == told["telemetry"]["calls"] == len(measured.calls)
    assert set(told["telemetry"]["relative_error"]["latency"]) == {"p50", "p90", "p99"}
