"""START HERE: a report of ``compare`` as one page that needs nothing else: no network, no script, its style inside.

``page`` makes it from the report's plain data, as ``--json`` writes it, so that a report can be shown again later. No
result is written here: what a sentence says of the figures is chosen by ``findings`` from the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata, resources
from typing import Any

from resilmesh.compare import charts, findings, html_scenario
from resilmesh.compare import html_words as words
from resilmesh.compare.findings import BARE, LIBRARY, SIDECAR, Argument, number
from resilmesh.compare.html_scenario import slug, table
from resilmesh.compare.markup import Markup, element, join
from resilmesh.compare.parity import Parity, parity
from resilmesh.errors import ResilmeshError

Json = Mapping[str, Any]

_TITLE = "Library and mesh, side by side"
_FIGURES = (
    ("latency_p50", "latency p50"), ("latency_p99", "latency p99"), ("cpu_client", "CPU of the client, per 1,000 calls"),
    ("cpu_proxy", "CPU of the proxy, per 1,000 calls"), ("cpu_pod", "CPU of both, per 1,000 calls"),
    ("cpu_services", "CPU of the services, per 1,000 calls"), ("memory_client", "memory of the client"),
    ("memory_proxy", "memory of the proxy"), ("memory_pod", "memory of both"),
    ("startup_client", "start of the client to its first answer"), ("startup_proxy", "start of the proxy until ready"),
    ("startup_pod", "start of both, one after the other"),
)
#: From here on bare alone varied by more than most of what is measured.
_RESTLESS = 1.3


class NoReport(ResilmeshError):
    """What was given is not a report that ``resilmesh compare --json`` wrote, or one of another version."""


def page(report: Json) -> str:
    """The page, as HTML. Raises ``NoReport``."""
    try:
        return "<!DOCTYPE html>\n" + _document(report) + "\n"
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise NoReport(f"this is no report of resilmesh compare, or of another version of it: {type(error).__name__}: {error}") from error


def _document(report: Json) -> Markup:
    policies = {name: text for scenario in report["scenarios"] for name, text in _policies(scenario)}
    found = parity(policies)
    anchors = frozenset(f"parity-{slug(row.key)}" for row in found.rows)
    style = Markup((resources.files("resilmesh.compare") / "page.css").read_text(encoding="utf-8"))
    return element(
        "html",
        element(
            "head", element("meta", charset="utf-8"), element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"), element("title", f"{_TITLE}: resilmesh compare"),
            element("style", style),
        ),
        element(
            "body", charts.patterns(), element("a", "Skip to the results", href="#short", class_="skip"), _header(report),
            element(
                "main", _short(report), _how_to_read(report), _scenarios(report, anchors), _costs(report), _choice(report),
                _parity(found, report), _fairness(report), _again(report), _policy_texts(report),
            ),
        ),
        lang="en",
    )


def _policies(scenario: Json) -> list[tuple[str, str]]:
    """A scenario's policies by their names."""
    name, edited = scenario["name"], scenario.get("edited_policy")
    return [(name, scenario["policy"]), *([(f"{name}, edited", edited)] if edited else [])]


def _section(anchor: str, title: str, *children: object) -> Markup:
    return element("section", element("h2", title, id=anchor), *children, aria_labelledby=anchor)


def _header(report: Json) -> Markup:
    client, machine = report["client"], report["machine"]
    envoy = report["envoy"]["version"]
    run = report.get("run") or {}
    facts = [
        f"resilmesh {report['resilmesh']}", f"Envoy {envoy}" if envoy else "without Envoy", f"{client['library']} {client['version']}",
        f"{machine['platform']}, {machine['cpus']} CPUs", *([run["started"]] if run.get("started") else []),
    ]
    contents = (
        ("short", "In short"), ("reading", "How to read it"), ("scenarios", "Scenarios"), ("costs", "Costs"), ("choice", "Library or mesh"),
        ("parity", "The policy in Envoy"), ("fairness", "Not measured"), ("again", "Run it again"), ("policies", "Policies"),
    )
    return element(
        "header", element("h1", _TITLE),
        element("p", "The same policy and the same calls: decided inside the Python process by a library, and outside of it by a proxy."),
        element("p", " · ".join(facts), class_="facts"),
        element(
            "nav", element("ul", *(element("li", element("a", title, href=f"#{anchor}")) for anchor, title in contents)),
            aria_label="Contents",
        ),
    )


