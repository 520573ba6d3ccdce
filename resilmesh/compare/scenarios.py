"""What is compared: services that behave in a certain way, calls to them, and the policy file that governs the calls.

The policy files lie beside this one, in ``policies/``, and are complete: ``resilmesh check`` accepts them. The addresses
in them are replaced by those of the test bed when a run starts; nothing else is.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from resilmesh.compare.service import Latency, Outage, Script

#: Whom every call is addressed to.
HOST = "inventory.test"
_ADDRESS = re.compile(r"127\.0\.0\.1:90(\d\d)")
_PATHS = ("/v1/items/17", "/v1/items/42", "/v1/stock?warehouse=3")

Schedule = list[tuple[float | None, str, str]]


@dataclass(frozen=True, slots=True)
class Open:
    """Open loop: calls arrive at random (Poisson) at ``rate`` per second for ``duration`` seconds, however slow the answers."""

    rate: float
    duration: float

    def __str__(self) -> str:
        return f"open loop, {self.rate:g} calls/s for {self.duration:g} s"

    @property
    def expected_seconds(self) -> float:
        return self.duration

    def schedule(self, seed: int) -> Schedule:
        rng = random.Random(seed)  # noqa: S311  repeatable, not secret
        calls: Schedule = []
        due = rng.expovariate(self.rate)
        while due < self.duration:
            calls.append((due, "GET", rng.choice(_PATHS)))
            due += rng.expovariate(self.rate)
        return calls


@dataclass(frozen=True, slots=True)
class Closed:
    """Closed loop: ``calls`` calls, each worker's next when its last is answered."""

    calls: int

    def __str__(self) -> str:
        return f"closed loop, {self.calls} calls a round"

    @property
    def expected_seconds(self) -> float:
        return self.calls * 0.0005

    def schedule(self, seed: int) -> Schedule:
        rng = random.Random(seed)  # noqa: S311  repeatable, not secret
        return [(None, "GET", rng.choice(_PATHS)) for _ in range(self.calls)]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far library and sidecar may be apart before it is called a difference, chance aside.

    Machines stutter and calls influence the next ones, which no test of independent draws knows.
    """

    #: Of a share of the calls: success, one kind of failure, one version. 0.02 is two calls in a hundred.
    share: float = 0.02
    #: Of attempts per call.
    attempts: float = 0.02
    #: Of a latency, whichever of both is larger. The sidecar's extra hop belongs to the costs and is below this.
    latency_share: float = 0.25
    latency_seconds: float = 0.003
    #: Of the time to recover, in seconds.
    recovery: float = 0.3
    #: Of a count such as ejections, whichever of both is larger.
    count: int = 2
    count_share: float = 0.25


@dataclass(frozen=True, slots=True)
class Scenario:
    """One situation. Every plane gets it from the start: fresh services, fresh client, fresh Envoy."""

    name: str
    question: str
    services: tuple[Script, ...]
    traffic: Open | Closed
    #: Threads or tasks that make the calls; in an open loop enough of them that arrivals need not wait for one.
    workers: int
    #: Calls before the run, the same number on every plane: they open connections and fill caches, and are not counted.
    warm_up: int = 3
    tolerance: Tolerance = Tolerance()

    @property
    def policy_file(self) -> str:
        """The policy's file, relative to the package ``resilmesh``."""
        return f"compare/policies/{self.name}.yaml"

    def policy(self, addresses: Sequence[str] | None = None) -> str:
        """The text of the scenario's policy, with ``addresses`` in place of the written ones."""
        text = (resources.files("resilmesh") / self.policy_file).read_text(encoding="utf-8")
        return text if addresses is None else _ADDRESS.sub(lambda written: addresses[int(written[1]) - 1], text)

    @property
    def outage_end(self) -> float | None:
        """Seconds into the run at which the last scripted outage ends."""
        return max((outage.end for script in self.services for outage in script.outages), default=None)


_OUTAGE = (Outage(1.0, 2.7, "503", Latency(0.03)),)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "steady", "Nothing goes wrong: what does each plane cost?",
        # One endpoint, so that every plane's pool holds one connection: a pool looks at each of its idle ones for every call.
        services=(Script("a"),), traffic=Closed(1500), workers=1, warm_up=50,
    ),
    Scenario(
        "flaky", "One request in five fails at random: how many callers notice, and how many requests does it take?",
        services=tuple(Script(name, outcomes={"503": 0.15, "reset": 0.05}, latency=Latency(0.003, 0.3)) for name in "ab"),
        traffic=Open(300, 3.0), workers=32,
    ),
    Scenario(
        "outage", "Every endpoint fails for a while: who is spared, and how soon is all well again?",
        services=tuple(Script(name, latency=Latency(0.003, 0.3), outages=_OUTAGE) for name in "ab"),
        traffic=Open(150, 5.0), workers=32,
    ),
    Scenario(
        "overload", "Half as many calls again as the service can do: who is served, and how fast?",
        services=(Script("a", latency=Latency(0.040), capacity=4, queue=32),), traffic=Open(150, 3.5), workers=48,
        # Which calls find a slot depends on the milliseconds of those before them.
        tolerance=Tolerance(share=0.06),
    ),
    Scenario(
        "canary", "One call in ten goes to the new version: does it?",
        services=(
            Script("a", "v1", latency=Latency(0.003, 0.3)), Script("b", "v1", latency=Latency(0.003, 0.3)),
            Script("c", "v2", latency=Latency(0.003, 0.3)),
        ),
        traffic=Open(300, 2.5), workers=32,
        # A share is drawn twice, 750 times each: chance alone makes 1.5 points often. The z test sees to that.
        tolerance=Tolerance(share=0.02),
    ),
)
