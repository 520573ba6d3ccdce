"""Certificates of every kind, the wrong ones above all: what the authority of the library would never make."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from resilmesh.identity.spiffe import SpiffeId, dns_name
from resilmesh.identity.svid import Identity, Svid, TrustBundle

HOUR = datetime.timedelta(hours=1)
WEB = "spiffe://shop.example/ns/prod/sa/web"
INVENTORY = "spiffe://shop.example/ns/prod/sa/inventory"


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def usage(**set_: bool) -> x509.KeyUsage:
    names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
        "encipher_only", "decipher_only",
    )
    return x509.KeyUsage(**{name: set_.get(name, False) for name in names})


@dataclass
class Authority:
    """A root, or with ``above`` an intermediate authority, of a trust domain."""

    trust_domain: str = "shop.example"
    name: str = "root"
    above: Authority | None = None
    path_length: int | None = None
    begins: datetime.datetime = field(default_factory=lambda: now() - HOUR)
    ends: datetime.datetime = field(default_factory=lambda: now() + 24 * HOUR)
    extensions: Sequence[tuple[x509.ExtensionType, bool]] = ()
    ca: bool = True
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        signer = self.above or self
        constraints = x509.BasicConstraints(ca=self.ca, path_length=self.path_length if self.ca else None)
        builder = (
            x509.CertificateBuilder().subject_name(self.subject).issuer_name(signer.subject).public_key(self.key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(self.begins).not_valid_after(self.ends)
            .add_extension(constraints, critical=True)
            .add_extension(usage(key_cert_sign=self.ca, crl_sign=self.ca, digital_signature=not self.ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
        )
        builder = builder.add_extension(signer.key_identifier, critical=False)
        for extension, critical in self.extensions:
            builder = builder.add_extension(extension, critical)
        self.certificate = builder.sign(signer.key, hashes.SHA256())

    @property
    def key_identifier(self) -> x509.AuthorityKeyIdentifier:
        """By which OpenSSL tells authorities of the same name apart: without it, it tries the first."""
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())

    @property
    def subject(self) -> x509.Name:
        return x509.Name([
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, self.trust_domain), x509.NameAttribute(NameOID.COMMON_NAME, self.name),
        ])

    @property
    def chain(self) -> list[x509.Certificate]:
        """The certificates between a leaf and the root."""
        return [] if self.above is None else [self.certificate, *self.above.chain]

    @property
    def bundle(self) -> TrustBundle:
        root = self
        while root.above is not None:
            root = root.above
        return TrustBundle(self.trust_domain, (root.certificate,))

    def issue(
        self, *uris: str, dns: Sequence[str] | None = None, begins: datetime.datetime | None = None, ends: datetime.datetime | None = None,
        subject: str = "", extensions: Sequence[tuple[x509.ExtensionType, bool]] = (), ca: bool = False,
        key_usage: x509.KeyUsage | None = None, purposes: Sequence[x509.ObjectIdentifier] | None = None, key: Any = None,
    ) -> Leaf:
        """A leaf with these URI SANs; ``dns``: absent, the name derived from the first."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        if dns is None:
            dns = [dns_name(SpiffeId.parse(uris[0]))] if uris and uris[0].startswith("spiffe://") else []
        if purposes is None:
            purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        builder = (
            x509.CertificateBuilder().issuer_name(self.subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []))
            .not_valid_before(begins or now() - datetime.timedelta(minutes=1)).not_valid_after(ends or now() + HOUR)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(key_usage or usage(digital_signature=True), critical=True)
            .add_extension(self.key_identifier, critical=False)
        )
        names: list[x509.GeneralName] = [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns)]
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=not subject)
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return Leaf([builder.sign(self.key, hashes.SHA256()), *self.chain], key, self)

    def identity(self, uri: str, *bundles: TrustBundle) -> Identity:
        """Of a workload that trusts this authority, and ``bundles``."""
        return self.issue(uri).identity(*bundles)


@dataclass
class Leaf:
    chain: list[x509.Certificate]
    key: Any
    authority: Authority

    def certificates_pem(self) -> bytes:
        return b"".join(each.public_bytes(serialization.Encoding.PEM) for each in self.chain)

    def key_pem(self) -> bytes:
        plain = serialization.NoEncryption()
        return bytes(self.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))

    def identity(self, *bundles: TrustBundle) -> Identity:
        """Raises ``IdentityError``."""
        return Identity.of(Svid.of(self.chain, self.key), [self.authority.bundle, *bundles])

    def unchecked(self, *bundles: TrustBundle) -> Identity:
        """The same of a certificate that our own side would not take."""
        svid = Svid(SpiffeId("shop.example", "/unchecked"), tuple(self.chain), self.key)
        return Identity(svid, {each.trust_domain: each for each in [self.authority.bundle, *bundles]})
