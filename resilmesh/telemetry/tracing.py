"""Spans of calls, by OpenTelemetry's semantic conventions.

    one attempt, at once              one CLIENT span
    several, a wait, a rejection      an INTERNAL span of the call, and below it a CLIENT span for each attempt

An attempt's span begins when it is sent and ends with its body, whose error it carries. What was decided (a backoff, a circuit that
opened, a fault) is an event of the span it happened in.

That a call needs a span of its own shows when its first attempt has failed and is to be repeated: then that attempt's span, not ended
yet, is put below it. Its parent is no argument any more at that time; the SDK keeps it in one attribute, which is set (and where another
implementation has none, the first attempt stays beside the call's span).

Whether a trace is recorded is decided before any of this: under a parent that is not sampled nothing is made but the header.
"""

from __future__ import annotations

import sys
import time
import weakref
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from resilmesh.engine.verdict import Verdict
from resilmesh.state.stats import Exemplar

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, TracerProvider

    from resilmesh.engine.call import Call
    from resilmesh.state.stats import Outcome

SCOPE = "resilmesh"
#: Names of the scopes of OpenTelemetry's own instrumentations.
_INSTRUMENTATIONS = "opentelemetry.instrumentation."

#: Events that need a span of the call, and those that are told by what spans are there.
_NEED = frozenset(("call_queued", "call_rejected"))
_SILENT = frozenset(("call_started", "attempt_started", "attempt_ended", "call_ended", "call_abandoned"))


def tracer_provider() -> TracerProvider | None:
    """Whatever the program has set up; ``None``: nothing."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from opentelemetry.trace import NoOpTracerProvider, ProxyTracerProvider, get_tracer_provider

    found = get_tracer_provider()
    return None if isinstance(found, ProxyTracerProvider | NoOpTracerProvider) else found


def is_theirs(span: Span, kind: str) -> bool:
    """Whether another instrumentation has made a span, of that kind, around what is done here."""
    scope = getattr(span, "instrumentation_scope", None)
    return scope is not None and scope.name.startswith(_INSTRUMENTATIONS) and getattr(span, "kind", None) == _kinds()[kind]


def _kinds() -> Any:
    from opentelemetry.trace import SpanKind

    return SpanKind


class _Adopter:
    """A span processor: what another instrumentation begins within an attempt is that attempt's span."""

    def __init__(self, key: str) -> None:
        self._key = key

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """The SDK has made a span."""
        from opentelemetry.context import get_current

        trace = (get_current() if parent_context is None else parent_context).get(self._key)
        if isinstance(trace, CallTrace) and is_theirs(span, "CLIENT"):
            trace.adopt(span)

    def on_end(self, span: Any) -> None:
        """Its own business."""

    def _on_ending(self, span: Any) -> None:
        """Likewise."""

    def shutdown(self) -> None:
        """There is nothing to stop."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """There is nothing to flush."""
        return True


#: Where in a context the attempt is that runs there.
_ATTEMPT = "resilmesh-attempt"
#: Providers that have an adopter.
_adopting: weakref.WeakSet[Any] = weakref.WeakSet()
#: The instrumentations that make spans of attempts, and their instrumentors.
_INSTRUMENTORS = {
    "httpx": ("opentelemetry.instrumentation.httpx", "HTTPXClientInstrumentor"),
    "grpc": ("opentelemetry.instrumentation.grpc", "GrpcInstrumentorClient"),
    "grpc.aio": ("opentelemetry.instrumentation.grpc", "GrpcAioInstrumentorClient"),
}


def is_instrumented(library: str) -> bool:
    """Whether OpenTelemetry's own instrumentation of a client library is active, so that it makes the spans of attempts."""
    module, instrumentor = _INSTRUMENTORS.get(library, ("", ""))
    loaded = sys.modules.get(module)
    if loaded is None:
        return False
    # The one there is, if there is any: to make it again would take the program's options from it.
    only = getattr(getattr(loaded, instrumentor), "_instance", None)
    return bool(getattr(only, "is_instrumented_by_opentelemetry", False))


