"""Calls of the asynchronous API: those with one response, and those with a stream of them.

    AioPending  the first attempt begins with the call, and what grpc tells when it ends is the end of most calls; only what
                has to wait or to be repeated gets a task, which runs the loop of ``drive.aio``
    AioReader   whoever reads runs the loop, up to the first message; from there on messages are grpc's own

What the user holds (the classes at the end) is not what grpc's callbacks hold, so that a call is cancelled when it is forgotten.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from resilmesh.drive import aio
from resilmesh.engine.call import RAISE, RETURN, SEND, Call, Step
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import OK, Answer, Verdict
from resilmesh_grpc import classify
from resilmesh_grpc.errors import Cancelled
from resilmesh_grpc.exchange import Exchange

if TYPE_CHECKING:
    from resilmesh.clock import Lend

log = logging.getLogger("resilmesh")

_NOTHING: Any = object()


def at_once(coroutine: Coroutine[Any, Any, Any], otherwise: Any) -> Any:
    """The result of a coroutine that has nothing to wait for, as those of a grpc call that is over."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        return result.value
    coroutine.close()
    return otherwise


def status_of(native: Any) -> grpc.aio.AioRpcError:
    """How a grpc call that is over has ended, as the error that it would raise."""
    return grpc.aio.AioRpcError(
        at_once(native.code(), grpc.StatusCode.UNKNOWN), at_once(native.initial_metadata(), grpc.aio.Metadata()),
        at_once(native.trailing_metadata(), grpc.aio.Metadata()), details=at_once(native.details(), ""),
        debug_error_string=at_once(native.debug_error_string(), "") if hasattr(native, "debug_error_string") else "",
    )


#: grpc's tasks that send requests. asyncio holds no task, and tells of one that is collected together with a call that was dropped.
_senders: set[asyncio.Task[None]] = set()


def _release_senders(native: Any) -> None:
    """An attempt is over: whoever sends its requests would wait for ever for its connection, or for the next request.

    grpc leaves them to it (attributes of its own, which a test pins).
    """
    sent, sender = getattr(native, "_metadata_sent", None), getattr(native, "_async_request_poller", None)
    if sent is not None:
        sent.set()
    if sender is not None:
        sender.cancel()


