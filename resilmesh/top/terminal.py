"""The screen and the keyboard, taken for as long as a block runs and given back however it ends."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType
from typing import Any

from resilmesh.top.view import Line

#: Alternate screen and no cursor; and back.
_TAKE, _GIVE = "\x1b[?1049h\x1b[?25l", "\x1b[0m\x1b[?25h\x1b[?1049l"
_STYLES = {"": "", "title": "\x1b[1m", "selected": "\x1b[7m", "bad": "\x1b[31m"}
#: What works without colours.
_PLAIN = {**_STYLES, "bad": "\x1b[1m"}
_SEQUENCES = {b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down"}
_KEYS = {b"\r": "enter", b"\n": "enter", b"\x7f": "back", b"\x08": "back", b"\x1b": "back"}


def has_colours() -> bool:
    """By NO_COLOR (any text in it: none) and TERM."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM", "") not in ("", "dumb", "vt100", "vt220")


def keys(pressed: bytes) -> list[str]:
    """The keys in what was read: up, down, enter, back, or the character itself. Unknown sequences are none."""
    found = []
    while pressed:
        if pressed[:3] in _SEQUENCES:
            found.append(_SEQUENCES[pressed[:3]])
            pressed = pressed[3:]
        elif pressed[:2] in (b"\x1b[", b"\x1bO"):
            end = next((at for at in range(2, len(pressed)) if 0x40 <= pressed[at] <= 0x7E), len(pressed))
            pressed = pressed[end + 1:]
        else:
            found.append(_KEYS.get(pressed[:1]) or pressed[:1].decode("ascii", "replace"))
            pressed = pressed[1:]
    return found


class Terminal:
    """``with Terminal() as terminal``: the user's terminal, until the block ends, by whatever end (SIGTERM too)."""

    def __init__(self) -> None:
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._styles = _STYLES if has_colours() else _PLAIN
        self._before: list[Any] = []
        self._handler: Any = None
        self._drawn: tuple[object, ...] | None = None

    def __enter__(self) -> Terminal:
        self._before = termios.tcgetattr(self._in)
        self._handler = signal.signal(signal.SIGTERM, _end)
        try:
            tty.setcbreak(self._in)  # Ctrl-C goes on to interrupt
            self._write(_TAKE)
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _restore(self) -> None:
        try:
            self._write(_GIVE)
        finally:
            termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)
            signal.signal(signal.SIGTERM, self._handler)

    def size(self) -> tuple[int, int]:
        """Columns and lines, now; 80 x 24 of a terminal that does not know, such as a serial line."""
        found = os.get_terminal_size(self._out)
        return found.columns or 80, found.lines or 24

    def pressed(self, wait: float) -> list[str] | None:
        """The keys of the next ``wait`` seconds; ``None``: nobody is at the keyboard any more."""
        if not select.select([self._in], [], [], wait)[0]:
            return []
        try:
            read = os.read(self._in, 64)
        except OSError:  # the terminal was closed
            return None
        return keys(read) if read else None

    def draw(self, lines: Sequence[Line]) -> None:
        """Show these lines, if anything has changed."""
        shown = (self.size(), *lines)
        if shown == self._drawn:
            return
        self._drawn = shown
        self._write("\x1b[H" + "\r\n".join(f"{self._styles[line.style]}{line.text}\x1b[0m\x1b[K" for line in lines) + "\x1b[J")

    def _write(self, text: str) -> None:
        data = text.encode(sys.stdout.encoding or "ascii", "replace")
        while data:
            data = data[os.write(self._out, data):]


def _end(number: int, frame: FrameType | None) -> None:
    """As the shell would say it, through every ``finally``."""
    raise SystemExit(128 + number)
