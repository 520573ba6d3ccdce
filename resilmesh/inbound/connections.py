"""What a server's TLS knows of a connection, as the gate wants it."""

from __future__ import annotations

from typing import Any

from resilmesh.identity.gate import Connection
from resilmesh.identity.spiffe import SpiffeId


def of_tls(secured: Any, source: str | None, server: tuple[str, int] | None) -> Connection:
    """``secured``: an ``ssl.SSLSocket`` or ``ssl.SSLObject`` of a context of ours, or anything else, which proves nothing."""
    peer = getattr(secured, "peer", None)
    if not isinstance(peer, SpiffeId):
        return Connection(source=source, server=server, sni=getattr(secured, "sni", None))
    import hashlib

    from cryptography import x509

    shown = secured.getpeercert(True)
    subject = x509.load_der_x509_certificate(shown).subject.rfc4514_string()
    return Connection(source, peer, hashlib.sha256(shown).hexdigest(), subject, server, secured.sni)
