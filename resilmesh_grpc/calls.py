"""Calls of the blocking API: one that waits, one that runs by itself, and one that streams.

    Blocking      the thread that calls runs the loop of ``drive.sync``
    PendingCall   nobody waits: what grpc tells when an attempt ends moves the call on, and a timer does after a backoff
    StreamReader  whoever reads runs the loop, up to the first message; from there on messages are grpc's own

What the user holds (``FutureCall``, ``StreamCall``) is not what grpc's callbacks hold, so that a call is cancelled when it is forgotten.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from resilmesh.drive import sync
from resilmesh.drive.system import SYSTEM
from resilmesh.engine.call import RAISE, RETURN, SEND, SLEEP, WAIT, Call, Step
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import OK, Answer, Verdict
from resilmesh_grpc import classify
from resilmesh_grpc.bare_stream import BareStream
from resilmesh_grpc.errors import Cancelled
from resilmesh_grpc.exchange import Exchange, headers_of
from resilmesh_grpc.timers import Timer, timers

if TYPE_CHECKING:
    from types import TracebackType

    from resilmesh.clock import Lend

log = logging.getLogger("resilmesh")


class Blocking(Exchange):
    """A call with one response that its caller waits for."""

    __slots__ = ("native", "with_call")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: Whether the caller wants the call beside the response; and grpc's own, which gave it.
        self.with_call = self.reads_metadata
        self.native: Any = None

    def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call)
        native, arguments = self.prepare(call)
        try:
            if not self.with_call:
                self.value = native(self.request, **arguments)
                return OK
            self.value, self.native = native.with_call(self.request, **arguments)
        except grpc.RpcError as error:
            return self.failed(error)
        finally:
            self.leave()
        return self.succeeded(self.native.initial_metadata(), self.native.trailing_metadata()) if self.reads_metadata else OK

    def set_aside(self) -> None:
        """A status needs no room."""

    def otherwise(self, step: Step) -> Any:
        """What the caller gets of a call that did not simply succeed: what stands in for the response, or raises the error."""
        reason = self.falls_back(step)
        error = self.outcome(step)
        try:
            if error is None:
                return self.value
            stand_in = None if reason is None else self.stand_in(error)
            if stand_in is None or reason is None:
                raise error
            self.call.fell_back(self.caller.clock.monotonic(), reason)
            self.native = error if isinstance(error, grpc.Call) else self.native
            return stand_in
        finally:
            del error  # whose traceback holds this frame


class PendingCall(Exchange):
    """A call with one response that nobody waits for: its steps are made as grpc and the timers call back."""

    __slots__ = ("_callbacks", "_changed", "_step", "done", "failure", "native")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: grpc's own future of the attempt that is out, or was the last.
        self.native: Any = None
        self.done = False
        #: What is raised in place of the response.
        self.failure: Any = None
        self._changed = threading.Condition()
        self._callbacks: list[Callable[[], object]] = []
        #: Counts what it waited for, so that a timer of an earlier wait wakes nobody.
        self._step = 0

    def begin(self) -> None:
        """Make the first attempt, or see to it that it is made."""
        self._go_on(self.call.start(self.caller.clock.monotonic()))

    def _go_on(self, step: Step) -> None:
        call, clock = self.call, self.caller.clock
        while step is SEND:
            if call.injected is None:
                self._send(call)
                return
            step = call.answered(clock.monotonic(), call.number, self.injected(call))
        if step is RETURN or step is RAISE:
            self._conclude(step)
            return
        self._step += 1
        if clock is not SYSTEM:  # a test's, which alone knows how its time passes
            threading.Thread(target=self._pause, args=(step, self._step), name="resilmesh-grpc-pause", daemon=True).start()
            return
        wake = partial(self._wake, self._step)
        timers.after(max(0.0, call.wake_at - clock.monotonic()), wake)
        if step is WAIT:
            # A waker may be called under somebody's lock: what it wakes runs elsewhere, on the one thread of the timers.
            call.lend(lambda: timers.after(0, wake))

    def _wake(self, step: int) -> None:
        if not self.done and step == self._step:
            self._step += 1
            self._go_on(self.call.woke(self.caller.clock.monotonic()))

    def _pause(self, step: Step, number: int) -> None:
        then = sync.pause(self.call, step, self.caller.clock)
        if not self.done and number == self._step:
            self._go_on(then)

    def _send(self, call: Call) -> None:
        try:
            native, arguments = self.prepare(call)
            self.native = sent = native.future(self.request, **arguments)
        except BaseException as error:  # the channel is closed, or the message cannot be written
            self.leave()
            self.abandon()
            if self.native is None and not self._step:
                raise
            # Its caller has the future by now: this is a thread of grpc's or of the timers.
            self._end(Cancelled(str(error)) if isinstance(error, ValueError) else error)
            return
        sent.add_done_callback(partial(self._ended, call.number))
        if self.done:  # it was cancelled, or forgotten, while this was being sent
            sent.cancel()

    def _ended(self, number: int, native: Any) -> None:
        """grpc says that an attempt is over."""
        self.leave()
        if self.done or number != self.call.number:
            return
        if native.code() is grpc.StatusCode.OK:
            self.value = native.result()
            answer = self.succeeded(headers_of(native), native.trailing_metadata())
        else:
            answer = self.failed(native)
        self._go_on(self.call.answered(self.caller.clock.monotonic(), number, answer))

    def _conclude(self, step: Step) -> None:
        reason = self.falls_back(step)
        error = self.outcome(step)
        if error is not None and reason is not None:
            try:
                stand_in = self.stand_in(error)
            except Exception as raised:
                error = raised
            else:
                if stand_in is not None:
                    self.value, error = stand_in, None
                    self.call.fell_back(self.caller.clock.monotonic(), reason)
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            if self.done:
                return
            self.done, self.failure = True, error
            callbacks, self._callbacks = self._callbacks, []
            self._changed.notify_all()
        _run(callbacks)

    def cancel(self) -> bool:
        """End it, unless it is over."""
        if self.done:
            return False
        self.abandon()
        native = self.native
        self._end(Cancelled())
        if native is not None:
            native.cancel()
        return True

    def wait(self, timeout: float | None) -> None:
        """Until it is over. Raises ``grpc.FutureTimeoutError``."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.done, timeout):
                raise grpc.FutureTimeoutError

    def when_done(self, callback: Callable[[], object]) -> bool:
        """Have ``callback`` called when it is over; False: it is."""
        with self._changed:
            if self.done:
                return False
            self._callbacks.append(callback)
            return True

    def forget(self) -> None:
        """From a finalizer: who held it is gone."""
        if not self.done:
            self.done = True
            self.call.orphan()
            self.native = None  # grpc cancels what is forgotten


