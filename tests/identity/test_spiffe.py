"""SPIFFE IDs and trust domains, by the standard: what is one, what is none and why."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilmesh.identity.spiffe import MAX_LENGTH, MAX_TRUST_DOMAIN, InvalidSpiffeId, SpiffeId, dns_name, parse_trust_domain

#: Text, trust domain, path, namespace, service account.
VALID: list[tuple[str, str, str, str | None, str | None]] = [
    ("spiffe://shop.example/ns/prod/sa/web", "shop.example", "/ns/prod/sa/web", "prod", "web"),
    ("spiffe://shop.example", "shop.example", "", None, None),
    ("spiffe://shop.example/web", "shop.example", "/web", None, None),
    ("spiffe://1.2.3.4/service", "1.2.3.4", "/service", None, None),
    ("spiffe://a_b-c.1/x", "a_b-c.1", "/x", None, None),
    ("spiffe://shop.example/9eebccd2-12bf-40a6-b262-65fe0487d453", "shop.example", "/9eebccd2-12bf-40a6-b262-65fe0487d453", None, None),
    ("spiffe://shop.example/Ns/Prod/SA/Web", "shop.example", "/Ns/Prod/SA/Web", None, None),
    ("spiffe://shop.example/.../..a/a..", "shop.example", "/.../..a/a..", None, None),
    ("spiffe://shop.example/ns/prod/sa/web/more", "shop.example", "/ns/prod/sa/web/more", None, None),
    ("spiffe://shop.example/ns/prod", "shop.example", "/ns/prod", None, None),
    ("spiffe://shop.example/sa/web/ns/prod", "shop.example", "/sa/web/ns/prod", None, None),
    (f"spiffe://{'a' * MAX_TRUST_DOMAIN}/x", "a" * MAX_TRUST_DOMAIN, "/x", None, None),
    ("spiffe://a/" + "b" * (MAX_LENGTH - 11), "a", "/" + "b" * (MAX_LENGTH - 11), None, None),
]
INVALID: dict[str, str] = {
    "": "does not begin with spiffe://", "shop.example/web": "does not begin", "//shop.example/web": "does not begin",
    "spiffe:/shop.example/web": "does not begin", "spiffe:shop.example": "does not begin", "SPIFFE://shop.example/web": "does not begin",
    "Spiffe://shop.example/web": "does not begin", " spiffe://shop.example/web": "does not begin",
    "https://shop.example/web": "does not begin",
    "spiffe+x://shop.example/web": "does not begin", "\ufeffspiffe://shop.example/web": "does not begin",
    "spiffe://": "there is no trust domain", "spiffe:///web": "there is no trust domain", "spiffe:////web": "there is no trust domain",
    "spiffe://Shop.example/web": "lower-case letters", "spiffe://shop.example:443/web": "no port",
    "spiffe://user@shop.example/web": "no port, user",
    "spiffe://user:pw@shop.example/web": "user", "spiffe://shop%2eexample/web": "escape", "spiffe://shop example/web": "lower-case",
    "spiffe://sh\u00f6p.example/web": "lower-case", "spiffe://\u0455hop.example/web": "lower-case", "spiffe://[::1]/web": "lower-case",
    "spiffe://shop.example?x": "lower-case", "spiffe://shop.example#x": "lower-case", "spiffe://shop.example\\web": "lower-case",
    "spiffe://shop.example\n/web": "lower-case", "spiffe://shop.example\0/web": "lower-case", "spiffe://*/web": "lower-case",
    f"spiffe://{'a' * (MAX_TRUST_DOMAIN + 1)}/x": "255 bytes at most, not 256",
    "spiffe://shop.example/": "ends with a slash", "spiffe://shop.example/web/": "ends with a slash",
    "spiffe://shop.example//": "ends with",
    "spiffe://shop.example//web": "empty segment", "spiffe://shop.example/a//b": "empty segment",
    "spiffe://shop.example/.": "dot segment", "spiffe://shop.example/..": "dot segment", "spiffe://shop.example/a/../b": "dot segment",
    "spiffe://shop.example/a/./b": "dot segment", "spiffe://shop.example/web?x=1": "no query", "spiffe://shop.example/web#x": "fragment",
    "spiffe://shop.example/w%65b": "escape", "spiffe://shop.example/a%2fb": "escape", "spiffe://shop.example/w b": "letters, digits",
    "spiffe://shop.example/w\u00e9b": "letters, digits", "spiffe://shop.example/\uff57eb": "letters, digits",
    "spiffe://shop.example/web\n": "letters",
    "spiffe://shop.example/web\0.evil": "letters", "spiffe://shop.example/a;b": "letters", "spiffe://shop.example/a:b": "letters",
    "spiffe://shop.example/a\\b": "letters", "spiffe://shop.example/*": "letters", "spiffe://shop.example/{x}": "letters",
    "spiffe://shop.example/web,spiffe://shop.example/admin": "letters",
    "spiffe://a/" + "b" * (MAX_LENGTH - 10): "2048 bytes at most, not 2049",
}


@pytest.mark.parametrize(("text", "domain", "path", "namespace", "account"), VALID, ids=[row[0][:40] for row in VALID])
def test_one(text: str, domain: str, path: str, namespace: str | None, account: str | None) -> None:
    found = SpiffeId.parse(text)
    assert (found.trust_domain, found.path, found.namespace, found.service_account) == (domain, path, namespace, account)
    assert str(found) == text
    assert found.principal == domain + path
    assert SpiffeId.parse(str(found)) == found


@pytest.mark.parametrize("text", INVALID, ids=lambda text: ascii(text)[:40])
def test_none_and_why(text: str) -> None:
    with pytest.raises(InvalidSpiffeId, match=re.escape(INVALID[text])):
        SpiffeId.parse(text)


@pytest.mark.parametrize("text", [None, 7, b"spiffe://shop.example/web"])
def test_no_text(text: object) -> None:
    with pytest.raises(TypeError, match="a SPIFFE ID is a str such as"):
        SpiffeId.parse(text)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("text", ["", "Shop.example", "shop.example/", "spiffe://shop.example", "a:1", "a b", "a" * 256])
def test_no_trust_domain(text: str) -> None:
    with pytest.raises(InvalidSpiffeId):
        parse_trust_domain(text)


@given(st.text(st.sampled_from("spiffe:/aA.-_%?#@0 \0é"), max_size=30))
def test_whatever_is_let_through_is_written_in_one_way(rest: str) -> None:
    text = "spiffe://" + rest
    try:
        found = SpiffeId.parse(text)
    except InvalidSpiffeId:
        return
    assert str(found) == text
    assert re.fullmatch(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*", text)
    assert not {".", ".."} & set(found.path.split("/"))


def test_a_dns_name_stands_for_one_id() -> None:
    """Names whose case, length or letters DNS does not have are different names all the same."""
    ids = [SpiffeId.parse(text) for text, *_ in VALID]
    ids += [SpiffeId.parse(f"spiffe://shop.example/ns/prod/sa/{name}") for name in ("Web", "WEB", "we_b", "we-b", "web.", "a" * 1000)]
    names = [dns_name(each) for each in ids]
    assert len({name.lower() for name in names}) == len(ids)
    for name in names:
        assert re.fullmatch(r"[a-z2-7]{52}\.svid\.resilmesh\.internal", name)
    # Written down once, because certificates that were issued have it.
    written = "a3y3bjuspnlejt4a64rpy7i3eqnqo7b7jhajwek56r7bwcbenyaq"
    assert dns_name(SpiffeId.parse("spiffe://shop.example/ns/prod/sa/web")) == f"{written}.svid.resilmesh.internal"
