"""The thread that polls a policy's file went on for ever after the mesh was gone: a local name kept the watch alive."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

from resilmesh import Mesh
from tests.drive.guarding import policy


def test_the_thread_ends_with_the_mesh(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(policy())
    before = set(threading.enumerate())
    mesh = Mesh.from_file(path, reload_interval=0.002)
    (thread,) = set(threading.enumerate()) - before
    path.write_text(policy(timeout="1s"))
    until = time.monotonic() + 10
    while mesh.snapshot()["revision"] == 1:  # it has looked at least once
        assert time.monotonic() < until
        time.sleep(0.002)
    del mesh
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()
