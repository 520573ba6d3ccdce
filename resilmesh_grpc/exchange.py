"""One call over gRPC: what its attempts send and what their outcomes are. No I/O: ``calls`` and ``aio_calls`` add that.

What is sent can be sent again when it is one message, or an iterable that gives a new iterator each time (a list); a
generator cannot. A status that the service gave is repeated where retryOn has its word, unless the route says
``idempotent: false``; an outcome that was lost (a reset, a time-out) only where the route, or the method's own
``idempotency_level``, says that this is harmless; what was not sent always.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

import grpc

from resilmesh.drive.context import DEADLINE, PASSED_ON
from resilmesh.drive.forms import kind_of
from resilmesh.engine.call import RETURN, Call
from resilmesh.engine.plan import INFINITY
from resilmesh.engine.verdict import OK, Answer, Verdict
from resilmesh.errors import CallError, DeadlineExceeded, Forbidden, InjectedFault
from resilmesh.mesh import Mesh
from resilmesh.units import format_duration
from resilmesh_grpc import classify
from resilmesh_grpc.credentials import explain, not_ours, secured
from resilmesh_grpc.errors import in_dialect, of_fault
from resilmesh_grpc.metadata import Headers, changed
from resilmesh_grpc.subchannels import Method
from resilmesh_grpc.target import parse

if TYPE_CHECKING:
    from resilmesh.engine.call import FallbackReason, Listener, Step
    from resilmesh.engine.events import Traces
    from resilmesh.engine.plan import Mirror, Plan
    from resilmesh_grpc.copies import Copies
    from resilmesh_grpc.metadata import Metadata
    from resilmesh_grpc.subchannels import Subchannel, Subchannels

#: A fallback in code: given the method's path, the request and the error that the caller would get; gives what stands in for
#: the response (a message, or an iterable of messages), or ``None`` to let the error pass. With grpc.aio it may be a coroutine function.
CodeFallback = Callable[[str, Any, BaseException], Any]

#: Seconds that grpc's own deadline is later than ours, so that what it ends is over by our clock too.
_SLACK: Final = 0.001

#: A time-out that has passed: grpc ends the call at once, where 0 would be a race with the answer.
_LONG_AGO: Final = -1.0


class Caller:
    """What the calls of one channel share: whom they are for, by whose policy, and over which sub-channels."""

    #: The channel's sub-channels; set by who makes it.
    subchannels: Subchannels
    #: What sends copies of its calls; ``None`` where the channel is not of our making.
    copies: Copies | None = None

    def __init__(self, mesh: Mesh, target: str, fallback: CodeFallback | None, *, awaits: bool, chooses: bool) -> None:
        if not isinstance(mesh, Mesh):
            raise TypeError(f"the first argument is the Mesh, such as Mesh.from_file('policy.yaml'), not {mesh!r}")
        if fallback is not None and not callable(fallback):
            raise TypeError(f"fallback= is called with the method, the request and the error, and {fallback!r} cannot be called")
        if fallback is not None and not awaits and kind_of(fallback) == "COROUTINE":
            raise TypeError("the fallback of a channel that awaits nothing cannot be awaited either: pass a plain function")
        self.mesh = mesh
        mesh.telemetry.attach()
        self.clock = mesh.clock
        self.target = parse(target)
        self.fallback = fallback
        #: Endpoints are chosen here, and not by a channel that somebody else made.
        self._chooses = chooses
        #: The policy that the sub-channels were last compared with, and what stands for it in ``Method.settled``.
        self._table = mesh.table
        self._epoch = object()
        #: Plans of this epoch without their endpoints.
        self._placeless: dict[Plan, Plan] = {}

    def plan(self, method: Method, metadata: Metadata | None) -> Plan | None:
        """The plan of a call; ``None``: no policy applies. Raises ``Forbidden`` as gRPC's own."""
        if self.mesh.table is self._table:
            epoch, plan = method.settled
            if epoch is self._epoch:
                return plan
        return self._settle(method, metadata)

    def _settle(self, method: Method, metadata: Metadata | None) -> Plan | None:
        target, mesh = self.target, self.mesh
        table = mesh.table
        if table is not self._table:
            # The epoch first: what is settled in it was then found in this table, or in a newer one.
            self._epoch, self._placeless = object(), {}
            self._table = table
            self.subchannels.retire(table.addresses())
        epoch, headers = self._epoch, Headers(metadata)
        try:
            plan = mesh.route_grpc(target.host, target.port, target.text, method.path, headers)
        except Forbidden as error:
            raise in_dialect(error) from None
        if plan is not None and (plan.tls is not None or (plan.mirror is not None and plan.mirror.plan.tls is not None)):
            self._secure(plan)
        if plan is not None and not self._chooses:
            plan = self._placeless.get(plan) or self._placeless.setdefault(plan, plan.without_endpoints())
        if not headers.asked:
            method.settled = epoch, plan
        return plan

    def _secure(self, plan: Plan) -> None:
        """Have what the policy's TLS needs before a call begins. Raises ``TlsImpossible`` as gRPC's own."""
        if not self._chooses:
            raise not_ours(plan)
        for each in (plan, *(() if plan.mirror is None else (plan.mirror.plan,))):
            if each.tls is None:
                continue
            before = self.subchannels.secured(each.tls)
            if before is None or (before.identity is not None and before.identity is not self.mesh.identity):
                self.subchannels.secure(each.tls, secured(self.mesh, each, self.subchannels.credentials))

    def passing(self, method: Method) -> Any:
        """grpc's own callable, where no policy applies."""
        sub = self.subchannels.enter(None, None)
        sub.left()
        return method.on(sub)

    def connect_all(self) -> None:
        """Make a sub-channel to each endpoint that there is none for yet."""
        plan = None if self.subchannels.given is not None else self.plan(_ANY_METHOD, None)
        for endpoint in (plan.endpoints if plan is not None and plan.endpoints else (None,)):
            address = None if endpoint is None else endpoint.address
            if plan is None:
                self.subchannels.enter(address, None).left()
            else:
                self.subchannels.enter(address, plan.connect_timeout, tls=plan.tls).left()


