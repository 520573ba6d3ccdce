"""The comparison as one page of Markdown, for publication: every table, every judgement, what it ran on and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from resilmesh.compare import report
from resilmesh.compare.judge import Judgement
from resilmesh.compare.planes import sidecar_of
from resilmesh.compare.run import Result


def page(told: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The page. ``told`` is the JSON report of ``results``."""
    sections = [_head(told), _summary(results), *map(_scenario, results)]
    sections += [_costs(result) for result in results if result.costs is not None]
    sections += [_method(), _policies(results)]
    return "\n\n".join(sections) + "\n"


def _head(told: Mapping[str, Any]) -> str:
    run, here, client = told["run"], told["machine"], told["client"]
    facts = (
        ("resilmesh", told["resilmesh"]),
        ("Envoy", f"{told['envoy']['version'] or 'left out'}, one worker; not Istio: no control plane, no iptables"),
        ("client", f"{client['library']} {client['version']}, {client['style']}, {client['protocol']}"),
        ("machine", f"{here['cpu']}, {here['cpus']} CPUs, {here['memory_mib']} MiB, {here['platform']}, kernel {here['kernel']}"),
        ("Python", here["python"]),
        ("packages", ", ".join(f"{name} {version}" for name, version in told["versions"].items())),
        ("load before", f"{here['load']}"),
        ("run", f"{run['started']}, {run['seconds']:.0f} s, seed {run['seed']}"),
        ("to repeat it", f"`{run['command']}`"),
    )
    return "\n".join((
        "# The same policy in the process and in a sidecar", "",
        "The same calls to the same services, through the library and through a real Envoy that was configured from the same policy.",
        "Client, proxy and services share one machine, over 127.0.0.1.", "", *_table([["", ""], *([name, text] for name, text in facts)]),
    ))


def _summary(results: Sequence[Result]) -> str:
    judged = [(result, judgement) for result in results for judgement in result.judgements]
    lines = ["## In short", ""]
    if judged:
        lines += [f"Behaviour of library and sidecar: {report.counted([judgement for _, judgement in judged])}.", ""]
    rows = [["scenario", "question", "same", "differ", "too few to tell"]]
    for result in results:
        verdicts = [judgement.verdict for judgement in result.judgements]
        rows.append([f"[{result.scenario.name}](#{result.scenario.name})", result.scenario.question,
                     *(str(verdicts.count(verdict)) for verdict in report.VERDICTS)])
    return "\n".join([*lines, *_table(rows)])


def _scenario(result: Result) -> str:
    what = result.scenario
    processes = f", {what.processes} processes" if what.processes > 1 else ""
    rounds = f", {result.rounds} rounds: medians (least-greatest)" if result.rounds > 1 else ""
    lines = [
        f"## {what.name}", "", what.question, "",
        f"Traffic: {what.traffic}, {what.workers} at once at most{processes}{rounds}. Policy: [below](#policy-of-{what.name}).", "",
        *_table(report.rows(result), numbers=len(result.planes)),
    ]
    lines += ["", *(f"- {line}" for line in report.native(result))] if result.native else []
    lines += [line if not line else f"- **{line.strip()}**" for line in report.disturbed(result)]
    if result.judgements:
        lines += ["", f"Library and sidecar, {report.counted(result.judgements)}:", "", *_table(_judged(result), numbers=3)]
    return "\n".join(lines)


def _judged(result: Result) -> list[list[str]]:
    rows = [["figure", "library", sidecar_of(result.planes), "tolerance", "chance", "verdict", "why"]]
    return rows + [
        [
            f"{each.figure}{', ' + each.unit if each.unit else ''}", report.shown(each.library), report.shown(each.sidecar),
            f"{each.tolerance:.3g}", each.chance, _verdict(each),
            "; ".join(f"{why.text} ([more]({_link(why.docs)}))" for why in report.reasons(result, each)),
        ]
        for each in result.judgements
    ]


def _verdict(judgement: Judgement) -> str:
    return f"**{judgement.verdict}**" if judgement.differs else judgement.verdict


def _link(docs: str) -> str:
    # The page lies in benchmarks/results.
    return f"../../{docs}"


def _costs(result: Result) -> str:
    assert result.costs is not None
    worse = report.what_is_worse(result.costs, result.scenario.protocol)
    return "\n".join((
        f"## Costs of {result.scenario.name}", "",
        f"From {result.rounds} interleaved rounds of {result.scenario.name}. Medians; in brackets the ratio to bare of the same round, as",
        "least-median-greatest.",
        "The services answer at once, so the ratios of latency are the worst case.", "",
        *(f"**{line.strip()}**" for line in report.restless(result.costs)),
        *_table(report.cost_rows(result.costs), numbers=len(result.costs)), "", *_of_tls(result),
        "### What the library does worse", "", *(f"{line.strip()}  " for line in worse[1:]),
    ))


def _of_tls(result: Result) -> list[str]:
    if not result.costs_of_tls:
        return []
    rows = _table(report.tls_rows(result), numbers=len(result.costs_of_tls))
    return ["### What mutual TLS costs on each plane", "", "What it adds, and the ratio to the same plane without it.", "", *rows, ""]


def _method() -> str:
    return "\n".join(("## How it was judged", "", *(line.strip() for line in report.notes_on_method().splitlines()[1:])))


def _policies(results: Iterable[Result]) -> str:
    lines = ["## Policies"]
    for result in results:
        what = result.scenario
        lines += ["", f"### Policy of {what.name}", "", "```yaml", what.policy().rstrip(), "```"]
        if what.edits:
            text = what.policy(file=what.edits[0].policy_file)
            lines += ["", f"Edited after {what.edits[0].at:g} s:", "", "```yaml", text.rstrip(), "```"]
    return "\n".join(lines)


def _table(rows: Sequence[Sequence[str]], numbers: int = 0) -> list[str]:
    """A table, in which that many columns after the first hold numbers."""
    head, *body = rows
    return [_row(head), _row(["---:" if 1 <= place <= numbers else "---" for place in range(len(head))]), *map(_row, body)]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
