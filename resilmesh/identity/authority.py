"""An identity straight from an authority in this process: for a policy server, for tests, for a program that brings its own mesh."""

from __future__ import annotations

import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from resilmesh.identity.renewal import Schedule
from resilmesh.identity.source import Source
from resilmesh.identity.spiffe import IdentityError, SpiffeId

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
        self._interval, self._now = interval, now
        self._looking = threading.Lock()
        self._stop = threading.Event()
        identity = self._issue()
        self.put(identity, now())
        self._schedule = Schedule(identity.svid, rng)
        self._start()

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
        self._stop.set()

    def _start(self) -> None:
        if self._interval is not None:
            # A daemon, and it holds this weakly: it keeps neither the process nor the source alive.
            arguments = (weakref.ref(self), self._stop, self._interval)
            threading.Thread(target=_poll, args=arguments, name="resilmesh-authority", daemon=True).start()

    def after_fork(self) -> None:
        """The thread stayed with the parent."""
        super().after_fork()
        self._looking = threading.Lock()
        if not self._stop.is_set():
            self._stop = threading.Event()
            self._start()


def _poll(looked_at: weakref.ref[AuthoritySource], stop: threading.Event, interval: float) -> None:
    while not stop.wait(interval):
        alive = looked_at()
        if alive is None:
            return
        try:
            alive.look_again()
        except Exception:
            log.exception("renewing the identity failed; trying again")
        finally:
            del alive  # or this thread would keep it alive while it waits
