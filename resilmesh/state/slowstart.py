"""Slow start: the share of the traffic that an endpoint gets while it comes back.

Envoy's formula, with the time since it came: max(minWeightPercent, (elapsed / window) ^ (1 / aggression)). Which endpoints
are eased is ours: one that returns from ejection, and one that a reload adds to a service that is in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, pow
from typing import Final

#: When it came, for an endpoint that is not eased; and for one that came and has not been looked at since.
LONG_AGO: Final = -inf
JUST_NOW: Final = inf

#: Envoy's clock counts milliseconds, and an endpoint that has just come has been there for one.
_SHORTEST = 0.001
#: The only endpoint that is left gets the call, so no share is nothing.
_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class SlowStart:
    """The policy's slowStart block. ``window`` is seconds, ``least`` a share between 0 and 1."""

    window: float
    aggression: float
    least: float

    def share(self, elapsed: float) -> float:
        """Of a full share, between 0 (exclusive) and 1, what an endpoint gets ``elapsed`` seconds after it came."""
        part = max(elapsed, _SHORTEST) / self.window
        if part >= 1.0:
            return 1.0
        return max(self.least, _LEAST, pow(part, 1.0 / self.aggression))