class Tracing:
    """Begins the traces of a mesh's calls."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry import context, propagate, trace

        if hasattr(provider, "add_span_processor") and provider not in _adopting:
            _adopting.add(provider)
            provider.add_span_processor(_Adopter(_ATTEMPT))
        self.tracer = provider.get_tracer(SCOPE)
        self.trace = trace
        self.context = context
        self.inject = propagate.inject
        self.extract = propagate.extract

    def begin(self, call: Call) -> CallTrace | None:
        """The trace of a call that starts now (``resilmesh.engine.call.Listener``); ``None``: its parent's is not recorded."""
        span = self.trace.get_current_span()
        current = span.get_span_context()
        if current.is_valid and not current.trace_flags.sampled:
            return None
        made = CallTrace(self, call)
        if is_theirs(span, "CLIENT"):
            made.around = span
        return made

    def is_instrumented(self, library: str) -> bool:
        """Whether OpenTelemetry's own instrumentation of it makes the spans of attempts."""
        return is_instrumented(library)

    def passes_on(self, carrier: MutableMapping[str, str]) -> None:
        """Of a call that is not recorded: add the headers of the trace that it is part of."""
        self.inject(carrier)


class CallTrace:
    """The spans of one call."""

    __slots__ = ("_began", "_call", "_ended", "_tracing", "around", "attempt", "endpoint", "logical", "parent", "theirs")

    def __init__(self, tracing: Tracing, call: Call) -> None:
        self._tracing = tracing
        self._call = call
        self._began = time.time_ns()
        self._ended = False
        self.parent: Context = tracing.context.get_current()
        #: The span of the call, once it has one; and that of the attempt which is out.
        self.logical: Span | None = None
        self.attempt: Span | None = None
        self.endpoint: str | None = None
        #: The attempt's span is another instrumentation's, which ends it.
        self.theirs = False
        #: Somebody else's span around the call stands for it and for its first attempt.
        self.around: Span | None = None

    # ------------------------------------------------------------------------------------------ the engine

    def told(self, at: float, name: str, attempt: int, detail: dict[str, Any]) -> None:
        """Something happened to the call."""
        if name == "attempt_started":
            self.endpoint = detail["endpoint"]
        elif name in _NEED or (name == "fault_injected" and detail["scope"] == "CALL"):
            self._whole()
        if name not in _SILENT:
            span = next((each for each in (self.attempt, self.logical, self.around) if each is not None and each.is_recording()), None)
            if span is not None:
                span.add_event(f"resilmesh.{name}", {key: value for key, value in detail.items() if value is not None})
        if name in ("call_ended", "call_rejected", "call_abandoned"):
            self._end(name, detail)

    def attempt_over(self, at: float, attempt: int, outcome: Outcome, verdict: Verdict, again: bool) -> Exemplar | None:
        """The attempt that was out is over. ``again``: another follows."""
        if again:
            self._whole()
        span = self.attempt
        if span is None:
            if self.logical is not None:  # of a function, whose attempts have no spans of their own
                self.logical.add_event("resilmesh.attempt_ended", {"attempt": attempt, "verdict": verdict.value})
            return None
        self.attempt = None
        if span.is_recording():  # another instrumentation's may have ended with the headers
            self._judge(span, outcome, verdict)
        context = span.get_span_context()
        if self.theirs:
            self.theirs = False
        else:
            span.end()
        if not context.trace_flags.sampled:
            return None
        return Exemplar(0.0, time.time(), context.trace_id, context.span_id)

    def _judge(self, span: Span, outcome: Outcome, verdict: Verdict) -> None:
        what, status, error = outcome
        failed = error or (str(status) if verdict is not Verdict.SUCCESS or (isinstance(status, int) and status >= 400) else "")
        if what.startswith("/"):
            span.set_attribute("rpc.response.status_code", "OK" if status == 0 and not error else str(status))
        elif status:
            span.set_attribute("http.response.status_code", status)
        if failed:
            span.set_attribute("error.type", failed)
            span.set_status(self._tracing.trace.StatusCode.ERROR, error or None)

    # ---------------------------------------------------------------------------------------- the adapters

    def sends(self, name: str, attributes: Mapping[str, Any], carrier: MutableMapping[str, str]) -> None:
        """The attempt is sent now, with the headers of ``carrier``, to which those of the trace are added. Without a span so far."""
        tracing, call = self._tracing, self._call
        if self.around is not None and call.number == 1:
            if self.around.is_recording():
                self.around.set_attributes(self._facts(attributes))
            return
        span = self.attempt = tracing.tracer.start_span(name, self._inside(), tracing.trace.SpanKind.CLIENT, self._facts(attributes))
        if not span.is_recording() and self.logical is None and call.trace is self:
            call.trace = None  # not sampled: nothing is told of the rest
        tracing.inject(carrier, tracing.trace.set_span_in_context(span, self.parent))

    def runs(self) -> Any:
        """The attempt is a function that runs now, as part of the call's span if it has one. Owes ``ran``."""
        return None if self.logical is None else self._tracing.context.attach(self._inside())

    def lends(self) -> Any:
        """Another instrumentation makes the attempt's span, within this. Owes ``ran``, with what this gives."""
        if self.around is not None and self._call.number == 1:
            return None  # it is the one around
        context = self._tracing.context
        return context.attach(context.set_value(_ATTEMPT, self, self._inside()))

    def ran(self, token: Any) -> None:
        """It has returned."""
        if token is not None:
            self._tracing.context.detach(token)

    def adopt(self, span: Span) -> None:
        """Another instrumentation has made a span for the attempt: it is told what ours would be."""
        self.attempt, self.theirs = span, True
        if span.is_recording():
            span.set_attributes(self._facts({}))

    def _facts(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        plan, call = self._call.plan, self._call
        facts = {**attributes, "resilmesh.service": plan.service}
        if plan.route is not None:
            facts["resilmesh.route"] = plan.route
        if self.endpoint is not None:
            facts["resilmesh.endpoint"] = self.endpoint
        if call.number > 1:
            facts["http.request.resend_count" if not (call.what or "").startswith("/") else "resilmesh.resend_count"] = call.number - 1
        return facts

    # ------------------------------------------------------------------------------------------- the call

    def _inside(self) -> Context:
        return self.parent if self.logical is None else self._tracing.trace.set_span_in_context(self.logical, self.parent)

    def _whole(self) -> None:
        """The call needs a span of its own."""
        if self.logical is not None or self.around is not None:
            return
        tracing, plan = self._tracing, self._call.plan
        attributes = {"resilmesh.service": plan.service}
        if plan.route is not None:
            attributes["resilmesh.route"] = plan.route
        first, parent = self.attempt, self.parent
        if first is not None and not tracing.trace.get_current_span(parent).get_span_context().is_valid:
            # The attempt is the first span of its trace: the call's is to be in that one.
            parent = tracing.trace.set_span_in_context(tracing.trace.NonRecordingSpan(first.get_span_context()), parent)
        name = plan.service if plan.route is None else f"{plan.service}/{plan.route}"
        self.logical = logical = tracing.tracer.start_span(
            name, parent, tracing.trace.SpanKind.INTERNAL, attributes, start_time=self._began,
        )
        if first is not None and hasattr(first, "_parent"):
            first._parent = logical.get_span_context()
            if hasattr(logical, "_parent") and parent is not self.parent:
                logical._parent = None

    def _end(self, name: str, detail: dict[str, Any]) -> None:
        if self._ended:
            return
        self._ended = True
        error = {"call_abandoned": "cancelled", "call_rejected": detail.get("reason", "")}.get(name, "")
        verdict = detail.get("verdict", "")
        span = self.logical or self.around
        if span is None:
            return
        span.set_attribute("resilmesh.attempts", self._call.number)
        if error or verdict in ("FAILURE", "UNSENT", "THROTTLED"):
            span.set_attribute("error.type", error or verdict)
            span.set_status(self._tracing.trace.StatusCode.ERROR, error or None)
        if self.logical is not None:
            self.logical.end()
