"""``x-forwarded-client-cert``: what a proxy says of the certificate that its caller has shown. Believed of trusted proxies only.

    By=spiffe://shop.example/ns/prod/sa/web;Hash=468e...;Subject="CN=a,O=b";URI=spiffe://shop.example/ns/prod/sa/checkout

One element for each proxy on the way, the nearest last. A value that holds a comma, a semicolon or an equals sign is quoted, a
quote in it escaped (Envoy's documentation of the header). Whatever is not written so is refused: a reader that guesses can be made to
take a part of a value for a name.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from resilmesh.identity.spiffe import IdentityError, SpiffeId

HEADER = "x-forwarded-client-cert"

#: Bytes of the header at most: Envoy's bound for all headers together is 60 KiB.
_LONGEST = 64 * 1024
_KEYS = {"by", "hash", "cert", "chain", "subject", "uri", "dns"}
#: A name, and a value in quotes or without what ends one.
_PAIR = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^",;=]*)(?=[,;]|$)')


class InvalidXfcc(IdentityError, ValueError):
    """The header is not written as it should be."""


class Element(NamedTuple):
    """What one proxy says. ``uris`` and ``dns`` are the SANs of its caller's certificate."""

    uris: tuple[str, ...]
    dns: tuple[str, ...]
    hash: str
    by: str


def parse(text: str) -> list[Element]:
    """Every element, in the order of the way. Raises ``InvalidXfcc``."""
    if len(text) > _LONGEST:
        raise InvalidXfcc(f"{HEADER} is longer than {_LONGEST} bytes")
    elements, pairs, at = [], list[tuple[str, str]](), 0
    while True:
        while text[at : at + 1] == " ":
            at += 1
        found = _PAIR.match(text, at)
        if found is None:
            raise InvalidXfcc(f"{HEADER} is not of Key=Value pairs at its character {at + 1}")
        key, value = found[1].lower(), found[2]
        if key not in _KEYS:
            raise InvalidXfcc(f"{HEADER} has the unknown key {found[1]!r}")
        pairs.append((key, re.sub(r"\\(.)", r"\1", value[1:-1]) if value.startswith('"') else value))
        at = found.end()
        if text[at : at + 1] != ";":
            elements.append(_element(pairs))
            pairs = []
        if at == len(text):
            return elements
        at += 1


def _element(pairs: list[tuple[str, str]]) -> Element:
    for key in ("hash", "subject", "cert", "chain"):
        if sum(name == key for name, _ in pairs) > 1:
            raise InvalidXfcc(f"an element of {HEADER} has {key!r} twice")
    values = {name: tuple(value for key, value in pairs if key == name and value) for name in _KEYS}
    return Element(values["uri"], values["dns"], *("".join(values[key][:1]) for key in ("hash", "by")))


def caller_of(text: str) -> SpiffeId | None:
    """Who has called the nearest proxy; ``None``: somebody without a SPIFFE ID. Raises ``IdentityError``."""
    uris = parse(text)[-1].uris
    if not uris:
        return None
    if len(uris) > 1:
        raise InvalidXfcc(f"{HEADER} names {len(uris)} URIs of one caller; an X.509-SVID has exactly one")
    return SpiffeId.parse(uris[0])


def made_of(own: SpiffeId | None, caller: SpiffeId, fingerprint: str, subject: str) -> str:
    """As Envoy writes it under SANITIZE_SET. ``fingerprint``: SHA-256 of the certificate in hexadecimal."""
    quoted = subject.replace("\\", "\\\\").replace('"', '\\"')
    return f'By={own or ""};Hash={fingerprint};Subject="{quoted}";URI={caller}'
