"""Where a mesh takes its identity from, what it says of it, and what it refuses."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from resilmesh import Mesh
from resilmesh.errors import PolicyError
from resilmesh.identity import Fixed
from tests.identity.pki import HOUR, WEB, Authority, Leaf, now

ROOT = Authority()
POLICY = "apiVersion: resilmesh/v1\n"


def written(directory: Path, leaf: Leaf) -> Path:
    (directory / "tls.crt").write_bytes(leaf.certificates_pem())
    (directory / "tls.key").write_bytes(leaf.key_pem())
    (directory / "ca.crt").write_bytes(leaf.authority.bundle.pem())
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return written(tmp_path, ROOT.issue(WEB))


def spiffe_id(mesh: Mesh) -> str | None:
    return None if mesh.identity is None else str(mesh.identity.svid.id)


def test_from_the_policy(directory: Path) -> None:
    with Mesh.from_text(POLICY + f"mesh: {{trustDomain: shop.example, identity: {{directory: '{directory}'}}}}\n") as mesh:
        assert spiffe_id(mesh) == WEB
        shown = mesh.snapshot()["identity"]
    assert shown["spiffeId"] == WEB
    assert 3500 < shown["expiresIn"] <= 3600
    assert {key: shown[key] for key in ("rotations", "refusals", "warnings", "problem")} == {
        "rotations": 0, "refusals": 0, "warnings": 0, "problem": None,
    }


def test_from_three_files(directory: Path) -> None:
    files = f"{{certificate: '{directory}/tls.crt', key: '{directory}/tls.key', bundle: '{directory}/ca.crt'}}"
    with Mesh.from_text(POLICY + f"mesh: {{identity: {files}}}\n") as mesh:
        assert spiffe_id(mesh) == WEB


def test_the_environment_and_the_argument_override_the_policy(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = POLICY + "mesh: {identity: {directory: /nowhere}}\n"
    monkeypatch.setenv("RESILMESH_IDENTITY", str(directory))
    with Mesh.from_text(text) as mesh:
        assert spiffe_id(mesh) == WEB
    other = Fixed(ROOT.identity("spiffe://shop.example/ns/prod/sa/other"))
    with Mesh.from_text(text, identity=other) as mesh:
        assert spiffe_id(mesh) == "spiffe://shop.example/ns/prod/sa/other"


def test_without_one() -> None:
    with Mesh.from_text(POLICY) as mesh:
        assert mesh.identity is None
        assert mesh.snapshot()["identity"] is None


@pytest.mark.parametrize(("text", "said"), [
    ("mesh: {identity: {directory: /nowhere}}", "<text>:2:8: RM234 there is no directory '/nowhere' with a certificate, a key"),
    ("mesh: {trustDomain: other.example, identity: {directory: 'HERE'}}", "is of the trust domain shop.example, and the policy's"),
])
def test_one_that_cannot_be_used(directory: Path, text: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        Mesh.from_text(POLICY + text.replace("HERE", str(directory)))
    assert said in str(caught.value)


def test_a_reload_that_names_a_bad_one_is_refused_and_the_old_stays(directory: Path) -> None:
    with Mesh.from_text(POLICY + f"mesh: {{identity: {{directory: '{directory}'}}}}\n") as mesh:
        with pytest.raises(PolicyError, match="RM234"):
            mesh.apply_text(POLICY + "mesh: {identity: {directory: /nowhere}}\n")
        assert spiffe_id(mesh) == WEB
        mesh.apply_text(POLICY)
        assert mesh.identity is None


def test_rotation_refusal_and_expiry_are_told() -> None:
    source = Fixed(ROOT.identity(WEB))
    told: list[tuple[str, dict[str, object]]] = []
    with Mesh.from_text(POLICY, identity=source) as mesh:
        mesh.subscribe(lambda event: told.append((event.name, event.detail)))
        source.put(ROOT.identity(WEB), time.time())
        source.refuse(ValueError("torn"))
        source.refuse(ValueError("torn"))
        end = source.current().svid.not_after
        source.look(end - 1000)
        source.look(end - 900)
        source.look(end + 1)
        shown = mesh.snapshot()["identity"]
    assert [name for name, _ in told] == ["identity_rotated", "identity_refused", "identity_expiring", "identity_expired"]
    assert told[0][1]["spiffe_id"] == WEB
    assert (shown["rotations"], shown["refusals"], shown["problem"]) == (1, 1, "torn")
    assert shown["warnings"] >= 2


def test_an_identity_of_another_time_or_domain_is_not_put_in_force() -> None:
    from resilmesh.identity import IdentityError

    source = Fixed(ROOT.identity(WEB))
    with Mesh.from_text(POLICY + "mesh: {trustDomain: shop.example}\n", identity=source) as mesh:
        with pytest.raises(IdentityError, match="has expired"):
            source.put(ROOT.issue(WEB, begins=now() - 2 * HOUR, ends=now() - HOUR).identity(), time.time())
        with pytest.raises(IdentityError, match=r"is of the trust domain other\.example"):
            source.put(Authority(trust_domain="other.example").identity("spiffe://other.example/web"), time.time())
        assert spiffe_id(mesh) == WEB


def test_a_source_that_was_given_is_not_closed_with_the_mesh(directory: Path) -> None:
    from resilmesh.identity import FileSource

    source = FileSource.of_directory(directory)
    try:
        Mesh.from_text(POLICY, identity=source).close()
        written(directory, ROOT.issue(WEB))
        assert source.reload() or source.rotations == 1
    finally:
        source.close()
