"""Where the comparison is: one changing line in a terminal, plain lines elsewhere and in a dumb one. On stderr; stdout is the report's."""

from __future__ import annotations

import os
import time
from typing import TextIO

_ERASE = "\r\x1b[K"


class Progress:
    """``step`` says what begins, ``tick`` keeps the time in a terminal moving, ``clear`` makes room for other output."""

    def __init__(self, stream: TextIO, steps: int, expected: float) -> None:
        self._stream = stream
        self._steps = steps
        self._expected = expected
        self._step = 0
        self._what = ""
        self._live = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._began = time.monotonic()

    def step(self, what: str) -> None:
        self._step += 1
        self._what = what
        if self._live:
            self.tick()
        else:
            self._stream.write(self._line() + "\n")
            self._stream.flush()

    def tick(self) -> None:
        if self._live:
            self._stream.write(_ERASE + self._line())
            self._stream.flush()

    def clear(self) -> None:
        if self._live:
            self._stream.write(_ERASE)
            self._stream.flush()

    def _line(self) -> str:
        return f"[{self._step:>2}/{self._steps}, {time.monotonic() - self._began:3.0f} s of about {self._expected:.0f}] {self._what}"
