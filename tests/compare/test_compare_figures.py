"""From notes to figures, and from figures to what is said of them. No process is started here."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from resilmesh.compare import machine, report
from resilmesh.compare.cost import costs
from resilmesh.compare.judge import Judgement, judge
from resilmesh.compare.machine import Disturbance, interference
from resilmesh.compare.markdown import page
from resilmesh.compare.measure import Figure, Measured, measure, spread
from resilmesh.compare.planes import PLANES, Observation, Use
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import Result, Settings
from resilmesh.compare.scenarios import SCENARIOS, Open, Scenario
from resilmesh.compare.series import series
from resilmesh.compare.service import Arrival
from resilmesh.compare.stats import Spread
from resilmesh.compare.testbed import Seen
from resilmesh.compare.traffic import Note as CallNote
from resilmesh.envoy.notes import Note

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def note(
    number: int = 0, due: float = 0.0, latency: float = 0.01, status: int = 200, version: str = "v1", reason: str = "", late: float = 0.0,
) -> CallNote:
    return CallNote(number, due, late, latency, status, version, "a" if version else "", reason)


def observation(plane: str, notes: list[CallNote], *, cpu: float = 1.0, memory: int = 50 << 20, proxy: Use | None = None) -> Observation:
    """Each call made one request, to endpoint a, at the time when it was due."""
    numbered = [replace(each, number=number) for number, each in enumerate(notes)]
    seen = Seen(
        requests=len(notes), calls=Counter({str(number): 1 for number in range(len(notes))}), most_at_once=1,
        arrivals={"a": [Arrival(str(each.number), each.due, each.due + each.latency) for each in numbered]},
    )
    return Observation(plane, numbered, seen, Use(cpu, memory, 0.1), proxy)


def measured(notes: list[CallNote], scenario: Scenario = BY_NAME["flaky"]) -> Measured:
    return measure([observation("bare", notes)], scenario)


def judged(library: Measured, sidecar: Measured) -> dict[str, Judgement]:
    return {each.figure: each for each in judge(library, sidecar, BY_NAME["flaky"], seed=1)}


def test_calls_are_counted_by_what_became_of_them() -> None:
    found = measured([
        note(), note(version="v2", status=404), note(status=503), note(status=503, version="", reason="limit reached"),
        note(status=0, version="", reason="reset"),
    ])
    assert (len(found.calls), found.succeeded) == (5, 2)
    assert found.rejections == {"limit reached": 1}
    assert found.failures == {"503 of the service": 1, "reset": 1}
    assert found.versions == {"v1": 2, "v2": 1}
    assert found.figures()["success"] == Figure(40, "%")
    assert found.figures()["failures, in all"] == Figure(40, "%")


def test_rounds_are_added_up_and_their_spread_is_known() -> None:
    observations = [observation("bare", [note(), note()]), observation("bare", [note(), note(status=503)])]
    found = measure(observations, BY_NAME["flaky"])
    assert (len(found.calls), found.requests, found.rounds) == (4, 4, 2)
    shares = spread(observations, BY_NAME["flaky"])
    assert shares["success"] == Spread(50, 75, 100)
    # What did not happen in one of the rounds is none there, not unknown.
    assert shares["failures: 503 of the service"] == Spread(0, 25, 50)


def test_attempts_are_counted_by_endpoint_and_by_outage() -> None:
    seen = Seen(most_at_once=2, arrivals={"a": [Arrival("0", 0.5), Arrival("0", 1.5), Arrival("1", 2.0)], "b": [Arrival("0", 2.6)]})
    found = measure([replace(observation("library", [note(), note(), note()]), seen=seen)], BY_NAME["outage"])
    assert [call.attempts for call in found.calls] == [{"a": 2, "b": 1}, {"a": 1}, {}]
    assert [call.in_outage for call in found.calls] == [2, 1, 0]
    assert found.figures()["requests to a"].value == pytest.approx(100)
    assert found.figures()["requests during the outage"].value == 3


def test_recovery_is_the_first_of_twenty_successes_after_the_outage() -> None:
    outage = BY_NAME["outage"]
    end = outage.outage_end
    assert end is not None

    def run(failing_until: float) -> Measured:
        return measured([note(due=at / 100, status=503 if at / 100 < failing_until else 200) for at in range(500)], outage)

    assert run(end).recovery == (pytest.approx(0.0),)
    assert run(end + 0.5).recovery == (pytest.approx(0.5),)
    # A lucky success in between is no recovery.
    spotted = [note(due=at / 100, status=503 if at / 100 < end + 0.5 and at / 100 != end + 0.2 else 200) for at in range(500)]
    assert measured(spotted, outage).recovery == (pytest.approx(0.5),)
    never = run(4.95)
    assert never.recovery == (math.inf,)
    assert never.as_json()["recovery_s"] == [None]


def test_a_new_policy_is_in_force_from_the_first_call_that_shows_it() -> None:
    scenario = BY_NAME["live-policy-change"]
    versions = ["v1"] * 70 + ["v2"] * 60 + ["v1"] * 200
    notes = [note(due=at / 100, version=version) for at, version in enumerate(versions)]
    run = replace(observation("library", notes), edited=[0.6, 1.295])
    assert measure([run], scenario).change == (pytest.approx(0.1), pytest.approx(0.005))
    # The second edit, back to v1, comes while the first is not in force yet: what calls show then says nothing about it.
    assert measure([replace(run, edited=[0.6, 0.65])], scenario).change == (pytest.approx(0.1), math.inf)
    # No call shows the first edit.
    assert measure([replace(run, edited=[1.4])], scenario).change == (math.inf,)
    assert measure([replace(run, edited=[])], scenario).change is None


def test_equal_planes_are_the_same() -> None:
    notes = [note(latency=0.01 + 0.001 * (number % 7), status=503 if number % 10 == 0 else 200) for number in range(500)]
    found = judged(measured(notes), measured(notes))
    assert {each.verdict for name, each in found.items() if not name.startswith("most")} == {"same"}


def failing(share: float, calls: int) -> Measured:
    return measured([note(status=503 if number * share % 1 + share >= 1 else 200) for number in range(calls)])


def test_a_share_differs_beyond_tolerance_and_chance_only() -> None:
    assert judged(failing(0.01, 1000), failing(0.10, 1000))["success"].verdict == "DIFFERS"
    # Within the tolerance, and certainly so.
    assert judged(failing(0.01, 5_000), failing(0.015, 5_000))["success"].verdict == "same"
    # Beyond the tolerance, but chance might have done it; or too few to say that it is within.
    assert judged(failing(0.0, 30), failing(0.1, 30))["success"].verdict == "too few to tell"
    assert judged(failing(0.0, 60), failing(0.0, 60))["success"].verdict == "too few to tell"


def test_calls_that_fail_together_are_weaker_evidence_than_calls_that_fail_each_for_itself() -> None:
    together = measured([note(status=503 if 200 <= number < 260 else 200) for number in range(600)])
    none = failing(0.0, 600)
    assert judged(none, failing(0.1, 600))["success"].verdict == "DIFFERS"
    assert judged(none, together)["success"].verdict == "too few to tell"


def test_latency_differs_beyond_tolerance_and_chance_only() -> None:
    def taking(seconds: float) -> Measured:
        return measured([note(latency=seconds * (1 + 0.01 * (number % 10))) for number in range(300)])

    assert judged(taking(0.010), taking(0.020))["latency p50"].differs
    assert judged(taking(0.020), taking(0.010))["latency p90"].differs
    assert judged(taking(0.010), taking(0.011))["latency p99"].verdict == "same"


def test_where_callers_were_woken_late_latencies_have_that_much_more_tolerance() -> None:
    punctual = measured([note(latency=0.010)] * 300)
    stuttering = measured([note(latency=0.018, late=0.008)] * 300)
    assert judged(punctual, measured([note(latency=0.018)] * 300))["latency p50"].differs
    assert not judged(punctual, stuttering)["latency p50"].differs


def test_what_a_run_has_one_of_is_judged_from_several_rounds() -> None:
    base = measured([note()] * 50)
    few = [replace(base, ejections=(4,), recovery=(0.2,)), replace(base, ejections=(12,), recovery=(0.9,))]
    found = judged(*few)
    assert {found[name].verdict for name in ("ejections", "time to recover")} == {"too few to tell"}
    assert "one value a run" in found["ejections"].chance
    assert found["ejections"].as_json([])["interval_95"] == [None, None]
    rounds = replace(base, ejections=(4, 5, 4, 4, 5)), replace(base, ejections=(12, 13, 12, 12, 12))
    assert judged(*rounds)["ejections"].differs
    assert judged(rounds[0], rounds[0])["ejections"].verdict == "same"
    never = replace(base, recovery=(math.inf,) * 5)
    assert judged(never, never)["time to recover"].estimate.difference == 0


def test_more_figures_need_more_evidence() -> None:
    found = judged(failing(0.01, 1000), failing(0.10, 1000))
    assert {each.alpha for each in found.values()} == {0.01 / len(found)}


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
    observed = {
        plane: [observation(plane, [note(due=place / 300) for place in range(600)], proxy=proxy if "sidecar" in plane else None)] * 2
        for plane in PLANES
    }
    if differing:
        observed["library"] = [observation("library", [note(status=503)] * 600)] * 2
    planes = {plane: measure(observations, scenario) for plane, observations in observed.items()}
    judgements = judge(planes["library"], planes["sidecar"], scenario, 1)
    notes = [Note(("services", 0), "retries", "approximate", "a reason"), Note(("services", 0), "split", "approximate", "not this")]
    return Result(
        scenario, planes, judgements, notes, costs(observed) if name == "steady" else None,
        series={plane: series(rounds[0], scenario) for plane, rounds in observed.items()},
        spread={plane: spread(rounds, scenario) for plane, rounds in observed.items()},
        disturbances={plane: [each.disturbance for each in rounds] for plane, rounds in observed.items()},
        cpu={plane: [each.cpu() for each in rounds] for plane, rounds in observed.items()},
    )


def as_json(results: list[Result], missing: dict[str, str] | None = None, envoy: str | None = "1.40.0") -> Any:
    told = report.as_json(Settings(SCENARIOS, rounds=2), results, missing or {}, envoy, machine.describe())
    return json.loads(json.dumps(told, allow_nan=False))


def test_json_has_the_shape_that_was_promised() -> None:
    told = as_json([result("steady"), result("flaky", differing=True)])
    assert list(told) == [
        "resilmesh", "envoy", "machine", "versions", "client", "run", "scenarios", "cost", "cost_of_streams", "cost_of_mtls"]
    assert told["envoy"] == {"version": "1.40.0"}
    assert {"cpu", "cpus", "python", "load"} <= set(told["machine"])
    assert told["versions"]["httpx"]
    steady, flaky = told["scenarios"]
    assert steady["name"] == "steady"
    assert list(steady["planes"]) == list(PLANES)
    assert steady["differences"] == []
    assert flaky["tolerance"]["share"] == 0.02
    by_figure = {each["figure"]: each for each in flaky["differences"]}
    assert {"success", "failures: 503 of the service"} <= set(by_figure)
    assert by_figure["success"]["reasons"] == [
        {"text": "retries (approximate): a reason", "docs": "docs/reference/policy.md#retries"}]
    assert told["cost"]["calls_per_round"] == 600
    assert told["cost"]["planes"]["sidecar"]["memory_proxy"]["value"] == {"least": 64.0, "median": 64.0, "greatest": 64.0}
    assert flaky["planes"]["library"]["spread"]["success"] == {"least": 0, "median": 0, "greatest": 0}


def test_json_says_how_to_get_a_missing_envoy() -> None:
    told = as_json([], {"sidecar": "pip install it"}, None)
    assert told["envoy"] == {"version": None, "missing": "pip install it"}
    assert told["cost"] is None
    heading = report.heading(Settings(SCENARIOS), {"sidecar": "pip install it"}, None, machine.describe())
    assert "left out: pip install it" in heading


def test_a_difference_is_marked_with_its_reason() -> None:
    same, different = report.scenario(result("flaky")), report.scenario(result("flaky", differing=True))
    assert "DIFFERS" not in same
    assert "DIFFERS  success: library 0 %, sidecar 100 %" in different
    assert "why      retries (approximate): a reason [success, failures: 503 of the service" in " ".join(different.split()).replace(
        "why retries", "why      retries")
    assert "not this" not in different


def test_a_block_that_did_nothing_on_either_plane_is_no_reason() -> None:
    different = result("flaky", differing=True)
    idle = {plane: replace(measured, retries=(0, 0)) for plane, measured in different.planes.items()}
    assert "a reason" not in report.scenario(replace(different, planes=idle))
    assert "a reason" in report.scenario(replace(different, planes={**idle, "library": replace(idle["library"], retries=(0, 1))}))


def test_a_latency_that_differs_in_a_disturbed_run_is_not_put_on_the_policy_alone() -> None:
    slow = [note(due=place / 300, latency=0.2) for place in range(600)]
    found = result("flaky")
    planes = {**found.planes, "sidecar": measure([observation("sidecar", slow)] * 2, BY_NAME["flaky"])}
    judgements = judge(planes["library"], planes["sidecar"], BY_NAME["flaky"], 1)
    loud = replace(found, planes=planes, judgements=judgements, notes=[], disturbances={"sidecar": [Disturbance(others=0.5)]})
    assert "others used the machine during these runs" in report.scenario(loud)
    assert "others used the machine during these runs" not in report.scenario(replace(loud, disturbances={}))


def test_a_difference_that_nothing_explains_is_said_to_be_one() -> None:
    different = result("flaky", differing=True)
    assert "one of the planes is wrong here" in report.scenario(replace(different, notes=[]))


def test_the_summary_counts_and_names_what_differs() -> None:
    lines = report.in_short([result("steady"), result("flaky", differing=True)], {}).splitlines()
    assert lines[1].startswith("  behaviour  ")
    assert "DIFFER" in lines[1]
    assert lines[2].split()[:2] == ["flaky:", "success,"]
    assert "library, against bare: latency p50 x1.00, CPU x1.00, memory x1.00, start x1.00" in lines[3]
    assert "sidecar, against bare: latency p50 x1.00, CPU x1.20, memory x2.28, start x1.90" in lines[4]


def test_what_could_not_be_measured_is_left_out() -> None:
    whole = observation("bare", [note()] * 50)
    round_ = replace(whole, client=replace(whole.client, memory=None))
    observed = {plane: [replace(round_, plane=plane)] for plane in ("bare", "library-off", "library")}
    without = Result(BY_NAME["steady"], {"bare": measured([note()])}, costs=costs(observed))
    assert "memory" not in report.in_short([without], {"sidecar": "get it"})
    assert "MiB" not in report.cost(without)
    assert "left out   sidecar: get it" in report.in_short([without], {"sidecar": "get it"})


def test_a_restless_machine_is_said_to_be_one() -> None:
    quiet, restless = result("steady"), result("steady")
    assert "DISTURBED" not in report.cost(quiet)
    bare = [observation("bare", [note(latency=latency)] * 100) for latency in (0.001, 0.0014)]
    restless = replace(restless, costs={**costs({"bare": bare}), "library": costs({"bare": bare})["bare"]})
    assert "DISTURBED: bare's own latency varied by x1.4" in report.cost(restless)
    assert "DISTURBED" in report.in_short([restless], {})


def test_a_disturbed_run_is_marked_everywhere() -> None:
    loud = Disturbance(others=0.4, steal=0.01, overslept=0.02)
    assert loud.reasons == ["other processes used 40% of the machine", "callers were woken 20 ms late (p99)"]
    assert Disturbance(steal=0.05).reasons == ["the host took 5% of the machine away"]
    assert Disturbance(0.05, 0.01, 0.005).reasons == []
    run = replace(result("flaky"), disturbances={"library": [Disturbance(), loud]})
    assert "DISTURBED  library, 1 of 2 rounds: other processes used 40%" in report.scenario(run)
    assert "DISTURBED in 1 of 2 runs" in report.in_short([run], {})
    assert as_json([run])["scenarios"][0]["planes"]["library"]["disturbance"][1]["disturbed"] is True
    assert "**DISTURBED  library, 1 of 2 rounds" in page(as_json([run]), [run])


def test_work_of_others_is_told_from_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    # In ten seconds of two CPUs: 12 s were busy, 8 of them ours; one was stolen.
    readings = iter([machine.Reading(100, 5, 20, at=0), machine.Reading(112, 6, 28, at=10)])
    monkeypatch.setattr(machine, "read", lambda: next(readings))
    with interference() as found:
        pass
    assert (found.others, found.steal) == (pytest.approx(0.2), pytest.approx(0.05))
    assert found.of([0.001] * 99 + [0.5]).overslept > 0
    assert found.of([]).overslept == 0


def test_our_own_work_is_that_of_this_process_and_its_children() -> None:
    before = machine.read()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    spent = time.process_time() + 0.3
    while time.process_time() < spent:
        pass
    after = machine.read()
    assert before is not None
    assert after is not None
    assert after.ours - before.ours >= 0.28
    assert after.busy - before.busy >= 0.28


def test_the_table_of_costs_is_aligned_and_says_what_is_worse() -> None:
    text = report.cost(result("steady"))
    lines = [line for line in text.splitlines() if "CPU of the client" in line or "CPU of both" in line]
    assert len({len(line) for line in lines[:2]}) == 1
    assert "What the library does worse" in text
    assert "four workers have four circuits" in text


def test_the_page_has_every_table_judgement_and_policy() -> None:
    results = [result("steady"), result("flaky", differing=True), result("live-policy-change")]
    text = page(as_json(results), results)
    for name in ("steady", "flaky", "live-policy-change"):
        assert f"\n## {name}\n" in text
        assert f"\n### Policy of {name}\n" in text
    assert "| success, % | 0 | 100 | 2 |" in text
    assert "| **DIFFERS** | retries (approximate): a reason ([more](../../docs/reference/policy.md#retries)) |" in text
    assert "Edited after 0.6 s" in text
    # Every row of a table has as many cells as its head.
    for block in text.split("\n\n"):
        widths = {line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) <= 1, block


CALLS = (("GET", "/a"), ("GET", "/b"))


def test_schedules_are_the_same_for_the_same_seed() -> None:
    traffic = Open(rate=200, duration=2)
    assert traffic.schedule(1, CALLS) == traffic.schedule(1, CALLS)
    assert traffic.schedule(1, CALLS) != traffic.schedule(2, CALLS)
    assert len(traffic.schedule(1, CALLS)) == pytest.approx(400, rel=0.2)
    assert all(due is not None and 0 < due < 2 for due, _, _ in traffic.schedule(1, CALLS))


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
