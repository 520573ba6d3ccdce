"""X.509-SVIDs and trust bundles: certificates that prove a SPIFFE ID, and those who may vouch for the IDs of one trust domain.

The rules are those of the standard (X509-SVID.md, sections 2 to 5). What the TLS library checks besides (signatures, validity,
purposes, path lengths) it checks with every root that is trusted by anybody; that the chain ends at a root of the *leaf's own*
trust domain is what ``anchored`` says. Without it, whoever signs for one federated domain could sign for all.
"""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from resilmesh.identity.spiffe import IdentityError, InvalidSpiffeId, SpiffeId, parse_trust_domain

#: Certificates between a leaf and its root, at most; OpenSSL allows 100, and no mesh has more than two.
_LONGEST_PATH = 8
T = TypeVar("T", bound=x509.ExtensionType)

_WEAK = (hashes.MD5, hashes.SHA1)


class Chain:
    """A certificate with those up to a root."""

    __slots__ = ()

    chain: tuple[x509.Certificate, ...]
    """The leaf first."""

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that proves the ID."""
        return self.chain[0]

    @property
    def not_before(self) -> float:
        """When it begins to be good, in seconds since the epoch."""
        return self.leaf.not_valid_before_utc.timestamp()

    @property
    def not_after(self) -> float:
        """When it ends: with the first certificate of its chain that does."""
        return min(each.not_valid_after_utc.timestamp() for each in self.chain)

    def chain_pem(self) -> bytes:
        """The certificates, the leaf first."""
        return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in self.chain)


@dataclass(frozen=True, slots=True)
class Svid(Chain):
    """A workload's certificate, the certificates up to a root, and the private key. Made by ``Svid.from_pem``.

    A ``repr`` shows no key.
    """

    id: SpiffeId
    chain: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes

    @classmethod
    def from_pem(cls, certificates: bytes, key: bytes, *, password: bytes | None = None) -> Self:
        """From the certificates, the leaf first, and the key (PKCS #8, SEC 1 or PKCS #1) in PEM. Raises ``IdentityError``."""
        chain = parse_certificates(certificates, "the certificate")
        return cls.of(chain, parse_key(key, password))

    @classmethod
    def of(cls, chain: Sequence[x509.Certificate], key: PrivateKeyTypes) -> Self:
        """Of what has been parsed already. Raises ``IdentityError``."""
        leaf = chain[0]
        spiffe_id = identity_of(leaf)
        if _public(key.public_key()) != _public(leaf.public_key()):
            raise IdentityError(
                f"the private key is not that of the certificate of {spiffe_id}: one of the two files is of another renewal"
            )
        for below, above in itertools.pairwise(chain):
            if not _issued(below, above):
                raise IdentityError(
                    f"the chain of {spiffe_id} is out of order: {_subject(below)!r} is not issued by {_subject(above)!r}, which follows it"
                )
        return cls(spiffe_id, tuple(chain), key)

    @property
    def dns_names(self) -> tuple[str, ...]:
        """Its DNS SANs."""
        return dns_names(self.leaf)

    def key_pem(self) -> bytes:
        """The key, in the clear: not to be written anywhere that others can read."""
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption(),
        )

    def __repr__(self) -> str:
        return f"<Svid {self.id} until {_text(self.leaf.not_valid_after_utc)}>"


def renew_at(issued: Chain, rng: Callable[[], float]) -> float:
    """When to renew it, in seconds since the epoch: half-way through its life, ten percent earlier or later.

    ``rng``: from 0 to 1. A fleet that was started together would otherwise ask its authority together for ever; and the second half
    is for renewals that fail.
    """
    return issued.not_before + (issued.not_after - issued.not_before) * 0.5 * (0.9 + 0.2 * rng())


