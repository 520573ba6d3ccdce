"""What is compared: services that behave in a certain way, calls to them, and the policy file that governs the calls.

The policy files lie beside this one, in ``policies/``, and are complete: ``resilmesh check`` accepts them. The addresses
in them are replaced by those of the test bed when a run starts, and a protocol that is not HTTP/1.1 is added; nothing
else is changed. Where gRPC needs other words than HTTP it has a file of its own, in ``policies/grpc/``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Literal

from resilmesh.compare.service import Latency, Outage, Script

#: Whom every call is addressed to.
HOST = "inventory.test"
_HOSTS = f"  hosts: [{HOST}]\n"
_ADDRESS = re.compile(r"127\.0\.0\.1:90(\d\d)")
#: Method and path; of gRPC how it answers, and path.
Calls = tuple[tuple[str, str], ...]
_HTTP: Calls = (("GET", "/v1/items/17"), ("GET", "/v1/items/42"), ("GET", "/v1/stock?warehouse=3"))
_UNARY: Calls = (("unary", "/shop.v1.Inventory/GetItem"), ("unary", "/shop.v1.Inventory/GetStock"))
_STREAMS: Calls = (("stream", "/shop.v1.Inventory/WatchStock"),)

Protocol = Literal["HTTP1", "HTTP2", "GRPC"]
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

    def schedule(self, seed: int, calls: Calls) -> Schedule:
        rng = random.Random(seed)  # noqa: S311  repeatable, not secret
        scheduled: Schedule = []
        due = rng.expovariate(self.rate)
        while due < self.duration:
            scheduled.append((due, *rng.choice(calls)))
            due += rng.expovariate(self.rate)
        return scheduled


@dataclass(frozen=True, slots=True)
class Closed:
    """Closed loop: ``calls`` calls, each worker's next when its last is answered."""

    calls: int

    def __str__(self) -> str:
        return f"closed loop, {self.calls} calls a round"

    @property
    def expected_seconds(self) -> float:
        return self.calls * 0.0005

    def schedule(self, seed: int, calls: Calls) -> Schedule:
        rng = random.Random(seed)  # noqa: S311  repeatable, not secret
        return [(None, *rng.choice(calls)) for _ in range(self.calls)]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Every one of ``callers`` makes every one of ``calls`` calls once, in their order, at ``rate`` per second."""

    callers: int
    calls: int
    rate: float

    def __str__(self) -> str:
        return f"{self.callers} callers x {self.calls} calls, {self.rate:g} calls/s"

    @property
    def duration(self) -> float:
        return self.callers * self.calls / self.rate

    @property
    def expected_seconds(self) -> float:
        # Each caller has an Envoy of its own.
        return self.duration + self.callers * 0.1

    def schedule(self, seed: int, calls: Calls) -> Schedule:
        """The caller of a call is its number modulo ``callers``."""
        assert len(calls) == self.calls
        return [(number / self.rate, *calls[number // self.callers]) for number in range(self.callers * self.calls)]


@dataclass(frozen=True, slots=True)
class Identities:
    """Who is who in a scenario of mutual TLS; seconds are those of the run."""

    #: Paths of the callers' SPIFFE IDs. Of several callers a call's number says which makes it.
    callers: tuple[str, ...] = ("/ns/shop/sa/web",)
    #: Names of the services whose certificates have run out.
    expired: tuple[str, ...] = ()
    #: When a certificate is renewed, of everybody in turn.
    renewals: tuple[float, ...] = ()
    #: When the next root is announced, signs, and is trusted alone; after each step everybody has a new certificate.
    root_steps: tuple[float, ...] = ()
    #: After how many requests a service ends a connection; never where it is None.
    requests_per_connection: int | None = None


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far library and sidecar may be apart before it is called a difference."""

    #: Of a share of the calls: success, one kind of failure, one version. 0.02 is two calls in a hundred.
    share: float = 0.02
    #: Of attempts per call.
    attempts: float = 0.02
    #: Of requests to one endpoint per call.
    balance: float = 0.05
    #: Of a latency, whichever of both is larger. The sidecar's extra hop belongs to the costs and is below this.
    latency_share: float = 0.25
    latency_seconds: float = 0.003
    #: Of the time to recover, and until a new policy is in force, in seconds.
    recovery: float = 0.3
    change: float = 0.1
    #: Of requests at once.
    most_at_once: int = 3
    #: Of a count such as ejections, whichever of both is larger.
    count: int = 2
    count_share: float = 0.25

    def as_json(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a figure differs: a sentence, the page that says more, and how the names of the figures begin that it explains."""

    text: str
    docs: str
    figures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """The policy is replaced by that of ``policy_file`` (relative to the package) ``at`` seconds into the run.

    Under the new one the service answers in ``version``, under the one before it never does.
    """

    at: float
    policy_file: str
    version: str


@dataclass(frozen=True, slots=True)
class Scenario:
    """One situation. Every plane gets it from the start: fresh services, fresh client, fresh Envoy."""

    name: str
    question: str
    services: tuple[Script, ...]
    traffic: Open | Closed | Matrix
    #: Threads or tasks that make the calls; in an open loop enough of them that arrivals need not wait for one.
    workers: int
    #: Calls before the run, the same number on every plane: they open connections and fill caches, and are not counted.
    warm_up: int = 3
    #: Processes of the client, each with that many workers, that share the calls.
    processes: int = 1
    edits: tuple[Edit, ...] = ()
    #: Of every call, on each part of its way.
    protocol: Protocol = "HTTP1"
    #: Whether the services answer with streams of messages, over gRPC.
    streaming: bool = False
    #: Who proves what by mutual TLS; None where nobody does.
    identities: Identities | None = None
    #: The policy without its TLS, relative to the package: for the planes that show what TLS costs.
    plain_policy_file: str | None = None
    #: What is called instead of what every scenario calls.
    called: Calls | None = None
    #: Whether all is well again some time after an outage, so that it can be said when.
    recovers: bool = True
    tolerance: Tolerance = Tolerance()
    #: Why library and sidecar differ here, besides what the translation of the policy says about itself.
    reasons: tuple[Reason, ...] = ()

    @property
    def policy_file(self) -> str:
        """The policy's file, relative to the package ``resilmesh``."""
        own = f"compare/policies/grpc/{self.name}.yaml"
        if self.protocol == "GRPC" and (resources.files("resilmesh") / own).is_file():
            return own
        return f"compare/policies/{self.name}.yaml"

    @property
    def policy_shown(self) -> str:
        """Where a reader finds it."""
        return f"resilmesh/{self.policy_file}"

    def policy(self, addresses: Sequence[str] | None = None, file: str | None = None) -> str:
        """The text of the scenario's policy, or of another ``file``, with ``addresses`` in place of the written ones."""
        text = (resources.files("resilmesh") / (file or self.policy_file)).read_text(encoding="utf-8")
        if self.protocol != "HTTP1" and "protocol:" not in text:
            text = text.replace(_HOSTS, f"{_HOSTS}  protocol: {self.protocol}\n")
        return text if addresses is None else _ADDRESS.sub(lambda written: addresses[int(written[1]) - 1], text)

    @property
    def calls(self) -> Calls:
        """What is called. Each is called as often as chance will have it."""
        if self.called is not None:
            return self.called
        if self.protocol == "GRPC":
            return _STREAMS if self.streaming else _UNARY
        return _HTTP

    @property
    def watched(self) -> bool:
        """Whether the planes are asked what they do while they do it. Not where costs are measured: asking costs."""
        return isinstance(self.traffic, Open)

    @property
    def outage_end(self) -> float | None:
        """Seconds into the run at which the last scripted outage ends, where that is the end of the trouble."""
        if not self.recovers:
            return None
        return max((outage.end for script in self.services for outage in script.outages), default=None)


_FAST = Latency(0.003, 0.3)
_OUTAGE = (Outage(1.0, 2.7, "503", Latency(0.03)),)
#: What the service does meanwhile is done, only four times as slowly. A full queue is longer than callers wait, so that
#: the service works for callers that are gone, who come back: with enough of them it stays that way when it is fast again.
_STORM = Script("a", latency=Latency(0.03), capacity=5, queue=48, outages=(Outage(1.0, 2.2, "200", Latency(0.12)),))
_EDITED = "compare/policies/live-policy-change.after.yaml"

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "steady", "Nothing goes wrong: what does each plane cost?",
        # One endpoint, so that every plane's pool holds one connection: a pool looks at each of its idle ones for every call.
        services=(Script("a"),), traffic=Closed(1500), workers=1, warm_up=50,
    ),
    Scenario(
        "flaky", "One request in five fails at random: how many callers notice, and how many requests does it take?",
        services=tuple(Script(name, outcomes={"503": 0.15, "reset": 0.05}, latency=_FAST) for name in "ab"),
        traffic=Open(300, 3.0), workers=32,
    ),
    Scenario(
        "slow-endpoint", "One endpoint of three is slow and one never answers in time: who waits for them?",
        services=(
            Script("a", latency=Latency(0.004, 0.3)), Script("b", latency=Latency(0.020, 0.3)), Script("c", latency=Latency(0.200, 0.1)),
        ),
        traffic=Open(200, 3.5), workers=48,
    ),
    Scenario(
        "dead-endpoint", "One endpoint of three refuses connections: does anybody notice?",
        services=(Script("a", latency=_FAST), Script("b", latency=_FAST), Script("c", refuses=True)),
        traffic=Open(200, 3.0), workers=32,
    ),
    Scenario(
        "outage", "Every endpoint fails for a while: who is spared, and how soon is all well again?",
        services=tuple(Script(name, latency=_FAST, outages=_OUTAGE) for name in "ab"),
        traffic=Open(150, 4.5), workers=32,
    ),
    Scenario(
        "retry-storm", "A service slows down and its callers retry, within a budget: how many requests does it see of each call?",
        services=(_STORM,), traffic=Open(100, 4.5), workers=128, tolerance=Tolerance(share=0.06, attempts=0.1),
    ),
    Scenario(
        "retry-storm-unbounded", "The same without a budget: how much worse do retries make it?",
        services=(_STORM,), traffic=Open(100, 4.5), workers=128, tolerance=Tolerance(share=0.06, attempts=0.1),
    ),
    Scenario(
        "overload", "Half as many calls again as the service can do: who is served, and how fast?",
        services=(Script("a", latency=Latency(0.040), capacity=4, queue=32),), traffic=Open(150, 3.5), workers=48,
        # Which calls find a slot depends on the milliseconds of those before them.
        tolerance=Tolerance(share=0.06),
    ),
    Scenario(
        "workers", "Four processes of one application: how often does each limit hold?",
        services=(Script("a", latency=Latency(0.03), outages=(Outage(2.0, 3.0),)),), traffic=Open(160, 4.0), workers=16, processes=4,
        tolerance=Tolerance(share=0.06),
        reasons=(Reason(
            "the library keeps limits, circuits and ejections in each process: four processes have four of each, one sidecar has one",
            "docs/how-to/compare.md#what-speaks-against-the-library",
            ("success", "rejections", "failures", "attempts", "requests", "most", "ejections", "latency"),
        ),),
        # What is refused for good is refused after the outage too, in one plane, so that there is no end to recover to.
        recovers=False,
    ),
    Scenario(
        "fault-drill", "The policy injects aborts and delays: how many callers get one?",
        services=(Script("a", latency=_FAST),), traffic=Open(300, 3.0), workers=48,
        # A share of 20 % is drawn 900 times on either plane, each for itself.
        tolerance=Tolerance(share=0.05, attempts=0.05),
    ),
    Scenario(
        "canary", "One call in ten goes to the new version: does it?",
        services=(Script("a", "v1", latency=_FAST), Script("b", "v1", latency=_FAST), Script("c", "v2", latency=_FAST)),
        traffic=Open(300, 2.5), workers=32,
        # Chance alone makes 1.5 points often, which the test knows.
        tolerance=Tolerance(share=0.04),
    ),
    Scenario(
        "live-policy-change", "The policy is edited under traffic: when does the edit count, and whom does it disturb?",
        services=(Script("a", "v1", latency=_FAST), Script("b", "v2", latency=_FAST)), traffic=Open(200, 5.8), workers=32,
        # Not a multiple of a second apart: whoever looks once a second is met at different times of it.
        edits=(Edit(0.6, _EDITED, "v2"), Edit(3.27, "compare/policies/live-policy-change.yaml", "v1")),
        reasons=(Reason(
            "the library looks at the policy's file once a second (reload_interval) and has another process read it;"
            " Envoy is told of the change by the system",
            "docs/how-to/compare.md#what-speaks-against-the-library", ("time until", "answered by", "requests to"),
        ),),
    ),
)