#: What a channel is asked about that is no call.
_ANY_METHOD: Final = Method("unary_unary", "/", None, None, None)


class Exchange:
    """What a call sends, what its last attempt came to, and what that means."""

    __slots__ = (
        "_held", "_idempotent", "_outer", "authority", "call", "caller", "error", "metadata", "method", "options", "plan",
        "requests", "sub", "timed_out", "until", "value",
    )

    def __init__(
        self, caller: Caller, method: Method, plan: Plan, requests: Any, timeout: float | None, metadata: Metadata | None,
        options: dict[str, Any],
    ) -> None:
        self.caller = caller
        self.plan = plan
        self.requests = requests
        self.options = options
        self._outer = outer = DEADLINE.get()
        # An iterable that is its own iterator can be gone through once.
        replayable = not method.streams_requests or (requests is not None and _iterates_again(requests))
        self._idempotent = plan.retry_idempotent is True
        self.call = call = Call(plan, self._idempotent, replayable, outer)
        if timeout is not None:
            call.lasts(caller.clock.monotonic(), timeout)
        if plan.by_value is not None:
            headers = Headers(metadata)
            call.values = tuple(headers.get(name) for name in plan.by_value.headers)
        #: What its calls say they are for, if not the channel's target.
        self.authority: str | None = None
        shape = plan.shape
        if shape is not None:
            self.authority = shape.host
            if shape.target is not None:
                method = method.at(shape.target("POST", method.path, Headers(metadata)))
            if shape.request is not None:
                metadata = changed(metadata, shape.request)
        passed_on = PASSED_ON.get()
        if passed_on:
            own = {name for name, _ in metadata or ()}
            metadata = [*(metadata or ()), *(pair for pair in passed_on if pair[0] not in own)]
        self.method = method
        call.what = method.path
        call.asker = self
        self.metadata = metadata
        #: The last outcome: a message, or what is raised.
        self.value: Any = None
        self.error: BaseException | None = None
        #: By when the attempt must be over, or a stream have its first message.
        self.until = INFINITY
        #: A limit of ours has struck the attempt.
        self.timed_out = False
        self._held: Subchannel | None = None

    #: Where the last attempt went; set by ``prepare``.
    sub: Subchannel
    #: The API that attempts are made with, as instrumentations call it: ``grpc.aio`` is another.
    library: ClassVar[str] = "grpc"

    # ------------------------------------------------------------------------------------------ sending

    def prepare(self, call: Call) -> tuple[Any, dict[str, Any]]:
        """grpc's own callable for the next attempt, and what to call it with beside the request. Owes ``leave``."""
        endpoint, arguments = call.endpoint, self.options
        plan = self.plan
        self.sub = self._held = sub = self.caller.subchannels.enter(
            None if endpoint is None else endpoint.address, plan.connect_timeout, self.authority, plan.tls
        )
        arguments["timeout"], arguments["metadata"] = self.limits(call)
        if plan.mirror is not None and call.number == 1:
            self._mirror(plan.mirror)
        native, tracing, trace = self.method.on(sub), plan.hub.tracing, call.trace
        if tracing is not None and trace is not None and tracing.is_instrumented(self.library):
            return Within(trace, native), arguments
        return native, arguments

    def limits(self, call: Call) -> tuple[float | None, Metadata | None]:
        """The time-out and the metadata of the next attempt."""
        plan = self.plan
        self.error, self.timed_out = None, False
        now = self.caller.clock.monotonic()
        until = call.headers_by if call.headers_by < call.deadline else call.deadline
        idle = plan.idle_timeout
        if idle is not None and plan.mode == "ENFORCE" and now + idle < until:
            until = now + idle
        self.until = until
        last = call.deadline if self.method.streams_responses else until
        metadata = self.metadata if call.number == 1 else self._repeated(call)
        tracing = plan.hub.tracing
        return (
            None if last == INFINITY else last - now + _SLACK if last > now else _LONG_AGO,
            metadata if tracing is None else self._traced(metadata, tracing),
        )

    def asked(self) -> tuple[str, str, str, Mapping[str, str]]:
        """What of the call is written into a log."""
        headers = {name: value for name, value in self.metadata or () if isinstance(value, str)}
        return self.method.path, "HTTP/2", self.authority or self.caller.target.text, headers

    def sizes(self) -> tuple[int, int]:
        """grpcio does not tell them."""
        return 0, 0

    def _traced(self, metadata: Metadata | None, tracing: Traces) -> list[tuple[str, Any]]:
        """The metadata with that of the trace which the attempt is part of."""
        trace = self.call.trace
        carrier: dict[str, str] = {}
        if trace is None:
            tracing.passes_on(carrier)
        elif not tracing.is_instrumented(self.library):
            service, _, name = self.method.path[1:].partition("/")
            target = self.caller.target
            trace.sends(f"{service}/{name}", {
                "rpc.system.name": "grpc", "rpc.method": self.method.path[1:], "server.address": target.host, "server.port": target.port,
            }, carrier)
        kept = [pair for pair in metadata or () if pair[0] not in carrier]
        return [*kept, *carrier.items()]

    def _repeated(self, call: Call) -> list[tuple[str, Any]]:
        kept = [pair for pair in self.metadata or () if pair[0] != "grpc-previous-rpc-attempts"]
        return [*kept, ("grpc-previous-rpc-attempts", str(call.number - 1))]

    def _mirror(self, mirror: Mirror) -> None:
        """Have a copy of the call sent elsewhere, if it is one of the share."""
        if mirror.share < 1 and self.plan.rng.random() >= mirror.share:
            return
        caller = self.caller
        if caller.copies is None:
            reason: str | None = "intercepted"
        elif self.method.streams_requests:
            reason = "streamed"
        else:
            reason = None if caller.copies.send(self, mirror.plan) else "busy"
        self.call.mirrored(caller.clock.monotonic(), mirror.plan.service, reason)

    def leave(self) -> None:
        """The attempt is over, or was given up. Idempotent."""
        held = self._held
        if held is not None:
            self._held = None
            held.left()

    @property
    def request(self) -> Any:
        """What the next attempt sends: the message, or what gives the messages."""
        requests = self.requests
        return requests if not self.method.streams_requests or hasattr(requests, "__aiter__") or requests is None else iter(requests)

    # ----------------------------------------------------------------------------------------- outcomes

    def injected(self, call: Call) -> Answer:
        """A fault of attempt scope answers in place of the service."""
        status = call.injected or 0
        code = of_fault(status, call.injected_grpc)
        plan = self.plan
        error = InjectedFault(
            f"an injected fault aborted this attempt with status {status}", service=plan.service, route=plan.route, attempts=call.number,
        )
        error.status, error.grpc_status = status, call.injected_grpc
        self.error = in_dialect(error)
        return classify.of_injected(status, code, plan.classes)

    def succeeded(self, initial: Any = (), trailing: Any = ()) -> Answer:
        """The status OK."""
        classes = self.plan.classes
        return OK if classes is None or not classes.reads_headers else classify.of_ok(initial, trailing, classes)

    @property
    def reads_metadata(self) -> bool:
        """Whether ``succeeded`` looks at it."""
        classes = self.plan.classes
        return classes is not None and classes.reads_headers

    def failed(self, error: Any, *, struck: bool = False) -> Answer:
        """Any other status. ``error`` is grpc's, with the methods of a call that is over; ``struck``: we cancelled it, at its time."""
        code = error.code()
        self.error = error
        if self.plan.tls is not None and code is grpc.StatusCode.UNAVAILABLE:
            explain(error, self.plan)
        expired = code is grpc.StatusCode.DEADLINE_EXCEEDED and self.caller.clock.monotonic() >= self.until
        if struck or expired:
            self.call.idempotent = self._harmless()
            self.timed_out = True
            if self.until < self.call.headers_by:  # which the engine knows nothing of
                idle = format_duration(self.plan.idle_timeout or 0)
                self.error = self._deadline_error(f"no response within the idleTimeout of {idle}")
            return classify.TIMED_OUT
        answer, received = classify.of_error(
            code, error.details() or "", headers_of(error), error.trailing_metadata(), connected=self.connected,
            clock=self.caller.clock, classes=self.plan.classes,
        )
        self.call.idempotent = self.plan.retry_idempotent is not False if received else self._harmless()
        return answer

    def connected(self) -> bool:
        """Whether there is a connection to where the attempt went."""
        return self.sub.connected()

    def _harmless(self) -> bool:
        """Whether to repeat what may have been done."""
        return self._idempotent or (self.plan.retry_idempotent is None and self.method.idempotent)

    def _deadline_error(self, why: str) -> CallError:
        plan = self.plan
        return in_dialect(DeadlineExceeded(why, service=plan.service, route=plan.route, attempts=self.call.number))

    # -------------------------------------------------------------------------------------- after commit

    def verdict_of(self, error: Any) -> Verdict:
        """What the end of a committed stream is by a status other than OK."""
        answer = self.failed(error)
        if self.timed_out and self.call.deadline >= self._outer:
            return Verdict.IGNORED  # its caller had no more time, which says nothing about this service
        verdict = answer.verdict
        return Verdict.IGNORED if verdict is Verdict.THROTTLED else verdict

    def cut(self) -> CallError:
        """What the caller of a committed stream gets when the call's time is over."""
        if self.call.deadline >= self._outer:
            return self._deadline_error("the stream did not end within the deadline that this call inherited")
        seconds = format_duration(round(min(self.plan.timeout or INFINITY, getattr(self.call, "own_timeout", INFINITY)), 3))
        return self._deadline_error(f"the stream did not end within the timeout of {seconds}")

    def idled(self) -> CallError:
        """What it gets when no message came for too long."""
        return self._deadline_error(f"no message within the idleTimeout of {format_duration(self.plan.idle_timeout or 0)}")

    # ------------------------------------------------------------------------------------------- result

    def outcome(self, step: Step) -> BaseException | None:
        """What the caller gets in place of ``value``. Handed over, so that the error's traceback and this make no cycle."""
        last, self.error = self.error, None
        if step is RETURN:
            return last
        return in_dialect(self.call.take_error(last))

    def falls_back(self, step: Step) -> FallbackReason | None:
        """Why the fallback is asked; ``None``: it is not, or there is none."""
        return None if self.caller.fallback is None else self.call.fallback(step)

    def stand_in(self, error: BaseException) -> Any:
        """What stands in for the response; ``None``: nothing. May be awaitable."""
        assert self.caller.fallback is not None
        return self.caller.fallback(self.method.path, self.requests, error)

    def abandon(self) -> None:
        self.call.abandon(self.caller.clock.monotonic())


class Within:
    """grpc's callable, called where another instrumentation's span becomes that of the attempt."""

    __slots__ = ("_native", "_trace")

    def __init__(self, trace: Listener, native: Any) -> None:
        self._trace = trace
        self._native = native

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._run(self._native, arguments, options)

    def with_call(self, *arguments: Any, **options: Any) -> Any:
        return self._run(self._native.with_call, arguments, options)

    def future(self, *arguments: Any, **options: Any) -> Any:
        return self._run(self._native.future, arguments, options)

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        inside = self._trace.lends()
        try:
            return function(*arguments, **options)
        finally:
            self._trace.ran(inside)


def headers_of(call: Any) -> Any:
    """The initial metadata of a call that is over, without waiting for it: what says that it is over may run on the very thread
    that would have to read it."""
    state = getattr(call, "_state", None)
    return call.initial_metadata() if state is None else state.initial_metadata or ()


def _iterates_again(requests: Any) -> bool:
    again = getattr(requests, "__aiter__", None)
    try:
        return (iter(requests) if again is None else again()) is not requests
    except TypeError:
        return False