@dataclass(frozen=True, slots=True)
class TrustBundle:
    """The certificates that may vouch for the identities of one trust domain. Made by ``TrustBundle.from_pem``."""

    trust_domain: str
    certificates: tuple[x509.Certificate, ...]

    @classmethod
    def from_pem(cls, trust_domain: str, text: bytes) -> Self:
        """From one certificate or more. Raises ``IdentityError``, also for one that is not a signer's."""
        return cls.of(trust_domain, parse_certificates(text, f"the trust bundle of {trust_domain}"))

    @classmethod
    def of(cls, trust_domain: str, certificates: Iterable[x509.Certificate]) -> Self:
        """Of what has been parsed already. Raises ``IdentityError``."""
        parse_trust_domain(trust_domain)
        certificates = tuple(dict.fromkeys(certificates))
        if not certificates:
            raise IdentityError(f"the trust bundle of {trust_domain} is empty")
        for each in certificates:
            if not _is_authority(each):
                raise IdentityError(
                    f"the trust bundle of {trust_domain} holds {_subject(each)!r}, which may sign nothing (CA:FALSE): it would be trusted "
                    "as itself only; put the certificates of the authorities there"
                )
        return cls(trust_domain, certificates)

    def pem(self) -> bytes:
        """The certificates."""
        return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in self.certificates)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a workload is, and whom it trusts: for each trust domain that domain's own bundle, never a mixture."""

    svid: Svid
    bundles: dict[str, TrustBundle]

    @classmethod
    def of(cls, svid: Svid, bundles: Iterable[TrustBundle]) -> Self:
        """Raises ``IdentityError`` where the own trust domain has no bundle, or another has two."""
        by_domain: dict[str, TrustBundle] = {}
        for bundle in bundles:
            if by_domain.setdefault(bundle.trust_domain, bundle) is not bundle:
                raise IdentityError(f"there are two trust bundles of {bundle.trust_domain}")
        if svid.id.trust_domain not in by_domain:
            raise IdentityError(f"there is no trust bundle of {svid.id.trust_domain}, to which {svid.id} belongs")
        return cls(svid, by_domain)

    def proven(self, now: float) -> Self:
        """Itself. Raises ``IdentityError`` where its own bundle does not vouch for it: nobody who has the same bundle would accept it."""
        svid = self.svid
        if not anchored(svid.chain, self.bundles[svid.id.trust_domain], now):
            raise IdentityError(f"no authority in the trust bundle of {svid.id.trust_domain} vouches for the certificate of {svid.id}")
        return self

    def of_domain(self, trust_domain: str) -> TrustBundle:
        """Who may vouch for the IDs of a trust domain. Raises ``IdentityError`` where nobody may."""
        found = self.bundles.get(trust_domain)
        if found is None:
            known = ", ".join(sorted(self.bundles))
            raise IdentityError(f"nobody may vouch for the trust domain {trust_domain}: there are bundles of {known}")
        return found


# ------------------------------------------------------------------------------------------------ certificates


def parse_certificates(text: bytes, what: str) -> list[x509.Certificate]:
    """One certificate or more in PEM; ``what`` they are is for the error. Raises ``IdentityError``."""
    if text.count(b"-----BEGIN CERTIFICATE-----") != text.count(b"-----END CERTIFICATE-----"):
        raise IdentityError(f"{what} is torn: a PEM block has no end")
    try:
        found = x509.load_pem_x509_certificates(text)
    except ValueError as error:
        raise IdentityError(f"{what} is no certificate in PEM: {error}") from None
    try:
        for each in found:
            _ = each.extensions, each.subject  # which are parsed when they are asked for
    except ValueError as error:
        raise IdentityError(f"{what} cannot be read: {error}") from None
    return found


def parse_key(text: bytes, password: bytes | None = None) -> PrivateKeyTypes:
    """A private key in PEM. Raises ``IdentityError``, which says nothing of what is in it."""
    try:
        return serialization.load_pem_private_key(text, password)
    except TypeError:
        said = "is encrypted, and no password is given" if password is None else "is not encrypted, but a password is given"
        raise IdentityError(f"the private key {said}") from None
    except (ValueError, UnsupportedAlgorithm):
        said = "is no key in PEM" if password is None else "is no key in PEM, or the password is wrong"
        raise IdentityError(f"the private key {said}") from None


def identity_of(leaf: x509.Certificate) -> SpiffeId:
    """The SPIFFE ID that a leaf certificate proves. Raises ``IdentityError`` with what is wrong with it."""
    uris = uri_names(leaf)
    if not uris:
        names = ", ".join(dns_names(leaf))
        other = f"it names the host {names}" if names else f"it has no SAN, and its subject, {_subject(leaf)!r}, is no identity"
        raise IdentityError(f"the certificate has no SPIFFE ID: {other}")
    if len(uris) > 1:
        raise IdentityError(f"the certificate has {len(uris)} URI SANs ({_few(uris)}); an X.509-SVID has exactly one")
    try:
        found = SpiffeId.parse(uris[0])
    except InvalidSpiffeId as error:
        raise IdentityError(f"the certificate's URI SAN is no SPIFFE ID: {error}") from None
    if not found.path:
        raise IdentityError(f"{found} is a trust domain and no workload: the SPIFFE ID of a leaf has a path")
    if _is_authority(leaf):
        raise IdentityError(f"the certificate of {found} is an authority's (CA:TRUE), and no workload's")
    _check_usage(leaf, found)
    return found


