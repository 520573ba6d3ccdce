"""What the figures of a report say, in sentences. Every word that depends on a figure is chosen by it.

Nothing is known here of what a scenario is supposed to show: a run in which the sidecar does better reads so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

BARE, LIBRARY, SIDECAR, SIDECAR_PAIR = "bare", "library", "sidecar", "sidecar-pair"
DIFFERS, SAME, TOO_FEW = "DIFFERS", "same", "too few to tell"
VERDICTS = (SAME, DIFFERS, TOO_FEW)


def number(value: float | None) -> str:
    """Three digits that count, and no more."""
    if value is None:
        return "never"
    if value and abs(value) < 0.0005:
        return f"{value:.1e}"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def percent(share: float) -> str:
    """With one digit behind the point. What is not all is never said to be, nor what is not nothing."""
    if 0.9995 <= share < 1:
        return "99.9 %"
    return "0.1 %" if 0 < share < 0.0005 else f"{share * 100:.1f} %"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def sidecar_of(planes: Json) -> str:
    """The plane that the library is compared with: for mutual TLS it has a sidecar on both sides."""
    return SIDECAR_PAIR if SIDECAR_PAIR in planes else SIDECAR


def verdicts(compared: Sequence[Json]) -> dict[str, int]:
    """How many figures were judged how."""
    return {verdict: sum(each["verdict"] == verdict for each in compared) for verdict in VERDICTS}


# ------------------------------------------------------------------------------------------- a scenario


def meaning(scenario: Json) -> str:
    """What a scenario showed, for somebody who reads nothing else of it."""
    planes: Json = scenario["planes"]
    sentences = [_served(planes), _load(planes), _outage(planes), _recovery(planes), _judged(scenario["compared"])]
    return " ".join(filter(None, sentences))


def _of_planes(planes: Json, tell: Any, *names: str) -> str:
    """``59.0 % with the library and 58.8 % with the sidecar (66.1 % without a policy)``."""
    both = [plane for plane in (LIBRARY, sidecar_of(planes)) if plane in planes]
    told = [f"{text} with the {plane}" for plane in both if (text := tell(planes[plane])) is not None]
    without = tell(planes[BARE]) if BARE in planes else None
    if without is None:
        return listed(told)
    return f"{listed(told)} ({without} without a policy)" if told else f"{without} without a policy"


def _served(planes: Json) -> str:
    counts = {measured["calls"] for measured in planes.values()}
    calls = f"{counts.pop():,} calls" if len(counts) == 1 else "the calls of each plane"
    rates = {measured["success_rate"] for measured in planes.values()}
    if rates == {1.0}:
        return f"Of {calls}, every one succeeded on every plane."
    return f"Of {calls}, the callers got a good answer to {_of_planes(planes, lambda each: percent(each['success_rate']))}."


def _load(planes: Json) -> str:
    known = [measured["attempts_per_call"] for measured in planes.values() if measured["attempts_per_call"] is not None]
    if not known or all(abs(each - 1) < 0.005 for each in known):
        return ""
    return f"Requests that the services saw for each call: {_of_planes(planes, _attempts)}."


def _attempts(measured: Json) -> str | None:
    attempts = measured["attempts_per_call"]
    return None if attempts is None else f"{attempts:.2f}"


def _outage(planes: Json) -> str:
    if not any(measured["requests_in_outage"] for measured in planes.values()):
        return ""
    return f"Requests that reached them while they failed by script: {_of_planes(planes, lambda each: number(each['requests_in_outage']))}."


def _recovery(planes: Json) -> str:
    def tell(measured: Json) -> str | None:
        rounds = measured["recovery_s"]
        if not rounds:
            return None
        known = [each for each in rounds if each is not None]
        if len(known) < len(rounds):
            return "never" if not known else f"not in every round, else {sum(known) / len(known):.2f} s"
        return f"{sum(known) / len(known):.2f} s"

    told = _of_planes(planes, tell)
    return f"Calls succeeded steadily again, after the failure had ended, within: {told}." if told else ""


def _judged(compared: Sequence[Json]) -> str:
    if not compared:
        return "Library and sidecar were not both run, so that nothing was judged."
    found = verdicts(compared)
    if found[SAME] == len(compared):
        return f"Library and sidecar behaved alike in all {len(compared)} figures that were judged."
    parts = [f"{found[SAME]} are the same"]
    for verdict, words in ((DIFFERS, "differ"), (TOO_FEW, "are too uncertain to tell")):
        names = [each["figure"] for each in compared if each["verdict"] == verdict]
        if names:
            verb = {"differ": "differs", "are too uncertain to tell": "is too uncertain to tell"}[words] if len(names) == 1 else words
            parts.append(f"{len(names)} {verb} ({'; '.join(names)})")
    return f"Of the {len(compared)} figures of library and sidecar that were judged, {listed(parts)}."


# ------------------------------------------------------------------------------------------- library or mesh


@dataclass(frozen=True, slots=True)
class Argument:
    """One reason. ``speaks_for`` is the plane that has the better of it, or None where the figures do not tell."""

    speaks_for: str | None
    title: str
    text: str


def arguments(report: Json) -> list[Argument]:
    """What this report's own figures say for a library or for a mesh."""
    return [*_of_costs(report.get("cost")), *_of_processes(report["scenarios"]), *_of_library_only(report["scenarios"])]


