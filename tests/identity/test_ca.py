"""What the authority issues, as other tools see it; what it refuses, keeps and records; and what a crash leaves."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import socket
import ssl
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store

from resilmesh.identity import IdentityError, SpiffeId, ca_store
from resilmesh.identity.ca import CertificateAuthority
from resilmesh.identity.spiffe import dns_name
from resilmesh.identity.svid import Identity, renew_at
from tests.identity.authority import DAY, HOUR, INVENTORY, MINUTE, START, WEB, Clock, make

SECOND = datetime.timedelta(seconds=1)


def extension(certificate: x509.Certificate, kind: type[x509.ExtensionType]) -> x509.Extension[x509.ExtensionType]:
    return certificate.extensions.get_extension_for_class(kind)


def records(tmp_path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (tmp_path / "ca" / "audit.jsonl").read_text().splitlines()]


# ------------------------------------------------------------------------------------------- certificates


def test_a_leaf(tmp_path: Path) -> None:
    leaf = make(tmp_path).issue(WEB, dns=["web.prod.svc"]).svid.leaf
    names = extension(leaf, x509.SubjectAlternativeName)
    assert names.critical  # since there is no subject
    assert list(names.value) == [
        x509.UniformResourceIdentifier(WEB), x509.DNSName(dns_name(SpiffeId.parse(WEB))), x509.DNSName("web.prod.svc"),
    ]
    assert leaf.subject == x509.Name([])
    constraints = extension(leaf, x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=False, path_length=None))
    usage = extension(leaf, x509.KeyUsage)
    assert (usage.critical, usage.value) == (True, x509.KeyUsage(True, False, False, False, False, False, False, False, False))
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    assert list(extension(leaf, x509.ExtendedKeyUsage).value) == both
    assert (leaf.not_valid_before_utc, leaf.not_valid_after_utc) == (START - 60 * SECOND, START + 3600 * SECOND)
    assert len(leaf.extensions) == 6  # with the key identifiers


def test_an_intermediate_and_its_root(tmp_path: Path) -> None:
    authority = make(tmp_path)
    root, intermediate = authority.certificate("root-1"), authority.certificate("intermediate-1")
    root.verify_directly_issued_by(root)
    intermediate.verify_directly_issued_by(root)
    for certificate, below in ((root, 1), (intermediate, 0)):
        constraints = extension(certificate, x509.BasicConstraints)
        assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=below))
        usage = extension(certificate, x509.KeyUsage)
        assert (usage.critical, usage.value) == (True, x509.KeyUsage(False, False, False, False, False, True, True, False, False))
        assert list(extension(certificate, x509.SubjectAlternativeName).value) == [x509.UniformResourceIdentifier("spiffe://shop.example")]
    own = extension(root, x509.SubjectKeyIdentifier).value.digest
    assert extension(intermediate, x509.AuthorityKeyIdentifier).value.key_identifier == own
    assert authority.bundle().certificates == (root,)


def test_serial_numbers_are_random_and_long(tmp_path: Path) -> None:
    authority = make(tmp_path)
    serials = {authority.issue(WEB).svid.leaf.serial_number for _ in range(40)}
    assert len(serials) == 40
    assert 150 < max(serial.bit_length() for serial in serials) <= 159


@pytest.mark.parametrize(("ttl", "early"), [(MINUTE, 6), (5 * MINUTE, 30), (10 * MINUTE, 60), (DAY, 60)])
def test_the_clock_of_a_verifier_may_be_behind(tmp_path: Path, ttl: float, early: int) -> None:
    leaf = make(tmp_path).issue(WEB, ttl=ttl).svid.leaf
    assert START - leaf.not_valid_before_utc == early * SECOND
    assert leaf.not_valid_after_utc - START == ttl * SECOND


@pytest.mark.parametrize("ttl", [0, 59.9, DAY + 1, -HOUR, float("nan"), float("inf")])
def test_a_life_has_bounds(tmp_path: Path, ttl: float) -> None:
    with pytest.raises(IdentityError, match="a certificate lives from 1m to 1d, not"):
        make(tmp_path).issue(WEB, ttl=ttl)


def test_the_bounds_of_a_life_are_set_at_the_beginning(tmp_path: Path) -> None:
    make(tmp_path, default_ttl=5 * MINUTE, max_ttl=10 * MINUTE)
    authority = CertificateAuthority.open(tmp_path / "ca", clock=Clock())
    assert authority.issue(WEB).svid.leaf.not_valid_after_utc == START + 300 * SECOND
    with pytest.raises(IdentityError, match="from 1m to 10m"):
        authority.issue(WEB, ttl=HOUR)


@pytest.mark.parametrize("lives", [
    {"default_ttl": 59.0}, {"default_ttl": 2 * DAY}, {"max_ttl": MINUTE}, {"intermediate_ttl": DAY}, {"root_ttl": 366 * DAY},
    {"root_ttl": -1.0}, {"root_ttl": 1e12, "intermediate_ttl": 1e11},
])
def test_lives_that_do_not_fit(tmp_path: Path, lives: dict[str, float]) -> None:
    with pytest.raises(IdentityError, match="the lives do not fit"):
        make(tmp_path, **lives)
    assert not (tmp_path / "ca").exists()


def test_a_leaf_ends_with_its_intermediate(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock, intermediate_ttl=2 * DAY)
    clock.go(2 * DAY - 30 * MINUTE)
    svid = authority.issue(WEB).svid
    assert svid.leaf.not_valid_after_utc == authority.certificate("intermediate-1").not_valid_after_utc == START + 2 * DAY * SECOND
    assert authority.advice() == [
        f"the intermediate ends at 2026-11-26T07:00:00Z: resilmesh ca rotate {tmp_path / 'ca'} --intermediate",
    ]
    clock.go(29 * MINUTE + 1)
    with pytest.raises(IdentityError, match=r"the intermediate ends at 2026-11-26T07:00:00Z: resilmesh ca rotate .* --intermediate"):
        authority.issue(WEB)
    authority.renew_intermediate()
    assert authority.issue(WEB).proven(clock.seconds).svid.chain[1] == authority.certificate("intermediate-2")
    assert authority.advice() == []


def test_a_clock_that_went_back(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    clock.go(-DAY)
    with pytest.raises(IdentityError, match="it is 2026-11-23T07:00:00Z, which is before the intermediate begins"):
        authority.issue(WEB)


def test_an_intermediate_ends_with_its_root(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock, intermediate_ttl=10 * DAY, root_ttl=20 * DAY)
    clock.go(17 * DAY)
    authority.renew_intermediate()
    assert authority.certificate("intermediate-2").not_valid_after_utc == START + 20 * DAY * SECOND
    assert authority.advice() == [f"the root ends at 2026-12-14T07:00:00Z: resilmesh ca rotate {tmp_path / 'ca'}"]


def test_a_root_that_has_ended_is_replaced(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock, intermediate_ttl=10 * DAY, root_ttl=20 * DAY)
    clock.go(17 * DAY)
    authority.renew_intermediate()
    clock.go(4 * DAY)
    with pytest.raises(IdentityError, match=r"the intermediate ends at .*: resilmesh ca rotate .*/ca, for its root does"):
        authority.issue(WEB)
    with pytest.raises(IdentityError, match=r"the root ends at .*, and with it all below it: resilmesh ca rotate .*/ca$"):
        authority.renew_intermediate()
    authority.announce_root()
    authority.activate_root()
    authority.issue(WEB).proven(clock.seconds)


# ------------------------------------------------------------------------------------------- other tools


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Identity, Identity]:
    """Two workloads of one authority, now."""
    authority = CertificateAuthority.create(tmp_path_factory.mktemp("authority"), "shop.example")
    return authority.issue(WEB), authority.issue(INVENTORY, dns=["inventory.prod.svc"])


def files(identity: Identity, directory: Path) -> tuple[str, str, str]:
    directory.mkdir()
    bundle = identity.bundles["shop.example"].pem()
    for name, content in (("tls.crt", identity.svid.chain_pem()), ("tls.key", identity.svid.key_pem()), ("ca.crt", bundle)):
        (directory / name).write_bytes(content)
    return str(directory / "tls.crt"), str(directory / "tls.key"), str(directory / "ca.crt")


@pytest.mark.parametrize("purpose", ["sslclient", "sslserver"])
def test_openssl_verifies_a_leaf(pair: tuple[Identity, Identity], tmp_path: Path, purpose: str) -> None:
    certificate, _, bundle = files(pair[1], tmp_path / "tls")
    name = dns_name(pair[1].svid.id)
    words = ["-x509_strict", "-purpose", purpose, "-verify_hostname", name, "-CAfile", bundle, "-untrusted", certificate, certificate]
    done = subprocess.run(["openssl", "verify", *words], capture_output=True, text=True, check=False)
    assert done.stdout == f"{certificate}: OK\n", done.stderr


def test_cryptography_verifies_a_leaf(pair: tuple[Identity, Identity]) -> None:
    identity = pair[1]
    policy = PolicyBuilder().store(Store(identity.bundles["shop.example"].certificates))
    assert policy.build_client_verifier().verify(identity.svid.leaf, list(identity.svid.chain[1:])).subjects is not None
    verifier = policy.build_server_verifier(x509.DNSName(dns_name(identity.svid.id)))
    assert len(verifier.verify(identity.svid.leaf, list(identity.svid.chain[1:]))) == 3


def test_a_handshake_of_ssl(pair: tuple[Identity, Identity], tmp_path: Path) -> None:
    client, server = (files(each, tmp_path / name) for each, name in zip(pair, ("client", "server"), strict=True))
    accepting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=server[2])
    accepting.verify_mode = ssl.CERT_REQUIRED
    accepting.load_cert_chain(*server[:2])
    calling = ssl.create_default_context(cafile=client[2])  # strict, and verifies the host name
    calling.load_cert_chain(*client[:2])
    seen = []

    def serve(listener: socket.socket) -> None:
        with accepting.wrap_socket(listener.accept()[0], server_side=True) as connection:
            seen.append(connection.getpeercert())
            connection.sendall(b"hello")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        with calling.wrap_socket(socket.create_connection(listener.getsockname()), server_hostname="inventory.prod.svc") as connection:
            assert connection.recv(5) == b"hello"
            assert ("URI", INVENTORY) in (connection.getpeercert() or {})["subjectAltName"]
        thread.join()
    assert ("URI", WEB) in (seen[0] or {})["subjectAltName"]


def test_a_handshake_of_grpc_by_the_derived_name(pair: tuple[Identity, Identity]) -> None:
    web, inventory = pair
    bundle = web.bundles["shop.example"].pem()

    def who(request: bytes, context: grpc.ServicerContext) -> bytes:
        return b" ".join(context.auth_context()["peer_spiffe_id"])

    handler = grpc.method_handlers_generic_handler("a", {"Who": grpc.unary_unary_rpc_method_handler(who)})
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    proves = [(inventory.svid.key_pem(), inventory.svid.chain_pem())]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials(proves, bundle, require_client_auth=True))
    server.start()
    credentials = grpc.ssl_channel_credentials(bundle, web.svid.key_pem(), web.svid.chain_pem())

    def call(expected: str) -> bytes:
        options = [("grpc.ssl_target_name_override", dns_name(SpiffeId.parse(expected)))]
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
            answer: bytes = channel.unary_unary("/a/Who")(b"", timeout=10)
        return answer

    try:
        assert call(INVENTORY) == WEB.encode()
        with pytest.raises(grpc.RpcError) as refused:
            call(WEB)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        server.stop(None).wait(5)


# --------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(("spiffe_id", "reason"), [
    ("spiffe://other.example/ns/prod/sa/web", "not of the trust domain shop.example"),
    ("spiffe://shop.example", "the trust domain itself"),
    ("spiffe://shop.example.evil/web", "not of the trust domain"),
    ("spiffe://SHOP.example/web", "lower-case"),
    ("spiffe://shop.example/../web", "dot segment"),
    ("spiffe://shop.example/web\n", "not of letters"),
    ("https://shop.example/web", "does not begin with spiffe://"),
    (SpiffeId("shop.example", "/web/../admin"), "dot segment"),  # made without `parse`
    (SpiffeId("shop.example/x", "/web?"), "not of letters"),
    ("spiffe://shop.example/" + "a" * 3000, "2048"),
])
def test_an_id_that_is_not_to_be_had(tmp_path: Path, spiffe_id: str | SpiffeId, reason: str) -> None:
    with pytest.raises(IdentityError, match=reason):
        make(tmp_path).issue(spiffe_id, asked_by="mallory")
    line = records(tmp_path)[-1]
    assert (line["action"], line["spiffe_id"], line["asked_by"]) == ("refuse", str(spiffe_id)[:1000], "mallory")


@pytest.mark.parametrize("name", [
    "*.prod.svc", "web..svc", "-web.svc", "web-.svc", "web.svc.", "", "Web.svc", "we b.svc", "web.svc:443", "web_1.svc", "wéb.svc",
    "10.0.0.1", "::1", "web\0.svc", "web.svc\n", "a" * 64 + ".svc", ".".join(["a" * 63] * 4), "spiffe://shop.example/web", "127.1",
    dns_name(SpiffeId.parse(INVENTORY)), "svid.resilmesh.internal", "a.svid.resilmesh.internal",
])
def test_a_dns_name_that_is_not_to_be_had(tmp_path: Path, name: str) -> None:
    with pytest.raises(IdentityError, match=r"no host name|is reserved|an IP address"):
        make(tmp_path).issue(WEB, dns=[name])
    assert [line["action"] for line in records(tmp_path)] == ["init", "refuse"]


def test_dns_names_have_an_end(tmp_path: Path) -> None:
    authority = make(tmp_path)
    assert len(authority.issue(WEB, dns=[f"web-{n}.svc" for n in range(31)]).svid.dns_names) == 32
    with pytest.raises(IdentityError, match="33 DNS names are more than"):
        authority.issue(WEB, dns=[f"web-{n}.svc" for n in range(32)])
    with pytest.raises(TypeError, match="give a list"):
        authority.issue(WEB, dns="web.svc")


def test_its_own_derived_name_may_be_named(tmp_path: Path) -> None:
    own = dns_name(SpiffeId.parse(WEB))
    assert make(tmp_path).issue(WEB, dns=[own, "web.svc", "web.svc"]).svid.dns_names == (own, "web.svc")


def test_a_clock_without_a_zone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="with a zone"):
        CertificateAuthority.create(tmp_path / "ca", "shop.example", clock=lambda: datetime.datetime(2026, 11, 24))


# ------------------------------------------------------------------------------------------------- keys


def test_keys_are_never_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, int] = {}
    real = os.open

    def watched(path: str, flags: int, mode: int = 0o777, **rest: int) -> int:
        number = real(path, flags, mode, **rest)
        made.setdefault(os.path.basename(path), os.fstat(number).st_mode & 0o777)
        return number

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)
    try:
        make(tmp_path)
    finally:
        os.umask(before)
    assert {mode for name, mode in made.items() if ".key" in name} == {0o600}
    assert sum(".key" in name for name in made) == 2
    assert made["audit.jsonl"] == 0o600
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o700


def test_a_key_that_others_could_read_is_refused(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "ca" / "intermediate-1.key").chmod(0o640)
    with pytest.raises(IdentityError, match=r"has the mode 0640, so others may have read it: replace it .* or chmod 600"):
        CertificateAuthority.open(tmp_path / "ca").issue(WEB)


PASSWORD = b"correct horse battery staple"


def test_encrypted_keys(tmp_path: Path) -> None:
    clock = Clock()
    make(tmp_path, clock, password=PASSWORD)
    keys = sorted((tmp_path / "ca").glob("*.key"))
    assert len(keys) == 2
    assert all(b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in each.read_bytes() for each in keys)
    with pytest.raises(IdentityError, match="the password is wrong"):
        CertificateAuthority.open(tmp_path / "ca", b"incorrect horse battery")
    closed = CertificateAuthority.open(tmp_path / "ca", clock=clock)
    for act in (lambda: closed.issue(WEB), closed.announce_root, closed.renew_intermediate, lambda: closed.revoke(WEB)):
        with pytest.raises(IdentityError, match="are encrypted, and there is no password"):
            act()
    assert closed.state().root_in("announced") is None
    assert closed.entries() == []
    authority = CertificateAuthority.open(tmp_path / "ca", PASSWORD, clock=clock)
    authority.issue(WEB).proven(clock.seconds)
    authority.announce_root()
    assert b"ENCRYPTED" in (tmp_path / "ca" / "root-2.key").read_bytes()
    assert len(closed.bundle().certificates) == 2


def test_a_short_password_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="the password has 15 bytes: give 16 or more"):
        make(tmp_path, password=b"x" * 15)


def test_a_password_that_is_not_needed(tmp_path: Path) -> None:
    make(tmp_path)
    CertificateAuthority.open(tmp_path / "ca", PASSWORD).issue(WEB)


# ----------------------------------------------------------------------------------------------- record


def test_each_certificate_has_a_line(tmp_path: Path) -> None:
    identity = make(tmp_path).issue(WEB, dns=["web.svc"], asked_by="policy server, for web-7f9c")
    begun, line = records(tmp_path)
    assert begun["action"] == "init"
    digest = line.pop("key_sha256")
    assert line == {
        "time": "2026-11-24T07:00:00Z", "action": "issue", "serial": f"{identity.svid.leaf.serial_number:x}", "spiffe_id": WEB,
        "dns": [dns_name(identity.svid.id), "web.svc"], "not_before": "2026-11-24T06:59:00Z", "not_after": "2026-11-24T08:00:00Z",
        "issuer": "intermediate-1", "root": "root-1", "asked_by": "policy server, for web-7f9c",
    }
    pem = tmp_path / "leaf.pem"
    pem.write_bytes(identity.svid.chain_pem())
    program = f"openssl x509 -in {pem} -noout -pubkey | openssl pkey -pubin -outform DER | openssl dgst -sha256 -r"
    assert subprocess.run(program, shell=True, capture_output=True, text=True, check=True).stdout.split()[0] == digest


def test_nothing_of_a_key_is_recorded_or_shown(tmp_path: Path) -> None:
    authority = make(tmp_path)
    identity = authority.issue(WEB)
    keys = [identity.svid.key_pem(), *((tmp_path / "ca" / name).read_bytes() for name in ("root-1.key", "intermediate-1.key"))]
    written = b"".join((tmp_path / "ca" / name).read_bytes() for name in ("audit.jsonl", "ca.json", "bundle.pem", "crl.pem", "root-1.crt"))
    written += repr((authority, authority.state(), identity, authority.entries())).encode()
    for key in keys:
        assert key.splitlines()[1][:40] not in written


def test_a_line_that_a_power_cut_has_torn(tmp_path: Path) -> None:
    authority = make(tmp_path)
    authority.issue(WEB)
    with (tmp_path / "ca" / "audit.jsonl").open("ab") as file:
        file.write(b'{"time": "2026-11-24T07:0')
    authority.issue(INVENTORY)
    assert [each.spiffe_id for each in authority.entries()] == [WEB, INVENTORY]


def test_what_cannot_be_recorded_is_not_issued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = make(tmp_path)

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ca_store.Store, "record", full)
    with pytest.raises(OSError, match="No space left"):
        authority.issue(WEB)


def test_what_is_good_and_what_was(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    authority.issue(WEB, ttl=10 * MINUTE)
    authority.issue(INVENTORY)
    clock.go(11 * MINUTE)
    assert [each.spiffe_id for each in authority.entries()] == [INVENTORY]
    assert [each.spiffe_id for each in authority.entries(all=True)] == [WEB, INVENTORY]


# ---------------------------------------------------------------------------------------------- renewal


def test_renewal_is_due_at_half_of_the_life(tmp_path: Path) -> None:
    svid = make(tmp_path, Clock()).issue(WEB, ttl=HOUR).svid
    life = svid.not_after - svid.not_before
    assert [round((renew_at(svid, lambda at=at: at) - svid.not_before) / life, 9) for at in (0.0, 0.5, 1.0)] == [0.45, 0.5, 0.55]


def test_the_shortest_life_leaves_time_to_renew(tmp_path: Path) -> None:
    clock = Clock()
    svid = make(tmp_path, clock).issue(WEB, ttl=MINUTE).svid
    assert renew_at(svid, lambda: 0.0) - clock.seconds > 20
    assert svid.not_after - renew_at(svid, lambda: 1.0) > 20


# -------------------------------------------------------------------------------------------- directory


def test_a_directory_without_an_authority(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match=r"there is no authority in .*; make one: resilmesh ca init"):
        CertificateAuthority.open(tmp_path)


@pytest.mark.parametrize("content", [
    b"", b"{}", b"[]", b"null", b'{"version": 2}', b'{"version": 1}', b"\xff", b'{"version": 1, "roots": 3}',
    b'{"version": 1, "roots": [], "intermediates": [], "revoked": []}',
])
def test_a_state_that_is_not_ours(tmp_path: Path, content: bytes) -> None:
    make(tmp_path)
    (tmp_path / "ca" / "ca.json").write_bytes(content)
    with pytest.raises(IdentityError, match="is not the state of an authority"):
        CertificateAuthority.open(tmp_path / "ca")


def test_an_authority_is_not_overwritten(tmp_path: Path) -> None:
    make(tmp_path)
    before = {each.name: each.read_bytes() for each in (tmp_path / "ca").iterdir()}
    with pytest.raises(IdentityError, match="has an authority already"):
        make(tmp_path)
    (tmp_path / "ca" / "ca.json").unlink()
    with pytest.raises(IdentityError, match="is not empty"):  # or its keys would be lost for good
        make(tmp_path)
    (tmp_path / "ca" / "ca.json").write_bytes(before["ca.json"])
    assert {each.name: each.read_bytes() for each in (tmp_path / "ca").iterdir()} == before


def test_a_directory_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir(mode=0o755)
    (tmp_path / "ca" / "notes.txt").write_text("mine")
    with pytest.raises(IdentityError, match=r"is not empty \(it has notes.txt\)"):
        make(tmp_path)
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o755


STEPS = ["create", "issue", "announce", "activate", "retire", "revoke", "intermediate"]


def prepared(step: str, authority: CertificateAuthority, clock: Clock) -> None:
    """Everything before a step."""
    authority.issue(WEB)
    if step in ("activate", "retire"):
        authority.announce_root()
        clock.go(2 * HOUR)
    if step == "retire":
        authority.activate_root()
        clock.go(2 * HOUR)
    clock.go(10 * MINUTE)
    if step != "issue":
        authority.issue(WEB)


def take(step: str, authority: CertificateAuthority) -> None:
    match step:
        case "issue":
            authority.issue(WEB)
        case "announce":
            authority.announce_root()
        case "activate":
            authority.activate_root()
        case "retire":
            authority.retire_root()
        case "revoke":
            authority.revoke(WEB)
        case "intermediate":
            authority.renew_intermediate()


@pytest.mark.parametrize("when", ["before", "torn", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_leaves_an_authority_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str) -> None:
    """Killed at each of the files that a step writes: before it, with half of it written, after it."""

    class Killed(BaseException):
        pass

    real = ca_store.Store.write
    crashed = 0
    for number in range(20):
        clock, directory = Clock(), tmp_path / str(number)
        left = number

        def write(self: ca_store.Store, name: str, content: bytes, mode: int = 0o644) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                if when == "torn":
                    (self.directory / f".{name}.new").write_bytes(content[: len(content) // 2])
                elif when == "after":
                    real(self, name, content, mode)
                raise Killed
            real(self, name, content, mode)

        directory.mkdir()
        if step != "create":
            prepared(step, make(directory, clock), clock)
        monkeypatch.setattr(ca_store.Store, "write", write)
        try:
            if step == "create":
                make(directory, clock)
            else:
                take(step, CertificateAuthority.open(directory / "ca", clock=clock))
        except Killed:
            crashed += 1
        else:
            break
        finally:
            monkeypatch.setattr(ca_store.Store, "write", real)
        if step == "create" and not (directory / "ca" / "ca.json").exists():
            make(directory, clock)
        authority = CertificateAuthority.open(directory / "ca", clock=clock)
        authority.issue(INVENTORY).proven(clock.seconds)
        authority.lift(WEB) if WEB in authority.state().barred else authority.issue(WEB)
        authority.renew_intermediate()
        assert (directory / "ca" / "bundle.pem").read_bytes() == authority.bundle().pem()
    assert crashed >= {"create": 7, "issue": 2, "announce": 5, "activate": 5, "retire": 3, "revoke": 3, "intermediate": 5}[step]


def issue_ten(directory: str) -> None:
    authority = CertificateAuthority.open(directory)
    for _ in range(10):
        authority.issue(WEB)


def test_several_processes_and_threads_at_once(tmp_path: Path) -> None:
    directory = str(tmp_path / "ca")
    authority = CertificateAuthority.create(directory, "shop.example")
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=issue_ten, args=(directory,)) for _ in range(2)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(issue_ten, directory) for _ in range(4)]:
            done.result()
        pool.submit(authority.renew_intermediate).result()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    entries = authority.entries()
    assert len(entries) == len({each.serial for each in entries}) == 60
    assert len(records(tmp_path)) == 62
