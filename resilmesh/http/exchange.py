"""One call over HTTP: what its attempts send and what their outcomes are. No I/O: ``transport`` and ``aio`` add that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from resilmesh.drive.context import DEADLINE, PASSED_ON
from resilmesh.engine.call import RETURN, Call
from resilmesh.engine.plan import Fallback
from resilmesh.engine.verdict import NO_VERDICT, OK, Answer, Verdict
from resilmesh.errors import DeadlineExceeded, InjectedFault, TlsImpossible
from resilmesh.http import classify, replies
from resilmesh.http.backend import INFINITY, MAX_HEAD_BYTES, LimitPassed, Wire
from resilmesh.http.bodies import RequestBody
from resilmesh.http.errors import in_dialect
from resilmesh.http.mirror import copy_of
from resilmesh.http.outer import repetition
from resilmesh.http.shaping import passing_on, shaped
from resilmesh.telemetry.methods import known_method
from resilmesh.units import format_duration

if TYPE_CHECKING:
    from resilmesh.clock import Clock
    from resilmesh.engine.call import FallbackReason, Step
    from resilmesh.engine.events import Traces
    from resilmesh.engine.plan import Mirror, Plan
    from resilmesh.http.lanes import Lane, Lanes
    from resilmesh.http.library import Library

#: A fallback in code: given the request, and the exception or the response that the caller would get; gives another
#: response, or ``None`` to let it pass. Under an asynchronous client it may be a coroutine function.
CodeFallback = Callable[[Any, Any], Any]

#: What is kept of a response that may still have to be returned after a backoff.
KEPT_BYTES: Final = 64 * 1024
#: Seconds that reading it may take when the backoff is shorter than that.
KEPT_SECONDS: Final = 0.05

_TIMER_SLACK: Final = 0.002
_PORTS: Final = {"http": 80, "https": 443}
#: What our network backend is not asked about: waiting for httpcore's pool. Of a foreign transport, everything.
_POOL_TIMEOUT: Final = ("pool",)
_ALL_TIMEOUTS: Final = ("pool", "connect", "read", "write")
_NO_POOL_SLOT: Final = Answer(Verdict.IGNORED, timed_out=True)


class Exchange(Wire):
    """What the drive loop asks for attempts, and what the transport asks for the result."""

    __slots__ = (
        "_address", "_clock", "_outer", "answer", "body", "body_bytes", "call", "error", "fallback", "inside", "lane", "lanes", "library",
        "plan", "request", "response", "shaped",
    )

    def __init__(
        self, lanes: Lanes, library: Library, request: Any, plan: Plan, clock: Clock, fallback: Fallback | CodeFallback | None = None,
    ) -> None:
        self.lanes = lanes
        self.library = library
        self.request = request
        self.plan = plan
        self.stats = plan.stats
        self._clock = clock
        self.monotonic = clock.monotonic
        self._outer = outer = DEADLINE.get()
        # Bytes, which nearly every body is, need no looking after.
        stream = request.stream
        self.body = body = None if isinstance(stream, library.byte_stream) else RequestBody(stream)
        #: What is sent: the user's request, or what the policy makes of it.
        self.shaped = request if plan.shape is None else shaped(request, plan.shape, library)
        passed_on = PASSED_ON.get()
        if passed_on:
            self.shaped = passing_on(self.shaped, passed_on, library)
        own = request.extensions.get("resilmesh")
        #: What stands in for a failure: the request's own, the transport's, or the policy's.
        self.fallback = (own and own.get("fallback")) or fallback or plan.fallback
        self.call = Call(plan, classify.is_idempotent(request, plan), body is None or body.replayable, outer)
        self.call.what = known_method(request.method)
        self.call.asker = self
        #: Of the response's body, as far as it was read.
        self.body_bytes = 0
        repeated = repetition(request.headers)
        if repeated:
            self.call.repeats(repeated)
        if plan.by_value is not None:
            # Of a header that is sent several times the first value counts, as in Envoy.
            self.call.values = tuple(next(iter(request.headers.get_list(name)), None) for name in plan.by_value.headers)
        connect, idle = plan.connect_timeout, plan.idle_timeout
        if plan.mode != "ENFORCE":
            connect = idle = None
        self.connect_timeout = INFINITY if connect is None else connect
        self.idle_timeout = INFINITY if idle is None else idle
        #: The last outcome: one of them, and how it was classified.
        self.response: Any = None
        self.error: Exception | None = None
        self.answer = NO_VERDICT
        self._address: str | None = None

    #: Where the last attempt was sent; set by ``prepare``.
    lane: Lane
    #: What ``Listener.ran`` is owed for it, likewise.
    inside: Any

    @property
    def clock(self) -> Clock:
        """The mesh's."""
        return self._clock

    # ------------------------------------------------------------------------------------------ sending

    def prepare(self, call: Call) -> Any:
        """The request of the next attempt: the user's own, or a copy where something must differ."""
        endpoint, request = call.endpoint, self.shaped
        try:
            self.lane = lane = self.lanes.to(self.library, endpoint, request, self.plan)
        except TlsImpossible as error:
            error.service, error.route = self.plan.service, self.plan.route
            raise in_dialect(error, self.library, request) from None
        self._address = None if endpoint is None else endpoint.address
        if call.number > 1:
            self.response = self.error = None
            if self.body is not None:
                self.body.rewind()
        tracing = self.plan.hub.tracing
        self.inside = None
        if tracing is not None:
            self._traced(request, tracing, lane)
        if self.plan.mirror is not None and call.number == 1:
            self.mirror(self.plan.mirror)
        until, deadline = call.headers_by, call.deadline
        self.until = until = until if until < deadline else deadline
        self.written = True
        self.heard = False
        self.alone = alone = not lane.multiplexed
        self.head_left = MAX_HEAD_BYTES if alone else INFINITY
        moves = lane.rewrites and endpoint is not None
        # Our pool bounds the wait for a connection itself.
        bounds = until != INFINITY and (lane.foreign or lane.multiplexed)
        if not bounds and not moves:
            return request
        sent = object.__new__(type(request))
        sent.__dict__.update(request.__dict__)
        sent.extensions = extensions = request.extensions.copy()
        if moves:
            sent.url = self.library.moved(request.url, endpoint.host, endpoint.port)  # type: ignore[union-attr]  # see `moves`
            extensions.setdefault("sni_hostname", request.url.host)
        if bounds:
            extensions["timeout"] = self._timeouts(extensions.get("timeout"), _ALL_TIMEOUTS if lane.foreign else _POOL_TIMEOUT)
        return sent

    def _traced(self, request: Any, tracing: Traces, lane: Lane) -> None:
        """Begin the span of the attempt and add its headers, unless an instrumentation of the client does both."""
        trace = self.call.trace
        if trace is None:
            tracing.passes_on(request.headers)
        elif tracing.is_instrumented(self.library.name) and not lane.foreign:
            self.inside = trace.lends()
        else:
            url = request.url
            port = url.port or _PORTS.get(url.scheme)
            name = f"{self.call.what} {self.plan.service}"
            trace.sends(name if self.plan.route is None else f"{name}/{self.plan.route}", {
                "http.request.method": self.call.what, "server.address": url.host, "server.port": port or 0,
                # The query may hold a secret.
                "url.full": f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}",
            }, request.headers)

    def asked(self) -> tuple[str, str, str, Mapping[str, str]]:
        """What of the request is written into a log."""
        headers = self.shaped.headers
        lane = getattr(self, "lane", None)
        http2 = self.plan.http2 or (lane is not None and lane.multiplexed)
        return self.request.url.path, "HTTP/2" if http2 else "HTTP/1.1", headers.get("host", ""), headers

    def sizes(self) -> tuple[int, int]:
        """Bytes of the two bodies."""
        length = self.request.headers.get("content-length", "")
        return int(length) if length.isdigit() else 0, self.body_bytes

    def sent(self) -> None:
        """The attempt has its headers, or has failed."""
        inside, trace = self.inside, self.call.trace
        if inside is not None and trace is not None:
            self.inside = None
            trace.ran(inside)

    def _timeouts(self, own: dict[str, float | None] | None, names: tuple[str, ...]) -> dict[str, float | None]:
        """The client's time-outs, bounded by ours where our backend is not asked."""
        left = self.until - self.monotonic()
        bounded = own.copy() if own else {}
        for name in names:
            limit = left if name != "read" or left < self.idle_timeout else self.idle_timeout
            mine = bounded.get(name)
            if mine is None or limit < mine:
                bounded[name] = limit if limit > 0.0 else 0.0
        return bounded

    def mirror(self, mirror: Mirror) -> None:
        """Have a copy of the call sent elsewhere, if it is one of the share."""
        plan, call = self.plan, self.call
        if mirror.share < 1 and plan.rng.random() >= mirror.share:
            return
        reason = None
        if self.body is not None:
            reason = "streamed"
        else:
            copy = copy_of(self.shaped)
            if not self.lanes.copies.send(lambda: self.send_copy(copy, mirror.plan)):
                reason = "busy"
        call.mirrored(self._clock.monotonic(), mirror.plan.service, reason)

    def send_copy(self, request: Any, plan: Plan) -> Any:
        """Send a mirrored copy and read its answer to the end. Raises nothing: nobody is there to see it."""
        raise NotImplementedError

    def adopt_read_body(self, sent: Any) -> None:
        """A mock reads the body of the request that it gets; the user expects to find it in the one that he sent."""
        if sent is not self.request and "_content" in sent.__dict__ and "_content" not in self.request.__dict__:
            self.request._content, self.request.stream = sent._content, sent.stream

    # ----------------------------------------------------------------------------------------- outcomes

    def injected(self, status: int) -> Answer:
        """A fault of attempt scope answers in place of the service."""
        self.response, self.error = replies.response(self.library, self.request.method, replies.of_fault(status), {}), None
        self.answer = classify.of_injected(status, self.plan.classes)
        return self.answer

    def responded(self, response: Any) -> Answer:
        self.response = response
        self.head_left = INFINITY
        self.answer = classify.of_response(response, self._clock, self.plan.retries, self.plan.classes)
        return self.answer

    def failed(self, error: Exception) -> Answer:
        """The client raised. A time-out of its own that we had shortened is ours."""
        timeouts = self.library.client.TimeoutException
        if isinstance(error, timeouts) and self.monotonic() >= self.until - _TIMER_SLACK:
            waited_for_pool = isinstance(error, self.library.client.PoolTimeout)
            answer = self.limited(LimitPassed(connecting=isinstance(error, self.library.client.ConnectTimeout)))
            if waited_for_pool:
                answer = self.answer = _NO_POOL_SLOT
            return answer
        self.error = error
        self.answer = classify.of_error(error, self.written, self.heard)
        return self._sendable_after_all(self.answer)

    def limited(self, limit: LimitPassed) -> Answer:
        """A limit of ours passed. The engine knows which error that is, but for idleTimeout."""
        idle = limit.idle and self.plan.idle_timeout is not None
        what = f"idleTimeout of {format_duration(self.plan.idle_timeout or 0)}" if idle else "time limit of the attempt"
        self.error = self._deadline_error(f"no response within the {what}")
        self.answer = classify.of_limit(limit)
        return self._sendable_after_all(self.answer)

    def _sendable_after_all(self, answer: Answer) -> Answer:
        # A generator that nobody has touched can still be sent.
        if answer.verdict is Verdict.UNSENT and self.body is not None and self.body.untouched:
            self.call.replayable = True
        return answer

    def _deadline_error(self, why: str) -> DeadlineExceeded:
        plan = self.plan
        error = DeadlineExceeded(why, service=plan.service, route=plan.route, attempts=self.call.number)
        return in_dialect(error, self.library, self.request)  # type: ignore[return-value]  # a subclass of what it is given

    # ---------------------------------------------------------------------------------- keeping an outcome

    def keep(self, content: bytes, *, whole: bool) -> None:
        """Replace the response, whose connection is free now, by what was kept of it."""
        old = self.response
        self.response = self.library.response(
            old.status_code, headers=old.headers.raw, stream=self.library.byte_stream(content), extensions=old.extensions
        )
        self.response.extensions["resilmesh"] = {"truncated": not whole}
        self.answer = OK

    def keep_until(self) -> float:
        """Absolute time by which reading what is kept must be over: the backoff, or a moment if it is shorter."""
        return min(self.call.deadline, max(self.call.wake_at, self._clock.monotonic() + KEPT_SECONDS))

    # ------------------------------------------------------------------------------------------- result

    def facts(self) -> dict[str, Any]:
        """``response.extensions["resilmesh"]``: where the call went."""
        plan = self.plan
        return {"service": plan.service, "route": plan.route, "attempts": self.call.number, "endpoint": self._address}

    def conclude(self, step: Step) -> Any:
        """The response, or the exception, that the user gets. A response with a body still to come has ``answer.complete`` unset."""
        if step is RETURN:
            response = self.response
            if response is None:
                return self._conclude_error()
            self.response = None
            facts = self.facts()
            facts.update(response.extensions.get("resilmesh", ()))
            response.extensions["resilmesh"] = facts
            shape = self.plan.shape
            if shape is not None and shape.response is not None and not self.answer.injected:
                response.headers = self.library.client.Headers(shape.response(response.headers.raw))
            return response
        self.answer = OK
        error = self.call.error
        if error is None:
            raise RuntimeError(f"the engine ended a call with {step} and no error")
        if self.plan.respond or isinstance(error, InjectedFault):
            return replies.response(self.library, self.request.method, replies.of_call_error(error), self.facts())
        raise in_dialect(error, self.library, self.request)

    def _conclude_error(self) -> Any:
        self.answer = OK
        error, self.error = self.error, None
        if error is None:
            raise RuntimeError("the engine returned a call that has neither response nor exception")
        if self.plan.respond and self.plan.mode == "ENFORCE":
            if isinstance(error, DeadlineExceeded):
                reply: replies.Reply | None = replies.of_call_error(error)
            else:
                reply = replies.of_client_error(error, self.call.number)
            if reply is not None:
                return replies.response(self.library, self.request.method, reply, self.facts())
        try:
            raise error
        finally:
            del error  # which this frame would hold, and whose traceback holds this frame

    # ----------------------------------------------------------------------------------------- fallback

    def falls_back(self, step: Step) -> FallbackReason | None:
        """Why the fallback is asked; ``None``: it is not."""
        reason = self.call.fallback(step)
        return None if reason is not None and isinstance(self.fallback, Fallback) and reason not in self.fallback.on else reason

    def stand_in(self, reason: FallbackReason, outcome: Any) -> Any:
        """What stands in for ``outcome`` (a response, or the exception for the user); ``None``: nothing. May be awaitable."""
        if isinstance(self.fallback, Fallback):
            return replies.static(self.library, self.request.method, self.fallback, {**self.facts(), "fallback": reason})
        assert self.fallback is not None
        if not isinstance(outcome, Exception):
            outcome.request = self.request  # as the client would have set it, so that `raise_for_status` works
        return self.fallback(self.request, outcome)

    def stood_in(self, reason: FallbackReason, response: Any) -> Any:
        """What the user gets of a fallback."""
        if not isinstance(response, self.library.response):
            raise TypeError(f"a fallback gives an {self.library.name}.Response, or None to let the outcome pass, not {response!r}")
        response.extensions.setdefault("resilmesh", {**self.facts(), "fallback": reason})
        self.call.fell_back(self._clock.monotonic(), reason)
        return response

    # --------------------------------------------------------------------------------------------- body

    def body_begins(self) -> None:
        """The headers are there: from here on the call's own deadline bounds the wire."""
        self.until = self.call.deadline

    def body_ended(self, verdict: Verdict) -> None:
        self.call.ended(self._clock.monotonic(), self.call.number, verdict)

    def body_limited(self, limit: LimitPassed) -> DeadlineExceeded:
        """A limit of ours passed in the body: ends the call, and gives the error for the user."""
        inherited = not limit.idle and self._outer <= self.call.deadline
        self.body_ended(Verdict.IGNORED if inherited else Verdict.FAILURE)
        if limit.idle and self.plan.idle_timeout is not None:
            return self._deadline_error(f"no byte of the response body within the idleTimeout of {format_duration(self.plan.idle_timeout)}")
        if inherited or self.plan.timeout is None:
            return self._deadline_error("the response body did not end within the deadline that this call inherited")
        return self._deadline_error(f"the response body did not end within the timeout of {format_duration(self.plan.timeout)}")

    def body_failed(self, error: Exception) -> None:
        """The client's own exception in the body."""
        verdict = classify.of_error(error, written=True, heard=True).verdict
        self.body_ended(Verdict.IGNORED if verdict is Verdict.IGNORED else Verdict.FAILURE)

    def abandon(self) -> None:
        self.call.abandon(self._clock.monotonic())
