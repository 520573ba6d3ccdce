"""A generator function as a stream: one call, that ends when the generator ends.

    NEW          nothing has run, and nothing is held
    opening      the first ``next``: attempts, each a generator of its own that is asked for its first item
    COMMITTED    an item has reached the caller: no retry any more; slot and permit stay
    over         exhausted (a success), failed (as judged), closed (a success, like a response that is closed early),
                 left by what the caller threw into it (nobody's fault), or forgotten

What the generator does runs under the call's deadline, which nothing can enforce while it runs: it is looked at before
each item. A stream is no generator but an object with a generator's methods, because it must know whether it was
closed or forgotten: a finalizer takes no lock.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Any

from resilmesh.drive.context import DEADLINE
from resilmesh.drive.exchange import FunctionExchange
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import OK, Answer, Verdict
from resilmesh.errors import DeadlineExceeded
from resilmesh.units import format_duration

if TYPE_CHECKING:
    from types import TracebackType

    from resilmesh.drive.guard import Guard
    from resilmesh.engine.call import Call, FallbackReason, Step

#: The first item of a stream, of which more is to come.
OK_STREAMING = Answer(Verdict.SUCCESS, complete=False)


class Flow:
    """What blocking and awaiting streams share: the call, and how it ends."""

    __slots__ = ("_call", "_fresh", "_generator", "_guard", "_inside", "_outer", "_running")

    def __init__(self, guard: Guard, generator: Any) -> None:
        self._guard = guard
        self._call: Call | None = None
        self._fresh = True
        #: The generator that gives the items; ``None``: there are no more.
        self._generator: Any = generator
        #: The deadline inside of the generator, which may have set one of its own.
        self._inside = self._outer = INFINITY
        self._running = False

    def _begin_call(self) -> Call | None:
        self._fresh = False
        self._outer = DEADLINE.get()
        self._call = call = self._guard.call()
        return call

    def _live(self) -> Call | None:
        """The call while it is in force: not under mode OFF, and not once something else has ended it."""
        call = self._call
        return None if call is None or call.over else call

    def _end(self, verdict: Verdict) -> None:
        """There are no more items."""
        self._generator = None
        call = self._call
        if call is not None:
            call.ended(self._guard.now(), call.number, verdict)

    def _fail(self, error: BaseException, thrown: BaseException | None = None) -> None:
        """The generator let ``error`` out, which may be what the caller threw into it."""
        self._generator = None
        call = self._call
        if call is None:
            return
        if error is thrown:
            self._end(Verdict.IGNORED)
            return
        try:
            answer = self._guard.judge.of_error(error)
        except BaseException:  # a predicate that raises
            call.abandon(self._guard.now())
            raise
        if answer is None:
            call.abandon(self._guard.now())
        else:
            self._end(answer.verdict)

    def _cut_off(self, call: Call, *, idle: bool = False) -> DeadlineExceeded:
        """A limit of time has passed: ends the call, and gives what to raise."""
        inherited = not idle and self._outer <= call.deadline
        self._end(Verdict.IGNORED if inherited else Verdict.FAILURE)
        plan = call.plan
        if idle:
            why = f"no item of the stream within the idleTimeout of {format_duration(plan.idle_timeout or 0)}"
        elif inherited or plan.timeout is None:
            why = "the stream did not end within the deadline that this call inherited"
        else:
            why = f"the stream did not end within the timeout of {format_duration(plan.timeout)}"
        return DeadlineExceeded(why, service=plan.service, route=plan.route, attempts=call.number)

    def _orphan(self) -> None:
        """From a finalizer."""
        call = getattr(self, "_call", None)  # an interrupt may have come before there was one
        if call is not None and not call.over:
            call.orphan()


class Opening(FunctionExchange):
    """The attempts of a stream, up to the first item."""

    __slots__ = ("exhausted", "generator", "inside")
    streams = True

    def __init__(self, guard: Guard, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(guard, function, args, kwargs)
        #: The one that has begun. At first one that never will, so that wrong arguments are said where they are given.
        self.generator: Any = function(*args, **kwargs)
        #: The generator ended without an item.
        self.exhausted = False
        self.inside = INFINITY

    def first_of(self, generator: Any) -> Any:
        try:
            item = next(generator)
        except StopIteration as end:
            self.generator, self.exhausted = None, True
            return end.value
        self.generator, self.inside = generator, DEADLINE.get()
        return item

    def returned(self, call: Call, value: Any) -> Answer:
        self._value, self._error = value, None
        return OK if self.exhausted else OK_STREAMING

    def fall_back(self, call: Call, step: Step, reason: FallbackReason) -> Any:
        """The first item of what the fallback gives in place of the stream."""
        return self.first_of(_each_of(super().fall_back(call, step, reason)))


def _each_of(items: Iterable[Any]) -> Generator[Any, Any, Any]:
    return (yield from items)


class Stream(Flow, Generator[Any, Any, Any]):
    """What a guarded generator function gives: to be iterated, sent to, thrown into and closed like a generator."""

    __slots__ = ("__weakref__", "_opening")

    def __init__(self, guard: Guard, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._opening = Opening(guard, function, args, kwargs)
        super().__init__(guard, self._opening.generator)

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        if self._running:
            raise ValueError("generator already executing")
        self._running = True
        try:
            if self._generator is None:
                raise StopIteration
            if not self._fresh:
                return self._resume(self._generator.send, value)
            if value is not None:
                raise TypeError("can't send non-None value to a just-started generator")
            return self._open()
        finally:
            self._running = False

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None) -> Any:
        error = made(kind, value, trace)
        if self._running:
            raise ValueError("generator already executing")
        self._running = True
        try:
            generator, fresh, self._fresh = self._generator, self._fresh, False
            if generator is None:
                raise error
            if fresh:  # nothing has run, and nothing will
                self._generator = None
                return generator.throw(error)
            return self._resume(generator.throw, error, thrown=error)
        finally:
            self._running = False
            del error

    def close(self) -> Any:
        """End the stream. Gives what the generator's own ``close`` gives."""
        if self._running:
            raise ValueError("generator already executing")
        self._running = True
        try:
            generator, fresh, self._fresh = self._generator, self._fresh, False
            if generator is None or fresh:
                self._generator = None
                return None
            outer = DEADLINE.get()
            try:
                DEADLINE.set(self._inside)
                result = generator.close()
            except BaseException as error:
                self._fail(error)
                raise
            finally:
                DEADLINE.set(outer)
            self._end(Verdict.SUCCESS)
            return result
        finally:
            self._running = False

    def _open(self) -> Any:
        """Make the call, as far as the first item."""
        opening, self._generator = self._opening, None
        del self._opening  # the arguments are not needed any more
        call = self._begin_call()
        if call is None:
            self._generator = opening.generator
            return self._resume(next, self._generator)
        try:
            item = opening.run(call, call.start(self._guard.now()))
        except BaseException:
            call.abandon(self._guard.now())  # which does nothing to a call that is over
            raise
        self._generator, self._inside = opening.generator, opening.inside
        try:
            if opening.exhausted:
                raise StopIteration(item)
            return item
        finally:
            del item  # as a fallback's value in ``FunctionExchange``

    def _resume(self, go_on: Callable[[Any], Any], value: Any, *, thrown: BaseException | None = None) -> Any:
        """Let the generator run to its next item."""
        call = self._live()
        if call is not None and thrown is None and self._guard.now() >= call.deadline:
            self._cut(call)
        outer = DEADLINE.get()
        try:
            if call is not None:
                DEADLINE.set(self._inside)
            item = go_on(value)
        except StopIteration:
            self._end(Verdict.SUCCESS)
            raise
        except BaseException as error:
            self._fail(error, thrown)
            raise
        finally:
            if call is not None:
                self._inside = DEADLINE.get()
                DEADLINE.set(outer)
            del thrown, value
        return item

    def _cut(self, call: Call) -> None:
        """The deadline has passed between two items: let the generator clean up, and say so."""
        generator = self._generator
        try:
            generator.close()
        except Exception as error:
            raise self._cut_off(call) from error
        except BaseException as error:
            self._fail(error)
            raise
        raise self._cut_off(call)

    def __del__(self) -> None:
        self._orphan()


def made(kind: Any, value: Any, trace: TracebackType | None) -> BaseException:
    """The exception that ``throw`` is given, of which there are three ways (two of them deprecated)."""
    if isinstance(kind, BaseException):
        if value is not None:
            raise TypeError("instance exception may not have a separate value")
        error = kind
    elif isinstance(kind, type) and issubclass(kind, BaseException):
        error = value if isinstance(value, kind) else kind() if value is None else kind(value)
    else:
        raise TypeError(f"exceptions must be classes or instances deriving from BaseException, not {type(kind).__name__}")
    return error if trace is None else error.with_traceback(trace)