class FutureCall(grpc.RpcError, grpc.Call, grpc.Future):  # type: ignore[type-arg]  # generic in its stubs only
    """What ``future`` gives: the call and its response, whatever number of attempts it takes.

    An error by its class, as grpc's own is: what is told that a call is over may ask for one.
    """

    def __init__(self, pending: PendingCall) -> None:
        super().__init__()
        self._pending = pending

    def __repr__(self) -> str:
        return _shown(self, self._pending, self._pending.done)

    __str__ = __repr__

    # ----------------------------------------------------------------------------------------- the future

    def cancel(self) -> bool:
        return self._pending.cancel()

    def cancelled(self) -> bool:
        return isinstance(self._pending.failure, Cancelled)

    def running(self) -> bool:
        return not self._pending.done

    def done(self) -> bool:
        return self._pending.done

    def result(self, timeout: float | None = None) -> Any:
        """The response. Raises what the call ended in, ``grpc.FutureTimeoutError`` and ``grpc.FutureCancelledError``."""
        error = self.exception(timeout)
        if error is not None:
            raise error
        return self._pending.value

    def exception(self, timeout: float | None = None) -> Any:
        """What the call ended in; ``None``: a response."""
        self._pending.wait(timeout)
        if self.cancelled():
            raise grpc.FutureCancelledError
        return self._pending.failure

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        if not self._pending.when_done(partial(fn, self)):
            fn(self)

    # ------------------------------------------------------------------------------------------- the call

    def is_active(self) -> bool:
        return not self._pending.done

    def time_remaining(self) -> float | None:  # type: ignore[override]  # grpc gives None without a deadline, whatever its stubs say
        return _left(self._pending)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._pending.when_done(callback)

    def _last(self) -> Any:
        """Whoever knows how it ended."""
        self._pending.wait(None)
        return self._pending.native if self._pending.failure is None else self._pending.failure

    def code(self) -> grpc.StatusCode:
        return self._last().code()  # type: ignore[no-any-return]  # grpc's own call or error

    def details(self) -> str:
        return self._last().details()  # type: ignore[no-any-return]  # grpc's own call or error

    def initial_metadata(self) -> Any:
        return self._last().initial_metadata()

    def trailing_metadata(self) -> Any:
        return self._last().trailing_metadata()

    def debug_error_string(self) -> str:
        return self._last().debug_error_string()  # type: ignore[no-any-return]  # grpc's own call or error

    def __del__(self) -> None:
        self._pending.forget()


