"""An identity from files, as those who write them do it: together, one after the other, half, wrong, or not at all."""

from __future__ import annotations

import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from resilmesh.identity import FileSource, IdentityError
from tests.identity.pki import HOUR, WEB, Authority, Leaf, now

ROOT = Authority()
TLS, SVID, SPIRE = ("tls.crt", "tls.key", "ca.crt"), ("svid.pem", "svid.key", "bundle.pem"), ("svid.pem", "svid_key.pem", "svid_bundle.pem")


def write(directory: Path, leaf: Leaf, names: tuple[str, str, str] = TLS) -> None:
    for name, content in zip(names, (leaf.certificates_pem(), leaf.key_pem(), leaf.authority.bundle.pem()), strict=True):
        replace(directory / name, content)


def replace(path: Path, content: bytes) -> None:
    """By a rename, as most do: the file is the old one or the new one."""
    other = path.with_suffix(".new")
    other.write_bytes(content)
    other.replace(path)


def still(directory: Path, **options: Any) -> FileSource:
    """One that looks when it is told to."""
    return FileSource.of_directory(directory, interval=None, **options)


def serial(source: FileSource) -> int:
    return source.current().svid.leaf.serial_number


@pytest.mark.parametrize("names", [TLS, SVID, SPIRE])
def test_the_names_that_the_usual_tools_give(tmp_path: Path, names: tuple[str, str, str]) -> None:
    write(tmp_path, ROOT.issue(WEB), names)
    assert str(still(tmp_path).current().svid.id) == WEB


def test_a_renewal_is_put_in_force_whole(tmp_path: Path) -> None:
    write(tmp_path, ROOT.issue(WEB))
    source = still(tmp_path)
    assert source.reload() is False
    leaf = ROOT.issue(WEB)
    write(tmp_path, leaf)
    assert source.reload() is True
    assert serial(source) == leaf.chain[0].serial_number
    assert (source.rotations, source.refusals) == (1, 0)


def test_a_kubernetes_volume_is_swapped_by_one_link(tmp_path: Path) -> None:
    def version(name: str, leaf: Leaf) -> None:
        (tmp_path / name).mkdir()
        write(tmp_path / name, leaf)
        (tmp_path / "..tmp").symlink_to(name)
        (tmp_path / "..tmp").rename(tmp_path / "..data")

    version("..1", ROOT.issue(WEB))
    for name in TLS:
        (tmp_path / name).symlink_to(f"..data/{name}")
    source = still(tmp_path)
    before = serial(source)
    version("..2", ROOT.issue(WEB))
    assert source.reload() is True
    assert serial(source) != before


NEW = ROOT.issue(WEB)
TORN: dict[str, tuple[Callable[[Path], object], str]] = {
    "the certificate before the key": (lambda at: replace(at / "tls.crt", NEW.certificates_pem()), "the private key is not that of the"),
    "the key before the certificate": (lambda at: replace(at / "tls.key", NEW.key_pem()), "the private key is not that of the"),
    "half a certificate": (lambda at: (at / "tls.crt").write_bytes(NEW.certificates_pem()[:200]), "is torn: a PEM block has no end"),
    "no certificate": (lambda at: (at / "tls.crt").write_bytes(b""), "is no certificate in PEM"),
    "half a key": (lambda at: (at / "tls.key").write_bytes(NEW.key_pem()[:80]), "the private key is no key in PEM"),
    "a bundle of others": (lambda at: replace(at / "ca.crt", Authority().bundle.pem()), "no authority in the trust bundle of shop.example"),
    "half a bundle": (lambda at: (at / "ca.crt").write_bytes(ROOT.bundle.pem()[:100]), "is torn"),
    "a leaf in the bundle": (lambda at: replace(at / "ca.crt", NEW.certificates_pem()), "which may sign nothing (CA:FALSE)"),
    "no key": (lambda at: (at / "tls.key").unlink(), "tls.key: No such file or directory"),
    "a directory": (lambda at: ((at / "tls.key").unlink(), (at / "tls.key").mkdir()), "tls.key: Is a directory"),
    "an expired certificate": (lambda at: write(at, ROOT.issue(WEB, begins=now() - 2 * HOUR, ends=now() - HOUR)), "has expired at"),
    "a certificate of tomorrow": (lambda at: write(at, ROOT.issue(WEB, begins=now() + HOUR, ends=now() + 2 * HOUR)), "is not valid before"),
    "no identity": (lambda at: write(at, ROOT.issue(dns=["web"])), "the certificate has no SPIFFE ID"),
    "binary": (lambda at: (at / "tls.crt").write_bytes(os.urandom(1000)), "is no certificate in PEM"),
}


