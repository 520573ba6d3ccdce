"""The certificates and revocation lists that the authority signs, field by field. Pure: keys, names and times are arguments.

    root (pathlen 1) ── intermediate (pathlen 0) ── leaf (CA:FALSE)
    spiffe://shop.example   spiffe://shop.example    spiffe://shop.example/ns/prod/sa/web, DNS names

What is not there, on purpose:

* Name constraints. X509-SVID.md (section 4.2) allows them with a warning: OpenSSL and BoringSSL know URI constraints, others (the
  verifier of ``cryptography`` among them) refuse every certificate below one. That an authority vouches for its own trust domain
  only is what the verifying side makes sure of: ``svid.anchored``.
* A subject of a leaf. A CN is what old programs take for a host, and X509-SVID.md needs none; the SAN is critical instead (RFC 5280,
  section 4.2.1.6), so nobody can overlook that the name is there. ``Subject=""`` is what Envoy then writes into XFCC.
* Any key usage of a leaf but digitalSignature: ECDHE needs no other, and without keyEncipherment an RSA key cannot serve the
  cipher suites that have no forward secrecy.
"""

from __future__ import annotations

import datetime
import secrets
from collections.abc import Iterable, Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from resilmesh.identity.spiffe import SCHEME, SpiffeId

#: The authority's clock may be ahead of the one that verifies. A minute covers clocks that NTP or a hypervisor keeps.
CLOCK_SKEW = datetime.timedelta(seconds=60)
#: Bytes of an organization's name at most (RFC 5280, appendix A, ub-organization-name).
_LONGEST_NAME = 64


def new_key() -> ec.EllipticCurvePrivateKey:
    """A key on P-256, which every TLS library takes."""
    return ec.generate_private_key(ec.SECP256R1())


def root(
    name: str, trust_domain: str, key: ec.EllipticCurvePrivateKey, now: datetime.datetime, life: datetime.timedelta,
) -> x509.Certificate:
    """A certificate that vouches for itself. ``name``: such as ``root-1``."""
    subject = _name(name, trust_domain)
    return _authority(trust_domain, key.public_key(), subject, subject, now - CLOCK_SKEW, now + life, 1).sign(key, hashes.SHA256())


def intermediate(
    name: str, trust_domain: str, public_key: ec.EllipticCurvePublicKey, above: x509.Certificate, key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime, life: datetime.timedelta,
) -> x509.Certificate:
    """Signed by the root ``above``, whose ``key`` it is; ends no later than that."""
    begins = max(now - CLOCK_SKEW, above.not_valid_before_utc)
    ends = min(now + life, above.not_valid_after_utc)
    builder = _authority(trust_domain, public_key, _name(name, trust_domain), above.subject, begins, ends, 0)
    return builder.add_extension(_issuer_key(above), critical=False).sign(key, hashes.SHA256())


def leaf(
    spiffe_id: SpiffeId, dns: Sequence[str], public_key: CertificatePublicKeyTypes, above: x509.Certificate,
    key: ec.EllipticCurvePrivateKey, now: datetime.datetime, life: datetime.timedelta,
) -> x509.Certificate:
    """A workload's certificate, signed by the intermediate ``above``, whose ``key`` it is; ends no later than that.

    It begins ``CLOCK_SKEW`` before ``now``, but no more than a tenth of ``life``: one that lives for a minute must not be half over.
    """
    names = [x509.UniformResourceIdentifier(str(spiffe_id)), *map(x509.DNSName, dns)]
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(above.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())  # 159 random bits, which RFC 5280 allows at most
        .not_valid_before(max(now - min(CLOCK_SKEW, life / 10), above.not_valid_before_utc))
        .not_valid_after(min(now + life, above.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(both), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_issuer_key(above), critical=False)
        .sign(key, hashes.SHA256())
    )


def revocation_list(
    revoked: Iterable[tuple[int, datetime.datetime]], number: int, above: x509.Certificate, key: ec.EllipticCurvePrivateKey,
    now: datetime.datetime, next_update: datetime.datetime,
) -> x509.CertificateRevocationList:
    """What of an intermediate's is revoked: serial and since when. ``number`` grows with each list (RFC 5280, section 5.2.3)."""
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(above.subject)
        .last_update(now - CLOCK_SKEW)
        .next_update(next_update)
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(_issuer_key(above), critical=False)
    )
    for serial, since in revoked:
        builder = builder.add_revoked_certificate(x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(since).build())
    return builder.sign(key, hashes.SHA256())


def _authority(
    trust_domain: str, public_key: ec.EllipticCurvePublicKey, subject: x509.Name, issuer: x509.Name, begins: datetime.datetime,
    ends: datetime.datetime, below: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=True, path_length=below), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        # A signing certificate should itself name its trust domain, without a path (X509-SVID.md, section 3.2).
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(SCHEME + trust_domain)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _name(name: str, trust_domain: str) -> x509.Name:
    """Never the same twice: OpenSSL looks for an issuer by its name first."""
    return x509.Name([
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:_LONGEST_NAME]),
        x509.NameAttribute(NameOID.COMMON_NAME, f"{name} {secrets.token_hex(4)}"),
    ])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=signs_certificates,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
        decipher_only=False,
    )


def _issuer_key(above: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    own = above.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
