"""What a call inherits from the call, or the request that is served, within which it is made.

The deadline: whoever is called gets no more time than is left. Whom the request is from. And the headers that tell a trace.
All of it goes where contextvars go: into tasks, into threads of ``asyncio.to_thread``, and nowhere else.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from resilmesh.drive.system import SYSTEM
from resilmesh.engine.plan import INFINITY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextvars import Token

    from resilmesh.clock import Clock
    from resilmesh.identity.gate import Caller

#: Absolute, in seconds of the monotonic clock; ``inf``: none.
DEADLINE: ContextVar[float] = ContextVar("resilmesh.deadline", default=INFINITY)
#: Whom the request is from that is served here.
CALLER: ContextVar[Caller | None] = ContextVar("resilmesh.caller", default=None)
#: Headers of that request that outbound calls have too, unless they have their own.
PASSED_ON: ContextVar[tuple[tuple[str, str], ...]] = ContextVar("resilmesh.passed_on", default=())
#: Which ones they are: W3C Trace Context, W3C Baggage, Envoy's own.
_TRACE_HEADERS = ("traceparent", "tracestate", "baggage", "x-request-id")


def caller() -> Caller | None:
    """Whom the request is from that is being served; ``None``: none is, or its server has no middleware or interceptor of ours."""
    return CALLER.get()


def passed_on(headers: Iterable[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    """Those of a request's headers that ``PASSED_ON`` is to have. Names are in lower case."""
    return tuple((name, value) for name, value in headers if name in _TRACE_HEADERS)


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


def unset(token: Token[Any]) -> None:
    """Undo a ``set``; a coroutine that the garbage collector closes runs in somebody else's context, where nothing is to undo."""
    try:  # noqa: SIM105  # a context manager would cost more than all of this
        token.var.reset(token)
    except ValueError:
        pass
