"""Load balancing: which endpoint the next attempt goes to.

A balancer serves one set of endpoints (a service's, or a subset's) minus the ejected and minus those that the
call has tried already, while there are others. Below ``panicThreshold`` of healthy endpoints it uses all of them.

    ROUND_ROBIN     in turn, from a random start, so that many processes do not all start with the first
    LEAST_REQUEST   the less loaded of two drawn at random with replacement, as Envoy draws them
    RANDOM          drawn
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from resilmesh.state.outlier import Endpoint, OutlierDetector

#: Endpoints drawn by LEAST_REQUEST. Envoy: choice_count 2.
CHOICES = 2


class Balancer:
    """Picks from ``members``; ``detector`` knows who is ejected."""

    __slots__ = ("_next", "_seen", "_usable", "detector", "members", "policy", "rng")

    def __init__(self, policy: str, members: Sequence[Endpoint], detector: OutlierDetector, rng: Random) -> None:
        self.policy = policy
        self.members = tuple(members)
        self.detector = detector
        self.rng = rng
        self._next = rng.randrange(len(self.members)) if self.members else 0
        self._seen = -1
        self._usable: tuple[Endpoint, ...] = ()

    def retune(self, policy: str, members: Sequence[Endpoint]) -> None:
        self.policy, self.members, self._seen = policy, tuple(members), -1

    def pick(self, now: float, tried: Sequence[Endpoint] = ()) -> Endpoint | None:
        """An endpoint, ``None`` when no healthy one is left."""
        detector = self.detector
        detector.tick(now)
        if self._seen != detector.version:
            self._refresh()
        usable = self._usable
        if len(usable) <= 1:
            return usable[0] if usable else None
        if tried and {*usable} <= {*tried}:
            tried = ()
        if self.policy == "ROUND_ROBIN":
            # The turn is among all, and passes over who was tried, as in Envoy: a turn among the rest would favour some.
            while True:
                at = self._next + 1
                self._next = at
                found = usable[at % len(usable)]
                if found not in tried:
                    return found
        if tried:
            usable = (*[each for each in usable if each not in tried],)
        rng = self.rng
        first = usable[int(rng.random() * len(usable))]
        if self.policy == "RANDOM":
            return first
        for _ in range(CHOICES - 1):
            other = usable[int(rng.random() * len(usable))]
            if other.in_flight < first.in_flight:
                first = other
        return first

    def after_fork(self) -> None:
        """It holds no lock and nothing in flight."""

    def _refresh(self) -> None:
        self._seen = self.detector.version
        healthy = tuple(each for each in self.members if not each.ejected)
        settings = self.detector.settings
        panics = settings is not None and self.members and 100 * len(healthy) < settings.panic * len(self.members)
        self._usable = self.members if panics else healthy
