"""The attempts of a function: how each is made, what it came to, and what the caller gets in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resilmesh.drive import aio, sync
from resilmesh.drive.context import DEADLINE, unset
from resilmesh.drive.judging import TIMED_OUT, of_fault
from resilmesh.engine.call import RAISE, RETURN, Call, FallbackReason, Step
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import Answer, Verdict

if TYPE_CHECKING:
    from tenacity import RetryCallState

    from resilmesh.clock import Limit
    from resilmesh.drive.guard import Guard


class Outcome:
    """What the last attempt of a call came to, and what that means."""

    __slots__ = ("_args", "_error", "_function", "_guard", "_kwargs", "_state", "_value")

    def __init__(
        self, guard: Guard, function: Callable[..., Any] | None = None, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None,
    ) -> None:
        self._guard = guard
        self._function: Any = function
        self._args = args
        self._kwargs = {} if kwargs is None else kwargs
        self._value: Any = None
        self._error: BaseException | None = None
        #: What the guard's strategies remember of this call.
        self._state: RetryCallState | None = None

    # ------------------------------------------------------------------------------------- what it means

    def raised(self, call: Call, error: BaseException, limited: Limit | None) -> Answer | None:
        """What an attempt is that raised, which may be a limit's doing; ``None``: the caller is going away."""
        left = error if limited is None else limited.stop(error)
        self._error = error if left is None else left
        answer = TIMED_OUT if left is None else self._guard.judge.of_error(left)
        return answer if answer is None or self._guard.strategies is None else self._ask(call, answer)

    def returned(self, call: Call, value: Any) -> Answer:
        self._value, self._error = value, None
        answer = self._guard.judge.of_result(value)
        return answer if self._guard.strategies is None else self._ask(call, answer)

    def injected(self, call: Call) -> Answer:
        """What an attempt is that a fault answers."""
        self._error, answer = of_fault(call)
        return answer if self._guard.strategies is None else self._ask(call, answer)

    def _ask(self, call: Call, answer: Answer) -> Answer:
        """Have the guard's strategies say what they think of an outcome that could be repeated."""
        strategies = self._guard.strategies
        assert strategies is not None
        if not call.idempotent or call.plan.mode == "OBSERVE" or answer.verdict is Verdict.IGNORED:
            return answer
        if self._state is None:
            self._state = strategies.begin(call, self._function, self._args, self._kwargs)
        shown = call.per_try_error() if answer.timed_out else self._error
        return strategies.decide(self._state, call, self._guard.now(), answer, shown, self._value)

    def answer(self, call: Call, answer: Answer) -> Step:
        """Tell the engine."""
        now = self._guard.now()
        # Our own limit has passed, whatever the clock of a test says.
        return call.answered(max(now, call.headers_by) if answer.timed_out else now, call.number, answer)

    # ----------------------------------------------------------------------------- what the caller gets

    @property
    def last(self) -> BaseException | None:
        """What the last attempt raised, until that is given away."""
        return self._error

    def forget(self) -> None:
        """What the last attempt raised was not the last word."""
        self._error = None

    def give(self, call: Call, step: Step, passing: BaseException | None = None) -> Any:
        """What the call came to, after RETURN or RAISE: the value, or raises the exception, unless it is ``passing`` here already.

        The one place where an error is handed over: neither call nor exchange keeps what is raised, because its
        traceback holds their frames.
        """
        last, self._error = self._error, None
        error = call.take_error(last) if step is RAISE else last
        try:
            if error is None or error is passing:
                return self._value
            raise error
        finally:
            del last, error, passing


