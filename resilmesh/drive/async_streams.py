"""An asynchronous generator function as a stream: ``streams`` with an ``await`` before each item.

Here the deadline is exact: it ends what the generator awaits. So is ``idleTimeout``, between two items; the first one
has ``perTryTimeout``.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from resilmesh.drive.context import DEADLINE, unset
from resilmesh.drive.exchange import CoroutineExchange
from resilmesh.drive.runtime import in_trio
from resilmesh.drive.streams import OK_STREAMING, Flow, made
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import OK, Answer, Verdict

if TYPE_CHECKING:
    from types import TracebackType

    from resilmesh.drive.guard import Guard
    from resilmesh.engine.call import Call, FallbackReason, Step

log = logging.getLogger("resilmesh")


class AsyncOpening(CoroutineExchange):
    """The attempts of a stream, up to the first item."""

    __slots__ = ("exhausted", "generator", "inside")
    streams = True

    def __init__(self, guard: Guard, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(guard, function, args, kwargs)
        #: As in ``streams.Opening``.
        self.generator: Any = function(*args, **kwargs)
        self.exhausted = False
        self.inside = INFINITY

    async def first_of(self, generator: Any) -> Any:
        try:
            item = await anext(generator)
        except StopAsyncIteration:
            self.generator, self.exhausted = None, True
            return None
        self.generator, self.inside = generator, DEADLINE.get()
        return item

    def returned(self, call: Call, value: Any) -> Answer:
        self._value, self._error = value, None
        return OK if self.exhausted else OK_STREAMING

    async def fall_back(self, call: Call, step: Step, reason: FallbackReason) -> Any:
        """The first item of what the fallback gives in place of the stream."""
        return await self.first_of(_each_of(await super().fall_back(call, step, reason)))


async def _each_of(items: AsyncIterable[Any] | Iterable[Any]) -> AsyncGenerator[Any, Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


class AsyncStream(Flow, AsyncGenerator[Any, Any]):
    """What a guarded asynchronous generator function gives: to be used like an asynchronous generator."""

    __slots__ = ("__weakref__", "_close_later", "_opening")

    def __init__(self, guard: Guard, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._opening = AsyncOpening(guard, function, args, kwargs)
        #: What closes the generator of a stream that was forgotten; ``None``: its runtime does so itself.
        self._close_later: Callable[[AsyncGenerator[Any, Any]], None] | None = None
        super().__init__(guard, self._opening.generator)

    async def __anext__(self) -> Any:
        return await self.asend(None)

    async def asend(self, value: Any) -> Any:
        self._enter("anext")
        try:
            if self._generator is None:
                raise StopAsyncIteration
            if not self._fresh:
                return await self._resume(self._generator.asend, value)
            if value is not None:
                raise TypeError("can't send non-None value to a just-started async generator")
            return await self._open()
        finally:
            self._running = False

    async def athrow(self, kind: Any, value: Any = None, trace: TracebackType | None = None) -> Any:
        error = made(kind, value, trace)
        self._enter("athrow")
        try:
            generator, fresh, self._fresh = self._generator, self._fresh, False
            if generator is None:
                raise error
            if fresh:  # nothing has run, and nothing will
                self._generator = None
                return await generator.athrow(error)
            return await self._resume(generator.athrow, error, thrown=error)
        finally:
            self._running = False
            del error

    async def aclose(self) -> None:
        """End the stream."""
        self._enter("aclose")
        try:
            generator, fresh, self._fresh = self._generator, self._fresh, False
            if generator is None or fresh:
                self._generator = None
                return
            token = DEADLINE.set(self._inside)
            try:
                await generator.aclose()
            except BaseException as error:
                self._fail(error)
                raise
            finally:
                unset(token)
            self._end(Verdict.SUCCESS)
        finally:
            self._running = False

    def _enter(self, method: str) -> None:
        if self._running:
            raise RuntimeError(f"{method}(): asynchronous generator is already running")
        self._running = True

    async def _open(self) -> Any:
        """Make the call, as far as the first item."""
        opening, self._generator = self._opening, None
        del self._opening  # the arguments are not needed any more
        self._close_later = _closer()
        call = self._begin_call()
        if call is None:
            self._generator = opening.generator
            return await self._resume(anext, self._generator)
        try:
            item = await opening.run(call, call.start(self._guard.now()))
        except BaseException:
            call.abandon(self._guard.now())  # which does nothing to a call that is over
            raise
        self._generator, self._inside = opening.generator, opening.inside
        try:
            if opening.exhausted:
                raise StopAsyncIteration
            return item
        finally:
            del item  # as a fallback's value in ``CoroutineExchange``

    async def _resume(self, go_on: Callable[[Any], Awaitable[Any]], value: Any, *, thrown: BaseException | None = None) -> Any:
        """Let the generator run to its next item, as long as there is time."""
        call = self._live()
        if call is None:
            return await self._pass(go_on, value)
        now = self._guard.now()
        if thrown is None and now >= call.deadline:
            await self._cut(call)
        idle = call.plan.idle_timeout if call.plan.mode == "ENFORCE" else None
        waits_idly = idle is not None and now + idle < call.deadline
        until = now + idle if waits_idly and idle is not None else call.deadline
        limited, failure = None, None
        token = DEADLINE.set(self._inside)
        try:
            if until != INFINITY:
                limited = self._guard.source.clock.limit(until - now)
            item = await go_on(value)
        except BaseException as error:
            left = error if limited is None else limited.stop(error)
            if left is None:
                failure = self._cut_off(call, idle=waits_idly)
                raise failure from error
            if isinstance(left, StopAsyncIteration):
                self._end(Verdict.SUCCESS)
            else:
                self._fail(left, thrown)
            if left is not error:
                raise left  # noqa: B904  # it is what the limit left of the error, whose context it is
            raise
        else:
            if limited is not None:
                limited.stop(None)
        finally:
            self._inside = DEADLINE.get()
            unset(token)
            left = failure = thrown = value = None  # no cycle through the traceback
        return item

    async def _pass(self, go_on: Callable[[Any], Awaitable[Any]], value: Any) -> Any:
        """Without a policy: only whether there are more items is of interest."""
        try:
            return await go_on(value)
        except BaseException:
            self._generator = None
            raise

    async def _cut(self, call: Call) -> None:
        """The deadline has passed between two items: let the generator clean up, and say so."""
        generator = self._generator
        try:
            await generator.aclose()
        except Exception as error:
            raise self._cut_off(call) from error
        except BaseException as error:
            self._fail(error)
            raise
        raise self._cut_off(call)

    def __del__(self) -> None:
        self._orphan()
        generator, close_later = getattr(self, "_generator", None), getattr(self, "_close_later", None)
        if generator is not None and close_later is not None and generator.ag_frame is not None:
            close_later(generator)


def _closer() -> Callable[[AsyncGenerator[Any, Any]], None] | None:
    """What closes an asynchronous generator that this task began and then forgot, called from a finalizer.

    ``None``: the event loop does, as asyncio's. trio does so too, but warns of each.
    """
    if not in_trio():
        return None
    import trio

    return partial(_close_in_trio, trio.lowlevel.current_trio_token())


def _close_in_trio(token: Any, generator: AsyncGenerator[Any, Any]) -> None:
    import trio

    with suppress(trio.RunFinishedError):  # which has closed it
        token.run_sync_soon(trio.lowlevel.spawn_system_task, _close_at_once, generator)


async def _close_at_once(generator: AsyncGenerator[Any, Any]) -> None:
    """As trio would: whatever the generator awaits meanwhile is cancelled, so that nobody waits for it."""
    import trio

    try:
        with trio.CancelScope(shield=True) as scope:
            scope.cancel()
            await generator.aclose()
    except BaseException:  # what leaves a system task ends the program
        log.exception("a stream that was forgotten failed when it was closed")
