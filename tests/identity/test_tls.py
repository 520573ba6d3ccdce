"""Handshakes over real sockets: who is refused, with which words, and that no byte of a request reaches whom is refused."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from resilmesh.identity.source import Fixed
from resilmesh.identity.spiffe import SpiffeId
from resilmesh.identity.svid import Identity, TrustBundle
from resilmesh.identity.tls import Accepted, LiveContext, PeerRefused
from tests.identity.pki import HOUR, INVENTORY, WEB, Authority, Leaf, now, usage

ROOT = Authority()
PARTNER = Authority(trust_domain="partner.example")
STRANGER = Authority()  # of the same names as ROOT, with a key of its own
BELOW = Authority(name="intermediate", above=ROOT, path_length=0)

TO_INVENTORY = Accepted(frozenset({SpiffeId.parse(INVENTORY)}))


def client_context(identity: Identity, accepted: Accepted = TO_INVENTORY, **options: Any) -> LiveContext:
    return LiveContext(Fixed(identity), serves=False, accepted=accepted, now=time.time, **options)


def server_context(identity: Identity, **options: Any) -> LiveContext:
    return LiveContext(Fixed(identity), serves=True, now=time.time, **options)


class Peer:
    """What one end of a handshake saw."""

    def __init__(self) -> None:
        self.received = b""
        self.error: Exception | None = None
        self.peer: SpiffeId | None = None


@contextmanager
def serving(context: ssl.SSLContext) -> Iterator[tuple[int, Peer]]:
    """A server for one connection, which says hello once it has been said to."""
    seen = Peer()

    def serve() -> None:
        try:
            accepted, _ = listener.accept()
            accepted.settimeout(10)
            with accepted, context.wrap_socket(accepted, server_side=True) as secured:
                seen.peer = getattr(secured, "peer", None)
                seen.received = secured.recv(100)
                secured.sendall(b"hello")
                secured.recv(100)  # until the caller is done, or it would see a reset
                secured.unwrap()
        except Exception as error:
            seen.error = error

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1], seen
        thread.join(10)


def call(context: ssl.SSLContext, port: int) -> Peer:
    seen = Peer()
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="inventory.prod.svc") as secured,
        ):
            seen.peer = getattr(secured, "peer", None)
            secured.sendall(b"request")
            seen.received = secured.recv(100)
            secured.unwrap()
    except Exception as error:
        seen.error = error
    return seen


def call_async(context: ssl.SSLContext, port: int) -> Peer:
    seen = Peer()

    async def main() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="inventory.prod.svc")
        seen.peer = getattr(writer.get_extra_info("ssl_object"), "peer", None)
        writer.write(b"request")
        seen.received = await reader.read(100)
        writer.close()
        await writer.wait_closed()

    try:
        asyncio.run(asyncio.wait_for(main(), 10))
    except Exception as error:
        seen.error = error
    return seen


calls = pytest.mark.parametrize("calls", [call, call_async], ids=["blocking", "asyncio"])


def web(*bundles: TrustBundle) -> Identity:
    return ROOT.identity(WEB, *bundles)


@calls
@pytest.mark.parametrize("authority", [ROOT, BELOW], ids=["root", "intermediate"])
def test_both_prove_who_they_are(calls: Callable[..., Peer], authority: Authority) -> None:
    with serving(server_context(authority.identity(INVENTORY))) as (port, service):
        caller = calls(client_context(authority.identity(WEB)), port)
    assert caller.error is None
    assert str(caller.peer) == INVENTORY
    assert caller.received == b"hello"
    assert str(service.peer) == WEB


def ago(hours: float) -> datetime.datetime:
    return now() - hours * HOUR


def _below_a_leaf() -> Leaf:
    """What the holder of an honest certificate would sign, if it could."""
    return Authority(name="leaf", above=ROOT, ca=False).issue(INVENTORY)


REFUSED: dict[str, tuple[Callable[[], Leaf], str]] = {
    "another workload": (lambda: ROOT.issue(WEB), f"it is {WEB}, and {INVENTORY} is expected"),
    "expired": (lambda: ROOT.issue(INVENTORY, begins=ago(0.9), ends=ago(0.1)), "it has expired"),
    "not yet valid": (lambda: ROOT.issue(INVENTORY, begins=ago(-1), ends=ago(-2)), "it is not valid yet"),
    "another authority of the same name": (lambda: STRANGER.issue(INVENTORY), "no authority that is trusted vouches for it"),
    "an authority that is not trusted": (lambda: PARTNER.issue(INVENTORY), "no authority that is trusted vouches for it"),
    "two SPIFFE IDs": (lambda: ROOT.issue(INVENTORY, WEB), f"the certificate has 2 URI SANs ({INVENTORY}, {WEB})"),
    "a SPIFFE ID twice": (lambda: ROOT.issue(INVENTORY, INVENTORY), "the certificate has 2 URI SANs"),
    "a SPIFFE ID and a URL": (lambda: ROOT.issue(INVENTORY, "https://inventory"), "the certificate has 2 URI SANs"),
    "nothing but a common name": (lambda: ROOT.issue(subject="inventory.prod.svc"), "it has no SAN, and its subject, 'CN=inventory"),
    "a SPIFFE ID for a common name": (lambda: ROOT.issue(subject=INVENTORY), "has no SPIFFE ID: it has no SAN"),
    "nothing but a DNS name": (lambda: ROOT.issue(dns=["inventory.prod.svc"]), "has no SPIFFE ID: it names the host inventory.prod.svc"),
    "a SPIFFE ID for a DNS name": (lambda: ROOT.issue(dns=["spiffe.shop.example"]), "has no SPIFFE ID"),
    "a URL": (lambda: ROOT.issue("https://shop.example/ns/prod/sa/inventory"), "the certificate's URI SAN is no SPIFFE ID"),
    "a scheme in capitals": (lambda: ROOT.issue(INVENTORY.replace("spiffe", "SPIFFE")), "the certificate's URI SAN is no SPIFFE ID"),
    "a domain in capitals": (lambda: ROOT.issue(INVENTORY.replace("shop", "Shop"), dns=[]), "the certificate's URI SAN is no SPIFFE ID"),
    "an escape": (lambda: ROOT.issue(INVENTORY.replace("sa/", "sa%2F"), dns=[]), "the certificate's URI SAN is no SPIFFE ID"),
    "a dot segment": (lambda: ROOT.issue(INVENTORY.replace("sa/", "sa/x/../"), dns=[]), "the certificate's URI SAN is no SPIFFE ID"),
    "a slash at its end": (lambda: ROOT.issue(INVENTORY + "/", dns=[]), "the certificate's URI SAN is no SPIFFE ID"),
    "a query": (lambda: ROOT.issue(INVENTORY + "?a=b", dns=[]), "the certificate's URI SAN is no SPIFFE ID"),
    "a port": (lambda: ROOT.issue(INVENTORY.replace("example", "example:443"), dns=[]), "the certificate's URI SAN is no SPIFFE ID"),
    "a null byte": (lambda: ROOT.issue(INVENTORY + "\0.evil", dns=[]), "the certificate's URI SAN is no SPIFFE ID"),
    "a trust domain": (lambda: ROOT.issue("spiffe://shop.example"), "is a trust domain and no workload"),
    "an authority's": (lambda: ROOT.issue(INVENTORY, ca=True), "is an authority's (CA:TRUE)"),
    "a signer's": (
        lambda: ROOT.issue(INVENTORY, key_usage=usage(digital_signature=True, key_cert_sign=True)),
        "usage keyCertSign, which a leaf may not",
    ),
    "of no signatures": (lambda: ROOT.issue(INVENTORY, key_usage=usage(key_agreement=True)), "key usage"),
    "for callers only": (lambda: ROOT.issue(INVENTORY, purposes=[ExtendedKeyUsageOID.CLIENT_AUTH]), "not made for this side of TLS"),
    "below a leaf": (_below_a_leaf, "what signed it is no authority"),
    "below one authority too many": (lambda: Authority(name="third", above=BELOW).issue(INVENTORY), "path to its authority is longer"),
    "below an expired authority": (
        lambda: Authority(name="old", above=ROOT, begins=ago(3), ends=ago(1)).issue(INVENTORY), "it has expired",
    ),
    "an extension that is critical and unknown": (
        lambda: ROOT.issue(INVENTORY, extensions=[(x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True)]),
        "unhandled critical extension",
    ),
}


@calls
@pytest.mark.parametrize("which", REFUSED)
def test_a_service_that_does_not_prove_who_it_is_gets_no_byte(calls: Callable[..., Peer], which: str) -> None:
    make, why = REFUSED[which]
    with serving(server_context(make().unchecked(), requires=False)) as (port, service):
        caller = calls(client_context(web()), port)
    assert isinstance(caller.error, PeerRefused), caller.error
    assert why in str(caller.error), str(caller.error)
    assert str(caller.error).startswith("the certificate of inventory.prod.svc is refused: ")
    assert service.received == b""


def test_what_nobody_vouches_for_is_told_as_a_claim() -> None:
    with serving(server_context(PARTNER.issue(INVENTORY).unchecked(), requires=False)) as (port, _):
        caller = call(client_context(web()), port)
    assert f"no authority that is trusted vouches for it; it says that it is {INVENTORY}, valid from 20" in str(caller.error)
    assert str(caller.error).endswith("issued by 'CN=root,O=partner.example'")


@pytest.mark.parametrize("which", [which for which in REFUSED if which not in ("another workload", "for callers only")])
def test_a_caller_that_does_not_prove_who_it_is_is_refused(which: str) -> None:
    """TLS 1.3: the caller believes that it is through before the service has looked, and is told when it reads."""
    make, why = REFUSED[which]
    with serving(server_context(ROOT.identity(INVENTORY))) as (port, service):
        caller = call(client_context(make().unchecked(ROOT.bundle)), port)
    assert isinstance(service.error, PeerRefused), service.error
    assert why in str(service.error), str(service.error)
    assert str(service.error).startswith("the certificate of the caller is refused: ")
    assert caller.received == b""


def test_a_caller_for_the_other_side_of_tls() -> None:
    with serving(server_context(ROOT.identity(INVENTORY))) as (port, service):
        call(client_context(ROOT.issue(WEB, purposes=[ExtendedKeyUsageOID.SERVER_AUTH]).unchecked()), port)
    assert isinstance(service.error, PeerRefused)
    assert "not made for this side of TLS" in str(service.error)


def test_a_caller_without_a_certificate_where_one_is_required() -> None:
    with serving(server_context(ROOT.identity(INVENTORY))) as (port, service):
        caller = call(client_context(web(), proves=False), port)
    assert "PEER_DID_NOT_RETURN_A_CERTIFICATE" in str(service.error)
    assert service.received == caller.received == b""


def test_a_caller_without_a_certificate_where_none_is_required() -> None:
    with serving(server_context(ROOT.identity(INVENTORY), requires=False)) as (port, service):
        caller = call(client_context(web(), proves=False), port)
    assert service.error is caller.error is service.peer is None
    assert caller.received == b"hello"


def test_a_caller_that_shows_a_wrong_certificate_where_none_is_required() -> None:
    with serving(server_context(ROOT.identity(INVENTORY), requires=False)) as (port, service):
        call(client_context(STRANGER.issue(WEB).unchecked(ROOT.bundle)), port)
    assert isinstance(service.error, PeerRefused)


# ------------------------------------------------------------------------------------------------ federation


def test_a_federated_domain_vouches_for_its_own() -> None:
    partner = "spiffe://partner.example/ns/prod/sa/ledger"
    with serving(server_context(PARTNER.identity(partner, ROOT.bundle))) as (port, service):
        caller = call(client_context(web(PARTNER.bundle), Accepted(frozenset({SpiffeId.parse(partner)}))), port)
    assert caller.error is None
    assert (str(caller.peer), str(service.peer)) == (partner, WEB)


@calls
def test_a_federated_domain_does_not_vouch_for_ours(calls: Callable[..., Peer]) -> None:
    """Both roots are in the context, so OpenSSL lets it pass."""
    partner = "spiffe://partner.example/ns/prod/sa/ledger"
    accepted = Accepted(frozenset({SpiffeId.parse(INVENTORY), SpiffeId.parse(partner)}))
    with serving(server_context(PARTNER.issue(INVENTORY).unchecked(), requires=False)) as (port, service):
        caller = calls(client_context(web(PARTNER.bundle), accepted), port)
    assert isinstance(caller.error, PeerRefused)
    assert f"it says that it is {INVENTORY}, but no authority of shop.example vouches for it" in str(caller.error)
    assert service.received == b""


def test_nor_does_ours_for_a_federated_one() -> None:
    with serving(server_context(ROOT.identity(INVENTORY, PARTNER.bundle))) as (port, service):
        call(client_context(ROOT.issue("spiffe://partner.example/ns/prod/sa/web").unchecked(PARTNER.bundle)), port)
    assert "no authority of partner.example vouches for it" in str(service.error)


def test_a_domain_without_a_bundle() -> None:
    with serving(server_context(ROOT.identity(INVENTORY))) as (port, service):
        call(client_context(ROOT.issue("spiffe://other.example/ns/prod/sa/web").unchecked()), port)
    assert "nobody may vouch for the trust domain other.example: there are bundles of shop.example" in str(service.error)


# --------------------------------------------------------------------------------------------- by a DNS name


@pytest.mark.parametrize(
    ("names", "passes"), [(["inventory.prod.svc"], True), (["Inventory.Prod.SVC"], True), (["other"], False), ([], False)],
)
def test_by_a_dns_name(names: list[str], passes: bool) -> None:
    accepted = Accepted(dns_sans=frozenset({"inventory.prod.svc"}))
    with serving(server_context(ROOT.issue(dns=names, subject="inventory.prod.svc").unchecked(), requires=False)) as (port, _):
        caller = call(client_context(web(), accepted), port)
    if passes:
        assert caller.error is None
    else:
        assert "inventory.prod.svc is expected" in str(caller.error)


# ---------------------------------------------------------------------------------------------- what is live


def test_each_new_connection_has_the_newest_identity() -> None:
    source = Fixed(ROOT.identity(INVENTORY))
    context = LiveContext(source, serves=True, now=time.time)
    serials = []
    for _ in range(3):
        with (
            serving(context) as (port, _), socket.create_connection(("127.0.0.1", port)) as plain,
            client_context(web()).wrap_socket(plain) as secured,
        ):
            serials.append(secured.getpeercert()["serialNumber"])
            secured.sendall(b"x")
            secured.recv(10)
        source.put(ROOT.identity(INVENTORY), time.time())
    assert len(set(serials)) == 3
    assert context.newest() is context.newest()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_not_resumed_beyond_what_it_proved(version: ssl.TLSVersion) -> None:
    """A session is kept by a context, and a context by its identity: who was let in under another root begins anew."""
    source = Fixed(ROOT.identity(INVENTORY))
    context = LiveContext(source, serves=True, now=time.time)
    caller = client_context(web()).newest()
    caller.maximum_version = version

    def connect(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        with (
            serving(context) as (port, service), socket.create_connection(("127.0.0.1", port)) as plain,
            caller.wrap_socket(plain, session=session) as secured,
        ):
            secured.sendall(b"x")
            secured.recv(10)
            assert secured.session_reused is (session is not None and version is ssl.TLSVersion.TLSv1_2 and not moved)
            again = secured.session
            secured.unwrap()
        assert str(service.peer) == WEB, service.error
        return again

    moved = False
    session = connect(connect(None))
    source.put(ROOT.identity(INVENTORY), time.time())
    moved = True
    connect(session)


def test_old_versions_of_tls_are_refused() -> None:
    caller = client_context(web()).newest()
    with pytest.warns(DeprecationWarning, match="TLSv1 is deprecated"):
        caller.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        caller.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving(server_context(ROOT.identity(INVENTORY))) as (port, service):
        assert isinstance(call(caller, port).error, ssl.SSLError)
    assert service.received == b""


# ------------------------------------------------------------------------------------- a handshake that is put off

PUT_OFF: dict[str, Callable[[Any], Any]] = {
    "sendall": lambda secured: secured.sendall(b"request"), "send": lambda secured: secured.send(b"request"),
    "write": lambda secured: secured.write(b"request"), "recv": lambda secured: secured.recv(10),
    "recv_into": lambda secured: secured.recv_into(bytearray(10)), "read": lambda secured: secured.read(10),
    "makefile": lambda secured: secured.makefile("rb").read(1),
}


@pytest.mark.parametrize("first", PUT_OFF)
def test_a_handshake_that_is_put_off_is_made_before_a_byte_is_sent_or_read(first: str) -> None:
    """OpenSSL would make it by itself, and ask nobody who it is with."""
    with serving(server_context(ROOT.identity(WEB))) as (port, seen), socket.create_connection(("127.0.0.1", port), timeout=10) as plain:
        secured = client_context(ROOT.identity(WEB)).wrap_socket(plain, server_hostname="x", do_handshake_on_connect=False)
        for _ in range(2):  # who goes on after the refusal is refused again
            with pytest.raises(PeerRefused, match=f"it is {WEB}, and {INVENTORY} is expected"):
                PUT_OFF[first](secured)
        secured.close()
    assert seen.received == b""


def test_and_a_server_knows_its_caller_then() -> None:
    context, answered = server_context(ROOT.identity(INVENTORY)), []

    def serve() -> None:
        accepted, _ = listener.accept()
        with accepted, context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as secured:
            answered.append((secured.recv(10), secured.peer))  # type: ignore[attr-defined]  # of our own kind
            secured.sendall(b"hello")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        seen = call(client_context(ROOT.identity(WEB)), listener.getsockname()[1])
        thread.join(10)
    assert answered == [(b"request", SpiffeId.parse(WEB))]
    assert seen.received == b"hello"


def test_in_memory_likewise() -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    server_in, server_out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(ROOT.identity(WEB)).wrap_bio(incoming, outgoing, server_hostname="x")
    server = server_context(ROOT.identity(WEB)).wrap_bio(server_in, server_out, server_side=True)

    def refused() -> bool:
        try:
            client.write(b"request")
        except ssl.SSLWantReadError:
            return False
        except PeerRefused:
            return True
        raise AssertionError("sent to whom it is not for")

    for _ in range(10):
        if refused():
            break
        server_in.write(outgoing.read())
        with contextlib.suppress(ssl.SSLWantReadError):
            assert server.read() == b"never"
        incoming.write(server_out.read())
    else:
        raise AssertionError("the handshake did not end")
