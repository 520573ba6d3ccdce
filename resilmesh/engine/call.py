"""START HERE. One call as the user sees it, from the first decision to the last: a step machine without I/O.

A ``Call`` never blocks, reads no clock and does no I/O. A driver performs what it says and tells it what
happened, so that the meaning of a policy is written once and is the same for sync, asyncio and trio, for
httpx, gRPC and a plain function, and for a simulator on virtual time.

    step    the driver                                            and then says
    SEND    performs attempt ``number`` (to ``endpoint``)         ``answered(now, number, answer)``
    SLEEP   waits until ``wake_at``                               ``woke(now)``
    WAIT    lends a waker, waits for it or until ``wake_at``      ``woke(now)``
    RETURN  gives the user the last outcome as it is              ``ended(now, number, verdict)`` if a body follows
    RAISE   raises ``error``                                      nothing

and, whenever the caller is gone, ``abandon(now)``: at any time, from any thread, more than once.

    phase      event               next
    NEW        start               DELAYED | QUEUED | FLYING | OVER    (STARTED while start is at work)
    DELAYED    woke                QUEUED | FLYING | OVER              an injected delay of call scope
    QUEUED     woke                QUEUED | FLYING | OVER              waiting for a slot
    PAUSED     woke                FLYING                              an injected delay of attempt scope
    FLYING     answered            BACKOFF | COMMITTED | OVER
    BACKOFF    woke                FLYING | PAUSED | OVER
    COMMITTED  ended               OVER                                the body flows; no retry any more
    any        abandon             OVER

**The order is fixed**, and it is the order of the lines of ``start``. Each says why it is above the next.

Rules for editors: the path of a successful call takes no lock, allocates nothing but the call, and stays
inside ``start`` and ``answered``. No lock of the state is ever held while
something is called out to. Everything that a call holds is given back in ``_release`` and nowhere else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from resilmesh.engine.backoff import backoff, come_back
from resilmesh.engine.plan import INBOUND, INFINITY, Plan, RetryPlan
from resilmesh.engine.verdict import Answer, Verdict, mask
from resilmesh.errors import (
    CallError,
    CircuitOpen,
    ConcurrencyExceeded,
    DeadlineExceeded,
    InjectedFault,
    NoHealthyEndpoint,
    RateLimited,
    Rejected,
)
from resilmesh.state.concurrency import Ticket
from resilmesh.state.stats import (
    ABANDONED,
    ATTEMPT_FAILED,
    ATTEMPT_SUCCEEDED,
    ATTEMPTS,
    BOUNDS,
    CALL_FAILED,
    CALL_SUCCEEDED,
    DIRECT_FAILED,
    IGNORED,
    INJECTED,
    MIRRORED,
    OUTER_RETRIES,
    RETRIES,
    STARTED,
    SUCCEEDED,
    bucket,
    place,
)
from resilmesh.units import format_duration

if TYPE_CHECKING:
    from resilmesh.engine.events import Hub
    from resilmesh.engine.fault import Fault, Faults
    from resilmesh.state.balance import Balancer
    from resilmesh.state.breaker import Permit
    from resilmesh.state.concurrency import Concurrency, Waker
    from resilmesh.state.ledger import Block
    from resilmesh.state.outlier import Endpoint
    from resilmesh.state.ratelimit import AllOf, LimitsByValue, RateLimit
    from resilmesh.state.stats import Exemplar, Outcome

Step = Literal["SEND", "SLEEP", "WAIT", "RETURN", "RAISE"]
#: Why a fallback stands in for an outcome.
FallbackReason = Literal["REJECTED", "DEADLINE", "FAILURE"]
SEND: Final = "SEND"
SLEEP: Final = "SLEEP"
WAIT: Final = "WAIT"
RETURN: Final = "RETURN"
RAISE: Final = "RAISE"

_FIRST_BOUND: Final = BOUNDS[0]

#: An event loop's timer may be this much early by the mesh's clock: asyncio rounds to its clock's resolution.
_EARLY: Final = 0.001

# The order matters to `start`: below QUEUED the call level is still to come, from there on it is done.
_NEW, _STARTED, _DELAYED, _QUEUED, _PAUSED, _FLYING, _BACKOFF, _COMMITTED, _OVER = range(9)

#: What ended an attempt, where no status did: the ``error`` of an outcome.
TIMED_OUT, NOT_SENT, RESET, BROKEN_BODY, CANCELLED, FAULT = (
    "timeout", "not_sent", "reset", "incomplete_body", "cancelled", "fault_injected",
)

_SUCCESS, _FAILURE, _UNSENT = Verdict.SUCCESS, Verdict.FAILURE, Verdict.UNSENT
_THROTTLED, _IGNORED = Verdict.THROTTLED, Verdict.IGNORED
_RATE_LIMITED: Final = mask("envoy-ratelimited")


#: Counts forks: what a call took before a fork belongs to the parent, which will give it back.
_generation = 0


def forked() -> None:
    """A child calls this first of all: calls that began before are not its own."""
    global _generation  # noqa: PLW0603  # a module's global is the cheapest thing to read on the path of every call
    _generation += 1


class Listener(Protocol):
    """Who is told what happens to one call: its trace."""

    def told(self, at: float, name: str, attempt: int, detail: dict[str, Any]) -> None:
        """One of ``EVENTS`` happened, or to the circuit or the endpoint of this call something that it has brought about."""

    def sends(self, name: str, attributes: Mapping[str, Any], carrier: MutableMapping[str, str]) -> None:
        """The attempt is sent now, with the headers of ``carrier``, to which those of the trace are added."""

    def lends(self) -> Any:
        """Somebody else makes the attempt's span, within this. Owes ``ran``, with what this gives."""

    def runs(self) -> Any:
        """The attempt is a function that runs now. Owes ``ran``, with what this gives."""

    def ran(self, token: Any) -> None:
        """It has returned."""

    def attempt_over(self, at: float, attempt: int, outcome: Outcome, verdict: Verdict, again: bool) -> Exemplar | None:
        """An attempt is over, its body included. ``again``: another follows. Gives what it may be found by, but for the seconds."""


