"""Several workers' counts as one, through a directory that they share: ``RESILMESH_STATS_DIR``.

    NAME.counts     a worker's counters, mapped into its memory: what it counts is there at once, and stays when it is killed
    NAME.json       its gauges (``mesh.snapshot()``), written every second: they are gone with it
    ended.json      the counts of all workers that ended, added up by whoever reads next
    lock            held by who reads or adds up

A worker holds a lock on its file for as long as it lives, and the operating system lets go of it however it ends: that is how others
know. The directory belongs to one run of the service: give each start a new one (``mktemp -d``), or counters go on from where they were.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable, Iterator, MutableSequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from resilmesh.state.ledger import Block, BlockKey
from resilmesh.telemetry.collect import Row

#: A file grows by so much at a time; no block is larger.
_CHUNK = 1 << 20
#: In front of a block: lengths of its key in bytes, of its counts and of its sums. A length of 0: nothing follows in this chunk.
_HEAD = struct.Struct("<IIQ")
_CELL = 8
#: Seconds that a reader waits for another one.
_PATIENCE = 5.0

#: Files that this process holds: to its own locks it is blind.
_mine: dict[str, Worker] = {}
_reading = threading.Lock()


class Worker:
    """This process's part of the directory."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self._open()
        except OSError as error:
            raise ValueError(f"the directory for the workers' counts cannot be used: {error}") from None

    def _open(self) -> None:
        self.name = f"{os.getpid()}-{time.time_ns()}"
        self._path = self.directory / f"{self.name}.counts"
        beside = self._path.with_suffix(".new")
        self._file = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(beside, self._path)  # only now: a file without a lock is taken for that of a worker that has ended
        self._lock = threading.Lock()
        self._chunks = 0
        self._chunk: mmap.mmap | None = None
        self._used = _CHUNK
        _mine[str(self._path)] = self

    def after_fork(self) -> None:
        """In a child: a file of its own. The parent's is open here too, and of no concern."""
        global _reading  # noqa: PLW0603  # a thread of the parent's may have held it
        _reading = threading.Lock()
        _forget_parents()
        self._open()

    def memory(self, key: BlockKey, counts: int, sums: int) -> tuple[MutableSequence[int], MutableSequence[float]]:
        """Memory for a block, in the file (``resilmesh.state.ledger.Memory``)."""
        name = "\x1f".join(key).encode()
        padded = -(-len(name) // _CELL) * _CELL
        size = _HEAD.size + padded + (counts + sums) * _CELL
        with self._lock:
            if self._used + size > _CHUNK:
                self._grow()
            chunk, at = self._chunk, self._used
            assert chunk is not None
            self._used += size
        begin = at + _HEAD.size
        chunk[begin : begin + len(name)] = name
        whole = memoryview(chunk)
        begin += padded
        cells = whole[begin : begin + counts * _CELL].cast("q")
        totals = whole[begin + counts * _CELL : at + size].cast("d")
        chunk[at : at + _HEAD.size] = _HEAD.pack(len(name), counts, sums)  # last: from now on it is read
        return cells, totals  # type: ignore[return-value]  # typeshed: a cast memoryview takes what its format is

    def _grow(self) -> None:
        os.ftruncate(self._file, (self._chunks + 1) * _CHUNK)
        self._chunk = mmap.mmap(self._file, _CHUNK, offset=self._chunks * _CHUNK)
        self._chunks += 1
        self._used = 0

    def publish(self, snapshot: dict[str, Any]) -> None:
        """Tell the others the gauges of this moment."""
        to = self.directory / f"{self.name}.json"
        beside = to.with_suffix(".new")
        beside.write_text(json.dumps(snapshot))
        os.replace(beside, to)

    def read(self, own: Iterable[Block], snapshot: dict[str, Any]) -> tuple[list[Row], list[dict[str, Any]], list[int]]:
        """Everybody's rows, added up; the snapshots of those that live; and their process ids. Raises ``TimeoutError``."""
        with _reading, _locked(self.directory):
            return self._read([(block.key, block.counts, block.sums) for block in own], snapshot)

    def _read(self, own: list[tuple[BlockKey, Any, Any]], snapshot: dict[str, Any]) -> tuple[list[Row], list[dict[str, Any]], list[int]]:
        total = _Total(self.directory)
        summed = _Sum(total.rows)
        summed.add(own)
        snapshots, pids, ended = [snapshot], [os.getpid()], []
        for path in sorted(self.directory.glob("*.counts")):
            if path == self._path:
                continue
            rows = list(_rows(path.read_bytes()))
            summed.add(rows)
            if str(path) not in _mine and not _lives(path):
                ended.append((path, rows))
                continue
            pids.append(int(path.name.partition("-")[0]))
            with suppress(OSError, ValueError):
                snapshots.append(json.loads(path.with_suffix(".json").read_text()))
        if ended:
            total.take_in(ended)
        return summed.rows(), snapshots, sorted(set(pids))


def _forget_parents() -> None:
    pid = os.getpid()
    for path, worker in list(_mine.items()):
        if int(worker.name.partition("-")[0]) != pid:
            _mine.pop(path, None)


class _Sum:
    """Rows, added up by key. What has another shape under the same key is another version's, and left out."""

    def __init__(self, rows: Iterable[tuple[BlockKey, Any, Any]]) -> None:
        self._by_key: dict[BlockKey, tuple[list[int], list[float]]] = {}
        self.add(rows)

    def add(self, rows: Iterable[tuple[BlockKey, Any, Any]]) -> None:
        for key, counts, sums in rows:
            found = self._by_key.get(key)
            if found is None:
                self._by_key[key] = list(counts), list(sums)
            elif len(found[0]) == len(counts) and len(found[1]) == len(sums):
                for at, count in enumerate(counts):
                    found[0][at] += count
                for at, its in enumerate(sums):
                    found[1][at] += its

    def rows(self) -> list[Row]:
        return [Row(key, counts, sums) for key, (counts, sums) in self._by_key.items()]


class _Total:
    """``ended.json``. It names the files that are in it, until they are gone: killed in between, nothing is counted twice."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / "ended.json"
        self.rows: list[tuple[BlockKey, Any, Any]] = []
        self._files: list[str] = []
        if self._path.exists():
            kept = json.loads(self._path.read_text())
            self.rows = [(tuple(key), counts, sums) for key, counts, sums in kept["rows"]]
            self._files = [name for name in kept["files"] if (directory / name).exists()]
        for name in self._files:
            self._remove(directory / name)

    def take_in(self, ended: list[tuple[Path, list[tuple[BlockKey, Any, Any]]]]) -> None:
        """Add what is left of workers that ended, and remove their files."""
        summed = _Sum(self.rows)
        for _, rows in ended:
            summed.add(rows)
        kept = {"files": [path.name for path, _ in ended], "rows": [[list(row.key), row.counts, row.sums] for row in summed.rows()]}
        beside = self._path.with_suffix(".new")
        beside.write_text(json.dumps(kept))
        os.replace(beside, self._path)
        for path, _ in ended:
            self._remove(path)

    def _remove(self, path: Path) -> None:
        for each in (path.with_suffix(".json"), path):
            each.unlink(missing_ok=True)


def _rows(content: bytes) -> Iterator[tuple[BlockKey, Any, Any]]:
    whole = memoryview(content)
    for begin in range(0, len(content), _CHUNK):
        at = begin
        while at + _HEAD.size <= begin + _CHUNK:
            length, counts, sums = _HEAD.unpack_from(content, at)
            if not length:
                break
            name = bytes(whole[at + _HEAD.size : at + _HEAD.size + length]).decode()
            at += _HEAD.size + -(-length // _CELL) * _CELL
            end = at + counts * _CELL
            yield tuple(name.split("\x1f")), whole[at:end].cast("q"), whole[end : end + sums * _CELL].cast("d")
            at = end + sums * _CELL


def _lives(path: Path) -> bool:
    file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() >= until:
                    raise TimeoutError(f"another worker has held {directory / 'lock'} for {_PATIENCE:g} s") from None
                time.sleep(0.005)
        yield
    finally:
        os.close(file)