#: Cost, how an argument from it is called, and what follows for somebody who chooses.
_COSTS = (
    ("latency_p50", "The way of a call", "A service that takes longer to answer makes the ratio smaller, and the difference stays."),
    ("latency_p99", "The slowest of a hundred calls", ""),
    ("cpu_pod", "CPU in all", "It is what the pod is billed for."),
    ("cpu_client", "CPU in the application's own process", "It is spent under the GIL of the application; a proxy's on another core, "
        "where there is one."),
    ("memory_pod", "Memory in all", "A sidecar's is for each pod; the library's for each process of it."),
    ("memory_client", "Memory of the application's own process", "It counts once for each worker process."),
    ("startup_pod", "From nothing to the first answer", "The proxy is started first and waited for, as a native sidecar of Kubernetes is."),
)


#: One round, or two, may both be luck.
_ROUNDS_TO_TELL = 3


def _of_costs(cost: Json | None) -> Iterator[Argument]:
    planes = (cost or {}).get("planes", {})
    if cost is None or LIBRARY not in planes or SIDECAR not in planes:
        return
    for name, title, consequence in _COSTS:
        mine, theirs = planes[LIBRARY].get(name), planes[SIDECAR].get(name)
        if mine is None or theirs is None:
            continue
        unit = cost["units"][name]
        said = " and ".join(
            f"{number(of_one['value']['median'])} {unit} with the {plane}{_ratio(of_one['ratio'])}"
            for plane, of_one in ((LIBRARY, mine), (SIDECAR, theirs))
        )
        text = f"{said}{_against(planes, name, unit)}.{' ' if consequence else ''}{consequence}"
        if cost["rounds"] < _ROUNDS_TO_TELL:
            yield Argument(None, title, f"{text} With fewer than {_ROUNDS_TO_TELL} rounds nobody can tell.")
            continue
        better = cheaper(mine["value"], theirs["value"])
        yield Argument(better, title, text if better else f"{text} The rounds of both overlap: no clear winner.")


def cheaper(mine: Json, theirs: Json) -> str | None:
    """The plane all of whose rounds were cheaper than the other's; None when the rounds overlap."""
    if mine["greatest"] < theirs["least"]:
        return LIBRARY
    return SIDECAR if theirs["greatest"] < mine["least"] else None


def _ratio(ratio: Json | None) -> str:
    return "" if ratio is None else f" (x{ratio['median']:.2f})"


def _against(planes: Json, name: str, unit: str) -> str:
    base = planes.get(BARE, {}).get(name)
    return "" if base is None else f", {number(base['value']['median'])} {unit} without either"


def _of_processes(scenarios: Sequence[Json]) -> Iterator[Argument]:
    """What was seen where several processes shared one sidecar, and the library was in each of them."""
    for scenario in scenarios:
        planes = scenario["planes"]
        if scenario.get("processes", 1) < 2 or LIBRARY not in planes or SIDECAR not in planes:
            continue
        differing = [each for each in scenario["compared"] if each["verdict"] == DIFFERS and not each["figure"].startswith("latency")]
        if not differing:
            yield Argument(
                None, "State of each process", f"With {scenario['processes']} processes of the client no figure of {scenario['name']} "
                    f"differed.")
            continue
        said = "; ".join(
            f"{each['figure']} {_valued(each, LIBRARY)} against {_valued(each, SIDECAR)} through the one sidecar" for each in differing[:4]
        )
        yield Argument(
            SIDECAR, "State of each process",
            f"With {scenario['processes']} processes, each with circuits, limits and budgets of its own, the library's figures were: "
            f"{said}. "
            f"Whoever sets a limit for the service as a whole divides it by the processes.",
        )


def _of_library_only(scenarios: Sequence[Json]) -> Iterator[Argument]:
    """Where a difference has its reason in something that Envoy does not have."""
    found: dict[str, list[str]] = {}
    for scenario in scenarios:
        for each in scenario["compared"]:
            for reason in each["reasons"] if each["verdict"] == DIFFERS else ():
                if "(library-only)" in reason["text"]:
                    found.setdefault(reason["text"], []).append(
                        f"{scenario['name']}: {each['figure']} {_valued(each, LIBRARY)}, sidecar {_valued(each, SIDECAR)}")
    for text, where in found.items():
        moved = f"{len(where)} figures differ" if len(where) > 1 else "1 figure differs"
        yield Argument(None, "What Envoy does not have", f"{text} It may be why {moved} ({'; '.join(where[:3])}).")


def _valued(judged: Json, plane: str) -> str:
    unit = judged["unit"]
    return number(judged[plane]) + (f" {unit}" if unit and judged[plane] is not None else "")


# ------------------------------------------------------------------------------------------- the machine


def disturbed(scenario: Json) -> dict[str, str]:
    """Of the planes with rounds that somebody else on the machine may have moved: which rounds, and why the first of them."""
    found = {}
    for plane, measured in scenario["planes"].items():
        bad = [(number, each["reasons"]) for number, each in enumerate(measured.get("disturbance") or (), 1) if each["disturbed"]]
        if bad:
            first, reasons = bad[0]
            others = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            found[plane] = f"round {first}{others}: {', '.join(reasons)}"
    return found
