"""Real handshakes between workloads that have got their certificates in different phases of a rotation."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest

from resilmesh.identity.ca import CertificateAuthority
from resilmesh.identity.source import Fixed
from resilmesh.identity.spiffe import SpiffeId
from resilmesh.identity.svid import Identity
from resilmesh.identity.tls import Accepted, LiveContext

PHASES = ["steady", "announced", "overlap", "retired"]


@pytest.fixture(scope="module")
def workloads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    """One for each phase; the steps are forced, so that what the waits prevent can be seen."""
    authority = CertificateAuthority.create(tmp_path_factory.mktemp("authority"), "shop.example")
    steps = [lambda: None, authority.announce_root, lambda: authority.activate_root(force=True), lambda: authority.retire_root(force=True)]
    made = {}
    for phase, step in zip(PHASES, steps, strict=True):
        step()
        made[phase] = authority.issue(f"spiffe://shop.example/{phase}")
    return made


def handshake(caller: Identity, service: Identity) -> SpiffeId | None:
    """Mutual TLS in memory; whom the service has seen. Raises ``ssl.SSLError``."""
    to_service, to_caller = ssl.MemoryBIO(), ssl.MemoryBIO()
    accepted = Accepted(frozenset({service.svid.id}))
    client = LiveContext(Fixed(caller), serves=False, accepted=accepted, now=time.time)
    server = LiveContext(Fixed(service), serves=True, now=time.time)
    ends = [client.wrap_bio(to_caller, to_service, server_hostname="service"), server.wrap_bio(to_service, to_caller, server_side=True)]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    seen: SpiffeId | None = ends[1].peer  # type: ignore[attr-defined]  # of the library's own class
    return seen


@pytest.mark.parametrize("service", PHASES)
@pytest.mark.parametrize("caller", PHASES)
def test_certificates_of_neighbouring_phases_trust_each_other(workloads: dict[str, Identity], caller: str, service: str) -> None:
    """Two steps apart they need not: that is what the waits are for, by which no two such certificates are good at a time."""
    if abs(PHASES.index(caller) - PHASES.index(service)) <= 1:
        assert handshake(workloads[caller], workloads[service]) == workloads[caller].svid.id
    else:
        with pytest.raises(ssl.SSLCertVerificationError, match="no authority that is trusted vouches for it"):
            handshake(workloads[caller], workloads[service])


def test_an_intermediate_is_replaced_between_two(tmp_path: Path) -> None:
    authority = CertificateAuthority.create(tmp_path / "ca", "shop.example")
    before = authority.issue("spiffe://shop.example/before")
    authority.renew_intermediate()
    after = authority.issue("spiffe://shop.example/after")
    assert handshake(before, after) == before.svid.id
    assert handshake(after, before) == after.svid.id
