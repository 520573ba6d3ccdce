"""A server's TLS with this workload's identity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilmesh.identity.tls import LiveContext, NoIdentity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilmesh.mesh import Mesh


def server_context(mesh: Mesh, *, alpn: Sequence[str] = ("http/1.1",)) -> LiveContext:
    """The ``ssl.SSLContext`` of a server: each new connection has the newest certificate, and callers are asked for theirs.

    Under ``mtls: STRICT`` a caller without one is refused in the handshake; otherwise one that shows a certificate must be vouched
    for. ``alpn``: the protocols that the server speaks. Raises ``NoIdentity`` where nothing says where the certificate is.
    """
    source = mesh.identity_source
    if source is None:
        raise NoIdentity("a server needs an identity: write `mesh.identity`, set RESILMESH_IDENTITY, or pass `identity=` to Mesh")
    return LiveContext(source, serves=True, requires=mesh.table.gate.requires_identity, alpn=alpn, now=mesh.clock.wall)
