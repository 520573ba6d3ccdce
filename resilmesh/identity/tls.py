"""TLS with a workload's identity: contexts of the standard library's ``ssl`` whose peers are verified in the handshake itself.

Two kinds of context:

* one that is made for one identity and never changed: reloading certificates into a context that is in use breaks it for good
  when the files are torn (DESIGN, section 6);
* ``LiveContext``, which users and servers hold: each new connection is given the newest of the first kind. So whatever takes
  an ``ssl.SSLContext`` (uvicorn, hypercorn, gunicorn, httpx's ``verify``) rotates without being told.

The peer's SPIFFE ID is verified where OpenSSL ends its handshake, before anybody can write: a refused peer never sees a byte
of a request.
"""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from resilmesh.identity.spiffe import IdentityError, SpiffeId
from resilmesh.identity.svid import Identity, Svid, anchored, check_validity, dns_names, identity_of

if TYPE_CHECKING:
    from resilmesh.engine.plan import Tls
    from resilmesh.identity.source import Source


class PeerRefused(IdentityError, ssl.SSLCertVerificationError):
    """The other side of a TLS connection did not prove who it should be; says what it proved, and what was expected."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.verify_message = self.reason = message

    def __str__(self) -> str:
        return str(self.args[0])


class NoIdentity(IdentityError, ssl.SSLError):
    """There is no certificate to begin a handshake with, or no bundle to verify the other side with."""

    def __str__(self) -> str:
        return str(self.args[0])


class Accepted(NamedTuple):
    """Whom a context accepts: one of the ``identities``, else one of the ``dns_sans``; without either whoever a bundle vouches for."""

    identities: frozenset[SpiffeId] = frozenset()
    dns_sans: frozenset[str] = frozenset()

    def domains(self, identity: Identity) -> Sequence[str]:
        """The trust domains whose bundles are needed. A DNS name belongs to none, so the own one must vouch for it."""
        if self.identities:
            return sorted({each.trust_domain for each in self.identities})
        return [identity.svid.id.trust_domain] if self.dns_sans else sorted(identity.bundles)

    def check(self, chain: Sequence[x509.Certificate], identity: Identity, now: float) -> SpiffeId | None:
        """The SPIFFE ID that a chain proves, the leaf first, which TLS has verified with the bundles of all ``domains``.

        ``None``: by a DNS SAN. Raises ``IdentityError`` with what is wrong. ``now``: seconds since the epoch.
        """
        leaf = chain[0]
        check_validity(leaf, now)
        if self.dns_sans and not self.identities:
            self._check_dns(leaf)
            return None
        found = identity_of(leaf)
        if self.identities and found not in self.identities:
            expected = " or ".join(sorted(map(str, self.identities)))
            raise IdentityError(f"it is {found}, and {expected} is expected")
        if not anchored(chain, identity.of_domain(found.trust_domain), now):
            raise IdentityError(f"it says that it is {found}, but no authority of {found.trust_domain} vouches for it")
        return found

    def _check_dns(self, leaf: x509.Certificate) -> None:
        names = dns_names(leaf)
        if not self.dns_sans.intersection(each.lower() for each in names):
            said = ", ".join(names) or "nothing"
            raise IdentityError(f"its DNS SANs are {said}, and {' or '.join(sorted(self.dns_sans))} is expected")


#: Whoever a bundle vouches for.
ANYBODY = Accepted()


class _Verifies:
    """Refuses the peer at the end of the handshake. Of ``ssl.SSLObject`` and ``ssl.SSLSocket``.

    OpenSSL makes a handshake that nobody asked for on the first read or write (``do_handshake_on_connect=False``). So these ask for it:
    no byte of a peer is read, and none is sent to it, before it was looked at.
    """

    #: The SPIFFE ID that the other side has proved.
    peer: SpiffeId | None = None
    #: The host that a caller has asked for.
    sni: str | None = None
    context: Any
    server_hostname: Any
    _sslobj: Any
    _proven = False

    def do_handshake(self, *arguments: Any) -> None:
        """As of any connection, and verify who it is with."""
        self._shake_hands(*arguments)
        self._proven = True

    def read(self, *arguments: Any) -> Any:
        """As of any connection, once it is known who it is with."""
        if not self._proven and self._sslobj is not None:
            self.do_handshake()
        return super().read(*arguments)  # type: ignore[misc]  # a mixin: the classes below have it

    def write(self, *arguments: Any) -> Any:
        """As ``read``."""
        if not self._proven and self._sslobj is not None:
            self.do_handshake()
        return super().write(*arguments)  # type: ignore[misc]  # likewise

    def _shake_hands(self, *arguments: Any) -> None:
        context: _Context = self.context
        try:
            super().do_handshake(*arguments)  # type: ignore[misc]  # a mixin: the classes below have it
        except ssl.SSLCertVerificationError as error:
            raise self._refused(_in_words(error, self._chain())) from None
        chain = self._chain()
        if not chain:  # of a client, where none is required
            return
        try:
            self.peer = context.accepted.check(chain, context.identity, context.now())
        except IdentityError as error:
            raise self._refused(str(error)) from None

    def _chain(self) -> list[x509.Certificate]:
        """What the other side sent, the leaf first."""
        try:
            found = self._sslobj.get_unverified_chain() or ()  # public on the object itself from Python 3.13 on
            # A caller that has shown none is `[None]`.
            return [x509.load_der_x509_certificate(each.public_bytes(_DER)) for each in found if each is not None]
        except ValueError:  # not all of it can be read
            return []

    def _refused(self, why: str) -> PeerRefused:
        who = "the caller" if self.context.serves else self.server_hostname or "the service"
        return PeerRefused(f"the certificate of {who} is refused: {why}")


#: ``_ssl.ENCODING_DER``
_DER = 2


class _Object(_Verifies, ssl.SSLObject):
    """A connection of asyncio, trio, anyio."""


class _Socket(_Verifies, ssl.SSLSocket):
    """A blocking connection."""

    do_handshake_on_connect: bool
    suppress_ragged_eofs: bool

    def send(self, *arguments: Any) -> int:
        """As ``read``; of a socket ``sendall`` and ``sendfile`` come here, and ``write`` does not."""
        if not self._proven and self._sslobj is not None:
            self.do_handshake()
        return super().send(*arguments)

    def accept(self) -> tuple[ssl.SSLSocket, Any]:
        """As of any listening socket; what is accepted has the newest identity, not the one of when listening began."""
        accepted, address = socket.socket.accept(self)
        context: Any = self.context
        return context.live.wrap_socket(
            accepted, server_side=True, do_handshake_on_connect=self.do_handshake_on_connect,
            suppress_ragged_eofs=self.suppress_ragged_eofs,
        ), address


_STRANGER = "no authority that is trusted vouches for it"
#: By OpenSSL's ``X509_V_ERR_...``, which may be about a certificate above the leaf.
_WORDS = {
    7: "it is not signed by the authority that it names", 9: "it is not valid yet", 10: "it has expired", 18: "it vouches for itself",
    19: _STRANGER, 20: _STRANGER, 21: _STRANGER, 24: "what signed it is no authority", 79: "what signed it is no authority",
    25: "the path to its authority is longer than that allows", 26: "it is not made for this side of TLS (extended key usage)",
}


def _in_words(error: ssl.SSLCertVerificationError, chain: Sequence[x509.Certificate]) -> str:
    """Why OpenSSL refuses a chain. What a certificate claims that nobody vouches for is told as a claim."""
    code = getattr(error, "verify_code", 0)
    why = _WORDS.get(code, str(getattr(error, "verify_message", error)))
    if not chain:
        return why
    leaf = chain[0]
    times = f"valid from {leaf.not_valid_before_utc:%Y-%m-%dT%H:%M:%SZ} to {leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    try:
        who = f"it says that it is {identity_of(leaf)}"
    except IdentityError as problem:
        who = str(problem)
    return f"{why}; {who}, {times}, issued by {leaf.issuer.rfc4514_string()!r}"


class _Context(ssl.SSLContext):
    """A context for one identity, which is never changed once it is made."""

    sslobject_class = _Object
    sslsocket_class = _Socket
    identity: Identity
    accepted: Accepted
    now: Callable[[], float]
    serves: bool
    #: Of which it is one.
    live: LiveContext

    @classmethod
    def of(
        cls, identity: Identity, accepted: Accepted, *, serves: bool, proves: bool, requires: bool, now: Callable[[], float],
        alpn: Sequence[str],
    ) -> Self:
        made = cls(ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)
        made.identity, made.accepted, made.now, made.serves = identity, accepted, now, serves
        made.check_hostname = False  # who it is says the SPIFFE ID, and where it is dialled the policy
        made.verify_mode = ssl.CERT_REQUIRED if requires else ssl.CERT_OPTIONAL
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        # A bundle may hold an intermediate authority, which then is trusted for itself (X509-SVID.md has no self-signed roots only).
        made.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        # A peer that could begin anew might do so as somebody else.
        made.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        if serves:
            made.sni_callback = _note_name
            # A ticket would let a caller in by what it proved before the bundle or its certificate changed.
            made.options |= ssl.OP_NO_TICKET | ssl.OP_CIPHER_SERVER_PREFERENCE
            made.num_tickets = 0
        for domain in accepted.domains(identity):
            roots = identity.of_domain(domain).certificates
            made.load_verify_locations(cadata=b"".join(each.public_bytes(Encoding.DER) for each in roots))
        if proves:
            load_svid(made, identity.svid)
        if alpn:
            made.set_alpn_protocols(list(alpn))
        return made


def _note_name(secured: Any, name: str | None, context: ssl.SSLContext) -> None:
    secured.sni = name


class LiveContext(ssl.SSLContext):
    """A context whose every new connection has the newest identity of a source. Connections that are open keep theirs.

    ``accepted``: whom it accepts; of a server absent: whoever a bundle vouches for. ``requires``: of a server, whether a caller
    must prove an identity; ``proves``: of a client, whether it shows its own. ``alpn``: as ``set_alpn_protocols``.
    """

    _alpn: tuple[str, ...]

    def __new__(cls, source: Source, *, serves: bool, **options: Any) -> Self:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER if serves else ssl.PROTOCOL_TLS_CLIENT)

    def __init__(
        self, source: Source, *, serves: bool, accepted: Accepted = ANYBODY, requires: bool = True, proves: bool = True,
        alpn: Sequence[str] = (), now: Callable[[], float],
    ) -> None:
        self._source = source
        self._serves, self._accepted, self._requires, self._proves, self._now = serves, accepted, requires, proves, now
        self._made: _Context | None = None
        self._making = threading.Lock()
        self._alpn = tuple(alpn)

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        """As of any context; a client library tells its own."""
        if tuple(alpn_protocols) != self._alpn:
            with self._making:
                self._alpn, self._made = tuple(alpn_protocols), None

    def newest(self) -> ssl.SSLContext:
        """The context of the identity that the source has now. Raises ``NoIdentity``."""
        made = self._made
        try:
            identity = self._source.current()
            if made is not None and made.identity is identity:
                return made
            with self._making:
                self._made = made = _Context.of(
                    identity, self._accepted, serves=self._serves, proves=self._proves, requires=self._requires, now=self._now,
                    alpn=self._alpn,
                )
                made.live = self
        except IdentityError as error:
            raise NoIdentity(str(error)) from None
        return made

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """As of any context."""
        return self.newest().wrap_socket(*arguments, **options)

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """As of any context."""
        return self.newest().wrap_bio(*arguments, **options)


def outbound(source: Source | None, tls: Tls, alpn: Sequence[str], now: Callable[[], float]) -> LiveContext | None:
    """The context for connections to a service; ``None``: nothing is said of who it is, so the host's name is to be proved, as ever.

    Raises ``NoIdentity`` where there is no source.
    """
    if not (tls.mutual or tls.identities or tls.dns_sans):
        return None
    if source is None:
        raise NoIdentity("the policy asks for TLS with an identity, and nothing says where the certificate of this workload is")
    accepted = Accepted(frozenset(map(SpiffeId.parse, tls.identities)), tls.dns_sans)
    return LiveContext(source, serves=False, accepted=accepted, proves=tls.mutual, alpn=alpn, now=now)


def load_svid(context: ssl.SSLContext, svid: Svid) -> None:
    """Have a context show an SVID. ``ssl`` reads nothing but files, so it is given one that nobody else can open."""
    with _private_file(svid.key_pem() + svid.chain_pem()) as path:
        context.load_cert_chain(path)


@contextmanager
def _private_file(content: bytes) -> Iterator[str]:
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("resilmesh", os.MFD_CLOEXEC)
        path = f"/proc/self/fd/{number}"
    else:
        number, path = tempfile.mkstemp()  # of mode 0600
    try:
        with open(number, "wb", closefd=False) as file:
            file.write(content)
        yield path
    finally:
        os.close(number)
        if not path.startswith("/proc/"):
            os.unlink(path)
