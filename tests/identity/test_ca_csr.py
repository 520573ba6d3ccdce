"""Hostile certificate signing requests: nothing but a good key that its owner has comes through."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import AttributeOID, ExtendedKeyUsageOID, NameOID

from resilmesh.identity import IdentityError, SpiffeId
from resilmesh.identity.spiffe import dns_name
from resilmesh.identity.svid import TrustBundle, anchored
from tests.identity.authority import INVENTORY, WEB, Clock, make

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
ADMIN = "spiffe://shop.example/ns/prod/sa/admin"
Build = Callable[[x509.CertificateSigningRequestBuilder], x509.CertificateSigningRequestBuilder]


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def request(key: Any = None, *, build: Build = lambda builder: builder, hashed: Any = None) -> bytes:
    key = p256() if key is None else key
    builder = build(x509.CertificateSigningRequestBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])))
    plain = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    return builder.sign(key, None if plain else hashed or hashes.SHA256()).public_bytes(PEM)


def pem(der: bytes, label: str = "CERTIFICATE REQUEST") -> bytes:
    return b"-----BEGIN %b-----\n%b-----END %b-----\n" % (label.encode(), base64.encodebytes(der), label.encode())


def der(text: bytes) -> bytes:
    return x509.load_pem_x509_csr(text).public_bytes(DER)


# -------------------------------------------------------------------------------------------- what is left

WISHES: dict[str, Build] = {
    "another ID": lambda builder: builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ADMIN)]), True),
    "two IDs": lambda builder: builder.add_extension(
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(WEB), x509.UniformResourceIdentifier(ADMIN)]), False),
    "the name of another": lambda builder: builder.add_extension(
        x509.SubjectAlternativeName([x509.DNSName(dns_name(SpiffeId.parse(ADMIN))), x509.DNSName("*")]), False),
    "an authority": lambda builder: builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True),
    "to sign": lambda builder: builder.add_extension(x509.KeyUsage(True, True, True, True, True, True, True, False, False), True),
    "every purpose": lambda builder: builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]), True),
    "a key identifier": lambda builder: builder.add_extension(x509.SubjectKeyIdentifier(b"chosen"), False),
    "what nobody knows": lambda builder: builder.add_extension(
        x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),
    "a password": lambda builder: builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"let me in"),
    "a broken extension": lambda builder: builder.add_extension(
        x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\xff\xff"), True),
}


@pytest.mark.parametrize("wish", WISHES)
def test_nothing_is_copied_but_the_key(tmp_path: Path, wish: str) -> None:
    authority, key = make(tmp_path), p256()
    issued = authority.sign(request(key, build=WISHES[wish]), WEB)
    expected = authority.issue(WEB).svid.leaf
    kinds = (x509.SubjectAlternativeName, x509.BasicConstraints, x509.KeyUsage, x509.ExtendedKeyUsage, x509.AuthorityKeyIdentifier)
    for kind in kinds:
        assert issued.leaf.extensions.get_extension_for_class(kind) == expected.extensions.get_extension_for_class(kind)
    assert len(issued.leaf.extensions) == len(expected.extensions)
    assert issued.leaf.subject == x509.Name([])
    assert issued.leaf.public_key() == key.public_key()
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    assert issued.leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value == own


@pytest.mark.parametrize("key", [p256, lambda: ec.generate_private_key(ec.SECP384R1()), lambda: rsa.generate_private_key(65537, 2048)])
@pytest.mark.parametrize("hashed", [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()], ids=lambda each: each.name)
def test_good_keys(tmp_path: Path, key: Callable[[], Any], hashed: hashes.HashAlgorithm) -> None:
    clock = Clock()
    issued = make(tmp_path, clock).sign(request(key(), hashed=hashed), WEB, dns=["web.svc"])
    assert anchored(issued.chain, issued.bundle, clock.seconds)
    assert TrustBundle.from_pem("shop.example", issued.bundle.pem()) == issued.bundle


@pytest.mark.parametrize("words", [
    ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"], ["-newkey", "rsa:2048"], ["-newkey", "rsa:2048", "-newhdr"],
    ["-newkey", "rsa:2048", "-sigopt", "rsa_padding_mode:pss"],
])
def test_requests_of_openssl(tmp_path: Path, words: list[str]) -> None:
    program = ["openssl", "req", "-new", "-nodes", "-subj", "/CN=web", "-keyout", str(tmp_path / "key"), *words]
    made = subprocess.run(program, capture_output=True, check=True).stdout
    issued = make(tmp_path).sign(made, WEB)
    key = serialization.load_pem_private_key((tmp_path / "key").read_bytes(), None)
    assert key.public_key() == issued.leaf.public_key()


# ------------------------------------------------------------------------------------------ what is refused


def with_signature_of_another() -> bytes:
    """The key of one and the signature of another: what a thief of a public key would send."""
    stolen, own = der(request()), der(request())
    for _ in range(20):
        if len(stolen) == len(own):
            break
        own = der(request())
    tail = 72
    return pem(stolen[:-tail] + own[-tail:])


def flipped(offset: int) -> Callable[[], bytes]:
    def make_it() -> bytes:
        content = bytearray(der(request()))
        content[offset] ^= 1
        return pem(bytes(content))

    return make_it


def by_openssl(*words: str) -> Callable[[], bytes]:
    def make_it() -> bytes:
        program = ["openssl", "req", "-new", "-nodes", "-subj", "/CN=web", "-keyout", "/dev/null", *words]
        return subprocess.run(program, capture_output=True, check=True).stdout

    return make_it


def curve(kind: type[ec.EllipticCurve]) -> Callable[[], bytes]:
    return lambda: request(ec.generate_private_key(kind()))


def small_exponent() -> bytes:
    return request(rsa.generate_private_key(3, 2048))


def certificate() -> bytes:
    from tests.identity.pki import Authority

    return Authority().certificate.public_bytes(PEM)


def private_key() -> bytes:
    return p256().private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


NOT_PEM = "is not one PEM block"
HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "signature flipped": (flipped(-1), "signature is wrong|cannot be read"),
    "key flipped": (flipped(-140), "signature is wrong|cannot be read"),
    "subject flipped": (flipped(25), "signature is wrong|cannot be read|NOT"),
    "signature of another": (with_signature_of_another, "signature is wrong|cannot be read"),
    "RSA of 1024 bits": (by_openssl("-newkey", "rsa:1024"), "has 1024 bits: use"),
    "RSA with exponent 3": (small_exponent, "public exponent 3, not 65537"),
    "P-521": (curve(ec.SECP521R1), "curve secp521r1"),
    "P-224": (curve(ec.SECP224R1), "curve secp224r1"),
    "P-192": (curve(ec.SECP192R1), "curve secp192r1"),
    "secp256k1": (curve(ec.SECP256K1), "curve secp256k1"),
    "brainpool": (curve(ec.BrainpoolP256R1), "curve brainpoolP256r1"),
    "a curve that is described": (
        by_openssl("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-pkeyopt", "ec_param_enc:explicit"),
        "not written as certificates write it|explicit parameters are unsupported",
    ),
    "RSA for PSS alone": (by_openssl("-newkey", "rsa-pss"), "not written as certificates write it|cannot be read|of the kind"),
    "Ed25519": (lambda: request(ed25519.Ed25519PrivateKey.generate()), "of the kind"),
    "Ed448": (lambda: request(ed448.Ed448PrivateKey.generate()), "of the kind"),
    "DSA": (lambda: request(dsa.generate_private_key(2048)), "of the kind"),
    "signed with SHA-1": (by_openssl("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-sha1"), "not signed with SHA-256"),
    "signed with MD5": (by_openssl("-newkey", "rsa:2048", "-md5"), "not signed with SHA-256|cannot be read"),
    "nothing": (lambda: b"", NOT_PEM),
    "blanks": (lambda: b" \n" * 100, NOT_PEM),
    "words": (lambda: b"please", NOT_PEM),
    "DER": (lambda: der(request()), NOT_PEM),
    "two requests": (lambda: request() + request(), NOT_PEM),
    "a request and a key": (lambda: request() + private_key(), NOT_PEM),
    "text before": (lambda: b"Certificate Request:\n" + request(), NOT_PEM),
    "text behind": (lambda: request() + b"\n# web", NOT_PEM),
    "NUL behind": (lambda: request() + b"\0", NOT_PEM),
    "a certificate": (certificate, NOT_PEM),
    "a private key": (private_key, NOT_PEM),
    "no end": (lambda: request().rpartition(b"-----END")[0], NOT_PEM),
    "nothing inside": (lambda: pem(b""), "cannot be read"),
    "no base64": (lambda: b"-----BEGIN CERTIFICATE REQUEST-----\n====\n-----END CERTIFICATE REQUEST-----\n", "cannot be read"),
    "a header": (lambda: request().replace(b"REQUEST-----\n", b"REQUEST-----\nProc-Type: 4,ENCRYPTED\n\n", 1), NOT_PEM),
    "an empty sequence": (lambda: pem(b"\x30\x00"), "cannot be read"),
    "a length that lies": (lambda: pem(b"\x30\x84\xff\xff\xff\xff\x00"), "cannot be read"),
    "deep": (lambda: pem(b"\x30\x80" * 3000), "cannot be read"),
    "cut off": (lambda: pem(der(request())[:-10]), "cannot be read"),
    "more behind it": (lambda: pem(der(request()) + b"\0" * 8), "cannot be read"),
    "huge": (lambda: request(build=lambda builder: builder.add_attribute(AttributeOID.CHALLENGE_PASSWORD, b"x" * 60_000)),
             "bytes, and 16384"),
    "a gigabyte of blanks": (lambda: b" " * 20_000_000, "20000000 bytes, and 16384"),
}


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")  # of the weak curves
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_is_refused_and_recorded(tmp_path: Path, name: str) -> None:
    hostile, reason = HOSTILE[name]
    authority = make(tmp_path)
    with pytest.raises(IdentityError, match=reason):
        authority.sign(hostile(), WEB)
    assert authority.entries() == []
    last = json.loads((tmp_path / "ca" / "audit.jsonl").read_text().splitlines()[-1])
    assert (last["action"], last["spiffe_id"]) == ("refuse", WEB)


def test_the_id_is_the_callers_and_not_the_requests(tmp_path: Path) -> None:
    authority = make(tmp_path)
    text = request(build=WISHES["another ID"])
    assert [each.split("/")[-1] for each in (authority.sign(text, WEB).leaf.extensions.get_extension_for_class(
        x509.SubjectAlternativeName).value.get_values_for_type(x509.UniformResourceIdentifier))] == ["web"]
    authority.revoke(INVENTORY)
    with pytest.raises(IdentityError, match="is revoked and gets no certificate"):
        authority.sign(text, INVENTORY)
