"""Where an identity comes from, and how it is kept fresh: one interface for files, an authority of our own and the Workload API.

    a source ---- put(identity) ----> current()       each new connection asks
             ---- refuse(error) ----> the old identity stays, loudly
             ---- look(now) --------> warns of an expiry that no renewal has prevented

Nothing here reads a clock or a file: ``now`` is an argument, and the sources (``files``, ``authority``, ``workload_api``) bring what they
found.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resilmesh.identity.spiffe import IdentityError

if TYPE_CHECKING:
    from resilmesh.identity.svid import Identity

log = logging.getLogger("resilmesh.identity")

#: Warned of when this part of its life is left: it is renewed at half, so by then a renewal has failed for a while.
EXPIRY_WARNING = 1 / 3

#: Called with what happened (``identity_rotated``, ``identity_refused``, ``identity_expiring``, ``identity_expired``) and its facts.
Listener = Callable[[str, dict[str, Any]], object]


class Source:
    """The newest identity that can be used. Made by one of its kinds; serves any number of threads."""

    def __init__(self) -> None:
        self._identity: Identity | None = None
        self._problem: str | None = None
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], Listener | None]] = []
        self._warned: str | None = None
        #: The one that every identity must be of, where the policy names it.
        self.trust_domain: str | None = None
        #: Of what happened so far.
        self.rotations = self.refusals = self.warnings = 0
        _all.add(self)

    @property
    def newest(self) -> Identity | None:
        """The identity in force, if there is one yet."""
        return self._identity

    def current(self) -> Identity:
        """The identity in force. Raises ``IdentityError`` where there never was one."""
        identity = self._identity
        if identity is None:
            raise IdentityError(f"there is no identity yet: {self._problem or 'nothing has come from its source'}")
        return identity

    def close(self) -> None:
        """End what keeps it fresh; the identity stays."""

    def after_fork(self) -> None:
        """In a child: no lock is held, and its own threads begin."""
        self._lock = threading.Lock()

    def listen(self, listener: Listener) -> None:
        """Have a bound method, which is held weakly, told of what happens."""
        self._listeners.append(weakref.WeakMethod(listener))

    def belong(self, trust_domain: str) -> None:
        """Take no identity of another trust domain. Raises ``IdentityError`` if the one in force is."""
        self.trust_domain = trust_domain
        if self._identity is not None:
            self._check_domain(self._identity)

    def _check_domain(self, identity: Identity) -> None:
        own = identity.svid.id.trust_domain
        if self.trust_domain is not None and own != self.trust_domain:
            raise IdentityError(f"{identity.svid.id} is of the trust domain {own}, and the policy's trustDomain is {self.trust_domain}")

    def snapshot(self, now: float) -> dict[str, Any]:
        """What there is to see, for ``mesh.snapshot()``; no key. Times are seconds."""
        identity = self._identity
        seen: dict[str, Any] = {"rotations": self.rotations, "refusals": self.refusals, "warnings": self.warnings, "problem": self._problem}
        if identity is None:
            return {"spiffeId": None, **seen}
        return {
            "spiffeId": str(identity.svid.id), "serial": f"{identity.svid.leaf.serial_number:x}",
            "expiresIn": round(identity.svid.not_after - now, 3), "trustDomains": sorted(identity.bundles), **seen,
        }

    # ---------------------------------------------------------------------------------- for the kinds of source

    def put(self, identity: Identity, now: float) -> None:
        """Put an identity in force. Raises ``IdentityError`` for one that cannot be used now, and the old one stays."""
        from resilmesh.identity.svid import check_validity

        self._check_domain(identity)
        for each in identity.svid.chain:
            check_validity(each, now)
        with self._lock:
            old, self._problem = self._identity, None
            if old is not None and (identity.svid.chain, identity.bundles) == (old.svid.chain, old.bundles):
                return
            self._identity, self._warned = identity, None
            if old is None:
                return
            self.rotations += 1
        svid = identity.svid
        log.info("identity renewed: %s, serial %x, for %.0f s", svid.id, svid.leaf.serial_number, svid.not_after - now)
        self._tell("identity_rotated", spiffe_id=str(svid.id), serial=f"{svid.leaf.serial_number:x}", expires_in=svid.not_after - now)

    def refuse(self, error: Exception) -> None:
        """What the source has cannot be used: the old identity stays in force. Loud once, until something else is wrong."""
        problem = str(error)
        with self._lock:
            if problem == self._problem:
                return
            self._problem = problem
            self.refusals += 1
        log.error("identity refused, the one in force stays: %s", problem)
        self._tell("identity_refused", error=problem)

    def look(self, now: float) -> None:
        """Warn of an end that comes near and of one that has come, once each."""
        identity = self._identity
        if identity is None:
            return
        svid = identity.svid
        left = svid.not_after - now
        kind = None
        if left <= 0:
            kind = "identity_expired"
        elif left < (svid.not_after - svid.not_before) * EXPIRY_WARNING:
            kind = "identity_expiring"
        with self._lock:
            if kind is None or kind == self._warned:
                return
            self._warned = kind
            self.warnings += 1
        if left <= 0:
            log.error("the identity %s has expired %.0f s ago and was not renewed: it is refused everywhere", svid.id, -left)
        else:
            log.warning("the identity %s ends in %.0f s and was not renewed yet: look at what renews it", svid.id, left)
        self._tell(kind, spiffe_id=str(svid.id), expires_in=left)

    def _tell(self, kind: str, **facts: Any) -> None:
        for get in list(self._listeners):
            listener = get()
            if listener is None:
                self._listeners.remove(get)
            else:
                listener(kind, facts)


_all: weakref.WeakSet[Source] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_all):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Fixed(Source):
    """An identity that somebody else keeps fresh, by ``put``; for tests, and for programs that have an authority of their own."""

    def __init__(self, identity: Identity) -> None:
        super().__init__()
        self._identity = identity
