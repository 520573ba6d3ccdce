"""The policy's TLS as gRPC's credentials.

grpcio asks nobody what a certificate must prove: it compares the certificate's DNS SANs with one host name. So a service is
verified by the DNS SAN that resilmesh's own authority derives from its SPIFFE ID one to one (``resilmesh.identity.spiffe.dns_name``),
or by the one that the policy names; and only by the authorities of that identity's trust domain. Not seen here: whether a
certificate has further URI SANs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import grpc

from resilmesh.errors import TlsImpossible
from resilmesh_grpc.errors import in_dialect

if TYPE_CHECKING:
    from resilmesh.engine.plan import Plan
    from resilmesh.identity.svid import Identity
    from resilmesh.mesh import Mesh


class Secured(NamedTuple):
    """Credentials of a sub-channel, whose they are, and the name that the service must prove (``None``: the target's host)."""

    credentials: grpc.ChannelCredentials
    identity: Identity | None
    name: str | None


def secured(mesh: Mesh, plan: Plan, given: grpc.ChannelCredentials | None) -> Secured:
    """For the calls of a plan whose ``tls`` is not ``None``. ``given``: the channel's own. Raises ``TlsImpossible`` as gRPC's own."""
    tls = plan.tls
    if tls is None:
        raise ValueError("the plan says nothing of TLS")
    names = tls.dns_sans or tls.identities
    if not names:
        return Secured(given or grpc.ssl_channel_credentials(), None, None)
    if given is not None:
        raise _impossible(plan, "the channel has credentials of its own, and the policy has others: leave out `credentials=` (those of a "
                                "call may be given with the call)")
    if len(names) > 1:
        raise _impossible(plan, f"gRPC can compare a certificate with one name, and the policy has {len(names)}")
    identity = mesh.identity
    if identity is None:
        raise _impossible(plan, "nothing says where the certificate of this workload is")
    return _for_one(plan, identity, next(iter(names)))


def _for_one(plan: Plan, identity: Identity, name: str) -> Secured:
    from resilmesh.identity.spiffe import IdentityError, SpiffeId, dns_name

    tls = plan.tls
    assert tls is not None
    domain = identity.svid.id.trust_domain
    if not tls.dns_sans:
        expected = SpiffeId.parse(name)
        name, domain = dns_name(expected), expected.trust_domain
    try:
        roots = identity.of_domain(domain).pem()
    except IdentityError as error:
        raise _impossible(plan, str(error)) from None
    svid = identity.svid
    own = (svid.key_pem(), svid.chain_pem()) if tls.mutual else (None, None)
    return Secured(grpc.ssl_channel_credentials(roots, *own), identity, name)


#: How grpc's core says that a certificate was refused.
_REFUSALS = ("Hostname Verification Check failed", "CERTIFICATE_VERIFY_FAILED")


def explain(error: Any, plan: Plan) -> None:
    """Have grpc's error for a certificate that it refused say what the service was to prove: a note of the exception (PEP 678)."""
    from resilmesh.identity.spiffe import SpiffeId, dns_name

    tls = plan.tls
    details = error.details() or ""
    if tls is None or not isinstance(error, BaseException) or not any(refusal in details for refusal in _REFUSALS):
        return
    expected = [f"the DNS SAN {each}" for each in sorted(tls.dns_sans)] or [
        f"{each}, by the DNS SAN {dns_name(SpiffeId.parse(each))}" for each in sorted(tls.identities)
    ]
    if expected:
        error.add_note(f"resilmesh: the certificate of {plan.service} is refused; to be proved is {' or '.join(expected)}")


def not_ours(plan: Plan) -> Exception:
    """Why a call is refused on a channel that somebody else has made."""
    return _impossible(plan, "the policy asks for TLS, which cannot be added to a channel that is there: use resilmesh_grpc.channel")


def _impossible(plan: Plan, why: str) -> Exception:
    return in_dialect(TlsImpossible(why, service=plan.service, route=plan.route))


def server_credentials(mesh: Mesh) -> grpc.ServerCredentials:
    """For ``server.add_secure_port`` of both kinds of server: mutual TLS with this workload's identity, which rotates live.

    Each new connection has the newest certificate; connections that are open keep theirs. A caller must show a certificate that a
    trust bundle of the mesh vouches for; which SPIFFE ID it proves, and that the bundle is that of its own trust domain, the
    interceptors look at with each call (``server_interceptor``, ``aio_server_interceptor``).

    Raises ``IdentityError`` where nothing says where the certificate of this workload is.
    """
    from resilmesh.identity.spiffe import IdentityError

    newest = _Newest(mesh)
    first = newest.configuration()
    if first is None:
        raise IdentityError("a server needs an identity: write `mesh.identity`, set RESILMESH_IDENTITY, or pass `identity=` to Mesh")
    fetch: Any = newest.configuration  # its stubs do not know that None is "no other one"
    return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=True)


class _Newest:
    """What grpc asks for a certificate whenever a connection comes, on a thread of its own."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._shown: Identity | None = None

    def configuration(self) -> grpc.ServerCertificateConfiguration | None:
        """``None``: the one that it has is the newest."""
        identity = self._mesh.identity
        if identity is None or identity is self._shown:
            return None
        self._shown = identity
        roots = b"".join(bundle.pem() for bundle in identity.bundles.values())
        return grpc.ssl_server_certificate_configuration([(identity.svid.key_pem(), identity.svid.chain_pem())], roots)
