"""The page of a report: well-formed, self-contained, faithful to the report, safe with whatever a report holds. No process is started."""

from __future__ import annotations

import copy
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from resilmesh import cli
from resilmesh.compare import findings, report, run
from resilmesh.compare.html import NoReport, page
from resilmesh.compare.machine import Disturbance
from resilmesh.compare.planes import Observation, Use
from resilmesh.compare.progress import Progress
from resilmesh.compare.run import Settings
from resilmesh.compare.scenarios import SCENARIOS, Scenario
from resilmesh.compare.service import Arrival
from resilmesh.compare.testbed import Seen
from resilmesh.compare.traffic import Happened, Note

BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
MACHINE = {
    "platform": "Linux x86_64", "kernel": "6.1", "cpu": "a CPU", "cpus": 2, "memory_mib": 4096, "python": "CPython 3.11", "load": 0.5,
}
_VOID = frozenset({"br", "hr", "meta"})
_CALLS = 1500


def observed(plane: str, scenario: Scenario, *, client: str, seed: int, tick: Any = None) -> Observation:
    """1,500 calls in three seconds; in the second one each plane fails in its own way."""
    refusal = {"library": "circuit open", "sidecar": "no healthy endpoint", "sidecar-defaults": "limit reached"}.get(plane, "")
    notes, arrivals = [], []
    for number in range(_CALLS):
        due = number / 500
        failing = scenario.name != "steady" and 1.0 <= due < 2.0
        notes.append(Note(
            number, due, 0.0, 0.004 + number % 7 / 1000 + seed / 10_000, 503 if failing else 200, "" if failing and refusal else "v1",
            "" if failing and refusal else "a", refusal if failing else "",
        ))
        if not failing or not refusal:
            arrivals.append(Arrival(str(number), due, due + 0.004))
    events = [[Happened(1.0, "circuit_changed", {"old": "CLOSED", "new": "OPEN"}), Happened(2.0, "circuit_changed", {"new": "HALF_OPEN"})]]
    proxy = Use(0.1, 60 << 20, 0.05) if plane.startswith("sidecar") else None
    return Observation(
        plane, notes, Seen(most_at_once=2, arrivals={"a": arrivals, "b": []}), Use(0.2 + seed / 100, 50 << 20, 0.2), proxy,
        events=events if plane == "library" else [], names={"127.0.0.1:1": "a", "127.0.0.1:2": "b"},
        disturbance=Disturbance(others=0.4) if plane == "bare" else Disturbance(),
    )


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """A report that came about as every report does, but for the runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "observe", observed)
        patch.setattr(run, "COST_ROUNDS", 3)
        settings = Settings([BY_NAME["steady"], BY_NAME["outage"], BY_NAME["workers"]])
        results = list(run.compare(settings, Progress(io.StringIO(), run.steps(settings), 1.0)))
    made: dict[str, Any] = json.loads(json.dumps(report.as_json(settings, results, {}, "1.40.0", MACHINE, "2026-11-23T00:00:00Z", 12.0)))
    return made


class Page(HTMLParser):
    """Checks that elements are closed in order; keeps ids, links, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def values(self, name: str) -> list[str]:
        return [value for _, key, value in self.attributes if key == name]


def test_it_is_well_formed_and_every_link_leads_somewhere(told: dict[str, Any]) -> None:
    shown = Page(page(told))
    assert len(shown.ids) == len(set(shown.ids))
    targets = shown.values("href")
    assert targets
    assert [each for each in targets if each.removeprefix("#") not in shown.ids] == []
    assert [each for each in shown.values("aria-labelledby") if each not in shown.ids] == []
    filled = set(re.findall(r"url\(#([a-z0-9-]+)\)", page(told)))
    assert filled
    assert filled <= set(shown.ids)


def test_it_needs_nothing_from_anywhere(told: dict[str, Any]) -> None:
    text = page(told)
    shown = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "image", "use", "base"} & set(shown.tags)
    assert not [each for _, name, each in shown.attributes if name in ("src", "srcset", "style", "xlink:href") or name.startswith("on")]
    assert not re.search(r"@import|https?://|url\((?!#)", text)
    assert len(text) < 3_000_000


def test_charts_and_tables_say_what_they_are(told: dict[str, Any]) -> None:
    text = page(told)
    charts = re.findall(r'<svg [^>]*class="panel"[^>]*>', text)
    assert len(charts) > 30
    assert all('role="img"' in each and 'aria-label="' in each for each in charts)
    assert text.count("<table") == text.count("<caption>")
    assert Page(text).text.count("succeeded") > 0
    assert '<html lang="en">' in text


