"""Who is let in: from what is known of a request that arrives to whom it is from, and whether it may pass. Pure.

    1  from where        the connection's address; behind a trusted proxy the original caller's, by X-Forwarded-For
    2  from whom         what the TLS connection proved; of a trusted proxy what it says in X-Forwarded-Client-Cert
    3  ``mtls``          STRICT: nobody without an identity; DISABLE: nobody has one
    4  authorization     DENY before ALLOW (``authz``)

No mode of the mesh (OBSERVE, OFF) opens the gate: for a drill a policy has a ``mode`` of its own.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from resilmesh.identity import xfcc
from resilmesh.identity.authz import Authorizer, ip_address
from resilmesh.identity.spiffe import IdentityError, SpiffeId
from resilmesh.state.ledger import Block, Ledger
from resilmesh.state.stats import DECISIONS

if TYPE_CHECKING:
    from resilmesh.identity.authz import Decision
    from resilmesh.policy.inbound import Inbound


#: What is told to whom the rules do not let in: Envoy's own words.
ACCESS_DENIED = "RBAC: access denied"

_ALLOWED, _DENIED, _AUDITED, _SHADOW_DENIED, _REFUSED = range(5)


class Connection(NamedTuple):
    """What a server knows of the connection that a request came on."""

    source: str | None = None
    """Address it comes from; ``None``: a socket of this machine."""
    peer: SpiffeId | None = None
    """What its TLS certificate proved."""
    fingerprint: str = ""
    """SHA-256 of that certificate, in hexadecimal."""
    subject: str = ""
    """Its subject."""
    server: tuple[str, int] | None = None
    """Address and port that it was made to."""
    sni: str | None = None


class Caller(NamedTuple):
    """Whom a request that is served here is from."""

    identity: SpiffeId | None
    """Its SPIFFE ID; ``None``: it has proved none."""
    source: str | None
    """Address of the connection."""
    remote: str | None
    """Address of the original caller: the same, but behind a trusted proxy."""


class Refused(Exception):
    """A request that is not let in. ``status``: of HTTP; the reason is for the log, and not for the caller."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


def check_one_meaning(method: str, hosts: Sequence[str]) -> None:
    """Refuse what a rule and an application would read differently. Raises ``Refused``."""
    if method != method.upper():
        # To a rule it is another method, and many a framework makes capitals of it.
        raise Refused(400, "the method is not in capitals")
    if len(hosts) > 1:
        raise Refused(400, "there are two hosts")


class Verdicts(Block):
    """What was decided so far. One per mesh: it survives a new policy."""

    __slots__ = ()

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(ledger, ("authorization",), len(DECISIONS), 0)

    def count(self, decision: Decision) -> None:
        """Count one decision."""
        self.counts[_ALLOWED if decision.allowed else _DENIED] += 1
        if decision.audited:
            self.counts[_AUDITED] += 1
        if decision.shadow is not None and not decision.shadow.allowed:
            self.counts[_SHADOW_DENIED] += 1

    def refuse(self) -> None:
        """Count a request that came to no decision: without the identity that ``mtls: STRICT`` asks for, or with a hostile path."""
        self.counts[_REFUSED] += 1

    def snapshot(self) -> dict[str, int]:
        """All of them."""
        return dict(zip(DECISIONS, self.counts, strict=True))


class Gate:
    """The ``inbound`` block of one policy, but for its limits."""

    def __init__(self, inbound: Inbound | None) -> None:
        policies = None if inbound is None else inbound.authorization
        #: What decides who may do what; ``None``: everybody may everything.
        self.authorizer = Authorizer(policies) if policies else None
        #: STRICT, PERMISSIVE or DISABLE
        self.mtls = "PERMISSIVE" if inbound is None else inbound.mtls
        self._proxies = [ipaddress.ip_network(each, strict=False) for each in (inbound and inbound.trusted_proxies) or ()]

    @property
    def requires_identity(self) -> bool:
        """``mtls: STRICT``"""
        return self.mtls == "STRICT"

    def trusts(self, address: str | None) -> bool:
        """Whether a proxy at this address is believed."""
        if address is None or not self._proxies:
            return False
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._proxies if network.version == found.version)

    def caller(self, connection: Connection, forwarded_for: Sequence[str], certificates: Sequence[str]) -> Caller:
        """Whom a request is from, by the values of its two headers. Raises ``Refused``."""
        trusted = self.trusts(connection.source)
        identity = connection.peer
        if trusted and certificates:
            try:
                identity = xfcc.caller_of(",".join(certificates))
            except IdentityError as error:
                raise Refused(400, f"a trusted proxy's {xfcc.HEADER} cannot be used: {error}") from None
        if self.mtls == "DISABLE":
            identity = None
        elif self.mtls == "STRICT" and identity is None:
            raise Refused(403, "mtls is STRICT, and the caller has proved no identity")
        remote = self._remote(forwarded_for) if trusted else None
        return Caller(identity, connection.source, remote or connection.source)

    def _remote(self, forwarded_for: Sequence[str]) -> str | None:
        """The last address that is no trusted proxy's: what stands before it anybody may have written."""
        found = None
        for text in reversed([part.strip() for value in forwarded_for for part in value.split(",")]):
            try:
                found = str(ip_address(text))
            except ValueError:
                return found
            if not self.trusts(found):
                return found
        return found
