"""One scenario of a report as a section of the page: question, script, charts, figures, judgements, and what it means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resilmesh.compare import charts, findings
from resilmesh.compare.charts import swatch
from resilmesh.compare.findings import DIFFERS, number, percent
from resilmesh.compare.markup import Markup, element, join
from resilmesh.compare.timeline import Timeline, timeline

Json = Mapping[str, Any]

_NONE = "-"
_VERDICTS = {"same": ("=", "same"), DIFFERS: ("≠", "differs"), "too few to tell": ("?", "too few to tell")}


def section(scenario: Json, anchors: frozenset[str]) -> Markup:
    """The whole of it. ``anchors`` are the ids of the parity table, to which the reasons of differences link."""
    name = scenario["name"]
    return element(
        "section",
        element("h3", element("span", name, class_="name"), " ", scenario["question"], id=f"scenario-{slug(name)}"),
        element("p", findings.meaning(scenario), class_="meaning"),
        _disturbed(scenario),
        *_notes(scenario),
        element("details", element("summary", "What was scripted" if scenario.get("services") else "What was sent"), _script(scenario)),
        _charts(scenario),
        _figures(scenario),
        _judged(scenario, anchors),
        element("p", element("a", f"The policy of {name}, in full", href=f"#policy-{slug(name)}")),
        class_="scenario", aria_labelledby=f"scenario-{slug(name)}",
    )


def slug(name: str) -> str:
    """``name`` as a part of an id."""
    return "".join(each if each.isascii() and each.isalnum() else "-" for each in name.lower())


def table(caption: object, head: Sequence[object], rows: Iterable[Sequence[object]], class_: str = "") -> Markup:
    """A table that scrolls by itself on a narrow screen. The first cell of each row is its heading."""
    return element(
        "div",
        element(
            "table", element("caption", caption),
            element("thead", element("tr", *(element("th", cell, scope="col") for cell in head))),
            element("tbody", *(
                element("tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])) for row in rows
            )),
            class_=class_ or None,
        ),
        class_="scroll", tabindex=0, role="region", aria_label=f"Table: {caption}",
    )


def _disturbed(scenario: Json) -> Markup | None:
    found = findings.disturbed(scenario)
    if not found:
        return None
    return element(
        "div", element("p", element("strong", "Disturbed. "), "Somebody else used the machine during these runs; repeat them before you "
        "rely on the figures."),
        element("ul", *(element("li", f"{plane}: {why}") for plane, why in found.items())), class_="warning",
    )


def _notes(scenario: Json) -> list[Markup]:
    return [element("p", note, class_="aside") for note in scenario.get("notes") or ()]


# ------------------------------------------------------------------------------------------- what was scripted


def _script(scenario: Json) -> Markup:
    processes = scenario.get("processes", 1)
    several = f" in each of {processes} processes" if processes > 1 else ""
    rounds = scenario.get("rounds", 1)
    repeated = f"{rounds} round{'s' if rounds > 1 else ''} on each plane"
    traffic = f"Calls: {scenario['traffic']}; at most {scenario['workers']} at once{several}; {repeated}."
    return element(
        "ul", element("li", traffic), *(element("li", _service(each, scenario.get("protocol"))) for each in scenario.get("services") or ()),
        *(element("li", f"At {mark['at_s']:g} s: {mark['what']}.") for mark in scenario.get("marks") or ()),
    )


def _service(script: Json, protocol: str | None) -> str:
    parts = []
    overloaded = "503" if protocol != "GRPC" else "UNAVAILABLE"
    if script.get("refuses"):
        parts.append("refuses every connection")
    latency = script.get("latency") or {}
    if latency.get("median"):
        varying = f", log-normal with sigma {latency['sigma']:g}" if latency.get("sigma") else ""
        parts.append(f"answers in {latency['median'] * 1000:g} ms{varying}")
    parts += [f"{percent(share)} of requests end in {outcome}" for outcome, share in (script.get("outcomes") or {}).items()]
    if script.get("capacity") is not None:
        parts.append(f"works on {script['capacity']} at once, {script.get('queue', 0)} more wait, the next is answered {overloaded}")
    if script.get("pushback") is not None:
        parts.append(f"asks whom it fails to come back after {script['pushback']} ms")
    for outage in script.get("outages") or ():
        parts.append(f"from {outage['start']:g} to {outage['end']:g} s "
            f"{outage.get('outcome', 'fails')}{_after(outage.get('latency') or {})}")
    return f"Endpoint {script['name']} (version {script['version']}): {'; '.join(parts) or 'answers at once'}."


def _after(latency: Json) -> str:
    return f" after {latency['median'] * 1000:g} ms" if latency.get("median") else ""


# ------------------------------------------------------------------------------------------- charts


def _charts(scenario: Json) -> Markup:
    runs = {plane: timeline(measured["series"]) for plane, measured in scenario["planes"].items() if measured.get("series")}
    if not runs:
        return element("p", "This report has no figures over time.", class_="aside")
    marks = {what: place for place, what in enumerate(dict.fromkeys(mark.what for run in runs.values() for mark in run.marks), 1)}
    return join(
        _calls_chart(runs, marks), _latency_chart(runs, marks),
        _requests_chart(runs, marks) if any(run.requests for run in runs.values()) else None,
        _state_chart(runs), _explained(runs, marks),
    )


def _figure(title: str, runs: Mapping[str, Timeline], panels: Mapping[str, Markup], legend: Sequence[tuple[str, str]]) -> Markup:
    return element(
        "figure",
        element("figcaption", element("strong", title), element(
            "span", *(element("span", swatch(kind), " ", words, class_="entry") for kind, words in legend), class_="legend")),
        element("div", *(element("div", element("h4", plane), panels[plane]) for plane in runs), class_="panels"),
    )


def _calls_chart(runs: Mapping[str, Timeline], marks: Mapping[str, int]) -> Markup:
    looks = charts.look({name for run in runs.values() for name, values in run.errors.items() if any(values)})
    highest = max(max(run.due, default=0) for run in runs.values())
    axes = charts.linear(runs.values(), highest, "calls per second")
    legend = [("succeeded", "succeeded"), *((kind, name) for name, kind in looks.items())]
    panels = {
        plane: charts.calls_panel(run, axes, {**dict.fromkeys(run.errors, "failed-1"), **looks}, marks, _calls_described(plane, run))
        for plane, run in runs.items()
    }
    return _figure("Calls per second, by what became of them", runs, panels, legend)


def _calls_described(plane: str, run: Timeline) -> str:
    due = sum(run.due) * run.bucket
    parts = [f"{sum(run.succeeded) * run.bucket:.0f} of {due:.0f} calls succeeded"]
    parts += [f"{sum(values) * run.bucket:.0f} {name}{_when(run, values)}" for name, values in run.errors.items() if any(values)]
    return f"{plane}, calls over {run.end:.1f} seconds: {'; '.join(parts)}."


def _when(run: Timeline, values: Sequence[float]) -> str:
    places = [place for place, value in enumerate(values) if value]
    return f" between {places[0] * run.bucket:.1f} and {(places[-1] + 1) * run.bucket:.1f} s"


def _latency_chart(runs: Mapping[str, Timeline], marks: Mapping[str, int]) -> Markup:
    known = [value for run in runs.values() for values in run.latency.values() for value in values if value]
    axes = charts.logarithmic(runs.values(), known, "ms")
    panels = {plane: charts.latency_panel(run, axes, marks, _latency_described(plane, run)) for plane, run in runs.items()}
    return _figure(
        "Latency of successful calls, in ms (logarithmic)", runs, panels,
        [("p50", "p50: half were faster"), ("p99", "p99: one in a hundred was slower")],
    )


def _latency_described(plane: str, run: Timeline) -> str:
    parts = []
    for name, values in run.latency.items():
        known = [value for value in values if value is not None]
        if known:
            parts.append(f"{name} between {min(known):.2f} and {max(known):.2f} ms")
    return f"{plane}, latency over {run.end:.1f} seconds: {'; '.join(parts) or 'no call succeeded'}."


def _requests_chart(runs: Mapping[str, Timeline], marks: Mapping[str, int]) -> Markup:
    highest = max(
        max(*run.due, *(sum(of_all) for of_all in zip(*run.requests.values(), strict=True)), 0.0) for run in runs.values() if run.requests
    )
    axes = charts.linear(runs.values(), highest, "requests per second")
    endpoints = list(dict.fromkeys(name for run in runs.values() for name in run.requests))
    legend = [(f"endpoint-{place % charts.LOOKS + 1}", f"endpoint {name}") for place, name in enumerate(endpoints)]
    panels = {
        plane: charts.requests_panel(run, axes, marks, _requests_described(plane, run)) for plane, run in runs.items()
    }
    return _figure("Requests that reached the services, per second", runs, panels, [*legend, ("due", "calls that were due")])


def _requests_described(plane: str, run: Timeline) -> str:
    parts = [f"{sum(values) * run.bucket:.0f} to endpoint {name}" for name, values in run.requests.items()]
    return f"{plane}, requests that services saw over {run.end:.1f} seconds: {'; '.join(parts)}, of {sum(run.due) * run.bucket:.0f} calls."


def _state_chart(runs: Mapping[str, Timeline]) -> Markup | None:
    circuits = max(len(run.circuit) for run in runs.values())
    endpoints = list(dict.fromkeys(name for run in runs.values() for name in run.ejected))
    if not circuits and not endpoints:
        return None
    axes = charts.linear(runs.values(), 1.0, "")
    panels = {
        plane: charts.state_panel(run, axes, circuits, endpoints, _state_described(plane, run)) if run.circuit or run.ejected
        else element("p", "Decides nothing." if run.watched is None else "Has neither.", class_="aside")
        for plane, run in runs.items()
    }
    legend = [("circuit-closed", "circuit closed"), ("circuit-half_open", "half-open"), ("circuit-open", "open")] if circuits else []
    if endpoints:
        numbered = ", ".join(f"{place} is {name}" for place, name in enumerate(endpoints, 1))
        legend += [("present", f"endpoint in use ({numbered})"), ("ejected", "ejected")]
    return _figure("Circuit breakers and ejected endpoints, as the plane itself says", runs, panels, legend)


def _state_described(plane: str, run: Timeline) -> str:
    parts = []
    for place, states in enumerate(run.circuit):
        opened = sum(state == "OPEN" for state in states) * run.bucket
        parts.append(f"circuit of process {place + 1} open for {opened:.1f} of {run.end:.1f} s")
    for name, holders in run.ejected.items():
        parts.append(f"endpoint {name} ejected for {sum(map(bool, holders)) * run.bucket:.1f} s")
    return f"{plane}: {'; '.join(parts)}."


def _explained(runs: Mapping[str, Timeline], marks: Mapping[str, int]) -> Markup:
    run = next(iter(runs.values()))
    times = {mark.what: mark.at for each in reversed(list(runs.values())) for mark in reversed(each.marks)}
    scripted = "; ".join(f"{place}: {what} ({times[what]:.1f} s)" for what, place in marks.items())
    rounds = sorted({each.round for each in runs.values()})
    return element(
        "p",
        f"Marks: {scripted}. " if scripted else "",
        f"Seconds of the run, in steps of {run.bucket:g} s; round {', '.join(map(str, rounds))} is shown. Point at a bar to read its "
        f"numbers.",
        class_="aside",
    )


# ------------------------------------------------------------------------------------------- figures


def _figures(scenario: Json) -> Markup:
    planes: Json = scenario["planes"]
    rows = [row for row in _rows(planes) if any(cell != _NONE for cell in row[1:])]
    rounds = scenario.get("rounds", 1)
    note = f" (all {rounds} rounds together; in brackets the least and the greatest of a round)" if rounds > 1 else ""
    return table(f"{scenario['name']}: figures{note}", ["", *planes], rows, "figures")


def _rows(planes: Json) -> list[list[object]]:
    measured = list(planes.values())

    def row(title: str, spread: str, shown: Iterable[str]) -> list[object]:
        return [title, *(join(text, _range(each, spread)) for text, each in zip(shown, measured, strict=True))]

    rows: list[list[object]] = [
        row("calls", "", (f"{each['calls']:,}" for each in measured)),
        row("success", "success", (percent(each["success_rate"]) for each in measured)),
        *(
            row(f"latency {name}, ms", f"latency {name}", (_or_none(each["latency_ms"][name]) for each in measured))
            for name in ("p50", "p90", "p99")
        ),
        row("requests a call, as services saw", "attempts per call", (_or_none(each["attempts_per_call"]) for each in measured)),
    ]
    for kind, word in (("rejections", "rejected"), ("failures", "failed")):
        rows += [
            row(f"{word}: {reason}", f"{kind}: {reason}", (_share(each[kind].get(reason, 0), each["calls"]) for each in measured))
            for reason in sorted({reason for each in measured for reason in each[kind]})
        ]
    versions = sorted({version for each in measured for version in each["versions"]})
    for version in versions if len(versions) > 1 else ():
        answered = (_share(each["versions"].get(version, 0), sum(each["versions"].values())) for each in measured)
        rows.append(row(f"answered by {version}", f"answered by {version}", answered))
    endpoints = sorted({name for each in measured for name in each.get("requests_by_endpoint") or {}})
    for name in endpoints if len(endpoints) > 1 else ():
        seen = (_share((each.get("requests_by_endpoint") or {}).get(name, 0), each["calls"]) for each in measured)
        rows.append(row(f"requests to {name}, of calls", f"requests to {name}", seen))
    if any(each["requests_in_outage"] for each in measured):
        failing = (_or_none(each["requests_in_outage"]) for each in measured)
        rows.append(row("requests during the outage", "requests during the outage", failing))
    rows.append(row("most at once at an endpoint", "most at once at an endpoint", (_or_none(each["most_at_once"]) for each in measured)))
    for title, key, spread in (
        ("endpoints ejected", "ejections", "ejections"), ("retries, by its own count", "retries", "retries, by its own count"),
        ("delays injected, by its own count", "delays_injected", ""), ("time to recover, s", "recovery_s", "time to recover"),
        ("time until the new policy, s", "policy_change_s", "time until the new policy"),
    ):
        if any(value != 0 for each in measured for value in each.get(key) or ()):
            rows.append(row(title, spread, (_mean(each.get(key)) for each in measured)))
    if any((each["late_ms_p99"] or 0) > 5 for each in measured):
        rows.append(row("calls began late (p99), ms", "", (_or_none(each["late_ms_p99"]) for each in measured)))
    return rows


def _or_none(value: float | None) -> str:
    return _NONE if value is None else number(value)


def _share(part: int, whole: int) -> str:
    return percent(part / whole) if part and whole else _NONE


def _mean(rounds: Sequence[float | None] | None) -> str:
    if not rounds:
        return _NONE
    known = [value for value in rounds if value is not None]
    if not known:
        return "never"
    return number(sum(known) / len(known)) + ("" if len(known) == len(rounds) else f" (never in {len(rounds) - len(known)})")


def _range(measured: Json, figure: str) -> Markup | None:
    spread = (measured.get("spread") or {}).get(figure)
    if spread is None or spread["least"] == spread["greatest"]:
        return None
    return element("small", f" ({number(spread['least'])} to {number(spread['greatest'])})")


# ------------------------------------------------------------------------------------------- judgements


def _judged(scenario: Json, anchors: frozenset[str]) -> Markup | None:
    compared = scenario["compared"]
    if not compared:
        return None
    # What differs is what a reader looks for.
    ordered = sorted(compared, key=lambda each: (each["verdict"] != DIFFERS, each["verdict"] == "same"))
    rows = [
        [
            each["figure"], _with_unit(each["library"], each["unit"]), _with_unit(each["sidecar"], each["unit"]),
            _with_unit(each["tolerance"], "points" if each["unit"] == "%" else each["unit"]), verdict(each["verdict"]), _why(each, anchors),
        ]
        for each in ordered
    ]
    return table(
        f"{scenario['name']}: library and sidecar judged", ["figure", "library", "sidecar", "tolerance", "judgement", "chance, and "
            "why"], rows, "judged",
    )


def _with_unit(value: float | None, unit: str) -> str:
    return number(value) + (f" {unit}" if unit and value is not None else "")


def verdict(word: str) -> Markup:
    """A judgement as a badge: a sign and a word, so that colour is not needed."""
    sign, shown = _VERDICTS.get(word, ("", word))
    return element("span", element("span", sign, aria_hidden="true"), f" {shown}", class_=f"verdict verdict-{slug(shown)}")


def _why(judged: Json, anchors: frozenset[str]) -> Markup:
    """Chance, then each reason with the place of the page or of the documentation that says more."""
    return join(
        element("small", judged["chance"]),
        *(element("p", reason["text"], " ", *_more(reason["docs"], anchors)) for reason in judged["reasons"]),
    )


def _more(docs: str, anchors: frozenset[str]) -> Iterable[Markup]:
    anchor = f"parity-{slug(docs.rpartition('#')[2])}"
    if anchor in anchors:
        yield element("a", "parity table", href=f"#{anchor}")
    elif docs:
        yield element("code", docs)
