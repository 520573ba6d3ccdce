"""Certificates, keys and bundles as other tools write them: which are an SVID, which are none and why, and who may vouch for it."""

from __future__ import annotations

import datetime
import ipaddress
import time
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from resilmesh.identity.spiffe import IdentityError
from resilmesh.identity.svid import Identity, Svid, TrustBundle, anchored, check_validity, identity_of
from tests.identity.pki import HOUR, INVENTORY, WEB, Authority, Leaf, now, usage

RSA = rsa.generate_private_key(65537, 2048)
ROOT = Authority()
PARTNER = Authority(trust_domain="partner.example")
NOW = time.time()

PEM, DER = serialization.Encoding.PEM, serialization.Encoding.DER
PLAIN = serialization.NoEncryption()
PASSWORD = b"correct horse battery"


def written(key: object, form: serialization.PrivateFormat, encryption: serialization.KeySerializationEncryption = PLAIN) -> bytes:
    return bytes(key.private_bytes(PEM, form, encryption))  # type: ignore[attr-defined]  # every kind of key has it


# ----------------------------------------------------------------------------------------------- what is one


@pytest.mark.parametrize(("key", "form"), [
    (RSA, serialization.PrivateFormat.PKCS8), (RSA, serialization.PrivateFormat.TraditionalOpenSSL),
    (ec.generate_private_key(ec.SECP256R1()), serialization.PrivateFormat.PKCS8),
    (ec.generate_private_key(ec.SECP384R1()), serialization.PrivateFormat.TraditionalOpenSSL),
    (ed25519.Ed25519PrivateKey.generate(), serialization.PrivateFormat.PKCS8),
], ids=["RSA, PKCS 8", "RSA, PKCS 1", "P-256, PKCS 8", "P-384, SEC 1", "Ed25519"])
def test_kinds_of_keys_and_how_they_are_written(key: object, form: serialization.PrivateFormat) -> None:
    leaf = ROOT.issue(WEB, key=key)
    assert str(Svid.from_pem(leaf.certificates_pem(), written(key, form)).id) == WEB


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_key(form: serialization.PrivateFormat) -> None:
    leaf = ROOT.issue(WEB)
    key = written(leaf.key, form, serialization.BestAvailableEncryption(PASSWORD))
    assert str(Svid.from_pem(leaf.certificates_pem(), key, password=PASSWORD).id) == WEB
    with pytest.raises(IdentityError, match="is encrypted, and no password is given"):
        Svid.from_pem(leaf.certificates_pem(), key)
    with pytest.raises(IdentityError, match="the password is wrong"):
        Svid.from_pem(leaf.certificates_pem(), key, password=b"wrong")


@pytest.mark.parametrize("around", [
    lambda pem: pem.replace(b"\n", b"\r\n"), lambda pem: b"Bag Attributes\n    friendlyName: web\nsubject=CN = web\n" + pem,
    lambda pem: b"Certificate:\n    Data:\n        Version: 3 (0x2)\n" + pem, lambda pem: pem + b"\n\n# renewed by a script\n",
    lambda pem: b"\n\n" + pem, lambda pem: pem.rstrip(b"\n"),
], ids=["of Windows", "PKCS 12's words", "openssl's words", "a comment", "empty lines", "no last line's end"])
def test_what_stands_around_a_block_is_nothing(around: Callable[[bytes], bytes]) -> None:
    leaf = ROOT.issue(WEB)
    assert str(Svid.from_pem(around(leaf.certificates_pem()), leaf.key_pem()).id) == WEB


def test_an_intermediate_follows_and_the_root_may() -> None:
    below = Authority(name="below", above=ROOT)
    leaf = below.issue(WEB)
    with_root = leaf.certificates_pem() + ROOT.certificate.public_bytes(PEM)
    svid = Svid.from_pem(with_root, leaf.key_pem())
    assert len(svid.chain) == 3
    assert Identity.of(svid, [ROOT.bundle]).proven(NOW)


def test_a_life_ends_with_the_first_certificate_that_does() -> None:
    below = Authority(name="below", above=ROOT, ends=now() + HOUR / 2)
    svid = below.issue(WEB).identity().svid
    assert svid.not_after == pytest.approx((now() + HOUR / 2).timestamp(), abs=2)


# --------------------------------------------------------------------------------------------- what is none


def _chain_of_another() -> Leaf:
    leaf = ROOT.issue(WEB)
    return Leaf([leaf.chain[0], Authority(name="other").certificate], leaf.key, ROOT)


def _reversed() -> Leaf:
    leaf = Authority(name="below", above=ROOT).issue(WEB)
    return Leaf(list(reversed(leaf.chain)), leaf.key, ROOT)


def _of_another_key() -> Leaf:
    leaf = ROOT.issue(WEB)
    return Leaf(leaf.chain, ROOT.issue(WEB).key, ROOT)