class StreamReader(Exchange):
    """A call with a stream of responses."""

    __slots__ = (
        "_by_metadata", "_callbacks", "_claim", "_dialled", "_finished", "_idle", "_once", "_reading_since", "_step", "_turn", "_waker",
        "cancelled", "failure", "first", "native", "opened", "over", "stand_ins", "timer",
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        #: grpc's own call, of the attempt that is out or was the last.
        self.native: Any = None
        #: The first message, until it is given away.
        self.first: Any = _NOTHING
        #: The loop has run: the stream flows, or is over.
        self.opened = False
        self.over = False
        self.cancelled = False
        #: What is raised in place of a further message, if it is ours or came before the first one.
        self.failure: Any = None
        #: What the fallback gave in place of messages.
        self.stand_ins: Any = None
        self.timer: Timer | None = None
        self._callbacks: list[Callable[[], object]] = []
        #: Who opens the stream holds it; nobody else has anything to do meanwhile but wait.
        self._turn = threading.RLock()
        self._once = threading.Lock()
        self._finished = threading.Event()
        #: Taken by the first message, or by the end of its time: whichever comes first.
        self._claim: threading.Lock | None = None
        self._by_metadata = False
        self._dialled = 0
        self._step: Step = SEND
        self._waker: Callable[[], object] | None = None
        self._reading_since = INFINITY
        self._idle = False

    # ------------------------------------------------------------------------------------------- opening

    def begin(self) -> None:
        """Make the first attempt."""
        call, clock = self.call, self.caller.clock
        step = call.start(clock.monotonic())
        try:
            while step is SLEEP or step is WAIT:
                step = sync.pause(call, step, clock)
            self._step = step
            if step is SEND and call.injected is None and not self._dial(call):
                self._terminated(call.number)
        except BaseException:
            self.abandon()
            raise

    def open(self, *, by_metadata: bool = False) -> None:
        """Run the call up to its first message, or to its end; ``by_metadata``: up to the service's initial metadata."""
        with self._turn:
            if self.opened:
                return
            self._by_metadata = by_metadata
            try:
                step = sync.proceed(self.call, self._step, self, self)
            except BaseException:  # a KeyboardInterrupt
                self._end(Cancelled())
                raise
            self._opened(step)

    def _opened(self, step: Step) -> None:
        self.opened = True
        if step is RETURN and self.error is None and not self.call.over:
            if not self.native.is_active():  # its end came with its first message, while nobody else could see to it
                self.ended()
            return
        reason = self.falls_back(step)
        error: BaseException | None = Cancelled() if self.cancelled else self.outcome(step)
        if error is not None and reason is not None:
            given = self.stand_in(error)
            if given is not None:
                self.stand_ins = iter(given)
                self.call.fell_back(self.caller.clock.monotonic(), reason)
        self._end(error)

    def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call)
        if self._dialled != call.number:
            self._dial(call)
        native = self.native
        try:
            if self._by_metadata:
                native.initial_metadata()
                if not native.is_active() and native.code() is not grpc.StatusCode.OK:
                    raise native
            else:
                self.first = next(native)
        except StopIteration:
            self._attempt_over()
            return self.succeeded(headers_of(native), native.trailing_metadata())
        except grpc.RpcError as error:
            struck = self._claim is not None and not self._claim.acquire(blocking=False)
            self._attempt_over()
            return self.failed(error, struck=struck)
        if self._claim is not None and not self._claim.acquire(blocking=False):
            self._attempt_over()
            self.first = _NOTHING
            return self.failed(Cancelled(), struck=True)
        if self.timer is not None:
            self.timer.cancel()
        self.until = call.deadline
        self._watch_idle()
        return classify.COMMITTED

    def _dial(self, call: Call) -> bool:
        """Begin an attempt; False: it is over already."""
        native, arguments = self.prepare(call)
        try:
            sent = native(self.request, **arguments)
        except BaseException:
            self.leave()
            raise
        self.native = sent = sent if hasattr(sent, "add_callback") else BareStream(sent)
        self._dialled = call.number
        self._claim = None
        if self.until < call.deadline:
            self._claim = claim = threading.Lock()
            self.timer = timers.after(self.until - self.caller.clock.monotonic(), partial(_strike, claim, sent))
        if self.cancelled:  # while this was being sent
            sent.cancel()
        return bool(sent.add_callback(partial(self._terminated, call.number)))

    def set_aside(self) -> None:
        """A status needs no room."""

    def _attempt_over(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.leave()

    # --------------------------------------------- the loop's clock: the mesh's, but a cancellation ends a backoff

    def monotonic(self) -> float:
        return self.caller.clock.monotonic()

    def sleep(self, seconds: float) -> None:
        self.caller.clock.wait(self._lend, seconds)

    def wait(self, lend: Lend, seconds: float) -> None:
        self.caller.clock.wait(lend, seconds)

    def _lend(self, waker: Callable[[], object]) -> None:
        self._waker = waker
        if self.cancelled:
            waker()

    # ------------------------------------------------------------------------------------------- flowing

    def next(self) -> Any:
        """The next message. Raises ``StopIteration`` and ``grpc.RpcError``."""
        if self.first is not _NOTHING:
            first, self.first = self.first, _NOTHING
            return first
        if self.stand_ins is not None:
            return next(self.stand_ins)
        if self.failure is not None:
            raise self.failure
        self._reading_since = self.monotonic() if self.timer is not None else INFINITY
        try:
            return next(self.native)
        except StopIteration:
            self.ended()
            raise
        except grpc.RpcError:
            self.ended()
            raise self._failed() from None
        finally:
            self._reading_since = INFINITY

    def _failed(self) -> BaseException:
        failure: BaseException = self.failure
        return failure

    def _watch_idle(self) -> None:
        idle = self.plan.idle_timeout
        self.timer = None
        if idle is not None and self.plan.mode == "ENFORCE":
            self.timer = timers.after(idle, self._look_idle)

    def _look_idle(self) -> None:
        """Whether a reader waits too long by now."""
        idle, since = self.plan.idle_timeout, self._reading_since
        if idle is None or self.over:
            return
        left = idle if since == INFINITY else since + idle - self.monotonic()
        if left > 0:
            self.timer = timers.after(left, self._look_idle)
            return
        self._idle = True
        self.native.cancel()

    def _terminated(self, number: int) -> None:
        """grpc says that an attempt is over; on a thread of its own."""
        if number != self.call.number or self.over:
            return
        if self.opened:
            self.ended()
        elif self._turn.acquire(blocking=False):
            # Nobody reads. What can only end needs nobody; what is to be repeated waits for a reader.
            try:
                if not self.opened and self._step is SEND and self._dialled == number:
                    answer = self.send(self.call)
                    step = self.call.answered(self.monotonic(), number, answer)
                    if step is SLEEP:
                        self._step = step
                    else:
                        self._opened(step)
            finally:
                self._turn.release()

    def ended(self) -> None:
        """The stream that flowed is over: once, whoever notices first."""
        if not self._once.acquire(blocking=False):
            self._finished.wait()  # somebody else is about to say how it ended
            return
        native, call = self.native, self.call
        code = native.code()
        failure: Any = None
        if self.cancelled:
            self.abandon()
            self.cancelled = code is not grpc.StatusCode.OK  # it may have ended before it could be
            failure = native if self.cancelled else None
        elif code is grpc.StatusCode.OK:
            call.ended(self.monotonic(), call.number, self.succeeded(headers_of(native), native.trailing_metadata()).verdict)
        elif self._idle:
            failure = self.idled()
            call.ended(self.monotonic(), call.number, Verdict.FAILURE)
        else:
            verdict = self.verdict_of(native)
            failure = self.cut() if self.timed_out else native
            call.ended(self.monotonic(), call.number, verdict, None if self.timed_out else code.name)
        self.error = None
        self._end(failure)

    def _end(self, failure: Any) -> None:
        self._once.acquire(blocking=False)
        self._attempt_over()
        self.failure = failure
        self.opened = self.over = True
        self._finished.set()
        callbacks, self._callbacks = self._callbacks, []
        _run(callbacks)

    def cancel(self) -> bool:
        """End it, unless it is over."""
        if self.over:
            return False
        self.cancelled = True
        native = self.native
        self.abandon()
        if native is not None:
            native.cancel()
        waker = self._waker
        if waker is not None:
            waker()
        if self.opened:
            self.ended()
        elif self._turn.acquire(blocking=False):
            try:
                if not self.opened:
                    self._end(Cancelled())
            finally:
                self._turn.release()
        return True

    def when_done(self, callback: Callable[[], object]) -> bool:
        """Have ``callback`` called when it is over; False: it is."""
        if self.over:
            return False
        self._callbacks.append(callback)
        return not self._is_over() or self._take_back(callback)  # it may have ended between these lines

    def _is_over(self) -> bool:
        return self.over

    def _take_back(self, callback: Callable[[], object]) -> bool:
        try:
            self._callbacks.remove(callback)
        except ValueError:
            return True  # it was called
        return False

    def last(self) -> Any:
        """Whoever knows how it ended, or will."""
        self.open()
        return self.native if self.failure is None else self.failure

    def forget(self) -> None:
        """From a finalizer: who held it is gone."""
        if not self.over:
            self.over = True
            if self.timer is not None:
                self.timer.cancel()
            self.call.orphan()
            self.native = None  # grpc cancels what is forgotten


_NOTHING: Any = object()


def _strike(claim: threading.Lock, native: Any) -> None:
    """The time up to the first message is over."""
    if claim.acquire(blocking=False):
        native.cancel()


class StreamCall(grpc.RpcError, grpc.Call, grpc.Future):  # type: ignore[type-arg]  # generic in its stubs only
    """What a call with a stream of responses gives: an iterator over them, and the call, whatever number of attempts it takes.

    An error by its class, as grpc's own is: what is told that a stream is over asks for one before it opens another.
    """

    def __init__(self, reader: StreamReader) -> None:
        super().__init__()
        self._reader = reader

    def __repr__(self) -> str:
        return _shown(self, self._reader, self._reader.over)

    __str__ = __repr__

    def __iter__(self) -> StreamCall:
        return self

    def __next__(self) -> Any:
        """The next message. Raises ``grpc.RpcError``."""
        reader = self._reader
        if not reader.opened:
            reader.open()
        return reader.next()

    def next(self) -> Any:
        """As grpc's own."""
        return self.__next__()

    def cancel(self) -> bool:
        return self._reader.cancel()

    def is_active(self) -> bool:
        return not self._reader.over

    def time_remaining(self) -> float | None:  # type: ignore[override]  # grpc gives None without a deadline, whatever its stubs say
        return _left(self._reader)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return self._reader.when_done(callback)

    def initial_metadata(self) -> Any:
        """What the service sent before its first message. To ask for it is to commit the call: it is not repeated any more."""
        reader = self._reader
        if not reader.opened:
            reader.open(by_metadata=True)
        return reader.last().initial_metadata()

    def trailing_metadata(self) -> Any:
        return self._reader.last().trailing_metadata()

    def code(self) -> grpc.StatusCode:
        return self._reader.last().code()  # type: ignore[no-any-return]  # grpc's own call or error

    def details(self) -> str:
        return self._reader.last().details()  # type: ignore[no-any-return]  # grpc's own call or error

    def debug_error_string(self) -> str:
        return self._reader.last().debug_error_string()  # type: ignore[no-any-return]  # grpc's own call or error

    # ----------------------------------------------------------------------------------------- the future

    def cancelled(self) -> bool:
        return self._reader.cancelled

    def running(self) -> bool:
        return not self._reader.over

    def done(self) -> bool:
        return self._reader.over

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end of the stream. Raises what it ended in."""
        error = self.exception(timeout)
        if error is not None:
            raise error
        return None

    def exception(self, timeout: float | None = None) -> Any:
        """What the stream ended in; ``None``: OK. Raises ``grpc.FutureTimeoutError`` and ``grpc.FutureCancelledError``."""
        over = threading.Event()
        if self._reader.when_done(over.set) and not over.wait(timeout):
            raise grpc.FutureTimeoutError
        if self._reader.cancelled:
            raise grpc.FutureCancelledError
        return self._reader.failure

    def traceback(self, timeout: float | None = None) -> TracebackType | None:
        error = self.exception(timeout)
        return None if error is None else error.__traceback__

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        if not self._reader.when_done(partial(fn, self)):
            fn(self)

    def __del__(self) -> None:
        self._reader.forget()


def _shown(call: Any, exchange: PendingCall | StreamReader, over: bool) -> str:
    """A call in a log."""
    failure = exchange.failure
    ended = "in flight" if not over else "OK" if failure is None else f"{failure.code().name}: {failure.details()}"
    return f"<{type(call).__name__} of {exchange.method.path}, {ended}>"


def _left(exchange: Exchange) -> float | None:
    deadline = exchange.call.deadline
    return None if deadline == INFINITY else max(0.0, deadline - exchange.caller.clock.monotonic())


def _run(callbacks: list[Callable[[], object]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:
            log.exception("a callback of a call failed")
