"""A look at the file that failed for no fault of the policy's (no memory, say) was never made again."""

from __future__ import annotations

from pathlib import Path

import pytest

from resilmesh import Mesh
from tests.drive.guarding import policy


def test_it_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy())

    def fail(where: str) -> None:
        raise MemoryError

    with Mesh.from_file(path, reload_interval=None) as mesh:
        path.write_text(policy(timeout="2s"))
        with monkeypatch.context() as patched:
            patched.setattr("resilmesh.policy.load.load_file", fail)
            with pytest.raises(MemoryError):
                mesh.reload()
        assert mesh.reload() is True
