"""Whom a request is from: what the header of a trusted proxy says, whose proxies are trusted, and what ``mtls`` asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilmesh.identity import IdentityError, SpiffeId
from resilmesh.identity.gate import Connection, Gate, Refused
from resilmesh.identity.xfcc import InvalidXfcc, caller_of, made_of, parse
from resilmesh.policy.inbound import Inbound
from tests.identity.pki import INVENTORY, WEB

WHO = SpiffeId.parse(WEB)


@pytest.mark.parametrize(("text", "who"), [
    (f"URI={WEB}", WEB), (f"By={INVENTORY};Hash=00ff;Subject=\"CN=a,O=b\";URI={WEB}", WEB), (f"uri={WEB}", WEB),
    (f"URI=spiffe://a.example/first,URI={WEB}", WEB), (f'Subject="/C=US; URI=spiffe://evil.example/x";URI={WEB}', WEB),
    (f'Subject="a \\" ,URI=spiffe://evil.example/x";URI={WEB}', WEB), ("Hash=00ff", None), ("URI=;DNS=a", None),
    (f"URI={WEB};DNS=a;DNS=b", WEB), (f'URI="{WEB}"', WEB), (f"Hash=a, URI={WEB}", WEB),
])
def test_what_a_proxy_says(text: str, who: str | None) -> None:
    found = caller_of(text)
    assert (None if found is None else str(found)) == who


@pytest.mark.parametrize("text", [
    "", ",", ";", "URI", "URI;", f"URI={WEB},", f"URI={WEB};", f"URI={WEB}x y=", 'Subject="', 'Subject="a"b', 'Subject=a"b"', "=x",
    f"Evil=1;URI={WEB}", f"URI={WEB};URI={INVENTORY}", "URI=spiffe://", "URI=https://a/b", f"URI={WEB}?a=b", f"URI={WEB}%00",
    "URI=SPIFFE://a/b",
    f"Hash=a;Hash=b;URI={WEB}", f"URI={WEB}\n", f"URI={WEB} ", "URI=" + "a" * 70000, f"URI={WEB}=x", f"By;URI={WEB}",
    f"Subject=\"\\\";URI={WEB}",
])
def test_what_a_proxy_would_not_say(text: str) -> None:
    with pytest.raises(IdentityError):
        caller_of(text)


@given(st.text(st.sampled_from('URI=spiffe://a,;"\\ xBy'), max_size=40))
def test_whatever_is_said_is_read_or_refused(text: str) -> None:
    try:
        found = parse(text)
    except InvalidXfcc:
        return
    assert found


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=40))
def test_what_is_made_is_read_again(subject: str) -> None:
    made = made_of(SpiffeId.parse(INVENTORY), WHO, "00ff", subject)
    element = parse(made)[-1]
    assert (element.uris, element.hash, element.by) == ((WEB,), "00ff", INVENTORY)
    assert caller_of(made) == WHO


def gate(**inbound: object) -> Gate:
    return Gate(Inbound.model_validate(inbound))


@pytest.mark.parametrize(("address", "trusted"), [
    ("10.1.2.3", True), ("::ffff:10.1.2.3", True), ("11.0.0.1", False), ("2001:db8::1", True), ("2001:db9::1", False),
    ("fe80::1%eth0", False), (None, False), ("", False), ("not an address", False), ("10.1.2.3:80", False),
])
def test_whose_proxies_are_trusted(address: str | None, trusted: bool) -> None:
    assert gate(trusted_proxies=["10.0.0.0/8", "2001:db8::/32"]).trusts(address) is trusted
    assert not gate().trusts(address)


@pytest.mark.parametrize(("forwarded", "remote"), [
    ([], "10.0.0.1"), (["6.6.6.6"], "6.6.6.6"), (["1.1.1.1, 6.6.6.6"], "6.6.6.6"), (["1.1.1.1", "6.6.6.6, 10.0.0.2"], "6.6.6.6"),
    (["10.0.0.3, 10.0.0.2"], "10.0.0.3"), (["nonsense"], "10.0.0.1"), (["6.6.6.6, nonsense, 10.0.0.2"], "10.0.0.2"), ([""], "10.0.0.1"),
    (["::ffff:6.6.6.6"], "6.6.6.6"),
])
def test_the_original_caller_is_the_last_that_no_trusted_proxy_is(forwarded: list[str], remote: str) -> None:
    trusting = gate(trusted_proxies=["10.0.0.0/8"])
    assert trusting.caller(Connection("10.0.0.1"), forwarded, []).remote == remote
    assert gate().caller(Connection("10.0.0.1"), forwarded, []).remote == "10.0.0.1"


@pytest.mark.parametrize(("mtls", "peer", "source", "certificates", "outcome"), [
    ("STRICT", None, "10.0.0.1", [], 403), ("STRICT", WHO, "10.0.0.1", [], WEB), ("STRICT", None, "6.6.6.6", [f"URI={WEB}"], 403),
    ("STRICT", None, "10.0.0.1", [f"URI={WEB}"], WEB), ("STRICT", WHO, "10.0.0.1", ["Hash=a"], 403),
    ("STRICT", None, None, [f"URI={WEB}"], 403),
    ("PERMISSIVE", None, "6.6.6.6", [f"URI={WEB}"], "None"), ("PERMISSIVE", WHO, "6.6.6.6", [f"URI={INVENTORY}"], WEB),
    ("PERMISSIVE", WHO, "10.0.0.1", [f"URI={INVENTORY}"], INVENTORY), ("PERMISSIVE", None, "10.0.0.1", ["x"], 400),
    ("PERMISSIVE", None, "10.0.0.1", [f"URI={INVENTORY}", f"URI={WEB}"], WEB), ("DISABLE", WHO, "6.6.6.6", [], "None"),
])
def test_whom_it_is_from(mtls: str, peer: SpiffeId | None, source: str | None, certificates: list[str], outcome: object) -> None:
    asked = gate(mtls=mtls, trusted_proxies=["10.0.0.0/8"])
    if isinstance(outcome, int):
        with pytest.raises(Refused) as caught:
            asked.caller(Connection(source, peer), [], certificates)
        assert caught.value.status == outcome
    else:
        assert str(asked.caller(Connection(source, peer), [], certificates).identity) == outcome