class AioExchange(Exchange):
    """What both kinds of call share: one task at most that drives them, and their end."""

    __slots__ = ("_callbacks", "_sleeper", "_waiters", "cancelled", "failure", "loop", "native", "over", "sent", "task")
    library = "grpc.aio"

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.loop = asyncio.get_running_loop()
        #: grpc's own call, of the attempt that is out or was the last.
        self.native: Any = None
        self.task: asyncio.Task[None] | None = None
        self.over = False
        self.cancelled = False
        #: What is raised in place of the response, or of a further message.
        self.failure: Any = None
        #: Set when an attempt is out, or there will be none; made by who waits for that.
        self.sent: asyncio.Event | None = None
        self._callbacks: list[Callable[[], object]] = []
        self._waiters: asyncio.Future[None] | None = None
        self._sleeper: asyncio.Task[None] | None = None

    # The loop's clock: the mesh's, but a cancellation ends a backoff.

    def monotonic(self) -> float:
        return self.caller.clock.monotonic()

    async def sleep_async(self, seconds: float) -> None:
        self._sleeper = sleeper = self.loop.create_task(self.caller.clock.sleep_async(seconds))
        try:
            await asyncio.wait((sleeper,))
        finally:
            sleeper.cancel()

    async def wait_async(self, lend: Lend, seconds: float) -> None:
        await self.caller.clock.wait_async(lend, seconds)

    def begin_attempt(self, call: Call, ended: Callable[[int, Any], None]) -> Any:
        """Have grpc make the next attempt, and ``ended`` called when it is over."""
        native, arguments = self.prepare(call)
        try:
            self.native = made = native(self.request, **arguments)
        except BaseException:
            self.leave()
            raise
        if self.sent is not None:
            self.sent.set()
        made.add_done_callback(partial(ended, call.number))
        sender = getattr(made, "_async_request_poller", None) if self.method.streams_requests else None
        if sender is not None:
            _senders.add(sender)
            sender.add_done_callback(_senders.discard)
        if self.method.streams_requests:
            made.add_done_callback(_release_senders)
        return made

    async def set_aside(self) -> None:
        """A status needs no room."""

    async def settle(self, step: Step) -> BaseException | None:
        """What the caller gets in place of ``value``, which the fallback may have set."""
        reason = self.falls_back(step)
        error = self.outcome(step)
        try:
            if error is None or reason is None:
                return error
            given = self.stand_in(error)
            if hasattr(given, "__await__"):
                given = await given
            if given is None:
                return error
            self.value = given
            self.call.fell_back(self.monotonic(), reason)
            return None
        finally:
            del error  # whose traceback may hold this frame

    def end(self, failure: Any) -> None:
        """It is over. The first word counts."""
        if self._held is not None:
            self.leave()
        if self.over:
            return
        self.over, self.failure = True, failure
        if self.sent is not None:
            self.sent.set()
        if self._waiters is not None and not self._waiters.done():
            self._waiters.set_result(None)
        if self._callbacks:
            self._call_back()

    def _call_back(self) -> None:
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("a callback of a call failed")

    async def wait_over(self) -> None:
        """Until it is over."""
        if self.over:
            return
        if self._waiters is None:
            self._waiters = self.loop.create_future()
        await asyncio.shield(self._waiters)

    def when_done(self, callback: Callable[[], object]) -> None:
        """Have ``callback`` called when it is over."""
        if self.over:
            callback()
        else:
            self._callbacks.append(callback)

    def cancel(self) -> bool:
        """End it, unless it is over."""
        if self.over:
            return False
        self.cancelled = True
        native, task = self.native, self.task
        self.abandon()
        if native is not None:
            native.cancel()
        if self._sleeper is not None:
            self._sleeper.cancel()
        if task is not None:
            task.cancel()
        self.end(Cancelled())
        return True

    def forget(self) -> None:
        """From a finalizer: who held it is gone."""
        if self.over:
            return
        self.over = True
        self.call.orphan()
        native, self.native = self.native, None  # grpc cancels what is forgotten, but not the task that sends its requests
        if self.loop.is_closed():
            return
        if native is not None and self.method.streams_requests:
            self.loop.call_soon_threadsafe(native.cancel)
        if self.task is not None:
            self.loop.call_soon_threadsafe(self.task.cancel)

    def last(self) -> Any:
        """How it ended, after its end."""
        return status_of(self.native) if self.failure is None else self.failure

    async def on_its_way(self) -> None:
        """Until an attempt is out, or there will be none."""
        if self.native is not None or self.over:
            return
        if self.sent is None:
            self.sent = asyncio.Event()
        await self.sent.wait()

    async def connection(self) -> None:
        """Until an attempt has a connection, or there will be none: one that fails to get it may be repeated."""
        while True:
            await self.on_its_way()
            native = self.native
            if native is None or self.over:
                return
            try:
                await native.wait_for_connection()
            except grpc.aio.AioRpcError:
                while self.native is native and not self.over:
                    self.sent = asyncio.Event() if self.sent is None or self.sent.is_set() else self.sent
                    await self.sent.wait()
            else:
                return

    # ------------------------------------------------------------------------------------------- writing

    async def write(self, message: Any) -> None:
        """Send one message more. Raises what the call ended in."""
        native = await self._writable()
        try:
            await native.write(message)
        except grpc.aio.AioRpcError as error:
            raise (error if self.failure is None else self.failure) from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self.cancelled or (task is not None and task.cancelling()):
                raise
            await self.wait_over()  # it was a time-out of ours that cancelled the attempt
            raise (asyncio.CancelledError() if self.failure is None else self.failure) from None

    async def done_writing(self) -> None:
        """There is nothing more to send."""
        await self.on_its_way()
        if self.native is not None and not self.over:
            with suppress(grpc.aio.InternalError):  # the call is over, of which whoever reads learns
                await self.native.done_writing()

    async def _writable(self) -> Any:
        await self.on_its_way()
        if self.cancelled:
            raise asyncio.CancelledError
        if self.native is None:
            raise self.failure
        return self.native


