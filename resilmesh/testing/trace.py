"""``Trace``: what happened to the calls of a block, a line an event, to compare with what was expected.

    event               line
    attempt_ended       attempt 1 -> 503            the status, or the verdict where there is none
    backoff             backoff 25ms
    retry_refused       no retry: budget
    call_ended          call SUCCESS
    call_rejected       rejected CircuitOpen
    would_reject        would reject RateLimited
    call_abandoned      abandoned
    call_queued         queued
    fell_back           fell back: REJECTED
    fault_injected      fault CALL 503              fault ATTEMPT delay 300ms
    circuit_changed     circuit OPEN
    endpoint_ejected    ejected 10.0.0.1:80         endpoint_returned: returned 10.0.0.1:80

Other events are a line of their name (``policy_applied``), but for ``call_started`` and ``attempt_started``, which have none.
An expected line may leave words off at its end: ``backoff`` is any backoff. ``...`` stands for any number of lines.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import SequenceMatcher
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Self

from resilmesh.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilmesh.engine.events import Event
    from resilmesh.mesh import Mesh

#: What ``...`` is when a trace is compared and shown.
_ANY = "..."


class Trace:
    """Records the events of a mesh, or of one service and route of it, while its block runs: ``with Trace(mesh) as trace: ...``."""

    def __init__(self, mesh: Mesh, *, service: str | None = None, route: str | None = None) -> None:
        self._mesh = mesh
        self._service = service
        self._route = route
        self._unsubscribe: Callable[[], None] | None = None
        #: Every event of the block, in the order they happened.
        self.events: list[Event] = []

    def __enter__(self) -> Self:
        if self._unsubscribe is not None:
            raise RuntimeError("this trace is recording already")
        self._unsubscribe = self._mesh.subscribe(self._record)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        unsubscribe, self._unsubscribe = self._unsubscribe, None
        if unsubscribe is not None:
            unsubscribe()

    def _record(self, event: Event) -> None:
        if self._service in (None, event.service) and self._route in (None, event.route):
            self.events.append(event)

    @property
    def lines(self) -> list[str]:
        """The events so far, a line each."""
        return _lines(self.events)

    @property
    def calls(self) -> list[list[str]]:
        """The lines of each call, in the order the calls began: for calls that overlap."""
        numbers = sorted({event.call for event in self.events if event.call})
        return [_lines([event for event in self.events if event.call == number]) for number in numbers]

    def expect(self, expected: Sequence[str | EllipsisType]) -> None:
        """Raises ``AssertionError``, which shows the difference, unless the lines are the expected ones."""
        wanted = [_ANY if line is ... else str(line) for line in expected]
        lines = self.lines
        if not _match(wanted, lines):
            raise AssertionError(_difference(wanted, lines))


@contextmanager
def assert_trace(
    mesh: Mesh, expected: Sequence[str | EllipsisType], *, service: str | None = None, route: str | None = None,
) -> Iterator[Trace]:
    """Have a block end in ``AssertionError`` unless the calls in it went as expected.

        with assert_trace(mesh, ["attempt 1 -> 503", "backoff", "attempt 2 -> 200", "call SUCCESS"]):
            client.get("http://inventory.prod.svc/v1/items")

    An exception of the block itself goes on, with the trace as a note.
    """
    with Trace(mesh, service=service, route=route) as trace:
        try:
            yield trace
        except BaseException as error:
            error.add_note("the trace until then:\n" + "\n".join(f"    {line}" for line in trace.lines))
            raise
    trace.expect(expected)


def told(event: Event) -> str | None:
    """The line of an event; ``None``: it has none."""
    detail = event.detail
    match event.name:
        case "call_started" | "attempt_started":
            return None
        case "attempt_ended":
            return f"attempt {event.attempt} -> {detail['status'] or detail['verdict']}"
        case "backoff":
            return f"backoff {format_duration(round(detail['seconds'], 3))}"
        case "retry_refused":
            return f"no retry: {detail['reason']}"
        case "call_ended":
            return f"call {detail['verdict']}"
        case "call_rejected":
            return f"rejected {detail['reason']}"
        case "would_reject":
            return f"would reject {detail['reason']}"
        case "call_abandoned":
            return "abandoned"
        case "call_queued":
            return "queued"
        case "fell_back":
            return f"fell back: {detail['reason']}"
        case "fault_injected":
            acts = f"delay {format_duration(detail['delay'])}" if "delay" in detail else detail["status"]
            return f"fault {detail['scope']} {acts}"
        case "circuit_changed":
            return f"circuit {detail['new']}"
        case "endpoint_ejected":
            return f"ejected {detail['endpoint']}"
        case "endpoint_returned":
            return f"returned {detail['endpoint']}"
    return event.name


def _lines(events: Sequence[Event]) -> list[str]:
    return [line for line in map(told, events) if line is not None]


def _same(wanted: str, line: str) -> bool:
    return line == wanted or line.startswith(wanted + " ")


def _match(wanted: list[str], lines: list[str]) -> bool:
    """Whether the lines are the wanted ones. From the left, keeping every length of the match so far: `...` branches."""
    reached = {0}
    for line in wanted:
        if line == _ANY:
            reached = set(range(min(reached), len(lines) + 1))
        else:
            reached = {at + 1 for at in reached if at < len(lines) and _same(line, lines[at])}
        if not reached:
            return False
    return len(lines) in reached


def _difference(wanted: list[str], lines: list[str]) -> str:
    """Both, side by side as a diff. Lines that are as wanted are shown as they happened."""
    as_wanted = [next((each for each in wanted if _same(each, line)), line) for line in lines]
    shown = ["the trace is not the expected one (- expected, + happened):"]
    for word, low, high, begin, end in SequenceMatcher(None, wanted, as_wanted, autojunk=False).get_opcodes():
        if word == "equal":
            shown += [f"    {line}" for line in lines[begin:end]]
        else:
            shown += [f"  - {line}" for line in wanted[low:high]]
            shown += [f"  + {line}" for line in lines[begin:end]]
    if not lines:
        shown.append("  (nothing happened: was this mesh the one that was called?)")
    return "\n".join(shown)
