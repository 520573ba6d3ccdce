"""``resilmesh compare --protocol grpc`` on real processes: short scenarios, every plane, unary and streaming."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path

import grpc
import pytest

from resilmesh import cli
from resilmesh.compare.measure import outcome
from resilmesh.compare.planes import BARE, GRPC_CLIENTS, GRPC_PLANES, LIBRARY, NATIVE, OFF, SIDECAR, observe
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import Result, Settings, compare, steps
from resilmesh.compare.scenarios import Closed, Open, Scenario
from resilmesh.compare.scenarios_grpc import GRPC_SCENARIOS
from resilmesh.compare.service import Script
from resilmesh.compare.testbed import TestBed
from resilmesh.policy.check import check
from resilmesh.policy.load import load_text

BY_NAME = {scenario.name: scenario for scenario in GRPC_SCENARIOS}


def run(scenario: Scenario, *planes: str) -> Result:
    settings = Settings([scenario], planes or GRPC_PLANES, "grpcio", protocol="gRPC", rounds=1)
    (result,) = compare(settings, Progress(io.StringIO(), steps(settings), 1.0))
    return result


@pytest.mark.parametrize("scenario", GRPC_SCENARIOS, ids=lambda scenario: scenario.name)
def test_shipped_policies_are_of_grpc_and_have_no_mistake_and_no_warning(scenario: Scenario) -> None:
    loaded = load_text(scenario.policy(), scenario.policy_file)
    assert [str(each) for each in check(loaded)] == []
    assert {service.protocol for service in loaded.policy.services} == {"GRPC"}
    for edit in scenario.edits:
        assert {service.protocol for service in load_text(scenario.policy(file=edit.policy_file)).policy.services} == {"GRPC"}


def test_the_endpoint_answers_grpc_by_its_script() -> None:
    script = Script("a", outcomes={"UNAVAILABLE": 0.2, "INTERNAL": 0.2, "reset": 0.2, "cut": 0.2}, messages=6, pushback=250)
    found: dict[tuple[str, int], dict[str, str]] = {}
    with TestBed([script]) as bed, grpc.insecure_channel(bed.addresses[0]) as channel:
        watch = channel.unary_stream("/shop.v1.Inventory/WatchStock")
        for number in range(60):
            messages = []
            call = watch(b"", timeout=5, metadata=(("x-call", str(number)),))
            with contextlib.suppress(grpc.RpcError):
                messages += call
            found[call.code().name, len(messages)] = dict((*call.initial_metadata(), *call.trailing_metadata()))
        assert bed.seen().requests == 60
    # A reset stream is INTERNAL to grpcio, as is the status; the status is signed.
    assert set(found) == {("OK", 6), ("UNAVAILABLE", 0), ("UNAVAILABLE", 3), ("INTERNAL", 0)}
    assert all(metadata["x-served-by"] == "a" for key, metadata in found.items() if key != ("INTERNAL", 0))
    assert found["UNAVAILABLE", 0]["grpc-retry-pushback-ms"] == "250"


def test_flaky_calls_are_retried_on_every_plane_that_has_a_policy() -> None:
    result = run(replace(BY_NAME["flaky"], traffic=Open(300, 0.6)))
    assert list(result.planes) == list(GRPC_PLANES)
    for plane in (BARE, OFF):
        assert result.planes[plane].attempts_per_call == 1
        assert result.planes[plane].failures["UNAVAILABLE of the service"] > 0
        assert result.planes[plane].failures["reset, INTERNAL"] > 0
    for plane in (LIBRARY, SIDECAR):
        assert result.planes[plane].success_rate > 0.93
        assert sum(result.planes[plane].retries or ()) > 0
    # The service config repeats a status; of what is lost it says nothing.
    native = result.planes[NATIVE]
    assert native.attempts_per_call > 1
    assert native.failures["reset, INTERNAL"] > 0
    assert result.native is not None
    assert any("grpc/grpc#40633" in each for each in result.native.differences)


@pytest.mark.parametrize("client", GRPC_CLIENTS)
@pytest.mark.parametrize("plane", [LIBRARY, SIDECAR])
def test_streams_are_asked_for_again_before_their_first_message_and_not_after(plane: str, client: str) -> None:
    found = observe(plane, replace(BY_NAME["flaky-stream"], traffic=Open(200, 0.8)), client=client, seed=1)
    failed = [note for note in found.notes if outcome(note) != "succeeded"]
    assert {outcome(note) for note in failed} == {"failed: UNAVAILABLE of the service"}
    # All who saw a message, and the few whose three attempts failed before one.
    assert found.seen.outcomes["cut"] <= len(failed) <= found.seen.outcomes["cut"] + 5
    assert found.seen.requests > len(found.notes)


def test_a_pushback_is_waited_for_by_the_library_and_unknown_to_envoy() -> None:
    script = replace(BY_NAME["pushback"].services[0], outcomes={"UNAVAILABLE": 0.3})
    result = run(replace(BY_NAME["pushback"], traffic=Open(40, 1.0), services=(script,)), LIBRARY, SIDECAR)
    waited = {plane: sum(call.latency > 0.29 for call in of_one.calls) for plane, of_one in result.planes.items()}
    assert waited[LIBRARY] > 3
    assert waited[SIDECAR] < waited[LIBRARY] / 2


def test_the_code_of_a_time_out_differs_and_the_reason_stands_beside_it() -> None:
    hanging = (Script("a", outcomes={"hang": 1.0}),)
    result = run(replace(BY_NAME["retry-storm-unbounded"], services=hanging, traffic=Open(60, 0.5)), LIBRARY, SIDECAR)
    assert result.planes[LIBRARY].failures["deadline, DEADLINE_EXCEEDED"] > 5
    assert result.planes[SIDECAR].failures["deadline, UNAVAILABLE"] > 5
    (judged,) = [each for each in result.judgements if each.figure == "failures: deadline, DEADLINE_EXCEEDED"]
    assert "docs/how-to/compare.md#over-grpc" in [reason.docs for reason in judged.explained_by(result.notes, result.scenario.reasons)]


def test_the_command_reports_unary_calls_and_streams_in_every_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resilmesh.cli.compare.GRPC_SCENARIOS", [
        *(replace(BY_NAME[name], traffic=Closed(60), warm_up=2) for name in ("steady", "steady-stream")),
        replace(BY_NAME["canary"], traffic=Open(100, 0.2)),
    ])
    files = {kind: tmp_path / f"report.{kind}" for kind in ("json", "markdown", "html")}
    words = [word for kind, file in files.items() for word in (f"--{kind}", str(file))]
    assert cli.main(["compare", "--protocol", "grpc", "--planes", "bare,library,grpc-native", "--rounds=1", *words]) == 0
    told = json.loads(files["json"].read_text())
    assert told["client"]["library"] == "grpcio"
    assert told["client"]["protocol"] == "gRPC"
    assert "grpcio" in told["versions"]
    assert [list(each["planes"]) for each in told["scenarios"]] == [["bare", "library", "grpc-native"]] * 2 + [["bare", "library"]]
    assert told["scenarios"][0]["native"]["service_config"]["methodConfig"][0]["timeout"] == "3s"
    assert told["scenarios"][2]["native"]["cannot"] == "a service config cannot say split"
    assert told["cost"]["planes"]["grpc-native"]["latency_p50"]["value"]["median"] > 0
    assert told["cost_of_streams"]["planes"]["library"]["cpu_client"]["value"]["median"] > 0
    output = capsys.readouterr().out
    assert "grpc-native  left out: a service config cannot say split." in output
    assert "interleaved rounds of steady-stream" in output
    assert "pool" not in output
    page = files["html"].read_text()
    assert "whole streams" in page
    assert "grpc/grpc#40633" in page
    assert "own pool for HTTP/1.1" not in page
    assert "## Costs of steady-stream" in files["markdown"].read_text()


@pytest.mark.parametrize(("words", "why"), [
    (["--only", "pushback"], "none of these scenarios runs on"),
    (["--planes", "grpc-native"], "grpc-native is a plane of --protocol grpc"),
    (["--protocol", "grpc", "--planes", "grpc-native", "--only=canary"], "none of these scenarios runs on grpc-native over gRPC"),
    (["--protocol", "grpc", "--policy", "p.yaml", "--target", "http://a"], "which of its methods to call"),
])
def test_what_does_not_fit_is_refused_with_a_remedy(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *words]) == 2
    assert why in capsys.readouterr().err