def _check_usage(leaf: x509.Certificate, spiffe_id: SpiffeId) -> None:
    usage = _extension(leaf, x509.KeyUsage)
    if usage is not None:
        forbidden = [name for name, is_set in (("keyCertSign", usage.key_cert_sign), ("cRLSign", usage.crl_sign)) if is_set]
        if forbidden:
            raise IdentityError(f"the certificate of {spiffe_id} has the key usage {' and '.join(forbidden)}, which a leaf may not have")
        if not usage.digital_signature:
            raise IdentityError(f"the certificate of {spiffe_id} lacks the key usage digitalSignature, without which it proves nothing")


def check_validity(leaf: x509.Certificate, now: float) -> None:
    """Raises ``IdentityError`` outside of the certificate's time. ``now``: seconds since the epoch."""
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    at = _at(now)
    if at < begins:
        raise IdentityError(f"the certificate is not valid before {_text(begins)}, and it is {_text(at)}: compare the clocks")
    if at > ends:
        raise IdentityError(f"the certificate has expired at {_text(ends)}, and it is {_text(at)}")


def uri_names(certificate: x509.Certificate) -> list[str]:
    """The URI SANs."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    return [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)


def dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS SANs."""
    names = _extension(certificate, x509.SubjectAlternativeName)
    return () if names is None else tuple(names.get_values_for_type(x509.DNSName))


def anchored(chain: Sequence[x509.Certificate], bundle: TrustBundle, now: float) -> bool:
    """Whether signatures lead from the leaf to a certificate of the bundle.

    ``chain``: what the peer sent, the leaf first, the others in any order.
    """
    return _leads([chain[0]], list(chain[1:]), bundle, _at(now))


def _leads(below: list[x509.Certificate], unused: list[x509.Certificate], bundle: TrustBundle, at: datetime.datetime) -> bool:
    """Whether a path leads on from the last of ``below``. Each certificate is tried once, or a hostile chain would cost without end."""
    if len(below) > _LONGEST_PATH:
        return False
    if any(_may_sign(root, below, at) and _issued(below[-1], root) for root in bundle.certificates):
        return True
    above = [each for each in unused if _may_sign(each, below, at) and _issued(below[-1], each)]
    for each in above:
        unused.remove(each)
    return any(_leads([*below, each], unused, bundle, at) for each in above)


def _may_sign(authority: x509.Certificate, below: Sequence[x509.Certificate], at: datetime.datetime) -> bool:
    """Whether the certificate's own words allow it to stand above the ones ``below``, the leaf first."""
    if not authority.not_valid_before_utc <= at <= authority.not_valid_after_utc:
        return False
    if not _is_authority(authority):
        return False
    usage = _extension(authority, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        return False
    longest = authority.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    if longest is not None and len(below) - 1 > longest:
        return False
    constraints = _extension(authority, x509.NameConstraints)
    return constraints is None or _permits(constraints, below[0])


def _permits(constraints: x509.NameConstraints, leaf: x509.Certificate) -> bool:
    """RFC 5280, section 4.2.1.10, for URIs and DNS names; of any other kind nothing is permitted, which is the careful answer."""
    hosts = {
        x509.UniformResourceIdentifier: [each.removeprefix("spiffe://").partition("/")[0] for each in uri_names(leaf)],
        x509.DNSName: list(dns_names(leaf)),
    }
    for subtree in constraints.excluded_subtrees or ():
        if type(subtree) not in hosts or any(_within(name, subtree) for name in hosts[type(subtree)]):
            return False
    permitted = constraints.permitted_subtrees or ()
    if any(type(subtree) not in hosts for subtree in permitted):
        return False
    for kind, names in hosts.items():
        subtrees = [each for each in permitted if type(each) is kind]
        if subtrees and not all(any(_within(name, each) for each in subtrees) for name in names):
            return False
    return True


def _within(name: str, subtree: x509.GeneralName) -> bool:
    base = str(subtree.value).lower()
    name = name.lower()
    if isinstance(subtree, x509.DNSName):
        return not base or name == base or name.endswith("." + base.lstrip("."))
    # Of a URI, a base with a leading dot is any host below it, and one without is that host.
    return name.endswith(base) if base.startswith(".") else name == base


def _issued(below: x509.Certificate, above: x509.Certificate) -> bool:
    if isinstance(below.signature_hash_algorithm, _WEAK):
        return False
    try:
        below.verify_directly_issued_by(above)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _is_authority(certificate: x509.Certificate) -> bool:
    constraints = _extension(certificate, x509.BasicConstraints)
    return constraints is not None and constraints.ca


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _public(key: object) -> bytes:
    made: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined]  # every kind of key has it, and they share no class
    return made


def _at(now: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(now, datetime.UTC)


def _text(at: datetime.datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%SZ}"


def _subject(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string()


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
