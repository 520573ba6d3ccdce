"""Spans and log records as OpenTelemetry's protocol (OTLP) carries them, as plain values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord as LogRecordProto
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as SpanProto

Attributes = dict[str, Any]

_TRACE_ID_BYTES = 16
_SPAN_ID_BYTES = 8
#: By their numbers in the protocol.
_KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUSES = ("UNSET", "OK", "ERROR")


class Malformed(ValueError):
    """What was sent is not OTLP. The message says what is wrong with it."""


class SpanEvent(NamedTuple):
    """Something that happened within a span. ``at``: unix seconds."""

    at: float
    name: str
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Span:
    """A span that has ended. Ids are hex text, times unix seconds.

    ``parent_id``: ``""`` of the first span of a trace. ``kind``: ``CLIENT``, ``SERVER``, ``INTERNAL``, ``PRODUCER``, ``CONSUMER`` or
    ``UNSPECIFIED``. ``status``: ``UNSET``, ``OK`` or ``ERROR``; ``message``: what was said of it. ``resource``: who sent it.
    """

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: str
    start: float
    end: float
    attributes: Attributes
    events: tuple[SpanEvent, ...]
    status: str
    message: str
    resource: Attributes
    scope: str

    @property
    def service(self) -> str:
        """The name of the service that it is of."""
        return str(self.resource.get("service.name", "unknown_service"))

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One line of a log. ``at``: unix seconds; the ids are ``""`` where it is of no trace."""

    at: float
    severity: str
    body: Any
    attributes: Attributes
    trace_id: str
    span_id: str
    resource: Attributes
    scope: str


def spans_of(request: ExportTraceServiceRequest) -> list[Span]:
    """The spans of one message. Raises ``Malformed`` if an id of one is none."""
    return [
        _span(span, attributes_of(group.resource.attributes), scope.scope.name)
        for group in request.resource_spans for scope in group.scope_spans for span in scope.spans
    ]


def logs_of(request: ExportLogsServiceRequest) -> list[LogRecord]:
    """The log records of one message."""
    return [
        _record(record, attributes_of(group.resource.attributes), scope.scope.name)
        for group in request.resource_logs for scope in group.scope_logs for record in scope.log_records
    ]


def attributes_of(pairs: Iterable[KeyValue]) -> Attributes:
    """Attributes as a dict of text, numbers, lists and dicts."""
    return {pair.key: _value(pair.value) for pair in pairs}


def seconds(nanoseconds: int) -> float:
    """Unix nanoseconds as seconds; exact to a quarter of a microsecond."""
    return nanoseconds / 1e9


def identifier(id: bytes, length: int, of: str) -> str:
    """``id`` as hex text. Raises ``Malformed`` if it does not have ``length`` bytes, or all of them are 0."""
    if len(id) != length or not any(id):
        raise Malformed(f"{of} is not {length} bytes (in JSON {2 * length} hex digits) other than 0: {id.hex() or 'nothing'}")
    return id.hex()


def _span(span: SpanProto, resource: Attributes, scope: str) -> Span:
    name = f"of span {span.name!r}"
    return Span(
        trace_id=identifier(span.trace_id, _TRACE_ID_BYTES, "traceId " + name),
        span_id=identifier(span.span_id, _SPAN_ID_BYTES, "spanId " + name),
        # Some exporters write zeros for none.
        parent_id=identifier(span.parent_span_id, _SPAN_ID_BYTES, "parentSpanId " + name) if any(span.parent_span_id) else "",
        name=span.name, kind=_named(_KINDS, span.kind), start=seconds(span.start_time_unix_nano), end=seconds(span.end_time_unix_nano),
        attributes=attributes_of(span.attributes),
        events=tuple(SpanEvent(seconds(each.time_unix_nano), each.name, attributes_of(each.attributes)) for each in span.events),
        status=_named(_STATUSES, span.status.code), message=span.status.message, resource=resource, scope=scope,
    )


def _record(record: LogRecordProto, resource: Attributes, scope: str) -> LogRecord:
    return LogRecord(
        at=seconds(record.time_unix_nano or record.observed_time_unix_nano), severity=record.severity_text, body=_value(record.body),
        attributes=attributes_of(record.attributes), trace_id=record.trace_id.hex(), span_id=record.span_id.hex(),
        resource=resource, scope=scope,
    )


def _named(names: tuple[str, ...], number: int) -> str:
    # A later version of the protocol may have more.
    return names[number] if 0 <= number < len(names) else str(number)


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(each) for each in value.array_value.values]
        case "kvlist_value":
            return attributes_of(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case kind:
            return getattr(value, kind)