NONE: dict[str, tuple[Callable[[], Leaf], str]] = {
    "another's key": (_of_another_key, "the private key is not that of the certificate of"),
    "a key of another kind": (lambda: Leaf(ROOT.issue(WEB).chain, RSA, ROOT), "the private key is not that of the certificate"),
    "a chain of somebody else's": (_chain_of_another, "the chain of spiffe://shop.example/ns/prod/sa/web is out of order"),
    "the leaf last": (_reversed, "has no SPIFFE ID"),
    "a root": (lambda: Leaf([ROOT.certificate], ROOT.key, ROOT), "the certificate has no SPIFFE ID"),
    "two IDs": (lambda: ROOT.issue(WEB, INVENTORY), "has 2 URI SANs"), "no ID": (lambda: ROOT.issue(dns=["a"]), "it names the host a"),
    "a name alone": (lambda: ROOT.issue(subject="web"), "it has no SAN, and its subject, 'CN=web', is no identity"),
    "a URL": (lambda: ROOT.issue("https://shop.example/web"), "is no SPIFFE ID"),
    "a trust domain": (lambda: ROOT.issue("spiffe://shop.example"), "is a trust domain and no workload"),
    "an authority": (lambda: ROOT.issue(WEB, ca=True), "is an authority's"),
    "a signer of lists": (lambda: ROOT.issue(WEB, key_usage=usage(digital_signature=True, crl_sign=True)), "the key usage cRLSign"),
    "for encryption": (lambda: ROOT.issue(WEB, key_usage=usage(key_encipherment=True)), "lacks the key usage digitalSignature"),
}


@pytest.mark.parametrize("which", NONE)
def test_none_and_why(which: str) -> None:
    make, why = NONE[which]
    leaf = make()
    with pytest.raises(IdentityError) as caught:
        Svid.of(leaf.chain, leaf.key)
    assert why in str(caught.value)


@pytest.mark.parametrize(("text", "why"), [
    (b"", "is no certificate in PEM"), (b"nothing", "is no certificate in PEM"), (ROOT.issue(WEB).key_pem(), "is no certificate in PEM"),
    (ROOT.issue(WEB).certificates_pem()[:-40], "is torn"), (ROOT.issue(WEB).chain[0].public_bytes(DER), "is no certificate in PEM"),
    (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is no certificate in PEM"),
])
def test_what_cannot_be_read(text: bytes, why: str) -> None:
    with pytest.raises(IdentityError, match=why):
        Svid.from_pem(text, ROOT.issue(WEB).key_pem())
    with pytest.raises(IdentityError):
        TrustBundle.from_pem("shop.example", text)


@pytest.mark.parametrize("text", [b"", b"nothing", ROOT.issue(WEB).certificates_pem(), ROOT.issue(WEB).key_pem()[:-60]])
def test_what_is_no_key_says_nothing_of_itself(text: bytes) -> None:
    with pytest.raises(IdentityError) as caught:
        Svid.from_pem(ROOT.issue(WEB).certificates_pem(), text)
    assert str(caught.value) == "the private key is no key in PEM"
    assert "PRIVATE KEY" not in repr(ROOT.issue(WEB).identity().svid)


def test_times() -> None:
    leaf = ROOT.issue(WEB, begins=now() - HOUR, ends=now()).chain[0]
    check_validity(leaf, time.time() - 1800)
    with pytest.raises(IdentityError, match="is not valid before"):
        check_validity(leaf, time.time() - 7200)
    with pytest.raises(IdentityError, match="has expired at"):
        check_validity(leaf, time.time() + 60)


# ----------------------------------------------------------------------------------------------- who vouches


def _of(*authorities: Authority) -> TrustBundle:
    return TrustBundle("shop.example", tuple(each.certificate for each in authorities))


def _constrained(permitted: list[x509.GeneralName] | None, excluded: list[x509.GeneralName] | None = None) -> Authority:
    constraints = x509.NameConstraints(permitted, excluded)
    return Authority(name="constrained", above=ROOT, extensions=[(constraints, True)])


Vouching = tuple[Authority, list[Authority], TrustBundle, bool]


def _alone(authority: Authority, vouched: bool) -> Vouching:
    """Below the root, and sent."""
    return authority, [authority], _of(ROOT), vouched


def _below(authority: Authority, vouched: bool) -> Vouching:
    third = Authority(name="third", above=authority)
    return third, [third, authority], _of(ROOT), vouched


URI, DNS = x509.UniformResourceIdentifier, x509.DNSName
BELOW = Authority(name="below", above=ROOT)
LOWEST = Authority(name="lowest", above=BELOW)
GONE = Authority(begins=now() - 3 * HOUR, ends=now() - HOUR)
#: Who signs, what besides the leaf is sent, whom is trusted, and whether that vouches for the leaf.
VOUCHED: dict[str, Vouching] = {
    "a root": (ROOT, [], _of(ROOT), True),
    "a root that is not trusted": (ROOT, [], _of(Authority()), False),
    "one of two roots": (ROOT, [], _of(Authority(), ROOT), True),
    "below an intermediate": (BELOW, [BELOW], _of(ROOT), True),
    "an intermediate that is not sent": (BELOW, [], _of(ROOT), False),
    "an intermediate that is trusted itself": (BELOW, [], _of(BELOW), True),
    "below two": (LOWEST, [LOWEST, BELOW], _of(ROOT), True),
    "below two, in another order": (LOWEST, [BELOW, LOWEST], _of(ROOT), True),
    "among others": (LOWEST, [PARTNER, BELOW, Authority(name="x"), LOWEST, ROOT], _of(ROOT), True),
    "the first of two is missing": (LOWEST, [BELOW], _of(ROOT), False),
    "another of the same name": (BELOW, [Authority(name="below", above=ROOT)], _of(ROOT), False),
    "a root that is sent": (PARTNER, [PARTNER], _of(ROOT), False),
    "an authority of another domain": (PARTNER, [], _of(ROOT), False),
    "an intermediate that has ended": _alone(Authority(name="old", above=ROOT, begins=now() - 3 * HOUR, ends=now() - HOUR), False),
    "one that has not begun": _alone(Authority(name="young", above=ROOT, begins=now() + HOUR), False),
    "a root that has ended": (GONE, [], _of(GONE), False),
    "no authority": _alone(Authority(name="leaf", above=ROOT, ca=False), False),
    "a path that may not be so long": _below(Authority(name="short", above=ROOT, path_length=0), False),
    "one that may": _below(Authority(name="long", above=ROOT, path_length=1), True),
    "permitted: its domain": _alone(_constrained([URI("shop.example")]), True),
    "permitted: below its domain": _alone(_constrained([URI(".example")]), True),
    "permitted: another domain": _alone(_constrained([URI("partner.example")]), False),
    "permitted: below it only": _alone(_constrained([URI(".shop.example")]), False),
    "permitted: a DNS name that it has not": _alone(_constrained([DNS("shop.example")]), False),
    "permitted: its DNS name": _alone(_constrained([DNS("svid.resilmesh.internal")]), True),
    "permitted: what nobody knows": _alone(_constrained([x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))]), False),
    "excluded: its domain": _alone(_constrained(None, [URI("shop.example")]), False),
    "excluded: another": _alone(_constrained(None, [URI("partner.example")]), True),
    "excluded and permitted": _alone(_constrained([URI(".example")], [URI("shop.example")]), False),
}


