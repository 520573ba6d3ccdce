"""Whether library and sidecar behaved alike: each figure of both, with the chance and the tolerance it is judged by.

A figure DIFFERS when the difference is beyond its tolerance *and*, where chance can be reckoned, beyond chance:
shares of calls by a test of two proportions, means and quantiles by a bootstrap interval of the difference.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from resilmesh.compare.measure import Measured
from resilmesh.compare.scenarios import Tolerance
from resilmesh.compare.stats import ALPHA, difference_interval, quantile, two_proportions
from resilmesh.envoy.notes import Note

_OUTCOMES = ("success", "rejections", "failures", "attempts", "ejections", "requests", "time to recover")
#: The figures that a block of the policy can move, by how their names begin: where such a block is not the same in Envoy,
#: it may be the reason for a difference in these and in no other.
_MOVES: dict[str, tuple[str, ...]] = {
    "circuitBreaker": _OUTCOMES,
    "outlierDetection": _OUTCOMES,
    "concurrency": (*_OUTCOMES, "latency"),
    "retries": (*_OUTCOMES, "latency"),
    "retryBudget": (*_OUTCOMES, "latency"),
    "rateLimit": _OUTCOMES,
    "idleTimeout": (*_OUTCOMES, "latency"),
    "split": ("answered by",),
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One figure of library and sidecar. ``chance`` and ``tolerance`` are sentences for the reader."""

    figure: str
    library: float
    sidecar: float
    unit: str
    chance: str
    tolerance: str
    differs: bool

    def explained_by(self, notes: Sequence[Note]) -> list[str]:
        """Those of the translation's notes that can move this figure."""
        return [
            f"{note.block} ({note.fidelity}): {note.message}"
            for note in notes
            if self.figure.startswith(_MOVES.get(note.block.split(".")[0], ()))
        ]

    def as_json(self, reasons: Sequence[str]) -> dict[str, Any]:
        return {
            "figure": self.figure, "library": _finite(self.library), "sidecar": _finite(self.sidecar), "unit": self.unit,
            "chance": self.chance, "tolerance": self.tolerance, "verdict": "DIFFERS" if self.differs else "same",
            "reasons": list(reasons),
        }


def judge(library: Measured, sidecar: Measured, tolerance: Tolerance, seed: int) -> list[Judgement]:
    """Compare every figure that both have."""
    rng = random.Random(seed)  # noqa: S311  repeatable, not secret
    judgements = [_share("success", library.succeeded, library.calls, sidecar.succeeded, sidecar.calls, tolerance)]
    for kind in ("rejections", "failures"):
        mine, theirs = getattr(library, kind), getattr(sidecar, kind)
        if len(mine | theirs) > 1:
            judgements.append(_share(f"{kind}, in all", mine.total(), library.calls, theirs.total(), sidecar.calls, tolerance))
        judgements += [
            _share(f"{kind}: {reason}", mine[reason], library.calls, theirs[reason], sidecar.calls, tolerance)
            for reason in sorted(mine | theirs)
        ]
    if len(library.versions | sidecar.versions) > 1:
        mine, theirs = library.versions, sidecar.versions
        judgements += [
            _share(f"answered by {version}", mine[version], mine.total(), theirs[version], theirs.total(), tolerance)
            for version in sorted(mine | theirs)
        ]
    judgements.append(_attempts(library, sidecar, tolerance, rng))
    judgements += [_latency(percent, library, sidecar, tolerance, rng) for percent in (50, 90)]
    if library.ejections is not None and sidecar.ejections is not None:
        judgements.append(_count("ejections", library.ejections, sidecar.ejections, tolerance))
    if library.requests_in_outage or sidecar.requests_in_outage:
        judgements.append(_count("requests during the outage", library.requests_in_outage, sidecar.requests_in_outage, tolerance))
    if library.recovery is not None and sidecar.recovery is not None:
        judgements.append(_recovery(library.recovery, sidecar.recovery, tolerance))
    return judgements


def _share(figure: str, mine: int, of_mine: int, theirs: int, of_theirs: int, tolerance: Tolerance) -> Judgement:
    a, b = mine / max(of_mine, 1), theirs / max(of_theirs, 1)
    p = two_proportions(mine, of_mine, theirs, of_theirs)
    return Judgement(
        figure, a * 100, b * 100, "%", f"p = {p:.2g} (two proportions)", f"{tolerance.share * 100:g} points",
        differs=p < ALPHA and abs(a - b) > tolerance.share,
    )


def _attempts(library: Measured, sidecar: Measured, tolerance: Tolerance, rng: random.Random) -> Judgement:
    low, high = difference_interval(library.attempts, sidecar.attempts, fmean, rng)
    a, b = library.attempts_per_call, sidecar.attempts_per_call
    return Judgement(
        "attempts per call", a, b, "", f"difference {low:+.3f} to {high:+.3f} (bootstrap)", f"{tolerance.attempts:g}",
        differs=abs(a - b) > tolerance.attempts and not low <= 0 <= high,
    )


def _latency(percent: int, library: Measured, sidecar: Measured, tolerance: Tolerance, rng: random.Random) -> Judgement:
    def statistic(values: Sequence[float]) -> float:
        return quantile(values, percent / 100)

    a, b = statistic(library.latencies), statistic(sidecar.latencies)
    low, high = difference_interval(library.latencies, sidecar.latencies, statistic, rng)
    # Late calls are the client's machine being busy, in one plane's run perhaps and not in the other's.
    stutter = max(library.late, sidecar.late)
    allowed = max(tolerance.latency_seconds, tolerance.latency_share * min(a, b)) + stutter
    return Judgement(
        f"latency p{percent}", a * 1000, b * 1000, "ms", f"difference {low * 1000:+.1f} to {high * 1000:+.1f} ms (bootstrap)",
        f"{allowed * 1000:.1f} ms", differs=low > allowed or high < -allowed,
    )


def _count(figure: str, mine: int, theirs: int, tolerance: Tolerance) -> Judgement:
    allowed = max(tolerance.count, tolerance.count_share * max(mine, theirs))
    return Judgement(figure, mine, theirs, "", "one run each", f"{allowed:.0f}", differs=abs(mine - theirs) > allowed)


def _recovery(mine: float, theirs: float, tolerance: Tolerance) -> Judgement:
    # Never recovered is infinitely late; two planes that never did are alike.
    apart = mine != theirs and abs(mine - theirs) > tolerance.recovery
    return Judgement("time to recover", mine, theirs, "s", "one run each", f"{tolerance.recovery:g} s", differs=apart)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