# ------------------------------------------------------------------------------------------- in short


def _short(report: Json) -> Markup:
    scenarios = report["scenarios"]
    compared = [each for scenario in scenarios for each in scenario["compared"]]
    counts = findings.verdicts(compared)
    said = (
        f"In {len(scenarios)} scenario{'s' if len(scenarios) > 1 else ''}, {len(compared)} figures of library and sidecar were judged: "
        f"{counts[findings.SAME]} are the same, {counts[findings.DIFFERS]} differ, "
        f"for {counts[findings.TOO_FEW]} there are too few calls or rounds to tell."
        if compared else "Library and sidecar were not both run, so that nothing was judged."
    )
    missing = report["envoy"].get("missing")
    rows = []
    for scenario in scenarios:
        found = findings.verdicts(scenario["compared"])
        mark = element("span", "disturbed", class_="tag") if findings.disturbed(scenario) else ""
        rows.append([
            element("a", scenario["name"], href=f"#scenario-{slug(scenario['name'])}"), join(scenario["question"], " ", mark),
            *(str(found[verdict]) for verdict in findings.VERDICTS),
        ])
    return _section(
        "short", "In short", element("p", said), _interrupted(report),
        element("p", f"The sidecar was left out: {missing}", class_="warning") if missing else None,
        table(
            "Figures of library and sidecar, by scenario and judgement", ["scenario", "question", "same", "differ", "too few to tell"],
            rows, "short",
        ),
        _cost_in_short(report.get("cost") or report.get("cost_of_mtls")),
    )


def _interrupted(report: Json) -> Markup | None:
    if not (report.get("run") or {}).get("interrupted"):
        return None
    return element("p", "It was interrupted: what follows is what had been measured by then.", class_="warning")


def _cost_in_short(cost: Json | None) -> Markup | None:
    if cost is None:
        return None
    told = []
    for plane in (LIBRARY, findings.sidecar_of(cost["planes"])):
        of_one = cost["planes"].get(plane, {})
        ratios = [
            f"{words} x{of_one[name]['ratio']['median']:.2f}"
            for name, words in (("latency_p50", "median latency"), ("cpu_pod", "CPU"), ("memory_pod", "memory"), ("startup_pod", "start"))
            if of_one.get(name) and of_one[name]["ratio"]
        ]
        if ratios:
            told.append(element("li", element("strong", plane), f": {', '.join(ratios)}"))
    if not told:
        return None
    return join(element("p", "What it costs, against no policy at all (x1 costs nothing):"), element("ul", *told), _restless(cost))


def _restless(cost: Json) -> Markup | None:
    factor = cost["disturbance"]
    if factor < _RESTLESS:
        return None
    return element(
        "p", element("strong", "Disturbed. "),
        f"The latency of the bare client varied by x{factor:.1f} from round to round, so the machine was not quiet: repeat this before you "
        "rely on the ratios.", class_="warning",
    )


def _how_to_read(report: Json) -> Markup:
    planes = dict.fromkeys(plane for scenario in report["scenarios"] for plane in scenario["planes"])
    return _section(
        "reading", "How to read it",
        element("p", words.INTRODUCTION),
        element("dl", *(join(element("dt", plane), element("dd", words.PLANES.get(plane, ""))) for plane in planes)),
        element("p", "Library and sidecar are what is compared; the others are for orientation. Each figure of both is judged:"),
        element(
            "ul",
            *(
                element("li", html_scenario.verdict(verdict), f": {meaning}")
                for verdict, meaning in zip(findings.VERDICTS, (words.SAME, words.DIFFERS, words.TOO_FEW), strict=True)
            ),
        ),
    )