@pytest.mark.parametrize("which", VOUCHED)
def test_who_vouches_for_whom(which: str) -> None:
    signer, sent, bundle, vouched = VOUCHED[which]
    leaf = signer.issue(WEB).chain[0]
    assert str(identity_of(leaf)) == WEB
    assert anchored([leaf, *(each.certificate for each in sent)], bundle, NOW) is vouched


def test_a_hostile_chain_costs_nothing() -> None:
    """Eighty authorities that have signed each other: each is tried once."""
    some = [Authority(name=f"{number}", above=ROOT if number == 0 else None) for number in range(80)]
    leaf = Authority(name="last").issue(WEB).chain[0]
    began = time.process_time()
    assert not anchored([leaf, *(each.certificate for each in some)], _of(*some[:40]), NOW)
    assert time.process_time() - began < 5


def test_a_bundle_of_leaves_is_none() -> None:
    with pytest.raises(IdentityError, match="CA:FALSE"):
        TrustBundle.of("shop.example", ROOT.issue(WEB).chain)
    with pytest.raises(IdentityError, match="is empty"):
        TrustBundle.of("shop.example", [])


def test_roots_of_domains_are_not_mixed() -> None:
    svid = ROOT.issue(WEB).identity().svid
    with pytest.raises(IdentityError, match=r"there is no trust bundle of shop\.example"):
        Identity.of(svid, [PARTNER.bundle])
    with pytest.raises(IdentityError, match=r"two trust bundles of shop\.example"):
        Identity.of(svid, [ROOT.bundle, Authority().bundle])
    with pytest.raises(IdentityError, match=r"nobody may vouch for the trust domain evil\.example"):
        Identity.of(svid, [ROOT.bundle]).of_domain("evil.example")
    impostor = TrustBundle("shop.example", PARTNER.bundle.certificates)
    with pytest.raises(IdentityError, match=r"no authority in the trust bundle of shop\.example vouches"):
        Identity.of(svid, [impostor, PARTNER.bundle]).proven(NOW)
    assert Identity.of(svid, [ROOT.bundle, PARTNER.bundle]).proven(datetime.datetime.now(datetime.UTC).timestamp())