class FunctionExchange(Outcome):
    """Attempts of a plain function. It cannot be interrupted: a deadline is looked at between attempts."""

    __slots__ = ()
    #: What the function gives is a generator, and an attempt ends with its first item.
    streams = False

    def failed(self, call: Call, error: BaseException) -> Step | None:
        """The inlined first attempt raised; ``None``: the caller gets that."""
        answer = self.raised(call, error, None)
        return None if answer is None else _unless_passed_on(self._guard, call, self.answer(call, answer))

    def run(self, call: Call, step: Step) -> Any:
        step = sync.proceed(call, step, self, self._guard.source.clock)
        reason = None if self._guard.fallback is None else call.fallback(step)
        return self.give(call, step) if reason is None else self.fall_back(call, step, reason)

    def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call)
        outer, trace = DEADLINE.get(), call.trace
        inside = None if trace is None else trace.runs()
        try:
            DEADLINE.set(call.deadline)
            value = self._function(*self._args, **self._kwargs)
            if self.streams:
                value = self.first_of(value)
        except BaseException as error:
            answer = self.raised(call, error, None)
            if answer is None:
                self._error = None
                raise
            return answer
        finally:
            DEADLINE.set(outer)
            if trace is not None:
                trace.ran(inside)
        return self.returned(call, value)

    def first_of(self, generator: Any) -> Any:
        """The first item of a stream."""
        raise NotImplementedError

    def fall_back(self, call: Call, step: Step, reason: FallbackReason) -> Any:
        """What the guard's fallback makes of the outcome. What it raises has the outcome as its context."""
        fallback: Any = self._guard.fallback
        try:
            outcome = self.give(call, step)
        except BaseException as error:
            value = fallback(error)
        else:
            value = fallback(outcome)
        try:
            call.fell_back(self._guard.now(), reason)
            return value
        finally:
            del value  # it may hold the exception, whose traceback holds this frame: no cycle

    def set_aside(self) -> None:
        """A value or an exception needs no room."""


class CoroutineExchange(Outcome):
    """Attempts of a coroutine function, each ended when its time is over."""

    __slots__ = ()
    #: As in ``FunctionExchange``.
    streams = False

    def failed(self, call: Call, error: BaseException, limited: Limit | None) -> Step | None:
        """The inlined first attempt raised; ``None``: the caller gets that, or what the limit left of it."""
        answer = self.raised(call, error, limited)
        return None if answer is None else _unless_passed_on(self._guard, call, self.answer(call, answer))

    async def run(self, call: Call, step: Step) -> Any:
        step = await aio.proceed(call, step, self, self._guard.source.clock)
        reason = None if self._guard.fallback is None else call.fallback(step)
        return self.give(call, step) if reason is None else await self.fall_back(call, step, reason)

    async def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call)
        token, trace = DEADLINE.set(call.deadline), call.trace
        inside = None if trace is None else trace.runs()
        limited = None
        try:
            if call.headers_by != INFINITY:
                limited = self._guard.source.clock.limit(call.headers_by - self._guard.now())
            value = self._function(*self._args, **self._kwargs)
            value = await (self.first_of(value) if self.streams else value)
        except BaseException as error:
            answer = self.raised(call, error, limited)
            if answer is None:
                self.give(call, RETURN, error)
                raise
            return answer
        else:
            if limited is not None:
                limited.stop(None)
        finally:
            unset(token)
            if trace is not None:
                trace.ran(inside)
        return self.returned(call, value)

    async def first_of(self, generator: Any) -> Any:
        """The first item of a stream."""
        raise NotImplementedError

    async def fall_back(self, call: Call, step: Step, reason: FallbackReason) -> Any:
        """What the guard's fallback makes of the outcome, awaited if it can be."""
        fallback: Any = self._guard.fallback
        try:
            outcome = self.give(call, step)
        except BaseException as error:
            value = fallback(error)
            if hasattr(value, "__await__"):
                value = await value
        else:
            value = fallback(outcome)
            if hasattr(value, "__await__"):
                value = await value
        try:
            call.fell_back(self._guard.now(), reason)
            return value
        finally:
            del value  # as in ``FunctionExchange``

    async def set_aside(self) -> None:
        """A value or an exception needs no room."""


def _unless_passed_on(guard: Guard, call: Call, step: Step) -> Step | None:
    """What comes after a first attempt that raised; ``None``: its exception is the outcome."""
    return None if step is RETURN and (guard.fallback is None or call.fallback(step) is None) else step
