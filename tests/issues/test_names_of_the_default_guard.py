"""A policy without a service that ``resilmesh.guard`` names was accepted, and every call of the function then failed."""

from __future__ import annotations

import pytest

import resilmesh
from resilmesh import PolicyError, UnknownService, mesh
from tests.drive.guarding import mesh_of, policy


def test_a_policy_must_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh, "default", type(mesh.default)())
    guarded = resilmesh.guard("svc")(lambda: 1)
    with pytest.raises(UnknownService):
        resilmesh.configure(resilmesh.Mesh.from_text(policy().replace("svc", "other")))
    configured = resilmesh.configure(mesh_of())
    with pytest.raises(PolicyError, match="a guarded function needs 'svc'"):
        configured.apply_text(policy().replace("svc", "other"))
    assert guarded() == 1
