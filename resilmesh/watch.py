"""Looking at a policy's file: by stat, then by content. A file watcher would miss a Kubernetes ConfigMap's symlink swap."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

from resilmesh.errors import PolicyError
from resilmesh.ticker import Ticker

log = logging.getLogger("resilmesh")


class PolicyFile:
    """A policy's file, looked at every ``interval`` seconds (``None``: only by ``look``).

    ``apply`` takes the path, and what to call every now and then where it must not hold up others (``None``: it need not
    care). It is a bound method and is held weakly, with what it is bound to. ``fingerprint`` is that of the content which is
    in force already.
    """

    def __init__(
        self, apply: Callable[[str, Callable[[], None] | None], None], path: str | os.PathLike[str], fingerprint: bytes | None,
        interval: float | None,
    ) -> None:
        if interval is not None and not (isinstance(interval, int | float) and 0 < interval <= threading.TIMEOUT_MAX):
            raise ValueError(f"reload_interval is a number of seconds above 0, or None for never, not {interval!r}")
        self._apply = weakref.WeakMethod(apply)
        self._path = os.path.abspath(path)
        self._seen = fingerprint
        self._stat: tuple[int, ...] | None = None
        self._looking = threading.Lock()
        self._ticker = Ticker(self._tick, interval, thread="resilmesh-policy", task="looking at the policy's file", log=log)
        self._ticker.start()

    @staticmethod
    def fingerprint(path: str | os.PathLike[str]) -> bytes | None:
        """Hash of the file's content; ``None`` when it cannot be read."""
        import hashlib

        try:
            with open(path, "rb") as file:
                return hashlib.sha256(file.read()).digest()
        except OSError:
            return None

    def look(self, pause: Callable[[], None] | None = None) -> bool:
        """Apply the file if it changed since the last look. Raises ``PolicyError`` if it cannot be used."""
        apply = self._apply()
        with self._looking:
            stat = self._stat_now()
            if apply is None or (stat is not None and stat == self._stat):
                return False
            fingerprint = self.fingerprint(self._path)
            if fingerprint == self._seen:
                # Only a file that has not changed for a while is trusted by its stat: a second write within the
                # clock's resolution would leave the same one.
                self._stat = stat if stat is not None and time.time_ns() - stat[0] > 2_000_000_000 else None
                return False
            try:
                apply(self._path, pause)
            except PolicyError:
                self._seen = fingerprint
                raise
            self._seen = fingerprint
            return True

    def _tick(self) -> None:
        with suppress(PolicyError):  # refused: logged, counted and told by the mesh
            self.look(_Breath())

    def _stat_now(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        # The time of the inode's own change first: unlike the content's it cannot be set back (cp -p, rsync -t, touch -r).
        return found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino, found.st_dev

    def close(self) -> None:
        self._ticker.stop()

    def after_fork(self) -> None:
        """The thread stayed with the parent."""
        self._looking = threading.Lock()
        self._ticker.after_fork()


class _Breath:
    """Lets other threads run: the interpreter's own turns are 5 ms, and a call that a reload delays must not wait that long."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self) -> None:
        if time.perf_counter() >= self._next:
            time.sleep(_REST)
            self._next = time.perf_counter() + _WORK


#: Seconds of work between two rests, and of a rest: long enough for a waiting thread to wake up.
_WORK, _REST = 0.0003, 0.0001
