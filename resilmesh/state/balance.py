"""Load balancing: which endpoint the next attempt goes to.

A balancer serves one set of endpoints (a service's, or a subset's) minus the ejected and minus those that the
call has tried already, while there are others. Below ``panicThreshold`` of healthy endpoints it uses all of them.

    ROUND_ROBIN     in turn, from a random start, so that many processes do not all start with the first
    LEAST_REQUEST   the less loaded of two drawn at random with replacement, as Envoy draws them
    RANDOM          drawn

While an endpoint is in slow start, those with less than the largest share are passed over in turn, or drawn less often,
in proportion. LEAST_REQUEST then takes the less loaded of two that were drawn so, which may give a share that is small
up to twice over. Of several that come at once each gets its part: shares are relative, and the only one left gets the call.
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
        eased = self._seen != detector.version and self._refresh(now)
        usable = self._usable
        if len(usable) <= 1:
            return usable[0] if usable else None
        if tried and {*usable} <= {*tried}:
            tried = ()
        if eased:
            return self._pick_by_share(now, usable, tried)
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

    def _pick_by_share(self, now: float, usable: Sequence[Endpoint], tried: Sequence[Endpoint]) -> Endpoint:
        rng = self.rng
        if self.policy == "ROUND_ROBIN":
            most = max([each.share(now) for each in usable if each not in tried])
            # Whoever has the most is never passed over, so one round is enough.
            start = self._next + 1
            for at in range(start, start + len(usable)):
                found = usable[at % len(usable)]
                if found not in tried and rng.random() * most < found.share(now):
                    self._next = at
                    return found
        candidates = [each for each in usable if each not in tried]
        shares = [each.share(now) for each in candidates]
        drawn = rng.choices(candidates, shares, k=1 if self.policy == "RANDOM" else CHOICES)
        return min(drawn, key=lambda each: each.in_flight)

    def after_fork(self) -> None:
        """It holds no lock and nothing in flight."""

    def _refresh(self, now: float) -> bool:
        """Who is usable, and whether one of them is in slow start: then the next pick looks again."""
        version = self.detector.version
        healthy = tuple(each for each in self.members if not each.ejected)
        settings = self.detector.settings
        panics = settings is not None and self.members and 100 * len(healthy) < settings.panic * len(self.members)
        usable = self._usable = self.members if panics else healthy
        eased = any([each.share(now) < 1.0 for each in usable])  # noqa: C419  # a generator would outlive an interrupt
        # No cost while nobody is eased: the question above is the one that is asked anyway.
        self._seen = -1 if eased else version
        return eased
