"""A file that was changed in place with its size and its time of change kept (cp -p, rsync -t) was never read again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from resilmesh import Mesh
from tests.drive.guarding import policy


def test_the_edit_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy(timeout="1s"))
    before = path.stat()
    with Mesh.from_file(path, reload_interval=None) as mesh:
        later = time.time_ns() + 10_000_000_000
        monkeypatch.setattr(time, "time_ns", lambda: later)  # old enough to be trusted by its stat
        assert mesh.reload() is False
        time.sleep(0.02)
        path.write_text(policy(timeout="2s"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert mesh.reload() is True
