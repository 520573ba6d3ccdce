"""Whether library and sidecar behaved alike: each figure of both, with the chance and the tolerance it is judged by.

    DIFFERS             further apart than the tolerance, and that is not chance
    same                with 95 % confidence not further apart than the tolerance
    too few to tell     neither: more rounds would tell

What is figured from calls compares each call with the same call on the other plane, in blocks of consecutive calls, because
calls influence the ones after them. What a run has one of (ejections, the time to recover) is compared round by round, which
takes at least three. Several figures are judged, so the bound on chance is divided by their number: in a scenario where
nothing differs, one is called DIFFERS at most once in a hundred times.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean
from typing import Any

from resilmesh.compare.measure import FAILED, REJECTED, SUCCEEDED, Call, Measured
from resilmesh.compare.scenarios import Matrix, Reason, Scenario, Tolerance
from resilmesh.compare.stats import Estimate, paired_means, quantiles_apart, rounds_apart, shares_apart
from resilmesh.envoy.notes import Note

DIFFERS, SAME, TOO_FEW = "DIFFERS", "same", "too few to tell"
#: The chance that any figure of a scenario is called DIFFERS by luck. Divided by the number of its figures (Bonferroni).
ALPHA = 0.01

_OUTCOMES = ("success", "rejections", "failures", "attempts", "requests", "ejections", "retries", "time to recover", "most at once")
_LATER = (*_OUTCOMES, "latency")
#: The figures that a block of the policy can move, by how their names begin: where such a block is not the same in Envoy,
#: it may be the reason for a difference in these and in no other.
_MOVES: dict[str, tuple[str, ...]] = {
    "circuitBreaker": _LATER,
    "outlierDetection": _LATER,
    "concurrency": _LATER,
    "retries": _LATER,
    "retryBudget": _LATER,
    "rateLimit": _OUTCOMES,
    "idleTimeout": _LATER,
    "fault": (*_LATER, "delays"),
    "loadBalancer": ("requests to", "latency"),
    "split": ("answered by",),
}


@dataclass(frozen=True, slots=True)
class Judgement:
    """One figure of library and sidecar, in ``unit``. ``tolerance`` is in the same unit, ``by`` says how chance was reckoned."""

    figure: str
    library: float
    sidecar: float
    unit: str
    estimate: Estimate
    tolerance: float
    by: str
    #: The probability of chance below which a difference counts.
    alpha: float = ALPHA

    @property
    def verdict(self) -> str:
        low, high = self.estimate.interval
        if abs(self.estimate.difference) > self.tolerance and self.estimate.p < self.alpha:
            return DIFFERS
        return SAME if -self.tolerance <= low and high <= self.tolerance else TOO_FEW

    @property
    def differs(self) -> bool:
        return self.verdict == DIFFERS

    @property
    def chance(self) -> str:
        """For the reader: how likely the difference is by chance, or why nobody can say."""
        if self.estimate.degrees < 1:
            return self.by
        low, high = self.estimate.interval
        return f"95 %: {low:+.3g} to {high:+.3g}, p = {self.estimate.p:.2g}, {self.by}"

    def explained_by(self, notes: Sequence[Note], known: Sequence[Reason] = (), idle: Set[str] = frozenset()) -> list[Reason]:
        """What can move this figure: of the scenario's own reasons, and of the notes of the policy's translation.

        Not those on blocks that are ``idle``: what did nothing on either plane is no reason.
        """
        found = [reason for reason in known if self.figure.startswith(reason.figures)]
        return found + [
            Reason(f"{note.block} ({note.fidelity}): {note.message}", f"docs/reference/policy.md#{_block(note).lower()}")
            for note in notes
            if self.figure.startswith(_MOVES.get(_block(note), ())) and _block(note) not in idle
        ]

    def as_json(self, reasons: Sequence[Reason]) -> dict[str, Any]:
        low, high = self.estimate.interval
        return {
            "figure": self.figure, "library": _finite(self.library), "sidecar": _finite(self.sidecar), "unit": self.unit,
            "difference": _finite(self.estimate.difference), "interval_95": [_finite(low), _finite(high)],
            "p": self.estimate.p if self.estimate.degrees >= 1 else None, "alpha": self.alpha, "chance": self.chance,
            "tolerance": self.tolerance, "verdict": self.verdict,
            "reasons": [{"text": reason.text, "docs": reason.docs} for reason in reasons],
        }


def judge(library: Measured, sidecar: Measured, scenario: Scenario, seed: int) -> list[Judgement]:
    """Compare every figure that both have."""
    judging = _Judging(library, sidecar, scenario.tolerance)
    judging.share("success", lambda call: call.outcome == SUCCEEDED)
    if isinstance(scenario.traffic, Matrix):
        judging.verdicts()
    for words, kind in (("rejections", REJECTED), ("failures", FAILED)):
        judging.kinds(words, kind)
    judging.attempts()
    if scenario.watched:
        # In the other kind of scenario latency is a cost: compared with bare, not held against a tolerance.
        judging.latencies(random.Random(seed))  # noqa: S311  repeatable, not secret
    judging.versions()
    judging.in_outage(scenario)
    judging.delays()
    tolerance = scenario.tolerance
    judging.rounds("most at once at an endpoint", library.most_at_once, sidecar.most_at_once, tolerance.most_at_once)
    judging.rounds("ejections", library.ejections, sidecar.ejections, tolerance.count, tolerance.count_share)
    judging.rounds("retries, by its own count", library.retries, sidecar.retries, tolerance.count, tolerance.count_share)
    judging.rounds("time to recover", library.recovery, sidecar.recovery, tolerance.recovery, unit="s")
    judging.rounds("time until the new policy", library.change, sidecar.change, tolerance.change, unit="s")
    return judging.done()


class _Judging:
    """Gathers the judgements of two planes."""

    def __init__(self, library: Measured, sidecar: Measured, tolerance: Tolerance) -> None:
        self._library = library
        self._sidecar = sidecar
        self._tolerance = tolerance
        self._found: list[Judgement] = []

    def done(self) -> list[Judgement]:
        """Each with its part of the chance that all may have together."""
        alpha = ALPHA / max(len(self._found), 1)
        return [replace(each, alpha=alpha) for each in self._found]

    def _add(self, figure: str, mine: float, theirs: float, unit: str, estimate: Estimate, tolerance: float, by: str) -> None:
        self._found.append(Judgement(figure, mine, theirs, unit, estimate, tolerance, by))

    def _of_calls(self, figure: str, value: Callable[[Call], float], tolerance: float, scale: float, unit: str) -> None:
        """The mean of something that each call has, ``scale`` times."""
        mine, theirs = ([value(call) for call in of_one.calls] for of_one in (self._library, self._sidecar))
        self._add(
            figure, scale * fmean(mine), scale * fmean(theirs), unit, paired_means(mine, theirs).times(scale), scale * tolerance,
            "calls paired, in blocks",
        )

    def share(self, figure: str, has: Callable[[Call], bool]) -> None:
        self._of_calls(figure, has, self._tolerance.share, 100, "%")

    def verdicts(self) -> None:
        """Whether every single call came out the same. Who is let in is no matter of chance, so that one which does not is enough."""
        pairs = list(zip(self._library.calls, self._sidecar.calls, strict=True))
        same = sum(mine.outcome == theirs.outcome for mine, theirs in pairs) / len(pairs) * 100
        estimate = Estimate(same - 100, 0.0, math.inf)
        self._add("verdicts as the library's", 100, same, "%", estimate, 0.0, "each call with itself")

    def kinds(self, words: str, kind: str) -> None:
        """Rejections or failures by reason, and in all where there is more than one reason."""
        both = (*self._library.calls, *self._sidecar.calls)
        found = sorted({call.outcome for call in both if call.outcome.startswith(kind)})
        if len(found) > 1:
            self.share(f"{words}, in all", lambda call: call.outcome.startswith(kind))
        for outcome in found:
            self.share(f"{words}: {outcome.removeprefix(kind)}", partial(_ended_as, outcome))

    def attempts(self) -> None:
        tolerance = self._tolerance
        self._of_calls("attempts per call", lambda call: call.attempts.total(), tolerance.attempts, 1, "")
        endpoints = sorted(self._library.endpoints | self._sidecar.endpoints)
        for name in endpoints if len(endpoints) > 1 else ():
            self._of_calls(f"requests to {name}", partial(_requests_to, name), tolerance.balance, 100, "%")

    def latencies(self, rng: random.Random) -> None:
        mine, theirs = (
            [call.latency * 1000 if call.outcome == SUCCEEDED else None for call in of_one.calls]
            for of_one in (self._library, self._sidecar)
        )
        if not any(mine) or not any(theirs):
            return
        figures = [self._library.figures(), self._sidecar.figures()]
        # Late calls are the client's machine being busy, in one plane's run perhaps and not in the other's.
        stutter = max(self._library.late, self._sidecar.late) * 1000
        for percent, estimate in zip((50, 90, 99), quantiles_apart(mine, theirs, (0.5, 0.9, 0.99), rng), strict=True):
            figure = f"latency p{percent}"
            a, b = (of_one[figure].value for of_one in figures)
            allowed = max(self._tolerance.latency_seconds * 1000, self._tolerance.latency_share * min(a, b)) + stutter
            self._add(figure, a, b, "ms", estimate, allowed, "bootstrap of blocks of calls")

    def versions(self) -> None:
        mine, theirs = self._library.versions, self._sidecar.versions
        for version in sorted(mine | theirs) if len(mine | theirs) > 1 else ():
            self.share(f"answered by {version}", partial(_answered_by, version))

    def in_outage(self, scenario: Scenario) -> None:
        mine, theirs = self._library.requests_in_outage, self._sidecar.requests_in_outage
        if not mine and not theirs:
            return
        rounds = self._library.rounds
        calls = len(self._library.calls) / rounds
        allowed = max(scenario.tolerance.count, scenario.tolerance.count_share * max(mine, theirs) / rounds)
        self._of_calls("requests during the outage", lambda call: call.in_outage, allowed / calls, calls, "")

    def delays(self) -> None:
        if not self._library.delays or not self._sidecar.delays or not sum(self._library.delays + self._sidecar.delays):
            return
        mine, theirs, calls = sum(self._library.delays), sum(self._sidecar.delays), len(self._library.calls)
        estimate = shares_apart(mine, calls, theirs, calls)
        self._add(
            "delays injected", mine / calls * 100, theirs / calls * 100, "%",
            estimate.times(100), self._tolerance.share * 100, "independent draws",
        )

    def rounds(
        self, figure: str, mine: Sequence[float] | None, theirs: Sequence[float] | None, tolerance: float, share: float = 0.0,
        unit: str = "",
    ) -> None:
        """A figure that each run has one of."""
        if not mine or not theirs or not any((*mine, *theirs)) or len(mine) != len(theirs):
            return
        a, b = sum(mine) / len(mine), sum(theirs) / len(theirs)
        # Two planes that both never recovered are alike.
        estimate = rounds_apart(mine, theirs) if math.isfinite(a) and math.isfinite(b) else Estimate(0.0 if a == b else b - a)
        allowed = max(tolerance, share * max(a, b)) if math.isfinite(max(a, b)) else tolerance
        by = f"{len(mine)} values, paired" if len(mine) >= _ENOUGH_ROUNDS else f"one value a run: nobody can tell from {len(mine)}"
        self._add(figure, a, b, unit, estimate, allowed, by)


_ENOUGH_ROUNDS = 3


def _ended_as(outcome: str, call: Call) -> bool:
    return call.outcome == outcome


def _answered_by(version: str, call: Call) -> bool:
    return call.version == version


def _requests_to(endpoint: str, call: Call) -> int:
    return call.attempts[endpoint]


def _block(note: Note) -> str:
    return note.block.partition(".")[0].partition("[")[0]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
