"""SPIFFE IDs and trust domains, by the standard (SPIFFE-ID.md, sections 2 and 3): what it does not allow is refused with the reason.

    spiffe://shop.example/ns/prod/sa/web
             trust domain path            principal: shop.example/ns/prod/sa/web

Nothing is repaired on the way in: no case is folded, no escape is decoded and no slash is dropped, since an identity that can be
written in two ways is compared wrongly somewhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import NamedTuple, Self

from resilmesh.errors import ResilmeshError

SCHEME = "spiffe://"
#: Bytes of a whole SPIFFE ID and of a trust domain, at most (SPIFFE-ID.md, section 2.3).
MAX_LENGTH, MAX_TRUST_DOMAIN = 2048, 255

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]+")
#: Below ``.internal``, which nobody can register (ICANN, 2024).
_DNS_SUFFIX = ".svid.resilmesh.internal"


class IdentityError(ResilmeshError):
    """An identity, a certificate or a bundle that cannot be used."""


class InvalidSpiffeId(IdentityError, ValueError):
    """No SPIFFE ID, or no trust domain."""


class SpiffeId(NamedTuple):
    """One workload, or with an empty path a trust domain. Made by ``SpiffeId.parse``."""

    trust_domain: str
    path: str
    """Empty, or ``/`` and segments between slashes."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a SPIFFE ID apart. Raises ``InvalidSpiffeId``."""
        if not isinstance(text, str):
            raise TypeError(f"a SPIFFE ID is a str such as 'spiffe://shop.example/ns/prod/sa/web', not {text!r}")
        if len(text) > MAX_LENGTH:
            raise InvalidSpiffeId(f"a SPIFFE ID has {MAX_LENGTH} bytes at most, not {len(text)}")
        if not text.startswith(SCHEME):
            raise InvalidSpiffeId(f"{text!r} does not begin with {SCHEME}")
        trust_domain, slash, path = text[len(SCHEME) :].partition("/")
        try:
            parse_trust_domain(trust_domain)
            _check_path(slash + path)
        except InvalidSpiffeId as error:
            raise InvalidSpiffeId(f"{text!r}: {error}") from None
        return cls(trust_domain, slash + path)

    def __str__(self) -> str:
        return SCHEME + self.trust_domain + self.path

    @property
    def principal(self) -> str:
        """What Istio's rules call it: the ID without its scheme."""
        return self.trust_domain + self.path

    @property
    def namespace(self) -> str | None:
        """``prod`` of ``/ns/prod/sa/web``; of an ID that is not built in Istio's way, ``None``."""
        return self._istio(1)

    @property
    def service_account(self) -> str | None:
        """``web`` of ``/ns/prod/sa/web``; likewise."""
        return self._istio(3)

    def _istio(self, number: int) -> str | None:
        parts = self.path[1:].split("/")
        return parts[number] if len(parts) == 4 and parts[0] == "ns" and parts[2] == "sa" else None


def parse_trust_domain(text: str) -> str:
    """Check the name of a trust domain, and give it back. Raises ``InvalidSpiffeId``."""
    if not text:
        raise InvalidSpiffeId("there is no trust domain")
    if len(text) > MAX_TRUST_DOMAIN:
        raise InvalidSpiffeId(f"a trust domain has {MAX_TRUST_DOMAIN} bytes at most, not {len(text)}")
    if _TRUST_DOMAIN.fullmatch(text) is None:
        raise InvalidSpiffeId(
            f"the trust domain {text!r} is not of lower-case letters, digits, dots, dashes and underscores; it has no port, user or escape"
        )
    return text


def _check_path(path: str) -> None:
    if not path:
        return
    if path.endswith("/"):
        raise InvalidSpiffeId("the path ends with a slash")
    for segment in path[1:].split("/"):
        if not segment:
            raise InvalidSpiffeId("the path has an empty segment")
        if segment in (".", ".."):
            raise InvalidSpiffeId("the path has a dot segment")
        if _SEGMENT.fullmatch(segment) is None:
            raise InvalidSpiffeId(
                f"the segment {segment!r} is not of letters, digits, dots, dashes and underscores; there is no query, fragment or escape"
            )


def dns_name(spiffe_id: SpiffeId) -> str:
    """The DNS SAN that stands for a SPIFFE ID where only a host name can be verified: over gRPC.

    One to one: a hash, because DNS folds case, has other letters and shorter names. 52 characters carry all 256 bits of SHA-256.
    """
    digest = hashlib.sha256(str(spiffe_id).encode()).digest()
    return base64.b32encode(digest).decode().rstrip("=").lower() + _DNS_SUFFIX
