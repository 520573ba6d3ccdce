"""An identity straight from an authority: renewed in time, kept when that fails, and let go with its source."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

from resilmesh.identity import IdentityError
from resilmesh.identity.authority import AuthoritySource
from resilmesh.identity.ca import CertificateAuthority
from tests.identity.authority import HOUR, INVENTORY, MINUTE, WEB, Clock, make
from tests.identity.pki import Authority


def source(authority: CertificateAuthority, clock: Clock, **options: Any) -> AuthoritySource:
    return AuthoritySource(authority, WEB, interval=None, now=lambda: clock.seconds, rng=lambda: 0.5, **options)


def test_it_is_renewed_at_half_of_its_life(tmp_path: Path) -> None:
    clock = Clock()
    looked = source(make(tmp_path, clock), clock, ttl=HOUR, dns=["web.svc"])
    first = looked.current()
    assert str(first.svid.id) == WEB
    assert "web.svc" in first.svid.dns_names
    clock.go(1769)
    assert not looked.look_again()
    clock.go(1)
    assert looked.look_again()
    assert looked.current().svid.leaf != first.svid.leaf
    assert (looked.rotations, looked.refusals) == (1, 0)


def test_a_new_root_comes_at_once(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    looked = source(authority, clock)
    authority.announce_root()
    assert looked.look_again()
    assert len(looked.current().bundles["shop.example"].certificates) == 2
    assert not looked.look_again()


def test_a_renewal_that_fails_keeps_the_old_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)
    looked = source(authority, clock)
    first = looked.current()
    authority.revoke(WEB)
    clock.go(30 * MINUTE)
    with caplog.at_level(logging.WARNING):
        assert not looked.look_again()
        for _ in range(60):  # the record is not filled by it
            looked.look_again()
    assert looked.current() is first
    assert "is revoked and gets no certificate" in caplog.text
    assert (tmp_path / "ca" / "audit.jsonl").read_text().count('"refuse"') == 1
    authority.lift(WEB)
    clock.go(MINUTE)
    assert looked.look_again()
    assert looked.snapshot(clock.seconds)["problem"] is None


def test_none_at_first_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="not of the trust domain"):
        AuthoritySource(make(tmp_path), "spiffe://other.example/web")


def test_bundles_of_other_domains(tmp_path: Path) -> None:
    clock = Clock()
    other = Authority("other.example").bundle
    looked = source(make(tmp_path, clock), clock, federated=[other])
    assert looked.current().of_domain("other.example") is other
    assert not looked.look_again()


def test_it_looks_by_itself_and_is_let_go(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca", "shop.example")
    looked = AuthoritySource(authority, INVENTORY, interval=0.01)
    authority.announce_root()
    for _ in range(500):
        if looked.rotations:
            break
        time.sleep(0.01)
    assert looked.rotations == 1
    alive = weakref.ref(looked)
    del looked
    for _ in range(500):
        gc.collect()
        if alive() is None and not any(each.name == "resilmesh-authority" for each in threading.enumerate()):
            break
        time.sleep(0.01)
    assert alive() is None
    assert not any(each.name == "resilmesh-authority" for each in threading.enumerate())
