"""Python scripts in processes of their own, spoken to in lines of JSON.

A child ends when its stdin does, whatever happened to us: a return, Ctrl-C, a crash or SIGKILL close our end of
the pipe. It has a session of its own, so that a terminal's Ctrl-C reaches only us and we decide what to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from resilmesh.errors import ResilmeshError

#: How long a child may take to end by itself before it is killed.
_GRACE = 2.0
_TICK = 0.25


class ChildFailed(ResilmeshError):
    """A child ended early or said nothing in time; the message has the end of its stderr."""


class Child:
    """``python script``, with ``tell`` and ``hear``. A context manager; nothing is left when it closes."""

    def __init__(self, script: Path, name: str) -> None:
        self.name = name
        #: Monotonic seconds just before the process was started.
        self.spawned = time.monotonic()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        # -P: the script's own directory must not be importable, its neighbours have names such as `stats`.
        self._process = subprocess.Popen(  # noqa: S603  our own interpreter and our own file
            [sys.executable, "-P", str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._heard = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: Any) -> None:
        """Send one line of JSON."""
        try:
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise ChildFailed(self._epitaph("ended early")) from None

    def hear(self, within: float, tick: Callable[[], None] | None = None) -> Any:
        """The next line of JSON. ``tick`` is called about four times a second. ``ChildFailed`` after ``within`` seconds."""
        deadline = time.monotonic() + within
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._heard:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise ChildFailed(self._epitaph(f"said nothing for {within:.0f} s"))
                if tick is not None:
                    tick()
                if selector.select(min(left, _TICK)):
                    self._read()
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def _read(self) -> None:
        chunk = os.read(self._stdout.fileno(), 1 << 16)
        if not chunk:
            raise ChildFailed(self._epitaph("ended early"))
        self._heard += chunk

    def _epitaph(self, what: str) -> str:
        self._stderr.seek(0)
        last_words = self._stderr.read().decode(errors="replace").strip()[-2000:]
        return f"{self.name} {what}" + (f":\n{last_words}" if last_words else "")

    def close(self) -> None:
        """End the child; kill it when it does not end by itself within two seconds."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
        self._stdout.close()
        self._stderr.close()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            self.kill()
        self.close()
