"""The policy's ``inbound`` block, and the caller's deadline, in a ``grpc.server``.

    server = grpc.server(pool, interceptors=[resilmesh_grpc.server_interceptor(mesh)])

A call waits (for a slot, for an injected delay) in the thread that would run its handler. Python cannot interrupt a thread: when the
client goes away, a call that waits is given up at once, and so is a stream between two messages; a handler that is at work
holds its slot until it is done with what it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

import grpc

from resilmesh.drive.context import DEADLINE
from resilmesh.drive.sync import rest
from resilmesh.engine.call import RAISE, SLEEP, WAIT
from resilmesh_grpc.serving import HEALTH, Serving, wrapped

if TYPE_CHECKING:
    from types import TracebackType

    from resilmesh.clock import Lend
    from resilmesh.engine.call import Call, Step
    from resilmesh.mesh import Mesh

Behaviour = Callable[..., Any]
#: Has what it is given called when the RPC is over; False: it is over already.
Watch = Callable[[Callable[[], None]], object]


class SyncServing(Serving):
    """A served call in its thread. ``with`` it the handler runs, once the policy has let the call through."""

    __slots__ = ("_busy", "_gone", "_outer", "_waker", "_watch")

    def __init__(self, mesh: Mesh, context: Any, watch: Watch) -> None:
        super().__init__(mesh, context)
        self._watch = watch
        self._waker: Callable[[], object] | None = None
        #: The RPC is over, and: the handler is at work. Each is set before the other is looked at, so one side sees both.
        self._gone = self._busy = False

    # ---------------------------------------------------------------------------------------- to be let in

    def admit(self) -> None:
        """Wait for leave to serve the call. Where there is none the call is aborted, as a handler would do it."""
        call = self.call
        if call is None:
            return
        if self._watch(self._left) is False:
            self._left()
        step: Step = call.start(self.monotonic())
        while step is SLEEP or step is WAIT:
            step = rest(call, step, self)
        self._busy = True
        if self._gone:
            self._give_up(call)
        if step is RAISE:
            self.context.abort(*self.refusal(call))
        drilled = self.drilled(call)
        if drilled is not None:
            self.context.abort(*drilled)

    def _left(self) -> None:
        """The RPC is over, on the thread that noticed."""
        self._gone = True
        if not self._busy and self.call is not None:
            self.call.abandon(self.monotonic())
        if self._waker is not None:
            self._waker()

    def _give_up(self, call: Call) -> None:
        """Nobody waits for the call any more. Raises, without a word in the log."""
        call.abandon(self.monotonic())
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
        if self._gone:
            waker()

    # ----------------------------------------------------------------------------------------- to be served

    def __enter__(self) -> SyncServing:
        self.admit()
        self.resume()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.pause()
        self.done(error)

    def resume(self) -> None:
        """The handler is at work from here on, under the deadline that it left there when it paused."""
        self._busy = True
        self._outer = DEADLINE.get()
        DEADLINE.set(self.inside)

    def pause(self) -> None:
        """The handler has stopped, for now or for good."""
        self.inside = DEADLINE.get()
        DEADLINE.set(self._outer)
        self._busy = False
        if self.gone and self.call is not None:
            self.call.abandon(self.monotonic())

    @property
    def gone(self) -> bool:
        """Whether the RPC is over: nobody wants what the handler says."""
        return self._gone