class AioPending(AioExchange):
    """A call with one response."""

    __slots__ = ()

    def begin(self) -> None:
        """Make the first attempt, or see to it that it is made."""
        call = self.call
        self.value = _NOTHING
        step = call.start(self.caller.clock.monotonic())
        if step is not SEND or call.injected is not None:
            self.task = self.loop.create_task(self.drive(step))
            return
        try:
            self.begin_attempt(call, self._ended)
        except BaseException:
            self.abandon()
            raise

    def _ended(self, number: int, native: Any) -> None:
        """grpc says that the first attempt is over. Its response is not there yet, but its status is."""
        self.leave()
        call = self.call
        if self.over or self.task is not None or number != call.number:
            return
        if at_once(native.code(), None) is grpc.StatusCode.OK:
            answer = self._success(native) if self.reads_metadata else OK
        elif native.cancelled():
            self.abandon()
            self.end(Cancelled())
            return
        else:
            answer = self.failed(status_of(native))
        step = call.answered(self.caller.clock.monotonic(), number, answer)
        if step is RETURN and self.error is None:
            self.end(None)
        elif (step is RETURN or step is RAISE) and self.caller.fallback is None:
            self.end(self.outcome(step))
        else:
            self.task = self.loop.create_task(self.drive(step))

    async def drive(self, step: Step) -> None:
        """Run the loop, in a task."""
        try:
            failure = await self.settle(await aio.proceed(self.call, step, self, self))
        except asyncio.CancelledError:
            failure = Cancelled()
        except BaseException as error:  # of the fallback, or of a channel that was closed
            failure = error
        self.end(failure)

    async def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call)
        native = self.begin_attempt(call, lambda number, native: self.leave())
        try:
            self.value = await native
        except grpc.aio.AioRpcError as error:
            return self.failed(error)
        return self._success(native) if self.reads_metadata else OK

    def _success(self, native: Any) -> Answer:
        status = status_of(native)
        return self.succeeded(status.initial_metadata(), status.trailing_metadata())

    async def response(self, held: object) -> Any:
        """The response. Raises what the call ended in; cancelled while it waits, the call is cancelled.

        ``held``: what the user holds of this call, which must not be forgotten while somebody waits.
        """
        try:
            if self.task is None and self.value is _NOTHING and self.failure is None:
                try:
                    value = await self.native
                except grpc.aio.AioRpcError:
                    pass  # judged when grpc told of it
                else:
                    if self.task is None:
                        return value
            await self.wait_over()
        except asyncio.CancelledError:
            self.cancel()
            raise
        if isinstance(self.failure, Cancelled):
            raise asyncio.CancelledError
        if self.failure is not None:
            raise self.failure
        return self.value

    async def initial_metadata(self) -> Any:
        """What the service sent first, of the attempt that counts."""
        native = self.native
        if native is not None and self.task is None:
            found = await native.initial_metadata()
            if self.task is None and self.failure is None:
                return found
        await self.wait_over()
        return self.last().initial_metadata()


