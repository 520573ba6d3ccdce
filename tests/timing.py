"""How long something takes, on a machine that may stand still for a moment.

A limit that strikes too late does so each time, a machine stalls once. So what took too long raises `Late`, and a test that
fails by it is run again by tests/conftest.py, from its fixtures on, at most twice. It fails if it is late each time, or
anything else is wrong in the run that counts. Too early is an ordinary failure: no machine does that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Late(AssertionError):
    """Something took longer than it may."""


def in_time(seconds: float, most: float, least: float = 0.0) -> None:
    """``seconds`` were taken, and ``least`` to ``most`` may be."""
    assert seconds >= least, f"took only {seconds:.4f} s"
    if seconds > most:
        raise Late(f"took {seconds:.4f} s, more than {most:.4f}")


@contextmanager
def lasts(least: float, most: float) -> Iterator[None]:
    """The block takes ``least`` to ``most`` seconds."""
    began = time.monotonic()
    yield
    in_time(time.monotonic() - began, most, least)
