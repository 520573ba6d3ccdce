"""The policy's ``inbound`` block, and the caller's deadline, in a ``grpc.server``.

    server = grpc.server(pool, interceptors=[resilmesh_grpc.server_interceptor(mesh)])

A call waits (for a slot, for an injected delay) in the thread that would run its handler. Python cannot interrupt a thread: when the
client goes away, a call that waits is given up at once, and so is a stream between two messages; a handler that is at work
holds its slot until it is done with what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import grpc

from resilmesh.drive.context import CALLER, DEADLINE, PASSED_ON
from resilmesh.drive.sync import pause
from resilmesh.engine.call import RAISE, SLEEP, WAIT
from resilmesh_grpc.serving import HEALTH, Serving, wrapped

if TYPE_CHECKING:
    from types import TracebackType

    from resilmesh.clock import Lend
    from resilmesh.engine.call import Call
    from resilmesh.mesh import Mesh

Behaviour = Callable[..., Any]
#: Has what it is given called when the RPC is over; False: it is over already.
Watch = Callable[[Callable[[], None]], object]


class SyncServing(Serving):
    """A served call in its thread. ``with`` it the handler runs, once the policy has let the call through."""

    __slots__ = ("_busy", "_outer", "_seat", "_waker", "_watch", "gone")

    def __init__(self, mesh: Mesh, context: Any, watch: Watch, method: str) -> None:
        super().__init__(mesh, context, method)
        self._watch = watch
        self._waker: Callable[[], object] | None = None
        #: The RPC is over, so that nobody wants what the handler says; and: the handler is at work. Whoever sets one of
        #: them looks at the other after that, so at least one of two threads sees both.
        self.gone = self._busy = False

    # ---------------------------------------------------------------------------------------- to be let in

    def admit(self) -> None:
        """Wait for leave to serve the call. Where there is none the call is aborted, as a handler would do it."""
        call = self.call
        if self.denied is not None:
            self.context.abort(*self.told(*self.denied))
        if call is None:
            return
        if self._watch(self._left) is False:
            self._left()
        step = call.start(self.monotonic())
        while step is SLEEP or step is WAIT:
            step = pause(call, step, self)
        self._busy = True
        if self.gone:
            self._give_up(call)
        if step is RAISE:
            self.context.abort(*self.refusal(call))
        drilled = self.drilled(call)
        if drilled is not None:
            self.context.abort(*drilled)

    def _left(self) -> None:
        """The RPC is over, on the thread that noticed."""
        self.gone = True
        if not self._busy:
            self.served.over(grpc.StatusCode.CANCELLED.name, "cancelled")
        if not self._busy and self.call is not None:
            self.call.abandon(self.monotonic())
        if self._waker is not None:
            self._waker()

    def _give_up(self, call: Call) -> None:
        """Nobody waits for the call any more. Raises, without a word in the log."""
        call.abandon(self.monotonic())
        if not hasattr(self.context, "is_active"):  # grpc.aio's, which must not be touched when its call is over
            raise CancelledError
        self.context.abort(grpc.StatusCode.CANCELLED, "the caller is gone")

    # What the loop needs of a clock, whose waits end when the caller is gone as well.

    def monotonic(self) -> float:
        return self.clock.monotonic()

    def sleep(self, seconds: float) -> None:
        self.wait(lambda waker: None, seconds)

    def wait(self, lend: Lend, seconds: float) -> None:
        self.clock.wait(partial(self._lend, lend), seconds)

    def _lend(self, lend: Lend, waker: Callable[[], object]) -> None:
        self._waker = waker
        lend(waker)
        if self.gone:
            waker()

    # ----------------------------------------------------------------------------------------- to be served

    def __enter__(self) -> SyncServing:
        self.admit()
        self.take_up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.lay_down()
        self.ended(error)

    def ended(self, error: BaseException | None) -> None:
        """The handler, or its stream, came to its end. Raises what the call ends in, where that is not ``error``."""
        if self.gone or not self.ran_out(error):
            self.done(error)
            return
        self.done(error)
        self.context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))

    def take_up(self) -> None:
        """The handler is at work from here on, under the deadline that it left when it stopped."""
        self._busy = True
        self._seat = self.served.enter()
        self._outer = DEADLINE.get(), CALLER.get(), PASSED_ON.get()
        DEADLINE.set(self.inside)
        CALLER.set(self.caller)
        PASSED_ON.set(self.passed_on)

    def lay_down(self) -> None:
        """The handler has stopped, for now or for good."""
        self.inside = DEADLINE.get()
        deadline, caller, passed_on = self._outer
        DEADLINE.set(deadline)
        CALLER.set(caller)
        PASSED_ON.set(passed_on)
        self.served.leave(self._seat)
        self._busy = False
        if self.gone and self.call is not None:
            self.call.abandon(self.monotonic())

    def done(self, error: BaseException | None) -> None:
        if error is not None and self.call is not None and not getattr(self.context, "is_active", lambda: True)():
            # A handler that reads requests gets an exception when the caller leaves, maybe before anybody says so here.
            self.call.abandon(self.monotonic())
        super().done(error)


class Responses:
    """The messages of a streaming handler, each made in the call's thread, when grpc asks for it."""

    __slots__ = ("_behaviour", "_messages", "_request", "_serving")

    def __init__(self, serving: SyncServing, behaviour: Behaviour, request: Any) -> None:
        self._serving = serving
        self._behaviour = behaviour
        self._request = request
        self._messages: Iterator[Any] | None = None

    def __iter__(self) -> Responses:
        return self

    def __next__(self) -> Any:
        serving = self._serving
        if self._messages is None:
            serving.admit()
        elif serving.gone:  # the call has been given up, and its slot with it: what the handler does now is for nobody
            raise StopIteration
        serving.take_up()
        try:
            if self._messages is None:
                self._messages = iter(self._behaviour(self._request, serving.context))
            message = next(self._messages)
        except BaseException as error:
            serving.lay_down()
            serving.ended(None if isinstance(error, StopIteration) else error)
            raise
        serving.lay_down()
        serving.message()
        return message


