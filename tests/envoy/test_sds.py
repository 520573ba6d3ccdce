"""Certificates that a real Envoy reads anew, in front of a service and beside a caller."""

from __future__ import annotations

import json
import ssl
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from resilmesh.cli import main
from resilmesh.envoy.process import Envoy, validate
from resilmesh.envoy.sds import rotating
from resilmesh.identity.ca import CertificateAuthority
from resilmesh.identity.volume import publish

INVENTORY = "spiffe://shop.example/ns/prod/sa/inventory"
POLICY = f"""\
apiVersion: resilmesh/v1
mesh: {{identity: {{directory: DIRECTORY}}}}
services:
- {{name: svc, hosts: [svc.test], endpoints: [{{address: "127.0.0.1:1"}}], tls: {{mode: MUTUAL, identities: ["{INVENTORY}"]}}}}
inbound:
  mtls: STRICT
  authorization:
  - {{name: a, rules: [{{from: [{{principals: ["shop.example/*"]}}]}}]}}
"""


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    return CertificateAuthority.create(tmp_path / "ca", "shop.example")


def write(authority: CertificateAuthority, directory: Path) -> int:
    """The serial number of the new certificate."""
    identity = authority.issue(INVENTORY)
    publish(directory, {
        "tls.crt": (identity.svid.chain_pem(), 0o644), "tls.key": (identity.svid.key_pem(), 0o600),
        "ca.crt": (authority.bundle().pem(), 0o644),
    }, stamp=f"{time.time_ns()}")
    return identity.svid.leaf.serial_number


def served(envoy: Envoy) -> int:
    """The serial number of what a new connection is shown."""
    host, _, port = envoy.url.removeprefix("http://").rpartition(":")
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, int(port)), timeout=5).encode()).serial_number


def soon(check: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def exported(tmp_path: Path, *words: str) -> dict[str, object]:
    policy, made = tmp_path / "policy.yaml", tmp_path / "envoy.yaml"
    policy.write_text(POLICY.replace("DIRECTORY", str(tmp_path / "identity")))
    arguments = ["export", "envoy", str(policy), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "-o", str(made), *words]
    assert main(arguments) == 0
    return dict(yaml.safe_load(made.read_text()))


def test_a_renewed_certificate_is_shown_without_a_restart(authority: CertificateAuthority, tmp_path: Path) -> None:
    first = write(authority, tmp_path / "identity")
    bootstrap = exported(tmp_path, "--inbound", "127.0.0.1:9", "--secrets", str(tmp_path / "secrets"))
    with Envoy(bootstrap) as envoy:
        assert served(envoy) == first
        for _ in range(3):
            again = write(authority, tmp_path / "identity")
            assert soon(lambda: served(envoy) == again)  # noqa: B023  # asked before the next is made
        # Half of a renewal: Envoy keeps what it has, as the library does.
        other = authority.issue(INVENTORY)
        publish(tmp_path / "identity", {"tls.crt": (other.svid.chain_pem(), 0o644)}, stamp="torn")
        assert served(envoy) == again


def test_beside_a_caller_the_bundle_follows_too(authority: CertificateAuthority, tmp_path: Path) -> None:
    write(authority, tmp_path / "identity")
    with Envoy(exported(tmp_path, "--secrets", str(tmp_path / "secrets"))) as envoy:
        authority.announce_root()
        write(authority, tmp_path / "identity")

        def taken_up() -> bool:
            return sum(envoy.stats(r"ssl_context_update_by_sds$").values()) >= 3  # what it began with counts as one

        assert soon(taken_up)
        with urllib.request.urlopen(f"{envoy.admin_url}/config_dump?resource=dynamic_active_secrets") as answer:
            assert len(json.load(answer)["configs"]) == 2


def test_without_certificates_nothing_changes_and_nothing_is_written(tmp_path: Path) -> None:
    plain = {"static_resources": {"clusters": [{"name": "a"}]}}
    assert rotating(plain, tmp_path) == plain
    assert list(tmp_path.iterdir()) == []


def test_the_bootstrap_before_a_service_is_one_that_envoy_accepts(
    authority: CertificateAuthority, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    write(authority, tmp_path / "identity")
    made = exported(tmp_path, "--inbound", "127.0.0.1:8080", "--http2", "--strict")
    assert validate(made) is None
    assert capsys.readouterr().err == ""
    assert "http2_protocol_options" in json.dumps(made)
    assert "8080" in json.dumps(made)


def test_what_it_leaves_out_is_named_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("apiVersion: resilmesh/v1\ninbound:\n  mtls: DISABLE\n  concurrency: {maxRequests: 4}\n")
    assert main(["export", "envoy", str(policy), "--inbound", "127.0.0.1:8080"]) == 0
    assert capsys.readouterr().err.startswith(f"{policy}:4: concurrency: library-only: ")
    assert main(["export", "envoy", str(policy)]) == 0
    assert "--inbound" in capsys.readouterr().err


def test_words_that_do_not_go_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "envoy", str(tmp_path / "policy.yaml"), "--http2"]) == 2
    assert "--http2 goes with --inbound" in capsys.readouterr().err
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.replace("DIRECTORY", "/run/identity"))
    (tmp_path / "file").touch()
    assert main(["export", "envoy", str(policy), "--secrets", str(tmp_path / "file" / "below")]) == 1
    assert "cannot write" in capsys.readouterr().err
