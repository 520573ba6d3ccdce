"""The compiled policy of one route: plain values and the state they refer to, nothing to look up.

A plan never changes once it is published; a new policy makes new plans over the same state. A call captures
its plan when it starts, so a reload can never tear a call in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING, Literal, NamedTuple

from resilmesh.engine.verdict import Classes, Verdict, of_status

if TYPE_CHECKING:
    from random import Random

    from resilmesh.engine.events import Hub
    from resilmesh.engine.fault import Fault, Faults
    from resilmesh.engine.shape import Shape
    from resilmesh.state.balance import Balancer
    from resilmesh.state.breaker import CircuitBreaker
    from resilmesh.state.budget import RetryBudget
    from resilmesh.state.concurrency import Concurrency
    from resilmesh.state.outlier import Endpoint
    from resilmesh.state.ratelimit import AllOf, LimitsByValue, RateLimit
    from resilmesh.state.stats import Stats

INFINITY = float("inf")
#: Whose plan the calls are under that this workload serves; no service of a policy can have the name.
INBOUND = "(inbound)"


class RetryPlan:
    """The policy's retries block. ``words`` is a bit mask (verdict.WORDS), durations are seconds."""

    __slots__ = ("base", "longest", "max_retries", "per_try_timeout", "retry_after_max", "statuses", "words")

    def __init__(
        self, *, max_retries: int, words: int, statuses: frozenset[int], per_try_timeout: float | None, base: float, longest: float,
        retry_after_max: float | None,
    ) -> None:
        self.max_retries = max_retries
        self.words = words
        self.statuses = statuses
        self.per_try_timeout = per_try_timeout
        self.base = base
        self.longest = longest
        self.retry_after_max = retry_after_max


class Split:
    """Balancers by share: the first whose cumulated share exceeds a random number in [0, 1)."""

    __slots__ = ("shares",)

    def __init__(self, shares: list[tuple[float, Balancer]]) -> None:
        self.shares = tuple(shares)

    def choose(self, draw: float) -> Balancer:
        for bound, balancer in self.shares:
            if draw < bound:
                return balancer
        return self.shares[-1][1]


class Fallback:
    """The policy's static answer: in place of which outcomes, and what it is."""

    __slots__ = ("body", "headers", "on", "status")

    def __init__(self, on: frozenset[str], status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
        self.on = on
        self.status = status
        self.headers = tuple(headers)
        self.body = body


class Mirror:
    """Where copies of a share (0 to 1) of the calls go, and the plan of such a copy."""

    __slots__ = ("plan", "share")

    def __init__(self, plan: Plan, share: float) -> None:
        self.plan = plan
        self.share = share


class Tls(NamedTuple):
    """What an endpoint must prove before anything is sent to it, and whether we prove who we are. Of a plan absent: as the caller says."""

    mutual: bool
    identities: frozenset[str]
    """SPIFFE IDs, of which it must prove one."""
    dns_sans: frozenset[str]
    """DNS names in lower case, likewise, where no identity is named; and what stands for the identities over gRPC."""


class Plan:
    """What a driver and the engine need to know about one route."""

    __slots__ = (
        "balancer", "breaker", "budget", "by_value", "classes", "concurrency", "connect_timeout", "drill", "endpoints", "fallback",
        "fault", "http2", "hub", "idle_timeout", "limit", "max_pending_wait", "mirror", "mode", "per_try", "plain", "quick", "respond",
        "retries", "retry_idempotent", "rng", "route", "service", "shape", "split", "stats", "timeout", "tls",
        "verdict_of",
    )

    def __init__(
        self,
        service: str,
        route: str | None,
        *,
        hub: Hub,
        stats: Stats,
        rng: Random,
        mode: Literal["ENFORCE", "OBSERVE"] = "ENFORCE",
        respond: bool = False,
        timeout: float | None = None,
        idle_timeout: float | None = None,
        connect_timeout: float | None = None,
        retries: RetryPlan | None = None,
        retry_idempotent: bool | None = None,
        budget: RetryBudget | None = None,
        breaker: CircuitBreaker | None = None,
        limit: RateLimit | AllOf | None = None,
        by_value: LimitsByValue | None = None,
        concurrency: Concurrency | None = None,
        max_pending_wait: float | None = None,
        endpoints: tuple[Endpoint, ...] | None = None,
        balancer: Balancer | None = None,
        split: Split | None = None,
        fault: Fault | Faults | None = None,
        drill: Fault | Faults | None = None,
        http2: bool = False,
        classes: Classes | None = None,
        fallback: Fallback | None = None,
        shape: Shape | None = None,
        mirror: Mirror | None = None,
        tls: Tls | None = None,
    ) -> None:
        self.service = service
        self.route = route
        self.hub = hub
        self.stats = stats
        self.rng = rng
        self.mode = mode
        self.respond = respond
        self.timeout = timeout
        self.idle_timeout = idle_timeout
        self.connect_timeout = connect_timeout
        self.retries = retries
        self.per_try = INFINITY if retries is None or retries.per_try_timeout is None else retries.per_try_timeout
        self.retry_idempotent = retry_idempotent
        self.budget = budget
        self.breaker = breaker
        self.limit = limit
        #: In place of ``limit`` where the values of request headers choose the bucket.
        self.by_value = by_value
        self.concurrency = concurrency
        self.max_pending_wait = max_pending_wait
        self.endpoints = endpoints
        #: protocol: HTTP2
        self.http2 = http2
        self.balancer = balancer
        self.split = split
        #: The faults of call scope, and those of attempt scope.
        self.fault = fault
        self.drill = drill if mode == "ENFORCE" else None
        self.classes = classes
        #: The verdict and the retry words of an HTTP status.
        self.verdict_of = of_status if classes is None else classes.of_status
        #: Nothing stands above the deadline: no OBSERVE, no fault of call scope.
        self.plain = mode == "ENFORCE" and self.fault is None
        #: A success without a retry word needs no second look: no OBSERVE, no answer that a fault made up, and retryOn lists
        #: no status that is a success.
        self.quick = mode == "ENFORCE" and self.drill is None and (
            retries is None or all(self.verdict_of(status)[0] is not Verdict.SUCCESS for status in retries.statuses)
        )
        self.fallback = fallback
        #: What is changed on requests and responses.
        self.shape = shape
        self.mirror = mirror
        self.tls = tls

    def without_endpoints(self) -> Plan:
        """The same for a client that was made for one place: nothing is picked, ejected or judged by endpoint."""
        made = copy(self)
        made.balancer = made.split = made.endpoints = made.connect_timeout = None
        return made