def policed(mesh: Mesh, method: str, behaviour: Behaviour, streams: bool, watch: Watch | None = None) -> Behaviour:
    """A synchronous handler's behaviour under the policy. ``watch``: absent, the context's own ``add_callback``."""
    serve: Behaviour
    if not streams:
        def serve(request: Any, context: Any) -> Any:
            with SyncServing(mesh, context, watch or context.add_callback, method):
                return behaviour(request, context)
    elif getattr(behaviour, "experimental_non_blocking", False):
        serve = partial(_without_waiting, mesh, method, behaviour)
    else:
        def serve(request: Any, context: Any) -> Any:
            return Responses(SyncServing(mesh, context, watch or context.add_callback, method), behaviour, request)
    return wraps(behaviour)(serve)


def _without_waiting(
    mesh: Mesh, method: str, behaviour: Behaviour, request: Any, context: Any, send: Callable[[Any], object],
) -> None:
    """A handler that returns at once and sends its messages from elsewhere, as the health service's Watch does."""
    serving = SyncServing(mesh, context, context.add_callback, method)
    serving.admit()

    def pass_on(message: Any) -> None:
        if message is None:
            serving.done(None)
        else:
            serving.message()
        send(message)

    serving.take_up()
    try:
        behaviour(request, context, pass_on)
    except BaseException as error:
        serving.lay_down()
        serving.ended(error)
        raise
    serving.lay_down()


class _Interceptor(grpc.ServerInterceptor):
    def __init__(self, mesh: Mesh, *, health: bool) -> None:
        self._mesh = mesh
        self._health = health

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = continuation(details)
        if handler is None or (not self._health and details.method.startswith(HEALTH)):
            return handler
        return wrapped(handler, partial(policed, self._mesh, details.method))


def server_interceptor(mesh: Mesh, *, health: bool = False) -> grpc.ServerInterceptor:
    """What makes a ``grpc.server`` keep the policy's ``inbound`` block, and its handlers their caller's deadline.

    Whatever a handler calls through the library, over gRPC, HTTP or as a guarded function, gets no more time than is left of the
    call that is served. A call that is refused ends in RESOURCE_EXHAUSTED (rateLimit, with ``grpc-retry-pushback-ms``;
    concurrency), DEADLINE_EXCEEDED, or the status of an injected fault, and its handler does not run. ``health``: whether this
    holds for the health service (``grpc.health.v1.Health``) too. A new policy holds from the next call on.
    """
    return _Interceptor(mesh, health=health)
