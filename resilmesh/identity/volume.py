"""Writes files that belong together so that a reader never finds half of a renewal: as Kubernetes does it in a secret's volume.

    tls/tls.crt -> ..data/tls.crt                      what a reader opens
    tls/..data -> ..2026-11-24T07-00-00Z.f3k2x9        renamed over the old one: the swap
    tls/..2026-11-24T07-00-00Z.f3k2x9/tls.crt, tls.key, ca.crt

The rename is one step for everybody. Who opens the files one after the other may still begin before it and end after it, and then
has a key that is not the certificate's; ``files.FileSource`` looks again in that case, and so should others. The directory of the last
renewal stays until the next one, so that whoever is in it can finish.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from resilmesh.identity.ca_store import sync_directory
from resilmesh.identity.spiffe import IdentityError

_DATA = "..data"


def publish(directory: str | os.PathLike[str], files: Mapping[str, tuple[bytes, int]], stamp: str) -> None:
    """Swap the files of a directory, each with its mode, in one step. ``stamp``: a time, for people who look.

    Raises ``IdentityError`` where a name is taken by something else, ``OSError`` if the disk cannot be written; then the old files stay.
    """
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    number = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)  # or two that write here would clear away each other's files
        _swap(place, files, stamp)
        os.fsync(number)
    finally:
        os.close(number)


def _swap(place: Path, files: Mapping[str, tuple[bytes, int]], stamp: str) -> None:
    for name in files:
        path = place / name
        if os.path.lexists(path) and not _is_ours(path):
            raise IdentityError(f"{path} is there and was not written by this command: move it away, or give another directory")
    before = os.readlink(place / _DATA) if (place / _DATA).is_symlink() else None
    made = Path(tempfile.mkdtemp(prefix=f"..{stamp.replace(':', '-')}.", dir=place))
    try:
        for name, (content, mode) in files.items():
            _write(made / name, content, mode)
        made.chmod(0o755)  # the key has a mode of its own
        sync_directory(made)
        _link(place / _DATA, made.name)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    for name in files:
        if not (place / name).is_symlink():
            _link(place / name, f"{_DATA}/{name}")
    for each in place.glob("..*"):
        if each.is_dir() and not each.is_symlink() and each.name not in (made.name, before):
            shutil.rmtree(each, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    return path.is_symlink() and os.readlink(path) == f"{_DATA}/{path.name}"


def _write(path: Path, content: bytes, mode: int) -> None:
    number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(number, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(number)


def _link(path: Path, target: str) -> None:
    """A symbolic link, put in the place of whatever is there in one step."""
    beside = path.with_name(f"{target.replace('/', '-')}.link-of-{path.name}")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.rename(path)

