"""The deadline that a call inherits: whoever is called within a call gets no more time than is left of it."""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from resilmesh.drive.system import SYSTEM
from resilmesh.engine.plan import INFINITY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Token

    from resilmesh.clock import Clock

#: Absolute, in seconds of the monotonic clock; ``inf``: none.
DEADLINE: ContextVar[float] = ContextVar("resilmesh.deadline", default=INFINITY)


def deadline() -> float:
    """The absolute deadline of the calls made here, in monotonic seconds; ``inf`` when there is none."""
    return DEADLINE.get()


@contextmanager
def within(seconds: float, clock: Clock = SYSTEM) -> Iterator[float]:
    """Give everything that is called in this block ``seconds`` at most; an outer deadline that is sooner stays.

    Gives the absolute deadline. Works in sync code and in async code, and for every mesh of the process. Raises
    ``TypeError`` for what is no number.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or math.isnan(seconds):
        raise TypeError(f"a deadline is a number of seconds, not {seconds!r}")
    until = min(DEADLINE.get(), clock.monotonic() + seconds)
    token = DEADLINE.set(until)
    try:
        yield until
    finally:
        DEADLINE.reset(token)


def unset(token: Token[float]) -> None:
    """Undo a ``DEADLINE.set``; a coroutine that the garbage collector closes runs in somebody else's context, where nothing is to undo."""
    try:  # noqa: SIM105  # a context manager would cost more than all of this
        DEADLINE.reset(token)
    except ValueError:
        pass
