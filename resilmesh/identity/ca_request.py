"""What somebody asks the authority for: a certificate signing request, of which nothing is taken but the key, and host names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from resilmesh.identity.spiffe import IdentityError, SpiffeId, dns_name

#: Bytes of a request in PEM, at most; one with an RSA key of 8,192 bits and a page of extensions has 6,000.
_LONGEST_REQUEST = 16_384
_REQUEST = re.compile(rb"\s*-----BEGIN (NEW )?CERTIFICATE REQUEST-----[A-Za-z0-9+/=\s]+-----END (NEW )?CERTIFICATE REQUEST-----\s*")
#: Of an RSA key, in bits. Below it is weak; above it every handshake of every peer pays.
_RSA_BITS = range(2048, 8193)
_EXPONENT = 65537
#: Both curves are taken by every TLS library. gRPC's and Envoy's BoringSSL refuses P-521 and Ed25519 in the handshake
#: (NO_COMMON_SIGNATURE_ALGORITHMS), where nobody sees why; so they are refused here.
_CURVES = (ec.SECP256R1, ec.SECP384R1)
_GOOD_KEYS = "an EC key on P-256 or P-384, or an RSA key of 2048 to 8192 bits"

#: DNS names of one certificate, at most.
_MOST_NAMES = 32
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


def key_of_request(request: bytes) -> CertificatePublicKeyTypes:
    """The public key of a request in PEM that its owner has signed with it. Raises ``IdentityError``.

    Its subject, its extensions and its attributes are not looked at: what a certificate says is said by whoever asks the
    authority, who has proved who they are, and not by a file that they pass on.
    """
    if len(request) > _LONGEST_REQUEST:
        raise IdentityError(f"the request has {len(request)} bytes, and {_LONGEST_REQUEST} is the most that is read")
    if _REQUEST.fullmatch(request) is None:
        raise IdentityError("the request is not one PEM block 'CERTIFICATE REQUEST' and nothing else (make one with: openssl req -new)")
    try:
        parsed = x509.load_pem_x509_csr(request)
        key = parsed.public_key()
        _check_key(key)
        # Before the signature is verified: MD5 and SHA-1 prove little.
        if not isinstance(parsed.signature_hash_algorithm, hashes.SHA256 | hashes.SHA384 | hashes.SHA512):
            raise IdentityError("the request is not signed with SHA-256, SHA-384 or SHA-512")
        if _encoded(key) not in parsed.tbs_certrequest_bytes:
            # Such as a curve that is described and not named, which has fooled verifiers (CVE-2020-0601).
            raise IdentityError(f"the key is not written as certificates write it: use {_GOOD_KEYS}")
        proven = parsed.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"the request cannot be read: {error}; it needs {_GOOD_KEYS}") from None
    if not proven:
        raise IdentityError("the request's signature is wrong: whoever made it did not have the private key of the key in it")
    return key


def _check_key(key: object) -> None:
    match key:
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, _CURVES):
            return
        case ec.EllipticCurvePublicKey():
            raise IdentityError(f"the key is on the curve {key.curve.name}, which is refused by some peers or weak: use {_GOOD_KEYS}")
        case rsa.RSAPublicKey() if key.key_size not in _RSA_BITS:
            raise IdentityError(f"the RSA key has {key.key_size} bits: use {_GOOD_KEYS}")
        case rsa.RSAPublicKey() if key.public_numbers().e != _EXPONENT:
            raise IdentityError(f"the RSA key has the public exponent {key.public_numbers().e}, not {_EXPONENT}: use {_GOOD_KEYS}")
        case rsa.RSAPublicKey():
            return
    raise IdentityError(f"the key is of the kind {type(key).__name__.removesuffix('PublicKey')}: use {_GOOD_KEYS}")


def key_digest(key: CertificatePublicKeyTypes) -> str:
    """SHA-256 of a public key as certificates carry it, in hexadecimal digits."""
    return hashlib.sha256(_encoded(key)).hexdigest()


def _encoded(key: CertificatePublicKeyTypes) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def all_dns_names(spiffe_id: SpiffeId, extra: Iterable[str]) -> list[str]:
    """The name that stands for the ID over gRPC, and the ``extra`` ones that somebody asked for. Raises ``IdentityError``."""
    if isinstance(extra, str):
        raise TypeError("the DNS names are several: give a list")
    own = dns_name(spiffe_id)
    names = list(dict.fromkeys([own, *map(_checked, extra)]))
    if len(names) > _MOST_NAMES:
        raise IdentityError(f"{len(names)} DNS names are more than a certificate may have, {_MOST_NAMES}")
    derived = "." + own.partition(".")[2]
    for name in names:
        if name != own and ("." + name).endswith(derived):
            raise IdentityError(f"the DNS name {name!r} is reserved: below {derived[1:]!r} each name stands for one SPIFFE ID")
    return names


def _checked(name: str) -> str:
    labels = name.split(".")
    if len(name) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise IdentityError(
            f"{name[:300]!r} is no host name: labels of lower-case letters, digits and dashes, with dots between them; no wildcard, "
            "no port, and other letters as punycode"
        )
    if labels[-1].isdigit():
        raise IdentityError(f"{name!r} is an IP address or looks like one, and a workload has none of its own")
    return name