def test_classes_of_charts_have_a_look(told: dict[str, Any]) -> None:
    """A class without a rule would be black, or nothing."""
    text = page(told)
    style = text[text.index("<style>"):text.index("</style>")]
    shapes = [value for tag, key, value in Page(text).attributes if tag in ("path", "rect", "circle") and key == "class"]
    drawn = {name for value in shapes for name in value.split()}
    assert drawn >= {"succeeded", "rejected-1", "failed-1", "p50", "p99", "mark", "period"}
    assert drawn >= {"circuit-open", "circuit-half_open", "circuit-closed", "present"}
    assert [name for name in drawn if not re.search(rf"\.{name}[ ,]", style)] == []


def test_figures_are_those_of_the_report(told: dict[str, Any]) -> None:
    shown = Page(page(told))
    outage = next(each for each in told["scenarios"] if each["name"] == "outage")
    success = [f"{measured['success_rate'] * 100:.1f} %" for measured in outage["planes"].values()]
    assert ["success", *success] in shown.rows
    for judged in outage["compared"]:
        (row,) = [row for row in shown.rows if row[0] == judged["figure"] and len(row) == 6][-1:] or [None]
        assert row is not None, judged["figure"]
    p50 = [findings.number(measured["latency_ms"]["p50"]) for measured in outage["planes"].values()]
    assert ["latency p50, ms", *p50] in shown.rows
    (latency,) = [row for row in shown.rows if row[0] == "latency p50, ms" and "x" in row[3]]
    ratio = told["cost"]["planes"]["library"]["latency_p50"]["ratio"]
    assert f"x{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})" in latency[3]


def test_judgements_stand_with_tolerance_word_and_reason(told: dict[str, Any]) -> None:
    shown = Page(page(told))
    outage = next(each for each in told["scenarios"] if each["name"] == "outage")
    (judged,) = [each for each in outage["compared"] if each["figure"] == "rejections: circuit open"]
    assert judged["verdict"] == "DIFFERS"
    (row,) = [row for row in shown.rows if row[0] == "rejections: circuit open" and len(row) == 6 and row[1] == "33.3 %"][:1]
    assert row[2:5] == ["0 %", f"{judged['tolerance']:.0f} points", "≠ differs"]
    assert judged["reasons"][0]["text"] in row[5]
    assert "#parity-circuitbreaker" in shown.values("href")


def test_a_disturbed_run_is_marked(told: dict[str, Any]) -> None:
    text = Page(page(told)).text
    assert "bare: round 1: other processes used 40% of the machine" in text
    quiet = copy.deepcopy(told)
    for scenario in quiet["scenarios"]:
        for measured in scenario["planes"].values():
            measured["disturbance"] = []
    assert "other processes used" not in Page(page(quiet)).text
    assert "No run was marked as disturbed" in Page(page(quiet)).text


def test_the_policy_is_shown_and_so_is_what_envoy_makes_of_it(told: dict[str, Any]) -> None:
    shown = Page(page(told))
    for scenario in told["scenarios"]:
        assert scenario["policy"] in shown.text
    assert [row for row in shown.rows if row[:2] == ["circuitBreaker", "library-only"] and "steady, outage, workers" in row[4]]
    assert [row for row in shown.rows if row[:2] == ["endpoints", "exact"]]
    assert [row for row in shown.rows if row[:2] == ["timeout", "approximate"] and row[3] != "-"]


HOSTILE = "</style></svg><script>alert(1)</script>\" onload='x' &amp; ]]> \x00\x1b[31m \u202e rtl"


def _poisoned(value: Any, key: str = "") -> Any:
    """Every text of a report replaced, but those that choose among known words."""
    if isinstance(value, dict):
        return {(f"{name}{HOSTILE}" if key in ("errors", "rejections", "failures", "requests") else name): _poisoned(item, name)
                for name, item in value.items()}
    if isinstance(value, list):
        return [_poisoned(item, key) for item in value]
    return HOSTILE if isinstance(value, str) and key not in ("verdict", "watched", "circuit") else value


def test_hostile_text_is_text(told: dict[str, Any]) -> None:
    poisoned = _poisoned(told)
    for number, scenario in enumerate(poisoned["scenarios"]):
        scenario["name"] = f"{number}{HOSTILE}"
    text = page(poisoned)
    shown = Page(text)
    assert "script" not in shown.tags
    assert not [name for _, name, _ in shown.attributes if name.startswith("on")]
    assert "<script>alert(1)</script>" in shown.text
    assert len(shown.ids) == len(set(shown.ids))
    assert not {"\x00", "\x1b", "\u202e"} & set(text)
    assert "cannot be read" in shown.text


