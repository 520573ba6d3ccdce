"""The whole comparison: every scenario on every plane, one run after the other, and the costs in interleaved rounds."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from resilmesh.compare.cost import Cost, costs
from resilmesh.compare.judge import Judgement, judge
from resilmesh.compare.measure import Measured, measure
from resilmesh.compare.planes import LIBRARY, PLANES, SIDECAR, Observation, observe
from resilmesh.compare.progress import Progress
from resilmesh.compare.scenarios import Closed, Scenario
from resilmesh.envoy.notes import Note
from resilmesh.envoy.translate import translate
from resilmesh.policy.load import load_text

DEFAULT_ROUNDS = 5
#: Seconds to start and stop services, Envoy and client.
_AROUND_A_RUN = 0.7


@dataclass(frozen=True, slots=True)
class Settings:
    """What to compare. ``rounds`` is how often the closed-loop scenario, from which costs are taken, goes over all planes."""

    scenarios: Sequence[Scenario]
    planes: Sequence[str] = PLANES
    client: str = "httpx"
    seed: int = 1
    rounds: int = DEFAULT_ROUNDS


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario on every plane. ``costs`` only where rounds were run for them."""

    scenario: Scenario
    planes: dict[str, Measured]
    judgements: list[Judgement] = field(default_factory=list)
    #: What the policy's translation for Envoy says about itself: why the planes may differ.
    notes: list[Note] = field(default_factory=list)
    costs: dict[str, dict[str, Cost]] | None = None


def steps(settings: Settings) -> int:
    """How many runs of a plane ``compare`` will make."""
    return sum(_rounds(settings, scenario) for scenario in settings.scenarios) * len(settings.planes)


def expected_seconds(settings: Settings) -> float:
    """About how long ``compare`` will take on two quiet cores."""
    runs = sum(_rounds(settings, each) * (each.traffic.expected_seconds + _AROUND_A_RUN) for each in settings.scenarios)
    return runs * len(settings.planes)


def compare(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Yield each scenario's result as soon as it is there."""
    for scenario in settings.scenarios:
        observed = _observe_all(settings, scenario, progress)
        planes = {plane: measure(observed[plane], scenario) for plane in settings.planes}
        judgements, notes = [], []
        if LIBRARY in planes and SIDECAR in planes:
            judgements = judge(planes[LIBRARY], planes[SIDECAR], scenario.tolerance, settings.seed)
            # The same notes as `resilmesh export envoy` gives.
            notes = translate(load_text(scenario.policy(), scenario.policy_file).policy).notes
        yield Result(scenario, planes, judgements, notes, costs(observed) if isinstance(scenario.traffic, Closed) else None)


def _observe_all(settings: Settings, scenario: Scenario, progress: Progress) -> dict[str, list[Observation]]:
    """Each plane's runs. Planes take turns in random order, so that a machine that drifts does not favour one."""
    order = random.Random(f"{settings.seed}/{scenario.name}")  # noqa: S311  repeatable, not secret
    observed: dict[str, list[Observation]] = {plane: [] for plane in settings.planes}
    for _ in range(_rounds(settings, scenario)):
        for plane in order.sample(settings.planes, len(settings.planes)):
            progress.step(f"{scenario.name}: {plane}")
            observed[plane].append(observe(plane, scenario, client=settings.client, seed=settings.seed, tick=progress.tick))
    return observed


def _rounds(settings: Settings, scenario: Scenario) -> int:
    return settings.rounds if isinstance(scenario.traffic, Closed) else 1