class Asker(Protocol):
    """The adapter of a call, which knows what of the protocol is written into a log."""

    def asked(self) -> tuple[str, str, str, Mapping[str, str]]:
        """The path without its query, the protocol, the authority, and the headers."""

    def sizes(self) -> tuple[int, int]:
        """Bytes of the request's body and of the response's, as far as they are known."""


class Call:
    """One logical call. ``deadline`` is an outer, absolute deadline (monotonic seconds) that caps the plan's own.

    ``idempotent``: an attempt that may have reached the service may be repeated. ``replayable``: what is to be
    sent can be sent again.
    """

    __slots__ = (
        "_answer", "_balancer", "_began", "_born", "_gate", "_outer", "_permit", "_phase", "_sent_at", "_serial", "_ticket", "_to_headers",
        "_transparent", "_tried",
        "asker", "deadline", "endpoint", "error", "headers_by", "idempotent", "injected", "injected_grpc", "number", "own_timeout", "plan",
        "repetition", "replayable", "trace", "values", "wake_at", "what",
    )

    def __init__(self, plan: Plan, idempotent: bool = False, replayable: bool = True, deadline: float = INFINITY) -> None:
        self.plan = plan
        self.idempotent = idempotent
        self.replayable = replayable
        #: Absolute end of the call, its body included; ``inf`` when there is none.
        self.deadline = self._outer = deadline
        #: The attempt that is being sent, from 1.
        self.number = 0
        #: Where to send it; ``None``: where the URL says.
        self.endpoint: Endpoint | None = None
        #: Status that an injected fault answers this attempt with; the driver then sends nothing.
        self.injected: int | None = None
        #: Why, after RAISE; and after RETURN what to raise if the driver did not keep the last outcome.
        self.error: CallError | None = None
        #: What it asks for, where adapters know it: an HTTP method, or the path of a gRPC method. The attempts are counted by it.
        self.what: str | None = None
        #: Who asks, for those who write it down.
        self.asker: Asker | None = None
        self.trace: Listener | None = None
        self._gate: Concurrency | None = None
        self._phase = _NEW

    # Set when first needed, before anything reads them.
    repetition: int  #: see ``repeats``
    own_timeout: float  #: see ``lasts``
    injected_grpc: int | None  #: the gRPC status of ``injected``, where the policy names one
    values: tuple[str | None, ...]  #: of the request headers ``plan.by_value.headers``; the driver sets it before ``start``
    headers_by: float  #: absolute time by which the attempt must have its response headers
    wake_at: float  #: absolute time of the next ``woke``, after SLEEP and WAIT
    _answer: Answer
    _balancer: Balancer | None
    _began: float
    _born: int
    _permit: Permit | None
    _sent_at: float
    _serial: int
    _ticket: Ticket
    _to_headers: float
    _transparent: bool  #: an attempt was repeated because the service had refused to look at it
    _tried: list[Endpoint]

    # ---------------------------------------------------------------------------------------- call level

    def repeats(self, number: int) -> None:
        """Say, before ``start``, that a loop outside of ours (an SDK's own) sends this for the ``number``-th time again, from 1."""
        self.repetition = number
        self.plan.stats.counts[OUTER_RETRIES] += 1

    def lasts(self, now: float, seconds: float) -> None:
        """Say, before ``start``, that the caller gives this call no more time than that: a time-out like the policy's own."""
        self.own_timeout = seconds
        if now + seconds < self.deadline:
            self.deadline = now + seconds

    def start(self, now: float) -> Step:
        """Begin; ``woke`` also comes back here to go on. The order of these lines is the order of decisions."""
        plan = self.plan
        phase = self._phase
        if phase == _NEW:
            self._phase = _STARTED
            self._born = _generation
            self._began = now
            plan.stats.counts[STARTED] += 1
            hub = plan.hub
            if hub.orphans or hub.observers or hub.tracing is not None:
                self._attend(hub, now)
            # Mode comes first of all: OFF has no plan, and OBSERVE must touch nothing. A fault of call scope is above
            # the deadline: an injected abort is not retried, an injected delay eats neither timeout nor slot (Envoy).
            if not plan.plain:
                return self._observe(now) if plan.mode == "OBSERVE" else self._inject(now)
        elif phase == _OVER:
            return RAISE  # abandoned before it began
        if phase < _QUEUED:
            # The deadline is above all other waiting, so that the waiting counts.
            timeout = plan.timeout
            if timeout is not None:
                own = now + timeout
                if own < self.deadline:
                    self.deadline = own
            if self._outer <= now:
                return self._raise(now, self._deadline_error(), counted=_IGNORED_CALL)
            # The budget takes its deposit once per call, whatever becomes of it: it measures the traffic that is offered.
            budget = plan.budget
            if budget is not None:
                budget.deposit(now)
            # The rate limit is above concurrency: a throttled caller must not hold a slot.
            limit = plan.limit if plan.by_value is None else self._limit(plan.by_value)
            if limit is not None and not limit.take(now):
                return self._reject(now, RateLimited, "the rate limit has no token left", limit.retry_after(now))
            # Concurrency is above the split and the attempts: one call, one slot, held until its body ends.
            gate = plan.concurrency
            if gate is not None:
                if gate.in_flight >= gate.limit or gate.queue:
                    return self._queue(now, gate)
                gate.in_flight += 1  # no call may come between the question and this line
                self._gate = gate
            # The split is drawn once per call: a retry stays in the subset that its call was sent to.
            self._balancer = plan.balancer if plan.split is None else plan.split.choose(plan.rng.random())

        # From here on, attempt level. The circuit is asked for each attempt, because each attempt is judged.
        breaker = plan.breaker
        if breaker is not None:
            permit = breaker.permit
            if permit is None:
                permit = breaker.acquire(now, min(plan.per_try, self.deadline - now))
                if permit is None:
                    return self._refused(now, CircuitOpen, "the circuit is open", breaker.retry_after(now))
            self._permit = permit
        # The endpoint is below the circuit: an attempt that is not made must not move the balancer on.
        balancer = self._balancer
        if balancer is not None:
            endpoint = balancer.pick(now, self._tried if self.number else ())
            if endpoint is None:
                return self._refused(now, NoHealthyEndpoint, "no healthy endpoint", None)
            endpoint.in_flight += 1
            endpoint.requests += 1
            self.endpoint = endpoint
        self.number += 1
        self._sent_at = now
        if self._phase == _OVER:  # abandoned by another thread meanwhile. No call may come between this line and the next but one
            return self._gone()
        self._phase = _FLYING
        plan.stats.counts[ATTEMPTS] += 1
        # The time of one try is the innermost: it ends at the headers, and never outlasts the call.
        by = now + plan.per_try
        self.headers_by = by if by < self.deadline else self.deadline
        if plan.hub.observers or self.trace is not None:
            self._tell(now, "attempt_started", endpoint=self.endpoint.address if self.endpoint else None)
        # A fault of attempt scope stands where the attempt would: below the circuit and the endpoint, which a drill exercises.
        return SEND if plan.drill is None else self._inject_attempt(now, plan.drill)

    def _limit(self, by_value: LimitsByValue) -> RateLimit | AllOf:
        """The rate limit of this request's header values; a function call has none of them."""
        return by_value.of(getattr(self, "values", ()))

    def _attend(self, hub: Hub, now: float) -> None:
        """Clean up after calls that nobody ended, and tell who listens that this one began."""
        hub.drain(now)
        if hub.tracing is not None and self.plan.service != INBOUND:  # what is served has a span of its own (telemetry.served)
            self.trace = hub.tracing.begin(self)
        if hub.observers:
            self._serial = next(hub.serial)
            repetition = getattr(self, "repetition", 0)
            if repetition:
                self._tell(now, "call_started", repetition=repetition)
            else:
                self._tell(now, "call_started")

    def _inject(self, now: float) -> Step:
        """A fault of call scope: the delay first, then the abort."""
        assert self.plan.fault is not None
        if not self._enter(_DELAYED):
            return RAISE
        delay = self.plan.fault.draw_delay(self.plan.rng)
        if not delay:
            return self._abort_or_go_on(now)
        self._count_fault(now, "delay", scope="CALL", delay=delay)
        # Nothing may outlast what the caller was given by its own caller.
        self.wake_at = min(now + delay, self._outer)
        return SLEEP

    def _abort_or_go_on(self, now: float) -> Step:
        fault = self.plan.fault
        assert fault is not None
        abort = fault.draw_abort(self.plan.rng)
        if abort is None:
            return self.start(now)
        status = abort.abort_status or 200
        self._count_fault(now, "abort", scope="CALL", status=status)
        error = self._error(InjectedFault, f"an injected fault aborted this call with status {status}")
        assert isinstance(error, InjectedFault)
        error.status, error.grpc_status = status, abort.abort_grpc
        return self._raise(now, error, counted=_IGNORED_CALL)

    def _queue(self, now: float, gate: Concurrency) -> Step:
        # Held and in phase before it stands in the queue, so that nothing can come between a place and its owner.
        self._ticket = ticket = Ticket()
        if not self._enter(_QUEUED):
            return RAISE
        if not gate.wait(ticket):
            return self._reject(now, ConcurrencyExceeded, f"{gate.limit} calls are in flight and the queue is full", None)
        plan, wait = self.plan, self.plan.max_pending_wait
        self._balancer = plan.balancer if plan.split is None else plan.split.choose(plan.rng.random())
        self.wake_at = self.deadline if wait is None else min(self.deadline, now + wait)
        self._tell(now, "call_queued")
        return self._leave_queue(now)

    def _leave_queue(self, now: float) -> Step:
        gate, hub = self.plan.concurrency, self.plan.hub
        assert gate is not None
        if hub.orphans:  # one of them may hold the slot that this call waits for
            hub.drain(now)
        claimed = gate.claim(self._ticket)
        if self._phase == _OVER:  # by another thread, which gives the ticket up. No call between this line and `_gate`
            return RAISE
        if claimed:
            self._gate = gate
            if now < self.deadline:
                return self.start(now)
        elif now < self.wake_at:
            return WAIT
        else:
            gate.give_up(self._ticket)
        if now >= self.deadline:
            return self._raise(now, self._deadline_error(), counted=_IGNORED_CALL if self.deadline >= self._outer else "deadline")
        return self._reject(now, ConcurrencyExceeded, "no slot became free within maxPendingWait", None)

    def lend(self, waker: Waker) -> None:
        """After WAIT: have ``waker`` called, once, from any thread, when ``woke`` is worth calling."""
        assert self.plan.concurrency is not None
        self.plan.concurrency.lend(self._ticket, waker)

    # ------------------------------------------------------------------------------------- attempt level

    def _inject_attempt(self, now: float, fault: Fault | Faults) -> Step:
        rng = self.plan.rng
        delay = fault.draw_delay(rng)
        self.injected = None
        abort = fault.draw_abort(rng)
        if abort is not None:
            self.injected, self.injected_grpc = abort.abort_status or 200, abort.abort_grpc
            self._count_fault(now, "abort", scope="ATTEMPT", status=self.injected)
        if not delay:
            return SEND
        self._count_fault(now, "delay", scope="ATTEMPT", delay=delay)
        self.wake_at = min(now + delay, self.headers_by)
        return SLEEP if self._enter(_PAUSED) else RAISE

    def woke(self, now: float) -> Step:
        """``wake_at`` has come, or the waker was called. A wake too early is answered with the same step again."""
        if self._phase != _OVER and self._born != _generation:
            self.abandon(now)  # it goes on in the parent, and what it holds is the parent's
        phase = self._phase
        if phase == _QUEUED:
            return self._leave_queue(now)
        if phase == _OVER:
            return RAISE
        if now < self.wake_at:
            return SLEEP
        if phase == _DELAYED:
            return self._abort_or_go_on(now)
        if phase == _PAUSED:
            if not self._enter(_FLYING):
                return RAISE
            return SEND if now < self.headers_by else self.answered(now, self.number, _TIMED_OUT)
        if now >= self.deadline:
            self._retry_refused(now, "deadline")
            self.error = self._deadline_error()
            return self._give_last(now)
        step = self.start(now)
        if step is SEND or step is SLEEP:
            self.plan.stats.counts[RETRIES] += 1
        return step

    # ------------------------------------------------------------------------------------------ answers

    def answered(self, now: float, number: int, answer: Answer) -> Step:
        """Attempt ``number`` gave its headers or its result, or failed."""
        if number != self.number or self._phase != _FLYING or self._born != _generation:
            return RETURN  # abandoned meanwhile, or begun before a fork
        plan = self.plan
        if answer.verdict is not _SUCCESS or answer.words or not plan.quick or plan.hub.observers or self.trace is not None:
            return self._judge(now, answer)
        if answer.complete:
            if self._sent_at != self._began or self.number != 1:
                return self._judge(now, answer)  # the call and its attempt are not the same
            # The end of nearly every function call: _tell_breaker, _tell_detector, _finish and _release in a row. What counts comes first:
            # a KeyboardInterrupt can only strike at a call, and then the call is abandoned as a whole.
            breaker = plan.breaker
            if breaker is not None:
                breaker.success(self._permit, now, now - self._sent_at)  # type: ignore[arg-type]  # set in start
            seconds = now - self._began
            at = 0 if seconds <= _FIRST_BOUND else bisect_left(BOUNDS, seconds)
            endpoint = self.endpoint
            if endpoint is not None and endpoint.attentive:
                self._balancer.detector.success(endpoint, now)  # type: ignore[union-attr]  # an endpoint came from it
            if self._phase != _FLYING:  # abandoned by another thread, which has given everything back
                return RETURN
            self._phase = _OVER
            stats = plan.stats
            stats.sums[0] += seconds
            stats.counts[SUCCEEDED + at] += 1
            if endpoint is not None:
                endpoint.in_flight -= 1
            gate = self._gate
            if gate is not None:
                gate.in_flight -= 1
                if gate.queue:
                    gate.hand_out()
            if self.what is not None:
                stats.outcomes.of((self.what, answer.status, "")).record(seconds)
            return RETURN
        self._phase = _COMMITTED
        self._answer = answer
        self._commit(now)
        return RETURN

    def _commit(self, now: float) -> None:
        """Headers of a success have reached the user. A probe succeeds here; the rest is judged when the body ends."""
        self._to_headers = now - self._sent_at
        breaker = self.plan.breaker
        if breaker is not None:
            permit = self._permit
            if permit is not None and permit is not breaker.permit:
                self._permit = None
                breaker.success(permit, now, self._to_headers)
        # Outlier detection judges by the headers, as Envoy does; a body that breaks is one failure more.
        endpoint = self.endpoint
        if endpoint is not None and endpoint.attentive:
            self._balancer.detector.success(endpoint, now)  # type: ignore[union-attr]  # an endpoint came from it

    def _judge(self, now: float, answer: Answer) -> Step:
        """Anything but an unobserved success."""
        plan, verdict = self.plan, answer.verdict
        # Under OBSERVE there is no headers_by, but what the caller inherited it has.
        at_limit = answer.timed_out and now >= min(self.headers_by, self.deadline) - _EARLY
        if at_limit and self.headers_by >= self.deadline >= self._outer:
            # The caller's own caller had no more time: that says nothing about this service.
            verdict = _IGNORED
        if answer.grpc is None:
            self._tell(now, "attempt_ended", verdict=verdict.value, status=answer.status)
        else:
            self._tell(now, "attempt_ended", verdict=verdict.value, status=answer.status, grpc_status=answer.grpc)
        if verdict is not _SUCCESS:
            plan.stats.count("attemptsByVerdict", verdict.value)
        self._answer = answer
        if answer.injected:
            plan.stats.counts[INJECTED] += 1
        observes = plan.mode == "OBSERVE"
        again = verdict is not _IGNORED and not observes and (self._repeats_unseen(answer) or self._wants_retry(answer))
        if verdict is not _SUCCESS or answer.complete or again:
            self._tell_breaker(now, verdict, now - self._sent_at)
            self._tell_detector(now, verdict, answer)
        if again and self._may_retry(now, answer):
            return SLEEP
        if at_limit and not observes:
            if self.headers_by >= self.deadline:
                return self._raise(now, self._deadline_error(), counted=_IGNORED_CALL if verdict is _IGNORED else "deadline")
            return self._raise(now, self.per_try_error(), counted="deadline")
        if answer.complete:
            self._finish(now, verdict)
        elif self._enter(_COMMITTED) and verdict is _SUCCESS:
            self._commit(now)
        return RETURN

    def _tell_breaker(self, now: float, verdict: Verdict, seconds: float) -> None:
        """The circuit learns what the attempt turned out to be, once."""
        breaker = self.plan.breaker
        if breaker is not None and self._permit is not None:
            permit, self._permit = self._permit, None
            before = breaker.state
            if verdict is _SUCCESS:
                breaker.success(permit, now, seconds)
            elif verdict is _THROTTLED:
                breaker.throttled(permit, now, seconds)
            elif verdict is _IGNORED:
                breaker.release(permit)
            else:
                breaker.failure(permit, now, seconds)
            if self.trace is not None and breaker.state != before:
                self.trace.told(now, "circuit_changed", self.number, {"old": before, "new": breaker.state})

    def _tell_detector(self, now: float, verdict: Verdict, answer: Answer) -> None:
        """Outlier detection learns what the attempt, or the body after its headers, turned out to be."""
        endpoint, balancer = self.endpoint, self._balancer
        if endpoint is None or balancer is None or answer.injected:
            return
        before = endpoint.ejected
        if verdict is _SUCCESS or verdict is _THROTTLED:
            balancer.detector.success(endpoint, now)
        elif verdict is _FAILURE or verdict is _UNSENT:
            # Envoy counts its own time-outs as 504 and resets as 503: both are gateway failures, as status 0 is.
            balancer.detector.failure(endpoint, now, status=answer.status, local_origin=answer.local_origin)
        if self.trace is not None and endpoint.ejected and not before:
            self.trace.told(now, "endpoint_ejected", self.number, {"endpoint": endpoint.address})

    # ---------------------------------------------------------------------------------------- retrying

    def _wants_retry(self, answer: Answer) -> bool:
        """Whether the policy would have this attempt repeated, and it can be."""
        retries = self.plan.retries
        if answer.again is None:
            if retries is None or self.number - getattr(self, "_transparent", False) > retries.max_retries:
                return False
            if not (answer.words & retries.words or self._listed(retries, answer)):
                return False
        elif not answer.again or (retries is not None and not retries.max_retries):
            return False  # the program's own strategies stand in for retryOn and maxRetries; but no retries are none
        # What may have reached the service is repeated only if that is harmless.
        return self.replayable and (self.idempotent or answer.verdict is _UNSENT)

    @staticmethod
    def _listed(retries: RetryPlan, answer: Answer) -> bool:
        """Whether retryOn has the status as a number. Of an answer with x-envoy-ratelimited Envoy asks no word but that, and no number."""
        return answer.grpc is None and answer.status in retries.statuses and not answer.words & _RATE_LIMITED

    def _repeats_unseen(self, answer: Answer) -> bool:
        """Whether to send again what the service promised not to have looked at: once a call, whatever retryOn says (gRFC A6)."""
        return answer.refused and self.replayable and not getattr(self, "_transparent", False)

    def _may_retry(self, now: float, answer: Answer) -> bool:
        """Whether there is leave to try again, asked while the last response is still open; sets up the backoff if so."""
        plan = self.plan
        unseen = self._repeats_unseen(answer)
        delay = 0.0 if unseen else self._delay(answer)
        if now + delay >= self.deadline:
            return self._retry_refused(now, "deadline")
        if plan.breaker is not None and not plan.breaker.admits(now + delay):
            return self._retry_refused(now, "circuit")
        # The budget comes last: what another reason refuses must not cost a retry.
        if plan.budget is not None and not unseen and not plan.budget.withdraw(now):
            return self._retry_refused(now, "budget")
        if not self._enter(_BACKOFF):
            return False
        if unseen:
            self._transparent = True
        self._attempt_over(now, answer.verdict, answer, again=True)
        self._leave_endpoint(tried=True)
        self.wake_at = now + delay
        self._tell(now, "backoff", seconds=delay)
        return True

    def _delay(self, answer: Answer) -> float:
        if answer.backoff is not None:
            return answer.backoff
        retries = self.plan.retries
        assert retries is not None
        draw = self.plan.rng.random()
        # A service that asks for no wait gets the backoff, as in Envoy.
        if answer.retry_after and retries.retry_after_max is not None and answer.retry_after <= retries.retry_after_max:
            return come_back(answer.retry_after, draw)
        return backoff(self.number, retries.base, retries.longest, draw)

    def _retry_refused(self, now: float, reason: str) -> bool:
        self.plan.stats.count("retriesRefused", reason)
        self._tell(now, "retry_refused", reason=reason)
        return False

    def _refused(self, now: float, kind: type[Rejected], why: str, retry_after: float | None) -> Step:
        """An attempt is not let through: the first rejects the call, a later one returns the last outcome as it is."""
        if self.number == 0:
            return self._reject(now, kind, why, retry_after)
        self._retry_refused(now, "circuit" if kind is CircuitOpen else "endpoint")
        # Should the driver not have kept the last outcome, this is the next best thing to say.
        self.error = self._error(kind, why, retry_after)
        return self._give_last(now)

    def _give_last(self, now: float) -> Step:
        self._finish(now, self._answer.verdict)
        return RETURN

    # ------------------------------------------------------------------------------------------- endings

    def ended(self, now: float, number: int, verdict: Verdict, grpc: str | None = None) -> None:
        """The body of a committed answer ended: SUCCESS, FAILURE (it broke), or IGNORED (nobody's fault). ``grpc``: by that status."""
        if self._phase != _COMMITTED or number != self.number or self._born != _generation:
            return
        answer = self._answer
        broke = verdict is not _SUCCESS and verdict is not _IGNORED
        if grpc is not None:
            self._answer = Answer(answer.verdict, 0, answer.status, grpc=grpc)
        elif verdict is not _SUCCESS:
            cut = TIMED_OUT if now >= self.deadline - _EARLY else BROKEN_BODY if broke else CANCELLED
            self._answer = Answer(answer.verdict, 0, answer.status, grpc=answer.grpc, cut=cut)
        if broke and now < self.deadline - _EARLY:  # a body that the call's own time cut off is no failure of the endpoint
            self._tell_detector(now, verdict, _BROKEN_BODY)
        if answer.verdict is _SUCCESS:
            if broke:
                self.plan.stats.count("attemptsByVerdict", verdict.value)
            # A slow call is one whose headers were slow: how long a body flows is the caller's business too.
            self._tell_breaker(now, verdict, self._to_headers)
        else:
            verdict = answer.verdict  # judged at its headers
        self._finish(now, verdict)

    def abandon(self, now: float) -> None:
        """The caller is gone: give everything back. Never raises, never blocks, idempotent, any thread."""
        phase = self._phase
        self._phase = _OVER
        if phase == _OVER:
            return
        mine = phase != _NEW and self._born == _generation
        if mine:
            self.plan.stats.counts[ABANDONED] += 1
        self.error = CallError("the call was abandoned", service=self.plan.service, route=self.plan.route, attempts=self.number)
        if not mine:
            return
        if phase == _QUEUED and self._gate is None and self.plan.concurrency is not None:
            self.plan.concurrency.give_up(self._ticket)
        self._release()
        if phase in _FLIES:
            self._attempt_over(now, _IGNORED, _ABANDONED)
        self._tell(now, "call_abandoned")

    def orphan(self) -> None:
        """From a finalizer, which may run inside a lock's holder: only note it; the next call of the mesh cleans up."""
        self.plan.hub.orphans.append(self)

    @property
    def began(self) -> float:
        """When ``start`` came first."""
        return self._began

    @property
    def over(self) -> bool:
        """Whether nothing is held any more."""
        return self._phase == _OVER

    def _finish(self, now: float, verdict: Verdict) -> None:
        self._release()
        phase, seconds = self._phase, now - self._began
        row, at, timed = self._counted(verdict, seconds, phase)
        # Whoever sets the phase counts the call, in one go: an interrupt before this line leaves it to `abandon`.
        if self._phase == _OVER:
            return
        self._phase = _OVER
        row.sums[0] += timed
        row.counts[at] += 1
        if phase in _FLIES:
            self._attempt_over(now, verdict, self._answer)
        self._tell(now, "call_ended", verdict=verdict.value, seconds=seconds)

    def _counted(self, verdict: Verdict, seconds: float, phase: int) -> tuple[Block, int, float]:
        """Where a call that ended so is counted, and the seconds to add there."""
        stats = self.plan.stats
        if verdict is _IGNORED:
            return stats, IGNORED, 0.0
        direct, at = phase in _FLIES and self._is_direct, bucket(seconds)
        if verdict is not _SUCCESS:
            return stats.histogram(DIRECT_FAILED if direct else CALL_FAILED), at, seconds
        return (stats, SUCCEEDED + at, seconds) if direct else (stats.histogram(CALL_SUCCEEDED), at, seconds)

    @property
    def _is_direct(self) -> bool:
        """Whether the call is the same as its one attempt."""
        return self.number == 1 and self._sent_at == self._began

    def _attempt_over(self, now: float, verdict: Verdict, answer: Answer, *, again: bool = False) -> None:
        """The attempt that was out is over, its body included: it is counted, if it was not as its call."""
        stats, seconds = self.plan.stats, now - self._sent_at
        if verdict is not _IGNORED and not (self._phase == _OVER and self._is_direct):
            stats.histogram(ATTEMPT_SUCCEEDED if verdict is _SUCCESS else ATTEMPT_FAILED).record(seconds)
        trace = self.trace
        if self.what is None and trace is None:
            return
        outcome = (self.what or "", answer.status if answer.grpc is None else answer.grpc, _error(verdict, answer))
        exemplar = None if trace is None else trace.attempt_over(now, self.number, outcome, verdict, again)
        if self.what is not None:
            histogram = stats.outcomes.of(outcome)
            at = histogram.record(seconds)
            if exemplar is not None:
                histogram.exemplars[at] = exemplar._replace(seconds=seconds)

    def _enter(self, phase: int) -> bool:
        """Go on to another phase; False when another thread has abandoned the call, and given back what it held."""
        if self._phase == _OVER:
            return False
        self._phase = phase
        return True

    def _gone(self) -> Step:
        """Another thread abandoned the call while this one took what an attempt needs: give that back as well."""
        self._release()
        return RAISE

    def _release(self) -> None:
        """Give back what the call holds: slot, permit, endpoint. The one place for it, but for the end of ``answered``.

        Two threads may come at once, an interrupt may strike at any call: so each is taken off the call and given back
        with no call in between, and may be asked for again.
        """
        gate = self._gate
        if gate is not None:
            self._gate = None
            gate.in_flight -= 1  # before the question: who waits asks in the other order
            if gate.queue:
                gate.hand_out()
        breaker = self.plan.breaker
        if breaker is not None:
            permit = getattr(self, "_permit", None)
            if permit is not None:
                breaker.release(permit)  # idempotent
                self._permit = None
        self._leave_endpoint()

    def _leave_endpoint(self, *, tried: bool = False) -> None:
        endpoint, self.endpoint = self.endpoint, None
        if endpoint is not None:
            endpoint.in_flight -= 1
            if tried:
                self._tried = [*self._tried, endpoint] if self.number > 1 else [endpoint]

    # ------------------------------------------------------------------------------------------ fallback

    def fallback(self, step: Step) -> FallbackReason | None:
        """After RETURN or RAISE: why a fallback may stand in for the outcome; ``None``: it may not."""
        if self.plan.mode == "OBSERVE":
            return None
        if step is RAISE:
            error = self.error
            if isinstance(error, Rejected):
                return "REJECTED"
            if isinstance(error, DeadlineExceeded):
                return "DEADLINE"
            failed = isinstance(error, InjectedFault) and self.plan.verdict_of(error.status)[0] is _FAILURE
        else:
            answer: Answer | None = getattr(self, "_answer", None)
            failed = answer is not None and (answer.verdict is _FAILURE or answer.verdict is _UNSENT)
        return "FAILURE" if failed else None

    def fell_back(self, now: float, reason: FallbackReason) -> None:
        """A fallback was given in place of the outcome, which is counted as what it was."""
        if self._phase == _COMMITTED:
            self._finish(now, self._answer.verdict)  # its body is not wanted any more
        self.plan.stats.count("fallbacks", reason)
        self._tell(now, "fell_back", reason=reason)

    def mirrored(self, now: float, to: str, dropped: str | None) -> None:
        """A copy of the call was sent to the service ``to``, or ``dropped`` for a reason."""
        stats = self.plan.stats
        if dropped is None:
            stats.counts[MIRRORED] += 1
            self._tell(now, "mirrored", to=to)
        else:
            stats.count("mirrorsDropped", dropped)
            self._tell(now, "mirror_dropped", to=to, reason=dropped)

    # ------------------------------------------------------------------------------------------- raising

    def _reject(self, now: float, kind: type[Rejected], why: str, retry_after: float | None) -> Step:
        return self._raise(now, self._error(kind, why, retry_after), counted=kind.__name__)

    def _raise(self, now: float, error: CallError, *, counted: str) -> Step:
        self.error = error
        self._release()
        rejected, phase, seconds = isinstance(error, Rejected), self._phase, now - self._began
        verdict = _IGNORED if counted == _IGNORED_CALL else _FAILURE
        row, at, timed = (self.plan.stats, place("rejected", counted), 0.0) if rejected else self._counted(verdict, seconds, phase)
        # As in `_finish`: no call between the question and the last count.
        if self._phase == _OVER:
            return RAISE
        self._phase = _OVER
        row.sums[0] += timed
        row.counts[at] += 1
        if phase in _FLIES:
            self._attempt_over(now, verdict, self._answer)
        if not self.plan.hub.observers and self.trace is None:
            return RAISE
        if rejected:
            self._tell(now, "call_rejected", reason=counted)
        else:
            self._tell(now, "call_ended", verdict=verdict.value, seconds=seconds)
        return RAISE

    def take_error(self, last: BaseException | None = None) -> CallError:
        """After RAISE: what to raise, because of ``last``. Handed over, so that call and traceback make no cycle."""
        error, self.error = self.error, None
        assert error is not None
        if last is not None:
            error.__cause__ = last
        return error

    def _error(self, kind: type[CallError], why: str, retry_after: float | None = None) -> CallError:
        plan = self.plan
        return kind(why, service=plan.service, route=plan.route, retry_after=retry_after, attempts=self.number)

    def _deadline_error(self) -> CallError:
        timeout = min(self.plan.timeout or INFINITY, getattr(self, "own_timeout", INFINITY))
        if timeout == INFINITY or self.deadline >= self._outer:
            return self._error(DeadlineExceeded, "the deadline that this call inherited has passed")
        return self._error(DeadlineExceeded, f"no answer within the timeout of {format_duration(timeout)}")

    def per_try_error(self) -> CallError:
        """What an attempt is to the program that perTryTimeout has ended."""
        return self._error(DeadlineExceeded, f"no response within the perTryTimeout of {format_duration(self.plan.per_try)}")

    # ------------------------------------------------------------------------------------------- OBSERVE

    def _observe(self, now: float) -> Step:
        """Decide everything, act on nothing: the one attempt goes where the caller said, as if there were no policy."""
        plan = self.plan
        reason = self._would_reject(now)
        if reason is not None:
            plan.stats.count("wouldReject", reason)
            self._tell(now, "would_reject", reason=reason)
        self._balancer = None
        self.number = 1
        self._sent_at = now
        self.headers_by = INFINITY
        self.deadline = self._outer
        if not self._enter(_FLYING):
            return self._gone()
        plan.stats.counts[ATTEMPTS] += 1
        self._tell(now, "attempt_started", endpoint=None)
        return SEND

    def _would_reject(self, now: float) -> str | None:
        plan = self.plan
        self._permit = None
        limit = plan.limit if plan.by_value is None else self._limit(plan.by_value)
        if limit is not None and not limit.take(now):
            return RateLimited.__name__
        gate = plan.concurrency
        if gate is not None:
            if gate.in_flight >= gate.limit or gate.queue:
                return ConcurrencyExceeded.__name__
            gate.in_flight += 1  # as in start
            self._gate = gate
        breaker = plan.breaker
        if breaker is not None:
            self._permit = breaker.acquire(now, INFINITY)
            if self._permit is None:
                self._release()  # a call that the circuit refuses holds no slot
                return CircuitOpen.__name__
        # A call that would have been rejected carries no permit, so it does not feed the circuit.
        return None

    # ------------------------------------------------------------------------------------------- telling

    def _count_fault(self, now: float, kind: str, **detail: Any) -> None:
        self.plan.stats.count("faults", kind)
        self._tell(now, "fault_injected", **detail)

    def _tell(self, now: float, name: str, **detail: Any) -> None:
        if self.trace is not None:
            self.trace.told(now, name, self.number, detail)
        hub = self.plan.hub
        if hub.observers:
            try:
                serial = self._serial
            except AttributeError:  # subscribed after this call had started
                serial = self._serial = next(hub.serial)
            hub.emit(now, name, self.plan.service, self.plan.route, serial, self.number, **detail)


#: `counted=` of endings that say nothing about the service.
_IGNORED_CALL: Final = "ignored"

#: Phases in which an attempt is out.
_FLIES: Final = frozenset((_PAUSED, _FLYING, _COMMITTED))


def _error(verdict: Verdict, answer: Answer) -> str:
    """What ended an attempt, where no status did."""
    if answer.injected:
        return FAULT
    if answer.cut:
        return answer.cut
    if answer.timed_out:
        return TIMED_OUT
    if answer.status or answer.grpc is not None or verdict is _SUCCESS:
        return ""
    return NOT_SENT if verdict is _UNSENT else RESET


#: What an attempt is that nobody waits for any more.
_ABANDONED = Answer(_IGNORED, cut=CANCELLED)
#: What a body that broke off is to breaker and outlier detection: a failure of a connection that its headers have told of.
_BROKEN_BODY = Answer(_FAILURE, local_origin=True)
#: What an injected delay that outlasts the attempt's time is: a time-out, to be retried like any other.
_TIMED_OUT = Answer(_FAILURE, mask("5xx", "gateway-error", "reset"), timed_out=True, injected=True)
