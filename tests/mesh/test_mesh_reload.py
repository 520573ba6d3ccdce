"""A policy's file is looked at again: every way in which files change, and in which the looking ends."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resilmesh import Event, Mesh, PolicyError
from tests.drive.guarding import policy

LIMITS = ["1s", "2s", "3s"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(policy(timeout="1s"))
    return path


@pytest.fixture
def mesh(path: Path) -> Iterator[Mesh]:
    with Mesh.from_file(path, reload_interval=None) as mesh:
        yield mesh


def limit(mesh: Mesh) -> float | None:
    plan = mesh.table.named("svc", None)[1]
    assert plan is not None
    return plan.timeout


def eventually(question: Callable[[], bool]) -> None:
    """Real time passes here: this is about a thread that polls."""
    until = time.monotonic() + 10
    while not question():
        assert time.monotonic() < until, "it did not happen within 10 s"
        time.sleep(0.005)


def age(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file be old enough to be trusted by its stat."""
    later = time.time_ns() + 10_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)


def test_an_edit_is_applied(mesh: Mesh, path: Path) -> None:
    assert mesh.reload() is False
    path.write_text(policy(timeout="2s"))
    assert mesh.reload() is True
    assert (limit(mesh), mesh.snapshot()["revision"]) == (2.0, 2)
    assert mesh.reload() is False


def test_a_touch_changes_nothing(mesh: Mesh, path: Path) -> None:
    path.touch()
    assert mesh.reload() is False
    assert mesh.snapshot()["revision"] == 1


def test_a_file_that_stays_is_not_even_read(mesh: Mesh, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    age(path, monkeypatch)
    assert mesh.reload() is False
    monkeypatch.setattr("builtins.open", lambda *arguments, **options: pytest.fail("the file was read"))
    assert mesh.reload() is False


def test_an_edit_that_keeps_size_and_time_is_seen(mesh: Mesh, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.stat()
    age(path, monkeypatch)
    assert mesh.reload() is False
    time.sleep(0.02)  # the inode's own time has a resolution, too
    path.write_text(policy(timeout="2s"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_mtime_ns, after.st_size, after.st_ino) == (before.st_mtime_ns, before.st_size, before.st_ino)
    assert mesh.reload() is True
    assert limit(mesh) == 2.0


def test_two_edits_within_one_tick_are_both_seen(mesh: Mesh, path: Path) -> None:
    """The stat of a file that has just changed is not trusted."""
    for value in ("2s", "3s", "1s", "2s"):
        path.write_text(policy(timeout=value))
        assert mesh.reload() is True
        assert limit(mesh) == float(value[0])


def test_a_swapped_symlink_is_seen(tmp_path: Path) -> None:
    """As Kubernetes mounts a ConfigMap: policy.yaml -> ..data/policy.yaml, ..data -> a directory that is swapped."""
    for number, value in enumerate(LIMITS):
        (tmp_path / f"..{number}").mkdir()
        (tmp_path / f"..{number}" / "policy.yaml").write_text(policy(timeout=value))
    data = tmp_path / "..data"
    data.symlink_to("..0")
    path = tmp_path / "policy.yaml"
    path.symlink_to(os.path.join("..data", "policy.yaml"))
    with Mesh.from_file(path, reload_interval=None) as mesh:
        for number, value in list(enumerate(LIMITS))[1:]:
            (tmp_path / "..tmp").symlink_to(f"..{number}")
            os.replace(tmp_path / "..tmp", data)
            assert mesh.reload() is True
            assert limit(mesh) == float(value[0])


def test_a_replaced_file_is_seen(mesh: Mesh, path: Path, tmp_path: Path) -> None:
    (tmp_path / "new").write_text(policy(timeout="2s"))
    os.replace(tmp_path / "new", path)
    assert mesh.reload() is True


@pytest.mark.parametrize("bad", [
    pytest.param("", id="empty"), pytest.param("apiVersion: resilm", id="truncated"), pytest.param(policy(timeout="soon"), id="wrong"),
    pytest.param("\x00\xff", id="binary"),
])
def test_a_bad_edit_is_refused_once_and_the_next_good_one_applied(
    mesh: Mesh, path: Path, caplog: pytest.LogCaptureFixture, bad: str,
) -> None:
    events: list[Event] = []
    mesh.subscribe(events.append)
    path.write_text(bad)
    with caplog.at_level(logging.ERROR, "resilmesh"), pytest.raises(PolicyError, match=r"policy\.yaml:"):
        mesh.reload()
    assert [mesh.reload() for _ in range(3)] == [False] * 3
    assert (limit(mesh), mesh.snapshot()["refused"], len(caplog.records)) == (1.0, 1, 1)
    path.write_text(policy(timeout="2s"))
    assert mesh.reload() is True
    assert limit(mesh) == 2.0
    assert [event.name for event in events] == ["policy_refused", "policy_applied"]


def test_a_deleted_file_leaves_the_policy_in_force(mesh: Mesh, path: Path) -> None:
    path.unlink()
    with pytest.raises(PolicyError):
        mesh.reload()
    assert [mesh.reload() for _ in range(2)] == [False, False]
    assert (limit(mesh), mesh.snapshot()["refused"]) == (1.0, 1)
    path.write_text(policy(timeout="2s"))
    assert mesh.reload() is True


def test_what_fails_for_another_reason_is_tried_again(mesh: Mesh, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(where: str) -> None:
        raise MemoryError

    path.write_text(policy(timeout="2s"))
    with monkeypatch.context() as patched:
        patched.setattr("resilmesh.policy.load.load_file", broken)
        with pytest.raises(MemoryError):
            mesh.reload()
    assert mesh.reload() is True
    assert limit(mesh) == 2.0


def test_a_relative_path_means_the_directory_of_then(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Mesh.from_file("policy.yaml", reload_interval=None) as mesh:
        monkeypatch.chdir("/")
        path.write_text(policy(timeout="2s"))
        assert mesh.reload() is True


# -------------------------------------------------------------------------------------------------- polling


def pollers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "resilmesh-policy"]


def test_a_thread_polls_until_the_mesh_is_closed(path: Path) -> None:
    before = set(pollers())
    with Mesh.from_file(path, reload_interval=0.005) as mesh:
        assert len(set(pollers()) - before) == 1
        assert all(thread.daemon for thread in pollers())
        path.write_text(policy(timeout="2s"))
        eventually(lambda: limit(mesh) == 2.0)
        path.write_text("bad")
        eventually(lambda: mesh.snapshot()["refused"] == 1)
        path.write_text(policy(timeout="3s"))
        eventually(lambda: limit(mesh) == 3.0)
    mesh.close()
    eventually(lambda: set(pollers()) <= before)


def test_the_thread_ends_with_a_mesh_that_nobody_holds(path: Path) -> None:
    before = set(pollers())
    mesh = Mesh.from_file(path, reload_interval=0.005)
    looked: list[int] = []
    mesh.subscribe(lambda event: looked.append(1))
    path.write_text(policy(timeout="2s"))
    eventually(lambda: bool(looked))  # it has looked at least once
    reference = weakref.ref(mesh)
    del mesh
    gc.collect()
    eventually(lambda: reference() is None and set(pollers()) <= before)


def test_without_an_interval_there_is_no_thread(path: Path) -> None:
    before = set(pollers())
    with Mesh.from_file(path, reload_interval=None):
        assert set(pollers()) <= before
