"""``tls``: whom the library and Envoy take for the service, by the same files and the same names."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from scripted import OK, Service
from sidebyside import Both, Caller, covers, side_by_side

from resilmesh.identity.source import Fixed
from resilmesh.identity.svid import Identity
from resilmesh.identity.tls import LiveContext
from tests.identity.pki import INVENTORY, WEB, Authority, Leaf
from tests.identity.relay import relay

Services = dict[str, Service]

ROOT, PARTNER, STRANGER = Authority(), Authority(trust_domain="partner.example"), Authority()
LEDGER = "spiffe://partner.example/ns/prod/sa/ledger"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This workload's identity, as cert-manager writes it, with a federated bundle."""
    made = tmp_path_factory.mktemp("identity")
    leaf = ROOT.issue(WEB)
    (made / "tls.crt").write_bytes(leaf.certificates_pem())
    (made / "tls.key").write_bytes(leaf.key_pem())
    (made / "ca.crt").write_bytes(ROOT.bundle.pem())
    (made / "federated").mkdir()
    (made / "federated" / "partner.example.pem").write_bytes(PARTNER.bundle.pem())
    return made


def play(services: Services, directory: Path, tls: str, service: Leaf, *, requires: bool = True, mode: str = "ENFORCE") -> Both:
    text = f"""
apiVersion: resilmesh/v1
mesh: {{mode: {mode}, identity: {{directory: "{directory}"}}, outbound: REGISTRY_ONLY}}
services:
- name: svc
  hosts: [svc.test, 127.0.0.1]
  tls: {tls}
  endpoints: [{{address: "ADDRESS"}}]
"""

    def traffic(caller: Caller) -> None:
        host = "svc.test" if mode == "ENFORCE" else address
        caller.get("/items", host=host)
        caller.post("/items", host=host, content=b"tea")

    identity = service.unchecked(ROOT.bundle, PARTNER.bundle)
    context = LiveContext(Fixed(Identity(identity.svid, identity.bundles)), serves=True, requires=requires, now=time.time)
    with relay(context, services["a"].address) as address:
        return side_by_side(services, text.replace("ADDRESS", address), traffic, a=[OK])


@covers("Service.tls", "Tls.identities")
@pytest.mark.parametrize("mode", ["SIMPLE", "MUTUAL"])
def test_who_proves_it_is_called(services: Services, directory: Path, mode: str) -> None:
    tls = f"{{mode: {mode}, identities: ['{WEB}', '{INVENTORY}']}}"
    both = play(services, directory, tls, ROOT.issue(INVENTORY), requires=mode == "MUTUAL")
    both.agree()
    assert both.envoy.statuses == [200, 200]


@covers("Service.tls", "Tls.identities")
@pytest.mark.parametrize("service", [
    ROOT.issue("spiffe://shop.example/ns/prod/sa/other"), STRANGER.issue(INVENTORY), PARTNER.issue(INVENTORY), ROOT.issue(dns=["svc.test"]),
], ids=["another workload", "another authority", "a federated authority", "no identity"])
def test_who_does_not_is_not(services: Services, directory: Path, service: Leaf) -> None:
    both = play(services, directory, f"{{mode: MUTUAL, identities: ['{INVENTORY}', '{LEDGER}']}}", service)
    assert both.library.statuses == both.envoy.statuses == [503, 503]
    assert both.library.seen["a"] == both.envoy.seen["a"] == []


@covers("Service.tls", "Tls.identities")
def test_a_federated_service_by_its_own_bundle(services: Services, directory: Path) -> None:
    both = play(services, directory, f"{{mode: MUTUAL, identities: ['{INVENTORY}', '{LEDGER}']}}", PARTNER.issue(LEDGER))
    both.agree()
    assert both.envoy.statuses == [200, 200]


@covers("Tls.dns_sans")
@pytest.mark.parametrize(("name", "status"), [("inventory.internal", 200), ("other.internal", 503)])
def test_by_a_dns_san(services: Services, directory: Path, name: str, status: int) -> None:
    both = play(services, directory, "{mode: MUTUAL, dnsSans: [Inventory.Internal]}", ROOT.issue(dns=[name]))
    assert both.library.statuses == both.envoy.statuses == [status] * 2


@covers("Tls.mode")
def test_a_certificate_that_the_service_wants_and_does_not_get(services: Services, directory: Path) -> None:
    """By TLS 1.3 the service says so after the request has been sent: a connection that breaks, in both."""
    both = play(services, directory, f"{{mode: SIMPLE, identities: ['{INVENTORY}']}}", ROOT.issue(INVENTORY))
    assert both.library.statuses == both.envoy.statuses == [503, 503]
    assert both.library.seen["a"] == both.envoy.seen["a"] == []


@covers("Tls.mode")
def test_no_mode_takes_it_away(services: Services, directory: Path) -> None:
    both = play(services, directory, f"{{mode: MUTUAL, identities: ['{INVENTORY}']}}", ROOT.issue(INVENTORY), mode="OFF")
    both.agree()
    assert both.envoy.statuses == [200, 200]


@covers("Tls.mode")
def test_a_difference_of_disable_is_https(services: Services, directory: Path) -> None:
    """The library leaves the application's own TLS alone; what goes through Envoy is plain text, which this service does not take."""
    identity = ROOT.issue(dns=["svc.test"]).unchecked()
    context = LiveContext(Fixed(identity), serves=True, requires=False, now=time.time)

    def traffic(caller: Caller) -> None:
        if caller.direct:
            caller.get("/items", scheme="https")
        else:
            caller.get("/items")

    with relay(context, services["a"].address) as address:
        text = f"""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  tls: {{mode: DISABLE}}
  endpoints: [{{address: "{address}"}}]
"""
        both = side_by_side(services, text, traffic, a=[OK])
    assert (both.library.statuses, both.envoy.statuses) == ([200], [503])
