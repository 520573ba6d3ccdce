"""A new root without a moment in which somebody is not trusted; revocation."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from resilmesh.identity import IdentityError
from resilmesh.identity.ca import CertificateAuthority
from resilmesh.identity.svid import Identity, anchored
from tests.identity.authority import DAY, HOUR, INVENTORY, MINUTE, WEB, Clock, make


def trusts(verifier: Identity, peer: Identity, clock: Clock) -> bool:
    return anchored(peer.svid.chain, verifier.bundles["shop.example"], clock.seconds) and peer.svid.not_after >= clock.seconds


def test_everybody_trusts_everybody_all_the_time(tmp_path: Path) -> None:
    """Workloads that renew every half hour, at different times, through a whole rotation."""
    clock = Clock()
    authority = make(tmp_path, clock)
    fleet: dict[int, Identity] = {}
    steps = [authority.announce_root, authority.activate_root, authority.retire_root]
    taken: list[float] = []
    refused: list[str] = []
    for minute in range(300):
        if minute >= 60 and steps:
            try:
                steps[0]()
            except IdentityError as error:
                refused.append(str(error))
            else:
                steps.pop(0)
                taken.append(minute)
        for number in range(6):
            if minute % 30 == number * 5:
                fleet[number] = authority.issue(f"spiffe://shop.example/w/{number}")
        if minute % 5 == 0:
            assert all(trusts(one, other, clock) for one in fleet.values() for other in fleet.values())
        clock.go(MINUTE)
    assert taken == [60, 115, 170]  # each as soon as the last certificate from before has ended
    assert len(refused) == 108
    assert all("--force" in each for each in refused)
    assert [each.name for each in authority.state().trusted] == ["root-2"]
    assert authority.advice() == []


def test_the_steps_and_their_order(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    before = authority.issue(WEB)
    for too_early in (authority.activate_root, authority.retire_root):
        with pytest.raises(IdentityError, match=r"next: resilmesh ca rotate .*, when the root is to be replaced"):
            too_early()
    clock.go(10 * MINUTE)

    authority.announce_root()
    assert len(authority.bundle().certificates) == 2
    assert authority.issue(WEB).svid.chain[1] == before.svid.chain[1]  # nothing is signed by the new one yet
    with pytest.raises(IdentityError, match=r"next: resilmesh ca rotate .* --activate, from 2026-11-24T08:00:00Z on"):
        authority.announce_root()
    with pytest.raises(IdentityError, match=r"no old root to retire; next: .* --activate"):
        authority.retire_root()
    clock.go(49 * MINUTE)
    with pytest.raises(IdentityError, match="certificates that came without root-2 in their bundle are good until 2026-11-24T08:00:00Z"):
        authority.activate_root()
    clock.go(MINUTE)

    state = authority.activate_root()
    assert (state.active.name, state.active.root) == ("intermediate-2", "root-2")
    assert len(authority.bundle().certificates) == 2
    assert not (tmp_path / "ca" / "root-1.key").exists()  # it will sign nothing again
    with pytest.raises(IdentityError, match=r"next: resilmesh ca rotate .* --retire, from 2026-11-24T08:10:00Z on"):
        authority.announce_root()
    with pytest.raises(IdentityError, match="a certificate below root-1 may be good until 2026-11-24T08:10:00Z: retire it then"):
        authority.retire_root()
    clock.go(10 * MINUTE)

    authority.retire_root()
    assert authority.bundle().certificates == (authority.certificate("root-2"),)
    assert sorted(each.name for each in (tmp_path / "ca").glob("*.key")) == ["intermediate-2.key", "root-2.key"]
    authority.issue(WEB).proven(clock.seconds)
    authority.announce_root()  # and on to the next one


def test_nobody_has_a_certificate(tmp_path: Path) -> None:
    authority = make(tmp_path)
    authority.announce_root()
    authority.activate_root()
    authority.retire_root()
    assert authority.bundle().certificates == (authority.certificate("root-2"),)


def test_force_is_recorded(tmp_path: Path) -> None:
    authority = make(tmp_path)
    authority.issue(WEB)
    authority.announce_root()
    authority.activate_root(force=True, asked_by="on call")
    authority.retire_root(force=True)
    lines = [json.loads(line) for line in (tmp_path / "ca" / "audit.jsonl").read_text().splitlines()]
    assert [(line["action"], line.get("force")) for line in lines[2:]] == [
        ("announce-root", None), ("activate-root", True), ("retire-root", True),
    ]
    assert lines[3]["asked_by"] == "on call"


def test_a_long_certificate_holds_up_the_retirement(tmp_path: Path) -> None:
    """Also of another process, and with the record cut off."""
    clock = Clock()
    authority = make(tmp_path, clock)
    CertificateAuthority.open(tmp_path / "ca", clock=clock).issue(WEB, ttl=DAY)
    authority.issue(WEB)
    authority.announce_root()
    authority.activate_root(force=True)
    (tmp_path / "ca" / "audit.jsonl").write_text("")
    clock.go(DAY - 1)
    with pytest.raises(IdentityError, match="good until 2026-11-25T07:00:00Z"):
        authority.retire_root()
    clock.go(1)
    authority.retire_root()


def test_the_intermediate_alone(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    before = authority.issue(WEB)
    authority.renew_intermediate()
    after = authority.issue(WEB)
    assert before.svid.chain[1] != after.svid.chain[1]
    assert before.bundles == after.bundles
    assert trusts(before, after, clock)
    assert trusts(after, before, clock)
    assert (tmp_path / "ca" / "intermediate-1.key").exists()  # for its revocation list
    clock.go(2 * HOUR)
    authority.renew_intermediate()
    assert not (tmp_path / "ca" / "intermediate-1.key").exists()


# --------------------------------------------------------------------------------------------- revocation


def lists(tmp_path: Path) -> list[x509.CertificateRevocationList]:
    blocks = (tmp_path / "ca" / "crl.pem").read_bytes().split(b"-----END X509 CRL-----\n")[:-1]
    return [x509.load_pem_x509_crl(block + b"-----END X509 CRL-----\n") for block in blocks]


def revoked(tmp_path: Path) -> set[int]:
    return {each.serial_number for one in lists(tmp_path) for each in one}


def test_a_workload_is_revoked(tmp_path: Path) -> None:
    authority = make(tmp_path)
    web = [authority.issue(WEB).svid.leaf.serial_number for _ in range(2)]
    authority.issue(INVENTORY)
    assert revoked(tmp_path) == set()
    spiffe_id, found = authority.revoke(WEB, asked_by="on call")
    assert (spiffe_id, [int(each.serial, 16) for each in found]) == (WEB, web)
    assert revoked(tmp_path) == set(web)
    with pytest.raises(IdentityError, match=r"is revoked and gets no certificate: resilmesh ca revoke .* --lift"):
        CertificateAuthority.open(tmp_path / "ca").issue(WEB)
    authority.issue(INVENTORY)
    assert [each.spiffe_id for each in authority.entries()] == [INVENTORY, INVENTORY]
    assert authority.revoke(WEB) == (WEB, [])
    assert authority.lift(WEB) == WEB
    authority.issue(WEB)
    assert revoked(tmp_path) == set(web)
    with pytest.raises(IdentityError, match="is not revoked"):
        authority.lift(WEB)


@pytest.mark.parametrize("written", ["{:x}", "0x{:X}", "{:040x}"])
def test_one_certificate_is_revoked(tmp_path: Path, written: str) -> None:
    authority = make(tmp_path)
    first, second = (authority.issue(WEB).svid.leaf.serial_number for _ in range(2))
    assert authority.revoke(written.format(first))[0] == WEB
    assert revoked(tmp_path) == {first}
    with pytest.raises(IdentityError, match="is revoked"):
        authority.issue(WEB)
    assert authority.lift(f"{second:x}") == WEB


@pytest.mark.parametrize("what", ["", "12", "web", "../..", "spiffe://other.example/web", "spiffe://shop.example"])
def test_what_cannot_be_revoked(tmp_path: Path, what: str) -> None:
    authority = make(tmp_path)
    authority.issue(WEB)
    for act in (authority.revoke, authority.lift):
        with pytest.raises(IdentityError):
            act(what)
    assert authority.state().barred == {}


def test_a_workload_is_barred_before_it_has_a_certificate(tmp_path: Path) -> None:
    authority = make(tmp_path)
    assert authority.revoke(WEB) == (WEB, [])
    with pytest.raises(IdentityError, match="is revoked"):
        authority.issue(WEB)


def test_openssl_sees_the_revocation(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca", "shop.example")
    bad, good = authority.issue(WEB), authority.issue(INVENTORY)
    authority.renew_intermediate()
    newer = authority.issue(INVENTORY)
    authority.revoke(WEB)
    words = ["-crl_check", "-CRLfile", str(tmp_path / "ca" / "crl.pem"), "-CAfile", str(tmp_path / "ca" / "bundle.pem")]
    said = {}
    for name, identity in (("bad", bad), ("good", good), ("newer", newer)):
        chain = tmp_path / f"{name}.crt"
        chain.write_bytes(identity.svid.chain_pem())
        done = subprocess.run(["openssl", "verify", *words, "-untrusted", chain, chain], capture_output=True, text=True, check=False)
        said[name] = done.stdout + done.stderr
    assert "certificate revoked" in said["bad"]
    assert said["good"].endswith("good.crt: OK\n")
    assert said["newer"].endswith("newer.crt: OK\n")


def test_a_list_is_made_anew_before_it_is_too_old(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    authority.issue(WEB)
    authority.revoke(WEB)
    (first,) = lists(tmp_path)
    clock.go(3 * DAY)
    authority.issue(INVENTORY)
    assert lists(tmp_path) == [first]
    clock.go(DAY)
    authority.issue(INVENTORY)
    (second,) = lists(tmp_path)
    assert first.next_update_utc is not None
    assert first.next_update_utc > clock.at
    number = [each.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number for each in (first, second)]
    assert number == sorted(number)
    assert list(second) == []  # what has ended needs no line


def test_a_retired_root_needs_no_list(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    authority.issue(WEB)
    authority.announce_root()
    clock.go(HOUR)
    authority.activate_root()
    assert len(lists(tmp_path)) == 2
    clock.go(HOUR)
    authority.retire_root()
    assert len(lists(tmp_path)) == 1
