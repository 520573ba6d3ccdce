"""The awaiting loop: performs the steps of a call in this task, under asyncio or trio."""

from __future__ import annotations

from typing import Protocol

from resilmesh.clock import Lend
from resilmesh.engine.call import RAISE, RETURN, SEND, SLEEP, WAIT, Call, Step
from resilmesh.engine.verdict import Answer


class AsyncExchange(Protocol):
    """What an adapter lends to the loop: how one attempt is made."""

    async def send(self, call: Call) -> Answer:
        """Make the attempt and classify its outcome. Raises nothing but what must end the call (BaseException)."""

    async def set_aside(self) -> None:
        """Before a backoff: keep what may still have to be returned, and free what the attempt holds."""


class Waits(Protocol):
    """What the loop needs of a ``Clock``."""

    def monotonic(self) -> float: ...

    async def sleep_async(self, seconds: float) -> None: ...

    async def wait_async(self, lend: Lend, seconds: float) -> None: ...


async def run(call: Call, exchange: AsyncExchange, clock: Waits) -> Step:
    """Run a call to RETURN or RAISE. Whatever is raised in between abandons it."""
    try:
        step = call.start(clock.monotonic())
    except BaseException:  # a KeyboardInterrupt: the engine itself raises nothing
        call.abandon(clock.monotonic())
        raise
    return await proceed(call, step, exchange, clock)


async def proceed(call: Call, step: Step, exchange: AsyncExchange, clock: Waits) -> Step:
    """Go on from ``step``."""
    try:
        while True:
            if step is SEND:
                answer = await exchange.send(call)
                step = call.answered(clock.monotonic(), call.number, answer)
                if step is SLEEP:
                    await exchange.set_aside()
            elif step is RETURN or step is RAISE:
                return step
            else:
                step = await pause(call, step, clock)
    except BaseException:
        call.abandon(clock.monotonic())
        raise


async def start(call: Call, clock: Waits) -> Step:
    """Start a call and do all its waiting, until it may be served (SEND) or may not (RAISE). Whatever is raised in between abandons it."""
    try:
        step = call.start(clock.monotonic())
        while step is SLEEP or step is WAIT:
            step = await pause(call, step, clock)
    except BaseException:
        call.abandon(clock.monotonic())
        raise
    return step


async def pause(call: Call, step: Step, clock: Waits) -> Step:
    """Do the waiting that SLEEP or WAIT asks for."""
    remaining = call.wake_at - clock.monotonic()
    if step is WAIT:
        await clock.wait_async(call.lend, max(0.0, remaining))
    elif remaining > 0:
        await clock.sleep_async(remaining)
    return call.woke(clock.monotonic())
