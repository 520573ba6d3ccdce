"""The blocking loop: performs the steps of a call on this thread."""

from __future__ import annotations

from typing import Protocol

from resilmesh.clock import Lend
from resilmesh.engine.call import RAISE, RETURN, SEND, SLEEP, WAIT, Call, Step
from resilmesh.engine.verdict import Answer


class Exchange(Protocol):
    """What an adapter lends to the loop: how one attempt is made."""

    def send(self, call: Call) -> Answer:
        """Make the attempt and classify its outcome. Raises nothing but what must end the call (BaseException)."""

    def set_aside(self) -> None:
        """Before a backoff: keep what may still have to be returned, and free what the attempt holds."""


class Waits(Protocol):
    """What the loop needs of a ``Clock``."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...

    def wait(self, lend: Lend, seconds: float) -> None: ...


def run(call: Call, exchange: Exchange, clock: Waits) -> Step:
    """Run a call to RETURN or RAISE. Whatever is raised in between abandons it."""
    try:
        step = call.start(clock.monotonic())
    except BaseException:  # a KeyboardInterrupt: the engine itself raises nothing
        call.abandon(clock.monotonic())
        raise
    return proceed(call, step, exchange, clock)


def proceed(call: Call, step: Step, exchange: Exchange, clock: Waits) -> Step:
    """Go on from ``step``."""
    try:
        while True:
            if step is SEND:
                answer = exchange.send(call)
                step = call.answered(clock.monotonic(), call.number, answer)
                if step is SLEEP:
                    exchange.set_aside()
            elif step is RETURN or step is RAISE:
                return step
            else:
                step = pause(call, step, clock)
    except BaseException:
        call.abandon(clock.monotonic())
        raise


def start(call: Call, clock: Waits) -> Step:
    """Start a call and do all its waiting, until it may be served (SEND) or may not (RAISE). Whatever is raised in between abandons it."""
    try:
        step = call.start(clock.monotonic())
        while step is SLEEP or step is WAIT:
            step = pause(call, step, clock)
    except BaseException:
        call.abandon(clock.monotonic())
        raise
    return step


def pause(call: Call, step: Step, clock: Waits) -> Step:
    """Do the waiting that SLEEP or WAIT asks for."""
    remaining = call.wake_at - clock.monotonic()
    if step is WAIT:
        clock.wait(call.lend, max(0.0, remaining))
    elif remaining > 0:
        clock.sleep(remaining)
    return call.woke(clock.monotonic())
