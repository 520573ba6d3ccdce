"""What is told of one request, or one gRPC call, that is served here: how long it took, what it came to, and its SERVER span.

Where OpenTelemetry's own instrumentation of the server has made a span, around us or within, that one is told what ours would be.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from resilmesh.clock import Clock
    from resilmesh.state.stats import Outcomes
    from resilmesh.telemetry.telemetry import Telemetry
    from resilmesh.telemetry.tracing import Tracing

#: How deep below a middleware another one is looked for.
_DEEPEST = 20


class Serves(Protocol):
    """What of a mesh is needed here."""

    @property
    def telemetry(self) -> Telemetry: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def arrivals(self) -> Outcomes: ...


class Served:
    """One of them, from its arrival to ``over``. ``what``: as of ``resilmesh.state.stats.Outcome``; ``name``: of its span."""

    __slots__ = ("_began", "_mesh", "_more", "_over", "_span", "_tracing", "_what", "context", "status")

    def __init__(
        self, mesh: Serves, what: str, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any], *, within: bool = False,
    ) -> None:
        self._mesh = mesh
        self._what = what
        self._began = mesh.clock.monotonic()
        self._over = False
        #: What was answered so far.
        self.status: int | str = 0
        self._span: Any = None
        #: What is still to be told by a span.
        self._more: dict[str, str] = {}
        #: The OpenTelemetry context that it is served in; ``None``: as it is.
        self.context: Any = None
        self._tracing = tracing = mesh.telemetry.tracing
        if tracing is not None:
            self._begin(tracing, name, headers, attributes, within)

    def _begin(self, tracing: Tracing, name: str, headers: Mapping[str, str], attributes: Mapping[str, Any], within: bool) -> None:
        from resilmesh.telemetry.tracing import is_theirs

        current = tracing.trace.get_current_span()
        if is_theirs(current, "SERVER"):
            return
        if within:
            return  # it takes the caller's trace from the headers itself, and would not where there is a span already
        around = tracing.extract(headers)
        self._span = tracing.tracer.start_span(name, around, tracing.trace.SpanKind.SERVER, dict(attributes))
        self.context = tracing.trace.set_span_in_context(self._span, around)

    def enter(self) -> Any:
        """What runs now serves it. Owes ``leave``, with what this gives."""
        return None if self.context is None or self._tracing is None else self._tracing.context.attach(self.context)

    def leave(self, token: Any) -> None:
        """It does not any more. A coroutine that the garbage collector closes runs in another context, where nothing is to undo."""
        if token is not None:
            with suppress(ValueError):
                token.var.reset(token)

    def tell(self, **attributes: str | None) -> None:
        """Say more of it: on our span, or on theirs, which may be made only later."""
        self._more = {f"resilmesh.{key}": value for key, value in attributes.items() if value}
        self._say_more()

    def answers(self, status: int | str) -> None:
        """It has its status now; what follows is the body."""
        self.status = status
        self._say_more()

    def _say_more(self) -> None:
        if self._more and self._tracing is not None:
            span = self._span or self._tracing.trace.get_current_span()
            if span.is_recording():
                span.set_attributes(self._more)
                self._more = {}

    def over(self, status: int | str, error: str = "") -> None:
        """It has ended so. Again: nothing."""
        if self._over:
            return
        self._over = True
        self._mesh.arrivals.of((self._what, status, error)).record(self._mesh.clock.monotonic() - self._began)
        span = self._span
        if span is None or self._tracing is None:
            return
        rpc = self._what.startswith("/")
        if status:
            span.set_attribute("rpc.response.status_code" if rpc else "http.response.status_code", status)
        bad = status not in (0, "OK") if rpc else isinstance(status, int) and status >= 500
        if error or bad:
            span.set_attribute("error.type", error or str(status))
            span.set_status(self._tracing.trace.StatusCode.ERROR)
        span.end()


def has_instrumentation(app: Any) -> bool:
    """Whether OpenTelemetry's own middleware is among those below ``app``."""
    for _ in range(_DEEPEST):
        if app is None:
            return False
        if type(app).__module__.startswith("opentelemetry.instrumentation.") or getattr(app, "_is_instrumented_by_opentelemetry", False):
            return True
        app = getattr(app, "app", None) or getattr(app, "wsgi", None)
    return False
