"""Files that are swapped together: what a reader can see, and what a crash leaves."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from resilmesh.identity import IdentityError
from resilmesh.identity.files import FileSource
from resilmesh.identity.volume import publish
from tests.identity.authority import WEB, Clock, make

STAMP = "2026-11-24T07:00:00Z"


def pair(number: int) -> dict[str, tuple[bytes, int]]:
    return {"tls.crt": (b"certificate %d" % number, 0o644), "tls.key": (b"key %d" % number, 0o600)}


def seen(directory: Path) -> tuple[bytes, bytes]:
    return (directory / "tls.crt").read_bytes(), (directory / "tls.key").read_bytes()


def test_files_are_swapped(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        for number in range(4):
            publish(tmp_path / "a" / "tls", pair(number), STAMP)
            assert seen(tmp_path / "a" / "tls") == (b"certificate %d" % number, b"key %d" % number)
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "tls" / "tls.key").stat().st_mode & 0o777 == 0o600
    # Two of them: that of the last renewal is still there for whoever reads it.
    assert sorted(name[:4] for name in os.listdir(tmp_path / "a" / "tls")) == ["..20", "..20", "..da", "tls.", "tls."]


def test_a_reader_never_sees_half_of_a_renewal(tmp_path: Path) -> None:
    publish(tmp_path / "tls", pair(0), STAMP)
    stop, wrong, looks = threading.Event(), [], 0

    def read() -> None:
        nonlocal looks
        while not stop.is_set():
            at = tmp_path / "tls" / os.readlink(tmp_path / "tls" / "..data")
            try:
                certificate, key = seen(at)
            except FileNotFoundError:  # two renewals later
                continue
            looks += 1
            if certificate.split()[-1] != key.split()[-1]:
                wrong.append((certificate, key))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 60):
        publish(tmp_path / "tls", pair(number), STAMP)
    stop.set()
    reader.join()
    assert wrong == []
    assert looks > 0


def test_two_that_write_at_once(tmp_path: Path) -> None:
    def write(first: int) -> None:
        for number in range(first, first + 15):
            publish(tmp_path / "tls", pair(number), STAMP)

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(write, 100 * each) for each in range(3)]:
            done.result()
    certificate, key = seen(tmp_path / "tls")
    assert certificate.split()[-1] == key.split()[-1]


@pytest.mark.parametrize("step", ["mkdtemp", "fsync", "rename", "symlink"])
def test_a_failure_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    directory = tmp_path / "tls"
    publish(directory, pair(1), STAMP)
    left = sorted(os.listdir(directory))

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tempfile.mkdtemp" if step == "mkdtemp" else f"os.{step}", full)
        with pytest.raises(OSError, match="No space left"):
            publish(directory, pair(2), STAMP)
    assert seen(directory) == (b"certificate 1", b"key 1")
    assert [each for each in sorted(os.listdir(directory)) if "link-of" not in each] == left
    publish(directory, pair(3), STAMP)
    assert seen(directory) == (b"certificate 3", b"key 3")


def test_files_of_somebody_else_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "tls.key").write_text("mine")
    with pytest.raises(IdentityError, match=r"tls.key is there and was not written by this command"):
        publish(tmp_path, pair(1), STAMP)
    assert os.listdir(tmp_path) == ["tls.key"]


def test_the_librarys_source_reads_them(tmp_path: Path) -> None:
    clock = Clock()
    authority = make(tmp_path, clock)

    def renew() -> int:
        identity = authority.issue(WEB)
        files = {"tls.crt": (identity.svid.chain_pem(), 0o644), "tls.key": (identity.svid.key_pem(), 0o600)}
        publish(tmp_path / "tls", files | {"ca.crt": (identity.bundles["shop.example"].pem(), 0o644)}, STAMP)
        return identity.svid.leaf.serial_number

    first = renew()
    source = FileSource.of_directory(tmp_path / "tls", interval=None, now=lambda: clock.seconds)
    assert source.current().svid.leaf.serial_number == first
    authority.announce_root()
    second = renew()
    assert source.reload()
    assert source.current().svid.leaf.serial_number == second != first
    assert len(source.current().bundles["shop.example"].certificates) == 2
    source.close()