def _scenarios(report: Json, anchors: frozenset[str]) -> Markup:
    return _section("scenarios", "Scenarios", *(html_scenario.section(each, anchors) for each in report["scenarios"]))


# ------------------------------------------------------------------------------------------- costs


def _costs(report: Json) -> Markup:
    cost, streams, secured = report.get("cost"), report.get("cost_of_streams"), report.get("cost_of_mtls")
    if cost is None and streams is None and secured is None:
        return _section("costs", "Costs", element("p", "Not measured in this report: no scenario ran for the costs."))
    return _section(
        "costs", "Costs", *([] if cost is None else _costs_table(cost, "Costs of each plane")),
        *([] if streams is None else [element("h3", "Of streams"), *_costs_table(streams, "Costs of each plane, for whole streams")]),
        *([] if secured is None else _costs_of_mtls(secured)),
    )


def _costs_table(cost: Json, caption: str) -> list[Markup | None]:
    planes = cost["planes"]
    rows = [
        [f"{title}, {cost['units'][name]}", *(_cost(of_one.get(name), plane == BARE) for plane, of_one in planes.items())]
        for name, title in _FIGURES if any(of_one.get(name) for of_one in planes.values())
    ]
    rounds = cost["rounds"]
    return [
        element("p", f"From {rounds} round{'s' if rounds > 1 else ''} of {cost['calls_per_round']:,} calls each. {words.COSTS}"),
        element("p", cost.get("about") or words.WORST_CASE, class_="aside"),
        _restless(cost),
        table(caption, ["", *planes], rows, "costs"),
    ]


def _costs_of_mtls(cost: Json) -> list[Markup | None]:
    made = [element("h3", "Of mutual TLS"), *_costs_table(cost, "Costs of each plane, with mutual TLS and without")]
    planes = cost.get("of_tls") or {}
    rows = [
        [f"{title}, {cost['units'][name]}", *(_added(of_one.get(name)) for of_one in planes.values())]
        for name, title in _FIGURES if any(of_one.get(name) for of_one in planes.values())
    ]
    if planes:
        made += [element("p", words.COSTS_OF_TLS), table("What mutual TLS adds on each plane", ["", *planes], rows, "costs")]
    return made


def _added(of_one: Json | None) -> object:
    """What it adds, and below it the ratio to the plane without."""
    if of_one is None or of_one["added"] is None:
        return "-"
    shown, ratio = number(of_one["added"]["median"]), of_one["ratio"]
    if ratio is None:
        return shown
    return join(shown, element("br"), element("small", f"x{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})"))


def _cost(of_one: Json | None, base: bool) -> object:
    """The median, and below it the ratio to ``base``, which itself has the spread of its values there."""
    if of_one is None:
        return "-"
    value, ratio = of_one["value"], of_one["ratio"]
    shown = number(value["median"])
    if ratio is None or base:
        return join(shown, element("br"), element("small", f"({number(value['least'])} to {number(value['greatest'])})"))
    return join(shown, element("br"), element("small", f"x{ratio['median']:.2f} ({ratio['least']:.2f} to {ratio['greatest']:.2f})"))


# ------------------------------------------------------------------------------------------- library or mesh


def _choice(report: Json) -> Markup:
    found = findings.arguments(report)

    def chosen(plane: str | None) -> list[Argument]:
        return [each for each in found if each.speaks_for == plane]

    undecided = chosen(None)
    return _section(
        "choice", "When a library is the better choice, and when a mesh is",
        element("p", words.CHOICE),
        element(
            "div",
            _column("For a library", chosen(LIBRARY), words.FOR_A_LIBRARY),
            _column("For a mesh", chosen(SIDECAR), words.FOR_A_MESH),
            class_="columns",
        ),
        join(element("h3", "For neither, or for you to judge"), element("ul", *map(_argument, undecided))) if undecided else None,
    )


