"""What tests of traces are written with: an SDK of their own, and spans as a tree of lines."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


class Spans:
    """Takes what is traced."""

    def __init__(self, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(**options)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("program")

    @property
    def ended(self) -> list[Any]:
        return list(self._exporter.get_finished_spans())

    def named(self, name: str) -> Any:
        """The one span of that name."""
        [found] = [span for span in self.ended if span.name == name]
        return found

    @property
    def tree(self) -> list[str]:
        """Every span, indented below its parent, in the order they began: ``KIND name STATUS event event``."""
        spans = sorted(self.ended, key=lambda span: span.start_time)
        known = {span.context.span_id for span in spans}
        return [line for span in spans if span.parent is None or span.parent.span_id not in known for line in _lines(span, spans, "")]

    def clear(self) -> None:
        self._exporter.clear()


def _lines(span: Any, spans: list[Any], indent: str) -> list[str]:
    events = [event.name.removeprefix("resilmesh.") for event in span.events]
    status = "ERROR" if span.status.status_code.name == "ERROR" else "-"
    lines = [f"{indent}{span.kind.name} {span.name} {status} {' '.join(events)}".rstrip()]
    for child in spans:
        if child.parent is not None and child.parent.span_id == span.context.span_id:
            assert child.context.trace_id == span.context.trace_id
            lines += _lines(child, spans, indent + "  ")
    return lines
