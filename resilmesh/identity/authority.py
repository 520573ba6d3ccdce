"""An identity straight from an authority in this process: for a policy server, for tests, for a program that brings its own mesh."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from resilmesh.identity.renewal import Schedule
from resilmesh.identity.source import Source
from resilmesh.identity.spiffe import IdentityError, SpiffeId
from resilmesh.ticker import Ticker

if TYPE_CHECKING:
    from resilmesh.identity.ca import CertificateAuthority
    from resilmesh.identity.svid import Identity, TrustBundle

log = logging.getLogger("resilmesh.identity")


class AuthoritySource(Source):
    """Has ``authority`` issue a certificate for ``spiffe_id``, and another one at half of its life.

    ``ttl``, ``dns``: as ``CertificateAuthority.issue``. ``federated``: bundles of other trust domains. ``interval``: seconds between two
    looks, 1 by default; ``None``: only ``look_again`` renews. Raises ``IdentityError`` if none is issued at first; later it keeps the old
    one, loudly, and tries again. Unlike files it needs the authority's key in this process.
    """

    def __init__(
        self, authority: CertificateAuthority, spiffe_id: str | SpiffeId, *, ttl: float | None = None, dns: Iterable[str] = (),
        federated: Iterable[TrustBundle] = (), interval: float | None = 1.0, now: Callable[[], float] = time.time,
        rng: Callable[[], float] = random.random,
    ) -> None:
        super().__init__()
        self._authority, self._spiffe_id, self._ttl, self._dns = authority, spiffe_id, ttl, tuple(dns)
        self._federated = tuple(federated)
        self._now = now
        self._looking = threading.Lock()
        self._ticker = Ticker(self.look_again, interval, thread="resilmesh-authority", task="renewing the identity", log=log)
        identity = self._issue()
        self.put(identity, now())
        self._schedule = Schedule(identity.svid, rng)
        self._ticker.start()

    def look_again(self) -> bool:
        """Renew if it is time, or if the authority's bundle has changed; whether another identity was put in force."""
        with self._looking:
            now = self._now()
            try:
                if not self._schedule.is_due(now, self._is_stale):
                    return False
                identity = self._issue()
                self.put(identity, now)
            except (IdentityError, OSError) as error:
                self._schedule.failed(now)
                self.refuse(error)
                return False
            finally:
                self.look(now)
            self._schedule.renewed(identity.svid)
            return True

    def _issue(self) -> Identity:
        from resilmesh.identity.svid import Identity

        issued = self._authority.issue(self._spiffe_id, ttl=self._ttl, dns=self._dns)
        return Identity.of(issued.svid, [*issued.bundles.values(), *self._federated])

    def _is_stale(self) -> bool:
        identity = self.current()
        return self._authority.bundle() != identity.of_domain(identity.svid.id.trust_domain)

    def close(self) -> None:
        """No further renewal."""
        self._ticker.stop()

    def after_fork(self) -> None:
        """The thread stayed with the parent."""
        super().after_fork()
        self._looking = threading.Lock()
        self._ticker.after_fork()