class AioReader(AioExchange):
    """A call with a stream of responses."""

    __slots__ = (
        "_by_metadata", "_dialled", "_first", "_idle", "_opening", "_reading_since", "_step", "_struck", "_timer", "opened", "stand_ins",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: The loop has run: the stream flows, or is over.
        self.opened = False
        #: What the fallback gave in place of messages.
        self.stand_ins: Any = None
        self._first: Any = _NOTHING
        self._opening: asyncio.Future[None] | None = None
        self._by_metadata = False
        self._dialled = 0
        self._step: Step = SEND
        self._timer: asyncio.TimerHandle | None = None
        #: The attempt that we cancelled at its time.
        self._struck: Any = None
        self._idle = False
        self._reading_since = INFINITY

    # ------------------------------------------------------------------------------------------- opening

    def begin(self) -> None:
        """Make the first attempt, or see to it that it is made."""
        call = self.call
        self._step = step = call.start(self.monotonic())
        if step is not SEND:
            self.open_alone()
        elif call.injected is None:
            try:
                self.dial(call)
            except BaseException:
                self.abandon()
                raise

    def open_alone(self) -> None:
        """Run the loop in a task: nobody reads, or not yet."""
        self.task = self.loop.create_task(self._open_quietly())

    async def _open_quietly(self) -> None:
        try:
            await self.open()
        except asyncio.CancelledError:
            self.end(Cancelled())
        except BaseException as error:  # of the fallback, or of a channel that was closed
            self.end(error)

    async def open(self, *, by_metadata: bool = False) -> None:
        """Run the call up to its first message, or to its end; ``by_metadata``: up to the service's initial metadata."""
        while self._opening is not None and not self.opened:
            await asyncio.shield(self._opening)
        if self.opened or self.over:
            return
        self._opening = self.loop.create_future()
        self._by_metadata = by_metadata
        try:
            step = await aio.proceed(self.call, self._step, self, self)
            if step is not RETURN or self.error is not None or self.call.over:
                self.end(await self._settled(step))
        except BaseException:
            self.end(Cancelled())
            raise
        finally:
            self.opened = True
            self._opening.set_result(None)

    async def _settled(self, step: Step) -> BaseException | None:
        if self.cancelled:
            return Cancelled()
        self.value = None
        failure = await self.settle(step)
        if failure is None and self.value is not None:
            self.stand_ins = aiter(self.value) if hasattr(self.value, "__aiter__") else iter(self.value)
        return failure

    async def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call)
        native = None
        try:
            if self._dialled != call.number:
                await self.dial_later(call)
            native = self.native
            found = await self._first_of(native)
        except grpc.aio.AioRpcError as error:
            self._attempt_over()
            return self.failed(error)
        except asyncio.CancelledError:
            self._attempt_over()
            task = asyncio.current_task()
            if native is not None and self._struck is native and not (task is not None and task.cancelling()):
                return self.failed(Cancelled(), struck=True)
            raise
        if found is grpc.aio.EOF:
            self._attempt_over()
            status = status_of(native)
            return self.succeeded(status.initial_metadata(), status.trailing_metadata())
        self._first = found
        self.until = call.deadline
        self._stop_timer()
        idle = self.plan.idle_timeout
        if idle is not None and self.plan.mode == "ENFORCE":
            self._timer = self.loop.call_later(idle, self._look_idle)
        return classify.COMMITTED

    async def _first_of(self, native: Any) -> Any:
        if not self._by_metadata:
            return await native.read()
        await native.initial_metadata()
        if native.done() and (status := status_of(native)).code() is not grpc.StatusCode.OK:
            raise status
        return _NOTHING

    async def dial_later(self, call: Call) -> None:
        """Begin an attempt that is not the first."""
        self.dial(call)

    def dial(self, call: Call) -> None:
        """Begin an attempt."""
        native = self.begin_attempt(call, self.terminated)
        self.dialled(call, native)

    def dialled(self, call: Call, native: Any) -> None:
        """An attempt is out: its time runs."""
        self._dialled = call.number
        if self.until < call.deadline:
            self._timer = self.loop.call_later(max(0.0, self.until - self.monotonic()), self._strike, native)

    def _strike(self, native: Any) -> None:
        self._struck = native
        native.cancel()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def _attempt_over(self) -> None:
        self._stop_timer()
        self.leave()

    def end(self, failure: Any) -> None:
        self._stop_timer()
        self.opened = True
        super().end(failure)

    # ------------------------------------------------------------------------------------------- flowing

    async def next(self) -> Any:
        """The next message, or ``grpc.aio.EOF``. Raises what the stream ended in."""
        if not self.opened:
            await self.open()
        if self._first is not _NOTHING:
            first, self._first = self._first, _NOTHING
            return first
        if self.stand_ins is not None:
            return await self._stand_in()
        if self.over:
            return self._at_end()
        self._reading_since = INFINITY if self._timer is None else self.monotonic()
        try:
            message = await self.native.read()
        except grpc.aio.AioRpcError:
            message = grpc.aio.EOF
        except asyncio.CancelledError:
            if not self._idle:
                self.cancel()
                raise
            message = grpc.aio.EOF
        finally:
            self._reading_since = INFINITY
        if message is not grpc.aio.EOF:
            return message
        self.ended()
        return self._at_end()

    async def _stand_in(self) -> Any:
        if hasattr(self.stand_ins, "__anext__"):
            return await anext(self.stand_ins, grpc.aio.EOF)
        return next(self.stand_ins, grpc.aio.EOF)

    def _at_end(self) -> Any:
        if isinstance(self.failure, Cancelled):
            raise asyncio.CancelledError
        if self.failure is not None:
            raise self.failure
        return grpc.aio.EOF

    def _look_idle(self) -> None:
        """Whether a reader waits too long by now."""
        idle, since = self.plan.idle_timeout, self._reading_since
        if idle is None or self.over:
            return
        left = idle if since == INFINITY else since + idle - self.monotonic()
        if left > 0:
            self._timer = self.loop.call_later(left, self._look_idle)
            return
        self._idle = True
        self.native.cancel()

    def terminated(self, number: int, native: Any) -> None:
        """grpc says that an attempt is over."""
        if self.over or number != self.call.number or native is not self.native:
            return
        if self.opened:
            self.ended()
        elif self._opening is None and self.task is None:
            self.open_alone()  # nobody reads: judge it now, so that nothing is held for a caller who only waits for the end

    def ended(self) -> None:
        """The stream that flowed is over; asked again, nothing happens."""
        if self.over:
            return
        call, native = self.call, self.native
        status = status_of(native)
        failure: Any = None
        if self._idle:
            failure = self.idled()
            call.ended(self.monotonic(), call.number, Verdict.FAILURE)
        elif native.cancelled():
            self.abandon()
            failure = Cancelled()
        elif status.code() is grpc.StatusCode.OK:
            call.ended(self.monotonic(), call.number, self.succeeded(status.initial_metadata(), status.trailing_metadata()).verdict)
        else:
            verdict = self.verdict_of(status)
            failure = self.cut() if self.timed_out else status
            call.ended(self.monotonic(), call.number, verdict, None if self.timed_out else status.code().name)
        self.error = None
        self.end(failure)

    async def initial_metadata(self) -> Any:
        """What the service sent before its first message. To ask for it is to commit the call: it is not repeated any more."""
        await self.open(by_metadata=True)
        if self.over:
            return self.last().initial_metadata()
        return await self.native.initial_metadata()


