"""``for attempt in mesh.attempts("ledger"): with attempt: ...``: a policy around a block of code.

The block runs once per attempt. An exception that is to be retried is swallowed by its ``with`` and the loop goes
on; any other leaves it. The loop ends after the attempt that did not raise.
"""

from __future__ import annotations

import sys
import warnings
from typing import TYPE_CHECKING

from resilmesh.drive.context import DEADLINE, unset
from resilmesh.drive.exchange import Outcome
from resilmesh.engine.call import RAISE, RETURN, SEND, SLEEP, WAIT, Call, Step
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import OK

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextvars import Token
    from types import TracebackType

    from resilmesh.clock import Limit
    from resilmesh.drive.guard import Guard


class Attempt:
    """One run of the block: ``with attempt:``, or ``async with attempt:``, which is the same."""

    __slots__ = ("_call", "_guard", "_interruptible", "_limit", "_outcome", "_step", "_token", "error", "number")

    def __init__(self, guard: Guard, call: Call | None, outcome: Outcome, *, interruptible: bool) -> None:
        self._guard = guard
        self._call = call
        self._outcome = outcome
        self._interruptible = interruptible
        self._limit: Limit | None = None
        self._token: Token[float] | None = None
        self._step: Step | None = None
        #: Counts from 1.
        self.number = 1 if call is None else call.number
        #: What the block raised, if it is run again because of that.
        self.error: BaseException | None = None

    def __enter__(self) -> Attempt:
        call = self._call
        if call is not None:
            outer = DEADLINE.get()
            try:
                self._token = DEADLINE.set(call.deadline)
                if self._interruptible and call.headers_by != INFINITY:
                    self._limit = self._guard.source.clock.limit(call.headers_by - self._guard.now())
            except BaseException:  # a KeyboardInterrupt: there will be no __exit__
                DEADLINE.set(outer)
                raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        call = self._call
        if call is None:
            self._step = RETURN
            return False
        if self._token is not None:
            unset(self._token)
        if error is None:
            if self._limit is not None:
                self._limit.stop(None)
            self._outcome.forget()
            self._step = call.answered(self._guard.now(), call.number, OK)
            return False
        self._step = self._failed(call, error)
        if self._step is SLEEP:
            self.error = self._outcome.last
            return True
        try:
            self._outcome.give(call, self._step, error)
            return False
        finally:
            del error  # no cycle through the traceback

    def _failed(self, call: Call, error: BaseException) -> Step:
        """The block raised."""
        answer = self._outcome.raised(call, error, self._limit)
        if answer is None:
            call.abandon(self._guard.now())
            return RETURN
        return self._outcome.answer(call, answer)

    async def __aenter__(self) -> Attempt:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        return self.__exit__(kind, error, trace)

    @property
    def step(self) -> Step:
        """What the engine wants after the block has ended."""
        if self._step is None:
            raise RuntimeError("an attempt was not entered: write `with attempt:` around the work, in the loop")
        return self._step


class Attempts:
    """The attempts of one call; iterate over it with ``for`` or ``async for``. May be iterated again for another call."""

    __slots__ = ("_guard",)

    def __init__(self, guard: Guard) -> None:
        if guard.fallback is not None:
            raise TypeError("there is no fallback= for a block of code: catch the exception, or guard a function")
        self._guard = guard

    def __iter__(self) -> Iterator[Attempt]:
        return _Loop(self._guard, interruptible=False)

    def __aiter__(self) -> AsyncIterator[Attempt]:
        return _Loop(self._guard, interruptible=True)


class _Loop:
    """One call. No generator: a loop that is left early would have to be closed, and trio warns of an asynchronous one."""

    __slots__ = ("_attempt", "_call", "_ended", "_guard", "_interruptible", "_outcome")

    def __init__(self, guard: Guard, *, interruptible: bool) -> None:
        self._call: Call | None = None
        self._guard = guard
        self._interruptible = interruptible
        self._attempt: Attempt | None = None
        self._outcome = Outcome(guard)
        self._ended = False

    def __iter__(self) -> _Loop:
        return self

    def __aiter__(self) -> _Loop:
        return self

    def __next__(self) -> Attempt:
        clock = self._guard.source.clock
        try:
            step = self._go_on()
            if step is SLEEP or step is WAIT:
                _warn_if_it_blocks_a_loop()
            while self._call is not None and (step is SLEEP or step is WAIT):
                remaining = self._call.wake_at - clock.monotonic()
                if step is WAIT:
                    clock.wait(self._call.lend, max(0.0, remaining))
                elif remaining > 0:
                    clock.sleep(remaining)
                step = self._settle(self._call, self._call.woke(clock.monotonic()))
        except BaseException:
            self._abandon()
            raise
        if step is RETURN:
            raise StopIteration
        return self._next()

    async def __anext__(self) -> Attempt:
        clock = self._guard.source.clock
        try:
            step = self._go_on()
            while self._call is not None and (step is SLEEP or step is WAIT):
                remaining = self._call.wake_at - clock.monotonic()
                if step is WAIT:
                    await clock.wait_async(self._call.lend, max(0.0, remaining))
                elif remaining > 0:
                    await clock.sleep_async(remaining)
                step = self._settle(self._call, self._call.woke(clock.monotonic()))
        except BaseException:
            self._abandon()
            raise
        if step is RETURN:
            raise StopAsyncIteration
        return self._next()

    def _go_on(self) -> Step:
        """The first step of the call, or the one that its last attempt has led to; RETURN ends the loop."""
        attempt, self._attempt = self._attempt, None
        if self._ended:
            return RETURN
        if attempt is None:
            self._call = self._guard.call()
            return SEND if self._call is None else self._settle(self._call, self._call.start(self._guard.now()))
        step = attempt.step
        if step is RETURN or self._call is None:
            self._ended = True
            return RETURN
        return self._settle(self._call, step)

    def _settle(self, call: Call, step: Step) -> Step:
        """Answer in the block's place where a fault of attempt scope does, and raise what is left when no attempt is."""
        while step is SEND and call.injected is not None:
            step = self._outcome.answer(call, self._outcome.injected(call))
        if step is RETURN or step is RAISE:
            self._outcome.give(call, step)
        return step

    def _next(self) -> Attempt:
        self._attempt = attempt = Attempt(self._guard, self._call, self._outcome, interruptible=self._interruptible)
        return attempt

    def _abandon(self) -> None:
        self._ended = True
        if self._call is not None:
            self._call.abandon(self._guard.now())

    def __del__(self) -> None:
        call = getattr(self, "_call", None)  # an interrupt may have come before there was one
        if call is not None and not call.over:
            call.orphan()


def _warn_if_it_blocks_a_loop() -> None:
    """``for`` where ``async for`` was meant works, until it has to wait. It goes on then: the retry is right, only its wait is not."""
    if "asyncio" not in sys.modules and "trio" not in sys.modules:
        return
    from resilmesh.drive.runtime import in_event_loop

    if in_event_loop():
        warnings.warn(
            "`for` over mesh.attempts() blocks the event loop while it waits: write `async for`", RuntimeWarning, stacklevel=3,
        )