def test_words_follow_the_figures(told: dict[str, Any]) -> None:
    """Library and sidecar change places: so do the sentences."""
    turned = copy.deepcopy(told)
    planes = turned["cost"]["planes"]
    planes["library"], planes["sidecar"] = planes["sidecar"], planes["library"]
    before = {each.title: each.speaks_for for each in findings.arguments(told)}
    after = {each.title: each.speaks_for for each in findings.arguments(turned)}
    assert before["Memory in all"] == "library"
    assert after["Memory in all"] == "sidecar"
    assert before["The way of a call"] is after["The way of a call"] is None      # both were as fast
    outage = next(each for each in turned["scenarios"] if each["name"] == "outage")
    assert "66.7 % with the library and 66.7 % with the sidecar (66.7 % without a policy)" in findings.meaning(outage)
    outage["planes"]["sidecar"]["success_rate"] = 0.12345
    assert "66.7 % with the library and 12.3 % with the sidecar" in findings.meaning(outage)
    for judged in outage["compared"]:
        judged["verdict"] = "same"
    assert f"behaved alike in all {len(outage['compared'])} figures" in findings.meaning(outage)
    assert "not both run" in findings.meaning({**outage, "compared": []})


def test_not_quite_all_is_never_called_all() -> None:
    assert [findings.percent(share) for share in (1.0, 0.99999, 0.5, 0.00001, 0.0)] == ["100.0 %", "99.9 %", "50.0 %", "0.1 %", "0.0 %"]


def test_a_long_run_is_drawn_in_fewer_buckets(told: dict[str, Any]) -> None:
    long = copy.deepcopy(told)
    (outage,) = (each for each in long["scenarios"] if each["name"] == "outage")
    for measured in outage["planes"].values():
        _repeat(measured["series"], 200)
    text = page(long)
    assert len(text) < 1_000_000
    count = len(next(iter(outage["planes"].values()))["series"]["start_s"])
    assert count > 6000
    assert f"in steps of {-(-count // 100) / 10:g} s" in Page(text).text


def _repeat(series: dict[str, Any], times: int) -> None:
    count = len(series["start_s"])
    for name, value in series.items():
        if isinstance(value, list) and len(value) == count:
            series[name] = value * times
        elif isinstance(value, dict):
            series[name] = {key: item * times for key, item in value.items()}
        elif name == "circuit" and value:
            series[name] = [item * times for item in value]


def test_without_costs_series_or_sidecar_it_says_so(told: dict[str, Any]) -> None:
    bare = copy.deepcopy(told)
    bare["cost"] = None
    bare["envoy"] = {"version": None, "missing": "there is no Envoy"}
    for scenario in bare["scenarios"]:
        scenario["planes"] = {"bare": {**scenario["planes"]["bare"], "series": None}}
        scenario["compared"] = []
    text = Page(page(bare)).text
    assert "The sidecar was left out: there is no Envoy" in text
    assert "no figures over time" in text
    assert "Not measured in this report" in text
    assert "nothing was judged" in text


@pytest.mark.parametrize("wrong", [[], {}, {"scenarios": []}, {"scenarios": [{}]}, "x", None, 1])
def test_what_is_no_report_is_said_to_be_none(wrong: Any) -> None:
    with pytest.raises(NoReport, match="no report of resilmesh compare"):
        page(wrong)


def test_a_report_of_earlier_is_shown_again(told: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, made = tmp_path / "report.json", tmp_path / "page.html"
    source.write_text(json.dumps(told))
    assert cli.main(["compare", "--from", str(source), "--html", str(made)]) == 0
    assert made.read_text(encoding="utf-8") == page(told)
    assert cli.main(["compare", "--from", str(source)]) == 2
    assert "--from needs --html" in capsys.readouterr().err
    source.write_text("{")
    assert cli.main(["compare", "--from", str(source), "--html", str(made)]) == 2
    assert "report.json: " in capsys.readouterr().err
    assert made.read_text(encoding="utf-8") == page(told)
    assert cli.main(["compare", "--from", str(tmp_path / "missing.json"), "--html", str(tmp_path / "new.html")]) == 2
    assert not (tmp_path / "new.html").exists(), "what is refused leaves no empty file"


def test_one_scenario_with_edits_shows_both_policies() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "observe", observed)
        scenario = replace(BY_NAME["live-policy-change"], processes=1)
        settings = Settings([scenario])
        results = list(run.compare(settings, Progress(io.StringIO(), 1, 1.0)))
    text = page(json.loads(json.dumps(report.as_json(settings, results, {}, "1.40.0", MACHINE))))
    shown = Page(text)
    assert {"policy-live-policy-change", "policy-live-policy-change-edited"} <= set(shown.ids)
