"""Who calls a gRPC server, and whether it may: what its interceptors ask before anything else.

The identity is that of the connection's certificate, as gRPC's auth context has it; of a trusted proxy what it says in
``x-forwarded-client-cert``. To the rules a call is ``POST /package.Service/Method``.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import grpc

from resilmesh.identity.authz import InboundRequest
from resilmesh.identity.gate import ACCESS_DENIED, Caller, Connection, Refused
from resilmesh.identity.xfcc import HEADER

if TYPE_CHECKING:
    from resilmesh.engine.compile import Table
    from resilmesh.mesh import Mesh

Denied = tuple[grpc.StatusCode, str]

_DENIED: Denied = (grpc.StatusCode.PERMISSION_DENIED, ACCESS_DENIED)
#: Certificates whose holder is known: a connection shows the same one with each call.
_REMEMBERED = 1000


def admit(mesh: Mesh, table: Table, context: Any, method: str) -> tuple[Caller | None, Denied | None]:
    """Whom a call is from, and its status and details if it is not let in."""
    metadata = context.invocation_metadata() or ()
    try:
        source = _address(context.peer())
        connection = Connection(source, _peer(mesh, context))
        caller = table.gate.caller(connection, _values(metadata, "x-forwarded-for"), _values(metadata, HEADER))
    except Refused as refused:
        mesh.turned_away(refused.args[0])
        return None, _DENIED if refused.status == 403 else (grpc.StatusCode.INVALID_ARGUMENT, f"{HEADER} cannot be used")
    authorizer = table.gate.authorizer
    if authorizer is None:
        return caller, None
    if authorizer.asks_about:
        # A DENY rule that never matches would let everybody in.
        mesh.turned_away(f"grpcio does not tell what inbound.authorization asks about: {', '.join(sorted(authorizer.asks_about))}")
        return caller, _DENIED
    request = InboundRequest(
        "POST", method, headers=_by_name(metadata),
        principal=None if caller.identity is None else caller.identity.principal, source_ip=caller.source, remote_ip=caller.remote,
    )
    return caller, None if mesh.authorized(table, request) else _DENIED


def _values(metadata: Any, wanted: str) -> list[str]:
    return [value for name, value in metadata if name == wanted]


def _by_name(metadata: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in metadata:
        if isinstance(value, str):
            found.setdefault(name, []).append(value)
    return found


def _address(peer: str) -> str | None:
    """Of ``ipv4:127.0.0.1:4711`` or ``ipv6:%5B::1%5D:4711``; of a socket of this machine ``None``."""
    kind, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") if kind in ("ipv4", "ipv6") else None


_known: OrderedDict[tuple[int, bytes], Any] = OrderedDict()


def _peer(mesh: Mesh, context: Any) -> Any:
    """The SPIFFE ID of the connection's certificate; ``None``: it has shown none. Raises ``Refused``."""
    shown = context.auth_context().get("x509_pem_cert") if hasattr(context, "auth_context") else None
    identity = mesh.identity
    if not shown or identity is None:
        return None
    from cryptography import x509

    from resilmesh.identity.spiffe import IdentityError
    from resilmesh.identity.svid import check_validity
    from resilmesh.identity.tls import ANYBODY

    now = mesh.clock.wall()
    key = id(identity), shown[0]
    found = _known.get(key)
    if found is None or found[0] is not identity:
        chain = context.auth_context().get("x509_pem_cert_chain")
        certificates = x509.load_pem_x509_certificates(chain[0]) if chain else [x509.load_pem_x509_certificate(shown[0])]
        try:
            found = identity, ANYBODY.check(certificates, identity, now), certificates[0]
        except IdentityError as error:
            raise Refused(403, f"the certificate of the caller is refused: {error}") from None
        _known[key] = found
        while len(_known) > _REMEMBERED:
            _known.popitem(last=False)
    try:
        check_validity(found[2], now)
    except IdentityError as error:
        raise Refused(403, f"the certificate of the caller is refused: {error}") from None
    return found[1]