def _column(title: str, measured: list[Argument], always: tuple[words.Point, ...]) -> Markup:
    nothing = element("p", "No figure of this report speaks for it.")
    return element(
        "div", element("h3", title),
        element("h4", "Measured here"), element("ul", *map(_argument, measured)) if measured else nothing,
        element("h4", "Not measured: follows from where it lives"),
        element("ul", *(element("li", element("strong", head), f" {text}") for head, text in always)),
    )


def _argument(argument: Argument) -> Markup:
    return element("li", element("strong", f"{argument.title}."), f" {argument.text}")


# ------------------------------------------------------------------------------------------- the policy in Envoy


def _parity(found: Parity, report: Json) -> Markup:
    here = metadata.version("resilmesh")
    seen: set[str] = set()
    rows = []
    for row in found.rows:
        anchor = f"parity-{slug(row.key)}"
        rows.append([
            element("code", row.key, id=None if anchor in seen else anchor),
            element("span", row.fidelity, class_=f"fidelity fidelity-{slug(row.fidelity)}"),
            element("code", row.envoy) if row.envoy else "-", row.difference or "-", ", ".join(row.used_by),
        ])
        seen.add(anchor)
    counts = [f"{sum(row.fidelity == word for row in found.rows)} {word}" for word in ("exact", "approximate", "library-only")]
    return _section(
        "parity", "The policy in Envoy",
        element("p", f"Every key that the policies of this report use: {findings.listed(counts)}. {words.PARITY}"),
        None if here == report["resilmesh"] else element(
            "p", f"The list is that of resilmesh {here}; the report was made by {report['resilmesh']}.", class_="aside"),
        *(element("p", f"The policy of {name} cannot be read: {why}", class_="warning") for name, why in found.unreadable.items()),
        table(
            "Keys of the policy, and what they are in Envoy", ["key", "in Envoy", "Envoy's field", "difference", "used by"], rows, "parity",
        ),
    )


# ------------------------------------------------------------------------------------------- fairness


def _fairness(report: Json) -> Markup:
    disturbed = [scenario["name"] for scenario in report["scenarios"] if findings.disturbed(scenario)]
    quiet = f"Runs marked as disturbed: {', '.join(disturbed)}." if disturbed else "No run was marked as disturbed by others."
    return _section(
        "fairness", "Not measured, and what to keep in mind",
        element("ul", *(element("li", element("strong", head), f" {text}") for head, text in words.not_measured(report))),
        element("p", quiet),
    )


def _again(report: Json) -> Markup:
    machine, client, run = report["machine"], report["client"], report.get("run") or {}
    facts = [
        ("resilmesh", report["resilmesh"]), ("Envoy", report["envoy"]["version"] or "left out"),
        ("client", f"{client['library']} {client['version']}, {client['style']}, {client['protocol']}, {client['timeout_s']:g} s at most"),
        ("seed", client["seed"]), ("CPU", machine.get("cpu")), ("CPUs", machine["cpus"]),
        ("memory", f"{machine['memory_mib']:,} MiB" if machine.get("memory_mib") else None),
        ("system", f"{machine['platform']}, kernel {machine['kernel']}"), ("Python", machine["python"]),
        ("load before", machine.get("load")), ("started", run.get("started")),
        ("took", f"{run['seconds']:.0f} s" if run.get("seconds") else None),
        ("packages", ", ".join(f"{name} {version}" for name, version in (report.get("versions") or {}).items()) or None),
    ]
    command = run.get("command") or f"resilmesh compare --client {client['name']} --seed {client['seed']}"
    return _section(
        "again", "Run it again", element("pre", element("code", command)),
        element("p", words.SEED),
        table("What it ran on", ["", ""], [[name, value] for name, value in facts if value is not None], "facts"),
    )


def _policy_texts(report: Json) -> Markup:
    shown = []
    for scenario in report["scenarios"]:
        for place, (name, text) in enumerate(_policies(scenario)):
            anchor = f"policy-{slug(scenario['name'])}" + ("-edited" if place else "")
            written = element("pre", element("code", text), tabindex=0)
            shown.append(element("details", element("summary", f"Policy of {name}"), written, id=anchor))
    return _section("policies", "Policies", *shown)