# ---------------------------------------------------------------------------------------- what the user holds


class _Held:
    """What every call of ``grpc.aio`` has."""

    def __init__(self, exchange: Any) -> None:
        self._exchange = exchange

    def cancelled(self) -> bool:
        return isinstance(self._exchange.failure, Cancelled)

    def done(self) -> bool:
        return bool(self._exchange.over)

    def time_remaining(self) -> float | None:
        deadline = self._exchange.call.deadline
        return None if deadline == INFINITY else max(0.0, deadline - self._exchange.monotonic())

    def cancel(self) -> bool:
        return bool(self._exchange.cancel())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._exchange.when_done(partial(callback, self))

    async def initial_metadata(self) -> Any:
        return await self._exchange.initial_metadata()

    async def trailing_metadata(self) -> Any:
        await self._exchange.wait_over()
        return self._exchange.last().trailing_metadata()

    async def code(self) -> grpc.StatusCode:
        await self._exchange.wait_over()
        return self._exchange.last().code()  # type: ignore[no-any-return]  # grpc's own error

    async def details(self) -> str:
        await self._exchange.wait_over()
        return self._exchange.last().details()  # type: ignore[no-any-return]  # grpc's own error

    async def debug_error_string(self) -> str:
        await self._exchange.wait_over()
        return self._exchange.last().debug_error_string()  # type: ignore[no-any-return]  # grpc's own error

    async def wait_for_connection(self) -> None:
        """Until the attempt that is out is on its way, or the call is over. Raises what it ended in."""
        exchange = self._exchange
        await exchange.connection()
        if isinstance(exchange.failure, Cancelled):
            raise asyncio.CancelledError
        if exchange.failure is not None:
            raise exchange.failure

    def __del__(self) -> None:
        exchange = getattr(self, "_exchange", None)
        if exchange is not None:
            exchange.forget()


class _OneResponse(_Held):
    _exchange: AioPending

    def __await__(self) -> Generator[Any, None, Any]:
        return self._exchange.response(self).__await__()


class _ManyResponses(_Held):
    _exchange: AioReader

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        message = await self._exchange.next()
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message

    async def read(self) -> Any:
        """The next message, or ``grpc.aio.EOF``."""
        return await self._exchange.next()


class _ManyRequests(_Held):
    #: grpc's own interceptors ask their call whether it may be written to.
    _done_writing_flag = False

    async def write(self, request: Any) -> None:
        """Send one message more."""
        self._style()
        await self._exchange.write(request)

    async def done_writing(self) -> None:
        """There is nothing more to send."""
        self._style()
        await self._exchange.done_writing()

    def _style(self) -> None:
        if self._exchange.requests is not None:
            raise grpc.aio.UsageError("The iterator and read/write APIs may not be mixed on a single RPC.")  # grpc's own words


class UnaryUnaryCall(_OneResponse, grpc.aio.UnaryUnaryCall):  # type: ignore[type-arg]  # generic in its stubs only
    """One message each way."""


class UnaryStreamCall(_ManyResponses, grpc.aio.UnaryStreamCall):  # type: ignore[type-arg]  # generic in its stubs only
    """One message there, several back."""


class StreamUnaryCall(_ManyRequests, _OneResponse, grpc.aio.StreamUnaryCall):  # type: ignore[type-arg]  # generic in its stubs only
    """Messages there, one back."""


class StreamStreamCall(_ManyRequests, _ManyResponses, grpc.aio.StreamStreamCall):  # type: ignore[type-arg]  # generic in its stubs only
    """Messages both ways."""
