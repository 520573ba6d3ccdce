"""Fault injection: what a policy's ``fault`` does to one call, or to one attempt.

The delay and the abort are drawn independently of one another, the delay comes first (ENVOY.md 2e).
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Fault:
    """The policy's fault block. Shares are 0-1, the delay is in seconds."""

    abort_status: int | None
    abort_grpc: int | None
    abort_share: float
    delay: float
    delay_share: float

    def draw_delay(self, rng: Random) -> float:
        """Seconds to wait; 0 for most calls."""
        return self.delay if self.delay and rng.random() < self.delay_share else 0.0

    def draw_abort(self, rng: Random) -> bool:
        """Whether to answer in place of the service."""
        return (self.abort_status is not None or self.abort_grpc is not None) and rng.random() < self.abort_share
