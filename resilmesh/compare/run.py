"""The whole comparison: every scenario on every plane, one run after the other, in interleaved rounds."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from resilmesh.compare.cost import Cost, costs, costs_of_tls
from resilmesh.compare.judge import Judgement, judge
from resilmesh.compare.machine import Disturbance
from resilmesh.compare.measure import Measured, measure, spread
from resilmesh.compare.native import Native, native
from resilmesh.compare.pair import IDENTITY_PLANES, SIDECAR_PAIR
from resilmesh.compare.planes import ALL_PLANES, BARE, GRPC_PLANES, LIBRARY, NATIVE, Observation, observe, sidecar_of
from resilmesh.compare.progress import Progress
from resilmesh.compare.scenarios import Closed, Scenario
from resilmesh.compare.series import series
from resilmesh.compare.stats import Spread
from resilmesh.envoy.notes import Note
from resilmesh.envoy.translate import translate
from resilmesh.policy.load import load_text

#: Rounds for the costs, which are small and need several, and for everything else, unless the user says how many.
COST_ROUNDS = 5
BEHAVIOUR_ROUNDS = 1
#: Seconds to start and stop services, Envoy and client.
_AROUND_A_RUN = 0.8


@dataclass(frozen=True, slots=True)
class Settings:
    """What to compare. ``rounds`` is how often each scenario goes over all planes; None: as the two constants say."""

    scenarios: Sequence[Scenario]
    planes: Sequence[str] = ALL_PLANES
    client: str = "httpx"
    seed: int = 1
    protocol: str = "HTTP/1.1"
    rounds: int | None = None
    #: The words by which all this was asked for.
    command: str = "resilmesh compare"

    def rounds_of(self, scenario: Scenario) -> int:
        if self.rounds is not None:
            return self.rounds
        return COST_ROUNDS if isinstance(scenario.traffic, Closed) else BEHAVIOUR_ROUNDS

    def planes_of(self, scenario: Scenario) -> list[str]:
        """The planes that ``scenario`` runs on: where grpcio's own config says too little of its policy, that plane is left out."""
        order = self.planes if scenario.identities is None else IDENTITY_PLANES
        return [plane for plane in order if plane in self.planes and _has(plane, scenario)]


def _has(plane: str, scenario: Scenario) -> bool:
    if scenario.identities is not None:
        # What has no identity cannot be called; what TLS costs is one scenario's matter.
        return plane in (IDENTITY_PLANES if isinstance(scenario.traffic, Closed) else (LIBRARY, SIDECAR_PAIR))
    if plane == NATIVE:
        return scenario.protocol == "GRPC" and _native(scenario).cannot is None
    return plane in GRPC_PLANES


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario on every plane. ``costs`` only where rounds were run for them."""

    scenario: Scenario
    planes: dict[str, Measured]
    judgements: list[Judgement] = field(default_factory=list)
    #: What the policy's translation for Envoy says about itself: why the planes may differ.
    notes: list[Note] = field(default_factory=list)
    costs: dict[str, dict[str, Cost]] | None = None
    #: Of the planes with mutual TLS, against the same without; only where that was measured.
    costs_of_tls: dict[str, dict[str, Cost]] = field(default_factory=dict)
    #: One run of each plane over time, see ``resilmesh.compare.series``.
    series: dict[str, dict[str, Any]] = field(default_factory=dict)
    #: Each plane's figures over the rounds, when there are several.
    spread: dict[str, dict[str, Spread]] = field(default_factory=dict)
    #: Of each plane's rounds.
    disturbances: dict[str, list[Disturbance]] = field(default_factory=dict)
    #: CPU seconds of each plane's rounds, by who used them.
    cpu: dict[str, list[dict[str, float | None]]] = field(default_factory=dict)
    #: What grpcio was given in its own words, or why nothing was; None where that plane was not asked for.
    native: Native | None = None

    @property
    def rounds(self) -> int:
        return next(iter(self.planes.values())).rounds


def steps(settings: Settings) -> int:
    """How many runs of a plane ``compare`` will make."""
    return sum(settings.rounds_of(each) * len(settings.planes_of(each)) for each in settings.scenarios)


def expected_seconds(settings: Settings) -> float:
    """About how long ``compare`` will take on two quiet cores."""
    return sum(
        settings.rounds_of(each) * len(settings.planes_of(each)) * (each.traffic.expected_seconds + _AROUND_A_RUN)
        for each in settings.scenarios
    )


def compare(settings: Settings, progress: Progress) -> Iterator[Result]:
    """Yield each scenario's result as soon as it is there."""
    for scenario in settings.scenarios:
        observed = _observe_all(settings, scenario, progress)
        planes = {plane: measure(rounds, scenario) for plane, rounds in observed.items()}
        judgements, notes = [], []
        sidecar = sidecar_of(planes)
        if LIBRARY in planes and sidecar in planes:
            judgements = judge(planes[LIBRARY], planes[sidecar], scenario, settings.seed)
            # The same notes as `resilmesh export envoy` gives.
            notes = translate(load_text(scenario.policy(), scenario.policy_file).policy).notes
        yield Result(
            scenario, planes, judgements, notes,
            costs(observed) if isinstance(scenario.traffic, Closed) and BARE in observed else None,
            costs_of_tls(observed) if isinstance(scenario.traffic, Closed) else {},
            series={plane: _shown(rounds, scenario) for plane, rounds in observed.items()},
            spread={plane: spread(rounds, scenario) for plane, rounds in observed.items() if len(rounds) > 1},
            disturbances={plane: [each.disturbance for each in rounds] for plane, rounds in observed.items()},
            cpu={plane: [each.cpu() for each in rounds] for plane, rounds in observed.items()},
            native=_native(scenario) if NATIVE in settings.planes and scenario.protocol == "GRPC" else None,
        )


def _native(scenario: Scenario) -> Native:
    return native(load_text(scenario.policy(), scenario.policy_file).policy)


def _observe_all(settings: Settings, scenario: Scenario, progress: Progress) -> dict[str, list[Observation]]:
    """Each plane's runs. Planes take turns in random order, so that a machine that drifts does not favour one.

    A round has the same seed on every plane, and another than the next round.
    """
    order = random.Random(f"{settings.seed}/{scenario.name}")  # noqa: S311  repeatable, not secret
    planes = settings.planes_of(scenario)
    observed: dict[str, list[Observation]] = {plane: [] for plane in planes}
    rounds = settings.rounds_of(scenario)
    for number in range(rounds):
        for plane in order.sample(planes, len(planes)):
            progress.step(f"{scenario.name}: {plane}" + (f", round {number + 1} of {rounds}" if rounds > 1 else ""))
            observed[plane].append(observe(plane, scenario, client=settings.client, seed=settings.seed + number, tick=progress.tick))
    return observed


def _shown(rounds: Sequence[Observation], scenario: Scenario) -> dict[str, Any]:
    """The first round that was not disturbed, else the first, over time: a rule, so that nobody can pick the one he likes."""
    place = next((place for place, each in enumerate(rounds) if not each.disturbance.reasons), 0)
    return series(rounds[place], scenario, place + 1)
