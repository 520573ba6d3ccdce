"""Fault injection: what a policy's ``fault``, or a test's ``mesh.inject``, does to one call, or to one attempt.

The delay and the abort are drawn independently of one another, the delay comes first (ENVOY.md 2e). Of several faults
every delay counts, and the first abort that is drawn: the injection made last is asked first, the policy last.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault block of the policy, or an injection. Shares are 0-1, the delay is in seconds."""

    abort_status: int | None
    abort_grpc: int | None
    abort_share: float
    delay: float
    delay_share: float

    def draw_delay(self, rng: Random) -> float:
        """Seconds to wait; 0 for most calls."""
        return self.delay if self.delay and rng.random() < self.delay_share else 0.0

    def draw_abort(self, rng: Random) -> Fault | None:
        """The fault that answers in place of the service; ``None``: nothing does."""
        aborts = (self.abort_status is not None or self.abort_grpc is not None) and rng.random() < self.abort_share
        return self if aborts else None


class Faults:
    """Several faults at one place, the most urgent first."""

    __slots__ = ("_all",)

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        self._all = faults

    def draw_delay(self, rng: Random) -> float:
        """Seconds to wait: every delay that is drawn, one after the other."""
        return sum(each.draw_delay(rng) for each in self._all)

    def draw_abort(self, rng: Random) -> Fault | None:
        """The first fault that answers in place of the service."""
        return next((each for each in self._all if each.draw_abort(rng)), None)


class Injected(Protocol):
    """What a compilation needs of a fault that a program has put in (``resilmesh.inject``)."""

    @property
    def fault(self) -> Fault: ...

    @property
    def scope(self) -> Literal["CALL", "ATTEMPT"]: ...

    def applies_to(self, service: str, route: str | None) -> bool:
        """Whether it stands on the plan of a route (``None``: of what no route matches)."""
