"""``for attempt in mesh.attempts("ledger"): with attempt: ...``: a policy around a block of code.

The block runs once per attempt. An exception that is to be retried is swallowed by its ``with`` and the loop goes
on; any other leaves it. The loop ends after the attempt that did not raise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilmesh.drive.context import DEADLINE
from resilmesh.engine.call import RAISE, RETURN, SEND, SLEEP, WAIT, Call, Step
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import OK, Answer, Verdict, mask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextvars import Token
    from types import TracebackType

    from resilmesh.drive.guard import Guard
    from resilmesh.drive.runtime import Limit

_TIMED_OUT = Answer(Verdict.FAILURE, mask("5xx", "gateway-error", "reset"), timed_out=True)


class Attempt:
    """One run of the block: ``with attempt:``, or ``async with attempt:``, which is the same."""

    __slots__ = ("_call", "_guard", "_interruptible", "_limit", "_step", "_token", "error", "number")

    def __init__(self, guard: Guard, call: Call | None, *, interruptible: bool) -> None:
        self._guard = guard
        self._call = call
        self._interruptible = interruptible
        self._limit: Limit | None = None
        self._token: Token[float] | None = None
        self._step: Step | None = None
        #: Counts from 1.
        self.number = 1 if call is None else call.number
        #: What the block raised.
        self.error: BaseException | None = None

    def __enter__(self) -> Attempt:
        call = self._call
        if call is not None:
            self._token = DEADLINE.set(call.deadline)
            if self._interruptible and call.headers_by != INFINITY:
                from resilmesh.drive.runtime import limit

                self._limit = limit(call.headers_by - self._guard.source.clock.monotonic())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self.error = error
        call = self._call
        if call is None:
            self._step = RETURN
            return False
        if self._token is not None:
            DEADLINE.reset(self._token)
        timed_out = self._limit is not None and self._limit.stop(error)
        answer = _TIMED_OUT if timed_out else OK if error is None else self._guard.of_error(error)
        now = self._guard.source.clock.monotonic()
        if answer is None:
            call.abandon(now)
            self._step = RETURN
            return False
        self._step = call.answered(now, call.number, answer)
        if self._step is RAISE:
            assert call.error is not None
            raise call.error from error
        return self._step is SLEEP and error is not None

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
        self._guard = guard

    def __iter__(self) -> Iterator[Attempt]:
        guard, clock = self._guard, self._guard.source.clock
        call = guard.call()
        if call is None:
            yield Attempt(guard, None, interruptible=False)
            return
        last: BaseException | None = None
        try:
            step = call.start(clock.monotonic())
            while True:
                if step is SEND and call.injected is None:
                    attempt = Attempt(guard, call, interruptible=False)
                    yield attempt
                    step, last = attempt.step, attempt.error
                    if step is RETURN:
                        return
                elif step is SEND:
                    step, last = self._inject(call)
                elif step is RETURN or step is RAISE:
                    raise _final(call, step, last)
                else:
                    remaining = call.wake_at - clock.monotonic()
                    if step is WAIT:
                        clock.wait(call.lend, max(0.0, remaining))
                    elif remaining > 0:
                        clock.sleep(remaining)
                    step = call.woke(clock.monotonic())
        finally:
            call.abandon(clock.monotonic())

    async def __aiter__(self) -> AsyncIterator[Attempt]:
        guard, clock = self._guard, self._guard.source.clock
        call = guard.call()
        if call is None:
            yield Attempt(guard, None, interruptible=False)
            return
        last: BaseException | None = None
        try:
            step = call.start(clock.monotonic())
            while True:
                if step is SEND and call.injected is None:
                    attempt = Attempt(guard, call, interruptible=True)
                    yield attempt
                    step, last = attempt.step, attempt.error
                    if step is RETURN:
                        return
                elif step is SEND:
                    step, last = self._inject(call)
                elif step is RETURN or step is RAISE:
                    raise _final(call, step, last)
                else:
                    remaining = call.wake_at - clock.monotonic()
                    if step is WAIT:
                        await clock.wait_async(call.lend, max(0.0, remaining))
                    elif remaining > 0:
                        await clock.sleep_async(remaining)
                    step = call.woke(clock.monotonic())
        finally:
            call.abandon(clock.monotonic())

    def _inject(self, call: Call) -> tuple[Step, BaseException]:
        """A fault of attempt scope takes the block's place."""
        error, answer = self._guard.of_fault(call)
        return call.answered(self._guard.source.clock.monotonic(), call.number, answer), error


def _final(call: Call, step: Step, last: BaseException | None) -> BaseException:
    """What leaves the loop when no attempt is left to raise it."""
    if step is RETURN and last is not None:
        return last
    assert call.error is not None
    call.error.__cause__ = last
    return call.error
