"""A snapshot that was taken while a policy with a new service came into force failed with a KeyError."""

from __future__ import annotations

from typing import Any

import pytest

from resilmesh.engine.store import Store
from tests.drive.guarding import mesh_of, policy


def test_a_snapshot_can_be_taken_at_any_time(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = mesh_of()
    commit = Store.commit
    shown: list[dict[str, Any]] = []

    def commit_and_look(store: Store, *arguments: Any) -> None:
        commit(store, *arguments)
        shown.append(mesh.snapshot())

    monkeypatch.setattr(Store, "commit", commit_and_look)
    mesh.apply_text(policy() + "- name: other\n")
    assert set(shown[0]["services"]) == {"svc", "other"}
