"""The comparison for people (aligned tables) and for programs (JSON)."""

from __future__ import annotations

import math
import os
import platform
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from resilmesh.compare import cost as costing
from resilmesh.compare.cost import FIGURES, Cost
from resilmesh.compare.judge import Judgement
from resilmesh.compare.measure import RECOVERED_CALLS, Measured
from resilmesh.compare.planes import BARE, LIBRARY, SIDECAR, client_version
from resilmesh.compare.run import Result, Settings
from resilmesh.compare.scenarios import Closed
from resilmesh.compare.stats import ALPHA, Spread, quantile
from resilmesh.compare.traffic import CLIENT_TIMEOUT

_NONE = "-"
_WIDTH = 120
#: From here on the variation of bare alone is larger than what is to be measured.
_DISTURBED = 1.3
_HEADLINES = (("latency p50", "latency_p50"), ("CPU", "cpu_pod"), ("memory", "memory_pod"), ("start", "startup_pod"))
_UNEXPLAINED = "nothing in this policy explains it: one of the planes is wrong here, or this run was disturbed"
#: Below this many successful calls the 99th percentile is one call's luck.
_ENOUGH_FOR_P99 = 200


def machine() -> dict[str, Any]:
    """Where the figures come from, as far as they depend on it."""
    return {
        "platform": f"{platform.system()} {platform.machine()}", "kernel": platform.release(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def client(settings: Settings) -> dict[str, Any]:
    """The client that makes the calls in every plane."""
    library, _, style = settings.client.partition("-")
    return {
        "name": settings.client, "library": library, "version": client_version(settings.client),
        "style": "asyncio tasks" if style else "threads", "protocol": "HTTP/1.1", "timeout_s": CLIENT_TIMEOUT, "seed": settings.seed,
    }


def as_json(settings: Settings, results: Sequence[Result], missing: Mapping[str, str], envoy: str | None) -> dict[str, Any]:
    """The whole report. Times carry their unit in their name; ``cost`` is null when the steady scenario was not run."""
    costly = next((result for result in results if result.costs is not None), None)
    return {
        "resilmesh": version("resilmesh"),
        "envoy": {"version": envoy, **({"missing": missing[SIDECAR]} if SIDECAR in missing else {})},
        "machine": machine(),
        "client": client(settings),
        "scenarios": [_scenario_json(result) for result in results],
        "cost": None if costly is None or costly.costs is None else costing.as_json(
            costly.costs, settings.rounds, costly.planes[BARE].calls // settings.rounds),
    }


def _scenario_json(result: Result) -> dict[str, Any]:
    compared = [
        judgement.as_json(judgement.explained_by(result.notes) if judgement.differs else ()) for judgement in result.judgements
    ]
    return {
        "name": result.scenario.name,
        "question": result.scenario.question,
        "traffic": str(result.scenario.traffic),
        "workers": result.scenario.workers,
        "policy": result.scenario.policy(),
        "planes": {plane: measured.as_json() for plane, measured in result.planes.items()},
        "differences": [each for each in compared if each["verdict"] == "DIFFERS"],
        "compared": compared,
    }


# ------------------------------------------------------------------------------------------- in words


def heading(settings: Settings, missing: Mapping[str, str], envoy: str | None) -> str:
    here, by = machine(), client(settings)
    sidecar = f"Envoy {envoy}, one worker (Envoy, not Istio: no control plane, no iptables)" if envoy else f"left out: {missing[SIDECAR]}"
    return "\n".join((
        f"resilmesh {version('resilmesh')}, the same policy and the same calls on every plane",
        f"  client   {by['library']} {by['version']}, {by['style']}, {by['protocol']}, no redirects, seed {settings.seed}",
        f"  sidecar  {sidecar}",
        f"  machine  {here['platform']}, {here['cpus']} CPUs, {here['python']}; client, proxy and services share it, over 127.0.0.1",
        "  bare and library-off are for orientation; library and sidecar are what is compared.",
    ))


def scenario(result: Result) -> str:
    """One scenario's table, and what it says about library and sidecar."""
    what = result.scenario
    measured = list(result.planes.values())
    rows = [["", *result.planes]]
    rows += [[title, *(show(each) for each in measured)] for title, show in _rows(measured)]
    workers = f"{what.workers} workers" if what.workers > 1 else "1 worker"
    return "\n".join((
        f"{what.name}: {what.question}", f"  {what.traffic}, {workers}; policy: resilmesh/{what.policy_file}", "",
        table(rows), *_verdict(result),
    ))


Show = Callable[[Measured], str]


def _rows(measured: Sequence[Measured]) -> list[tuple[str, Show]]:
    rows: list[tuple[str, Show]] = [
        ("calls", lambda each: f"{each.calls}"),
        ("success", lambda each: f"{each.success_rate:.1%}"),
        *((f"latency p{percent}, ms", _latency_shown(percent)) for percent in (50, 90, 99)),
        ("attempts per call, as services saw", lambda each: f"{each.attempts_per_call:.3f}"),
    ]
    for kind, word in (("rejections", "rejected"), ("failures", "failed")):
        reasons = _reasons_of(kind, measured)
        if len(reasons) > 1:
            rows.append((f"{word}, in all", _counted(kind, *reasons)))
        rows += [(f"{word}: {reason}", _counted(kind, reason)) for reason in reasons]
    versions = _reasons_of("versions", measured)
    if len(versions) > 1:
        rows += [(f"answered by {name}", _version_share(name)) for name in versions]
    if any(each.ejections is not None for each in measured):
        rows.append(("endpoints ejected", lambda each: _NONE if each.ejections is None else str(each.ejections)))
    if any(each.requests_in_outage for each in measured):
        rows.append(("requests during the outage", lambda each: str(each.requests_in_outage)))
    if any(each.recovery is not None for each in measured):
        rows.append(("time to recover, s", _recovery_shown))
    if any(each.late > 0.005 for each in measured):
        rows.append(("calls began late (p99), ms", lambda each: f"{each.late * 1000:.1f}"))
    return rows


def _latency_shown(percent: int) -> Show:
    def show(each: Measured) -> str:
        if percent == 99 and len(each.latencies) < _ENOUGH_FOR_P99:
            return _NONE
        return f"{quantile(each.latencies, percent / 100) * 1000:.2f}" if each.latencies else _NONE

    return show


def _counted(kind: str, *reasons: str) -> Show:
    def show(each: Measured) -> str:
        counts: Counter[str] = getattr(each, kind)
        count = sum(counts[reason] for reason in reasons)
        return f"{count / each.calls:.1%}" if count else _NONE

    return show


def _version_share(name: str) -> Show:
    return lambda each: f"{each.versions[name] / max(each.versions.total(), 1):.1%}"


def _recovery_shown(each: Measured) -> str:
    if each.recovery is None:
        return _NONE
    return f"{each.recovery:.2f}" if math.isfinite(each.recovery) else "never"


def _reasons_of(kind: str, measured: Sequence[Measured]) -> list[str]:
    return sorted({reason for each in measured for reason in getattr(each, kind)})


def _verdict(result: Result) -> list[str]:
    if not result.judgements:
        return []
    differing = [judgement for judgement in result.judgements if judgement.differs]
    count = len(result.judgements)
    if not differing:
        return ["", f"  Library and sidecar: {count} figures compared, all alike within tolerance or chance."]
    lines = ["", f"  Library and sidecar: {count} figures compared, {count - len(differing)} alike."]
    lines += [f"  DIFFERS  {_sentence(judgement)}" for judgement in differing]
    by_reason: dict[str, list[str]] = {}
    for judgement in differing:
        for reason in judgement.explained_by(result.notes) or [_UNEXPLAINED]:
            by_reason.setdefault(reason, []).append(judgement.figure)
    lines += [f"  why      {reason} [{', '.join(figures)}]" for reason, figures in by_reason.items()]
    return [textwrap.fill(line, _WIDTH, initial_indent="", subsequent_indent=" " * 11) for line in lines]


def _sentence(judgement: Judgement) -> str:
    unit = f" {judgement.unit}" if judgement.unit else ""
    return (
        f"{judgement.figure}: library {judgement.library:.4g}{unit}, sidecar {judgement.sidecar:.4g}{unit}"
        f" ({judgement.chance}; tolerance {judgement.tolerance})"
    )


def in_short(results: Sequence[Result], missing: Mapping[str, str]) -> str:
    """The whole comparison in a few lines."""
    lines = ["In short", *(f"  left out   {plane}: {remedy}" for plane, remedy in missing.items())]
    judgements = [judgement for result in results for judgement in result.judgements]
    if judgements:
        count = sum(judgement.differs for judgement in judgements)
        lines.append(f"  behaviour  {len(judgements)} figures of library and sidecar compared, {count} differ")
    for result in results:
        differing = [judgement.figure for judgement in result.judgements if judgement.differs]
        if differing:
            lines.append(f"             {result.scenario.name}: {', '.join(differing)}")
    for result in results:
        if result.costs is not None:
            lines += [*_headlines(result.costs), *_disturbed(result.costs)]
    return "\n".join(lines)


def _headlines(found: Mapping[str, Mapping[str, Cost]]) -> list[str]:
    lines = []
    for plane in (LIBRARY, SIDECAR):
        costs = found.get(plane, {})
        ratios = [(words, costs[name].ratio) for words, name in _HEADLINES if name in costs]
        shown = [f"{words} x{ratio.median:.2f}" for words, ratio in ratios if ratio is not None]
        if shown:
            lines.append(f"  cost       {plane}, against bare: {', '.join(shown)}")
    return lines


def notes_on_method() -> str:
    return "\n".join((
        "How it was judged",
        f"  DIFFERS: beyond the tolerance and, where chance can be reckoned, p < {ALPHA:g}. Latencies are of successful calls, from",
        "  when each was due; p99 is shown and not judged. A call's luck at a service is drawn from the seed, the same on every plane.",
        "  Where calls began late the machine was busy: latencies are given that much more tolerance.",
        f"  Recovered: from the first of {RECOVERED_CALLS} successes in a row after the outage.",
    ))


def cost(result: Result, settings: Settings) -> str:
    """The table of costs, absolute and as ratios to bare, of a result that has them."""
    assert result.costs is not None
    assert isinstance(result.scenario.traffic, Closed)
    planes = [plane for plane in result.costs if plane != BARE]
    rows = [["", BARE, *planes]]
    for figure in FIGURES:
        cells = [_cost_shown(result.costs[plane].get(figure.name), figure.unit) for plane in planes]
        base = result.costs[BARE].get(figure.name)
        if base is not None or any(cell != _NONE for cell in cells):
            rows.append([f"{figure.title}, {figure.unit}", _NONE if base is None else _number(base.value.median), *cells])
    return "\n".join((
        f"Cost: from {settings.rounds} interleaved rounds of steady, {result.scenario.traffic.calls} calls each by one worker",
        "  Medians; in brackets the ratio to bare of the same round, as least-median-greatest. The services answer at once, so the",
        "  ratios of latency are the worst case: a service that takes 20 ms makes them nearly 1. Proxy CPU is read in ticks of 10 ms.",
        *_disturbed(result.costs), "", table(rows), "",
        *what_is_worse(result.costs),
    ))


def _disturbed(found: Mapping[str, Mapping[str, Cost]]) -> list[str]:
    factor = costing.disturbance(found)
    return [] if factor < _DISTURBED else [
        f"  DISTURBED: bare's own latency varied by x{factor:.1f} from round to round, so the machine was not quiet. Repeat this before",
        "  you believe the ratios.",
    ]


def _cost_shown(cost: Cost | None, unit: str) -> str:
    if cost is None:
        return _NONE
    if cost.ratio is None:
        return f"{_number(cost.value.median)} {_spread(cost.value)}"
    return f"{_number(cost.value.median)} x{_spread(cost.ratio)}"


def _spread(spread: Spread) -> str:
    return f"({spread.least:.2f}-{spread.median:.2f}-{spread.greatest:.2f})"


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def what_is_worse(found: Mapping[str, Mapping[str, Cost]]) -> list[str]:
    """What speaks against the library: from the figures of this run, and what follows from where it lives."""
    lines = ["What the library does worse"]
    if SIDECAR in found:
        for figure in FIGURES:
            mine, theirs = found[LIBRARY].get(figure.name), found[SIDECAR].get(figure.name)
            if mine is not None and theirs is not None and mine.value.median > theirs.value.median:
                lines.append(
                    f"  {figure.title}: {_number(mine.value.median)} {figure.unit}, with a sidecar {_number(theirs.value.median)}")
    if (cpu := found[LIBRARY]["cpu_client"].added) is not None:
        lines.append(
            f"  Its CPU, {cpu.median:.3f} s per 1,000 calls over bare, is spent in the application's own process, under its GIL;")
        lines.append("  a sidecar's is spent in another process, on another core where there is one.")
    return [
        *lines,
        "  State is per process: four workers have four circuits, four budgets and four times each limit, and each learns of an",
        "  outage by itself. One sidecar serves all processes of a pod. (Not measured here: every plane runs one process.)",
        "  A new version of the library means a deploy of the application; a sidecar is replaced beside it. And it is Python only.",
    ]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of equal length: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  " + row[0].ljust(widths[0]) + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
