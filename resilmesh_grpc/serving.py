"""One call that is served, but for its waiting: what the interceptors of both kinds of server share.

A served call is an engine ``Call`` over the plan of the policy's ``inbound`` block: the handler is its one attempt.

    what happened                                    the engine is told
    a unary handler returned, raised or aborted      ``answered``, by the call's status; an exception without one is UNKNOWN
    the first message of a stream                    ``answered``: what follows is its body
    the stream's end                                 ``ended``, by the call's status
    the client cancelled, or its time was over       ``abandon``

What a handler calls inherits the time of the call that is served. When that is over before grpc notices, the handler gets our
``DeadlineExceeded``, which would leave it as UNKNOWN: the call ends in DEADLINE_EXCEEDED instead, as its caller sees it too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import grpc

from resilmesh.drive.context import DEADLINE, passed_on
from resilmesh.engine.call import Call
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import Answer, Verdict, of_grpc
from resilmesh.errors import ConcurrencyExceeded, DeadlineExceeded, InjectedFault
from resilmesh.telemetry.served import Served
from resilmesh_grpc import errors
from resilmesh_grpc.callers import admit
from resilmesh_grpc.metadata import Headers

if TYPE_CHECKING:
    from resilmesh.engine.plan import Plan
    from resilmesh.mesh import Mesh

#: Its calls are left alone unless asked: a probe that a limit refuses takes a workload out that does all it can.
HEALTH: Final = "/grpc.health.v1.Health/"
#: A remaining time beyond this is grpc's way to say that there is no deadline.
_FOREVER: Final = 1e9
#: Seconds by which a timer of an event loop may be early.
_EARLY: Final = 0.005
_UNKNOWN: Final = grpc.StatusCode.UNKNOWN.value[0]
_OK: Final = Answer(Verdict.SUCCESS, 0, 200, grpc="OK")
_STREAMS: Final = Answer(Verdict.SUCCESS, 0, 200, grpc="OK", complete=False)

_MAKERS: Final[dict[tuple[bool, bool], tuple[str, Callable[..., Any]]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}


def wrapped(handler: Any, wrap: Callable[[Callable[..., Any], bool], Callable[..., Any]]) -> Any:
    """A method's handler with its behaviour wrapped: ``wrap`` is given that, and whether the response is a stream."""
    name, make = _MAKERS[bool(handler.request_streaming), bool(handler.response_streaming)]
    behaviour = wrap(getattr(handler, name), bool(handler.response_streaming))
    return make(behaviour, handler.request_deserializer, handler.response_serializer)


class Serving:
    """One served call. ``call`` is None where no policy applies to it: mode OFF, or no ``inbound`` block."""

    __slots__ = ("_streams", "_until", "call", "caller", "clock", "context", "denied", "inside", "passed_on", "served")

    def __init__(self, mesh: Mesh, context: Any, method: str) -> None:
        table = mesh.table
        self.clock = clock = mesh.clock
        self.context = context
        metadata = context.invocation_metadata() or ()
        #: What is told of it.
        self.served = Served(
            mesh, method, method[1:], {key: value for key, value in metadata if isinstance(value, str)},
            {"rpc.system.name": "grpc", "rpc.method": method[1:]},
        )
        #: Whom the call is from, and why it is not let in (its status and details; ``None``: it is).
        self.caller, self.denied = admit(mesh, table, context, method)
        #: What the calls of the handler pass on.
        self.passed_on = passed_on(metadata)
        #: The deadline of what the handler calls. OBSERVE and OFF change nothing, so they set none.
        self.inside = outer = DEADLINE.get()
        remaining = context.time_remaining()
        until = INFINITY if remaining is None or remaining > _FOREVER else clock.monotonic() + remaining
        if until < outer and table.policy.mesh.mode == "ENFORCE":
            self.inside = until
        self._until = self.inside
        plan = table.inbound
        self.call = None if plan is None else _call(plan, min(until, outer), context)
        self._streams = False

    def refusal(self, call: Call) -> tuple[grpc.StatusCode, str]:
        """How a call ends that is not let through: its status and details. A pushback goes into its trailing metadata."""
        error = call.take_error()
        if isinstance(error, InjectedFault):
            return self.told(errors.code_of(error), error.reply[1])
        if error.retry_after is not None:
            pushback = ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after * 1000)))
            # The context of a synchronous handler under grpc.aio does not say what there is already.
            already: tuple[Any, ...] = getattr(self.context, "trailing_metadata", tuple)() or ()
            self.context.set_trailing_metadata((*already, pushback))
        # For want of a slot it is as grpcio's own maximum_concurrent_rpcs says; a caller's limit (UNAVAILABLE) is another matter.
        exhausted = isinstance(error, ConcurrencyExceeded)
        return self.told(grpc.StatusCode.RESOURCE_EXHAUSTED if exhausted else errors.code_of(error), error.args[0])

    def told(self, code: grpc.StatusCode, details: str) -> tuple[grpc.StatusCode, str]:
        """A status in the handler's place, and its details; it is told."""
        self.served.over(code.name)
        return code, details

    def drilled(self, call: Call) -> tuple[grpc.StatusCode, str] | None:
        """The same for a fault of scope ATTEMPT, which answers in the handler's place; None: there is none."""
        if call.injected is None:
            return None
        code = errors.of_fault(call.injected, call.injected_grpc)
        verdict, _, status = of_grpc(code.value[0])
        call.answered(self.clock.monotonic(), call.number, Answer(verdict, 0, status, grpc=code.name, injected=True))
        return self.told(code, InjectedFault.reply[1])

    def message(self) -> None:
        """A message of a stream is on its way."""
        if not self._streams and self.call is not None:
            self._streams = True
            self.call.answered(self.clock.monotonic(), self.call.number, _STREAMS)

    def ran_out(self, error: BaseException | None) -> bool:
        """Whether the handler ended because the time of its own caller was over; its status then says so."""
        if not isinstance(error, DeadlineExceeded) or self.clock.monotonic() < self._until - _EARLY:
            return False
        self.context.set_code(grpc.StatusCode.DEADLINE_EXCEEDED)
        return True

    def done(self, error: BaseException | None) -> None:
        """The handler, or its stream, came to its end."""
        if error is not None and not isinstance(error, Exception):
            self.served.over(grpc.StatusCode.CANCELLED.name, "cancelled")
        else:
            self.served.over(self._answer(error).grpc or "OK")
        call, now = self.call, self.clock.monotonic()
        if call is None:
            return
        if error is not None and not isinstance(error, Exception):
            call.abandon(now)  # cancelled
        elif self._streams:
            call.ended(now, call.number, self._answer(error).verdict)
        else:
            call.answered(now, call.number, self._answer(error))

    def _answer(self, error: BaseException | None) -> Answer:
        # Of a synchronous handler under grpc.aio nobody can tell what status it has set.
        code = self.context.code() if hasattr(self.context, "code") else None
        number = getattr(code, "value", (code,))[0] or (0 if error is None else _UNKNOWN)
        if number == 0:
            return _OK
        verdict, _, status = of_grpc(number)
        return Answer(verdict, 0, status, grpc=errors.BY_NUMBER.get(number, grpc.StatusCode.UNKNOWN).name)


def _call(plan: Plan, until: float, context: Any) -> Call:
    call = Call(plan, deadline=until)
    if plan.by_value is not None:
        metadata = Headers(context.invocation_metadata())
        call.values = tuple(metadata.get(name) for name in plan.by_value.headers)
    return call