@pytest.mark.parametrize("what", TORN)
def test_what_cannot_be_used_is_refused_once_and_the_old_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str) -> None:
    write(tmp_path, ROOT.issue(WEB))
    source = still(tmp_path)
    before = serial(source)
    change, why = TORN[what]
    change(tmp_path)
    with caplog.at_level(logging.ERROR, "resilmesh.identity"):
        assert [source.reload() for _ in range(3)] == [False] * 3
    assert serial(source) == before
    assert source.refusals == 1
    assert len(caplog.records) == 1
    assert why in caplog.text
    assert "PRIVATE KEY" not in caplog.text
    (tmp_path / "tls.key").is_dir() and (tmp_path / "tls.key").rmdir()
    write(tmp_path, NEW)
    assert source.reload() is True
    assert source.snapshot(time.time())["problem"] is None


@pytest.mark.parametrize("what", TORN)
def test_at_the_start_it_is_an_error(tmp_path: Path, what: str) -> None:
    write(tmp_path, ROOT.issue(WEB))
    change, why = TORN[what]
    change(tmp_path)
    if what in ("no key",):
        why = "has no certificate, key and bundle"
    with pytest.raises(IdentityError) as caught:
        still(tmp_path)
    assert why in str(caught.value)


def test_an_encrypted_key(tmp_path: Path) -> None:
    leaf = ROOT.issue(WEB)
    write(tmp_path, leaf)
    sealed = serialization.BestAvailableEncryption(b"correct horse")
    (tmp_path / "tls.key").write_bytes(leaf.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed))
    assert str(still(tmp_path, password=b"correct horse").current().svid.id) == WEB
    assert str(still(tmp_path, password=lambda: b"correct horse").current().svid.id) == WEB
    with pytest.raises(IdentityError, match="the private key is encrypted, and no password is given"):
        still(tmp_path)
    with pytest.raises(IdentityError, match="or the password is wrong"):
        still(tmp_path, password=b"wrong")
    write(tmp_path, leaf)
    with pytest.raises(IdentityError, match="is not encrypted, but a password is given"):
        still(tmp_path, password=b"correct horse")


def test_federated_bundles(tmp_path: Path) -> None:
    write(tmp_path, ROOT.issue(WEB))
    (tmp_path / "federated").mkdir()
    (tmp_path / "federated" / "partner.example.pem").write_bytes(Authority(trust_domain="partner.example").bundle.pem())
    assert sorted(still(tmp_path).current().bundles) == ["partner.example", "shop.example"]
    (tmp_path / "federated" / "Not a domain.pem").write_bytes(ROOT.bundle.pem())
    with pytest.raises(IdentityError, match="the trust domain 'Not a domain' is not of lower-case letters"):
        still(tmp_path)


def test_it_is_looked_at_until_it_is_closed_or_forgotten(tmp_path: Path) -> None:
    write(tmp_path, ROOT.issue(WEB))
    before = set(threading.enumerate())
    source: FileSource | None = FileSource.of_directory(tmp_path, interval=0.01)
    assert source is not None
    write(tmp_path, NEW)
    until = time.monotonic() + 10
    while serial(source) != NEW.chain[0].serial_number and time.monotonic() < until:
        time.sleep(0.01)
    assert serial(source) == NEW.chain[0].serial_number
    source.close()
    source.close()
    other: FileSource | None = FileSource.of_directory(tmp_path, interval=0.01)
    assert other is not None
    del other, source
    gc.collect()
    while (new := set(threading.enumerate()) - before) and time.monotonic() < until:
        time.sleep(0.01)
    assert not new


@pytest.mark.parametrize("interval", [0, -1, "1s", float("inf"), 1e30])
def test_intervals_that_mean_nothing(tmp_path: Path, interval: Any) -> None:
    write(tmp_path, ROOT.issue(WEB))
    with pytest.raises(ValueError, match="interval is a number of seconds above 0"):
        FileSource.of_directory(tmp_path, interval=interval)


def test_a_child_goes_on_looking(tmp_path: Path) -> None:
    write(tmp_path, ROOT.issue(WEB))
    source = FileSource.of_directory(tmp_path, interval=0.01)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        write(tmp_path, NEW)
        until = time.monotonic() + 10
        while serial(source) != NEW.chain[0].serial_number and time.monotonic() < until:
            time.sleep(0.01)
        os.write(writing, b"%x" % serial(source))
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as told:
        assert told.read() == f"{NEW.chain[0].serial_number:x}"
    source.close()
