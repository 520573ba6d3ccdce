"""START HERE for traces: the project's own OpenTelemetry collector. It takes OTLP over gRPC and over HTTP, and keeps what came.

    with Collector() as collector:
        ...                                # a program with OTEL_EXPORTER_OTLP_ENDPOINT=collector.grpc_endpoint
        collector.wait_for(lambda: len(collector.spans) == 3, seconds=5)
        print(collector.render(collector.spans[0].trace_id))

It listens on 127.0.0.1 only, and forwards nothing. It needs ``grpcio`` and ``opentelemetry-proto``, which the extra ``otel`` brings.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from resilmesh.compare.otlp import LogRecord, Malformed, Span, logs_of, spans_of
from resilmesh.compare.otlp_http import LONGEST, HttpReceiver, Signal
from resilmesh.compare.otlp_points import Point, points_of
from resilmesh.compare.trace_tree import Node, render, traces
from resilmesh.errors import ResilmeshError

if TYPE_CHECKING:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

_HOST = "127.0.0.1"
_GRPC_THREADS = 4
_GRACE = 1.0  # seconds that a message which is just being taken has at the end
#: The gRPC service of each path of HTTP.
_SERVICES = {
    "/v1/traces": "opentelemetry.proto.collector.trace.v1.TraceService",
    "/v1/metrics": "opentelemetry.proto.collector.metrics.v1.MetricsService",
    "/v1/logs": "opentelemetry.proto.collector.logs.v1.LogsService",
}


class CollectorError(ResilmeshError):
    """The collector cannot listen, or a package that it needs is not installed."""


class Collector:
    """A context manager that receives from ``__enter__`` to ``__exit__``; what came can be read afterwards, too. For any thread.

    Port 0 is any that is free. ``keep``: how many spans, and how many log records, are kept; older ones are dropped. ``on_spans`` is
    called with the spans of each message, in the thread that took it. Raises ``CollectorError`` at ``__enter__``.
    """

    def __init__(
        self, *, grpc_port: int = 0, http_port: int = 0, keep: int = 100_000, on_spans: Callable[[list[Span]], None] | None = None,
    ) -> None:
        self._ports = (grpc_port, http_port)
        self._keep = keep
        self._on_spans = on_spans
        self._servers = contextlib.ExitStack()
        self._grpc_endpoint = self._http_endpoint = ""
        self._changed = threading.Condition()
        self._changes = 0
        self._span_count = 0
        #: By trace, span and kind: what an exporter sends twice because it heard no answer came once.
        self._spans: OrderedDict[tuple[str, str, str], Span] = OrderedDict()
        self._points: dict[tuple[str, str], Point] = {}
        self._logs: deque[LogRecord] = deque(maxlen=keep)

    # ------------------------------------------------------------------------------------------ start and stop

    def __enter__(self) -> Self:
        signals = self._signals()
        with contextlib.ExitStack() as started:
            self._grpc_endpoint = f"http://{_HOST}:{_serve_grpc(self._ports[0], signals, started)}"
            try:
                receiver = HttpReceiver(self._ports[1], signals)
            except OSError as error:
                raise _taken(self._ports[1], error) from None
            started.callback(receiver.close)
            self._http_endpoint = f"http://{_HOST}:{receiver.port}"
            self._servers = started.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._servers.close()

    @property
    def grpc_endpoint(self) -> str:
        """``http://127.0.0.1:port``, for ``OTEL_EXPORTER_OTLP_PROTOCOL=grpc``."""
        return self._grpc_endpoint

    @property
    def http_endpoint(self) -> str:
        """``http://127.0.0.1:port``, for ``http/protobuf`` and ``http/json``. An exporter that takes no environment wants the path, too."""
        return self._http_endpoint

    # -------------------------------------------------------------------------------------------- what has come

    @property
    def spans(self) -> list[Span]:
        """The spans in the order of their coming."""
        with self._changed:
            return list(self._spans.values())

    @property
    def span_count(self) -> int:
        """How many spans have come, with those that were dropped."""
        with self._changed:
            return self._span_count

    @property
    def points(self) -> list[Point]:
        """The last value of every metric, by its attributes and sender."""
        with self._changed:
            return list(self._points.values())

    @property
    def logs(self) -> list[LogRecord]:
        """The log records in the order of their coming."""
        with self._changed:
            return list(self._logs)

    def find(self, name: str, attributes: Mapping[str, Any] | None = None) -> list[Point]:
        """The points of a metric that have at least these attributes."""
        wanted = (attributes or {}).items()
        return [point for point in self.points if point.name == name and all(
            key in point.attributes and point.attributes[key] == value for key, value in wanted)]

    def total(self, name: str, attributes: Mapping[str, Any] | None = None) -> float:
        """The sum over these points; of histograms, how often was measured."""
        return sum(point.value if point.buckets is None else point.count for point in self.find(name, attributes))

    def wait_for(self, predicate: Callable[[], bool], seconds: float) -> bool:
        """Wait until ``predicate`` is true, which is asked whenever something has come. Returns what it said last."""
        until = time.monotonic() + seconds
        while True:
            with self._changed:
                changes = self._changes
            if predicate():
                return True
            if not self._has_changed(changes, until):
                return predicate()

    def _has_changed(self, since: int, until: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._changes != since, until - time.monotonic())

    def traces(self) -> dict[str, list[Node]]:
        """By trace its spans as trees: one, if all has come."""
        return traces(self.spans)

    def render(self, trace_id: str) -> str:
        """A trace as text, for somebody who was not there (``resilmesh.compare.trace_tree``)."""
        return render(trace_id, traces(span for span in self.spans if span.trace_id == trace_id).get(trace_id, []))

    # ----------------------------------------------------------------------------------------------- taking

    def _signals(self) -> dict[str, Signal]:
        try:
            import grpc as _  # noqa: F401  # asked for here, so that its absence is said in the same words
            from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
            from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
            from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace
        except ImportError as error:
            raise CollectorError(f"a collector needs {error.name}: pip install 'resilmesh[otel]'") from None
        return {
            "/v1/traces": Signal(trace.ExportTraceServiceRequest, trace.ExportTraceServiceResponse, self._take_spans),
            "/v1/metrics": Signal(metrics.ExportMetricsServiceRequest, metrics.ExportMetricsServiceResponse, self._take_points),
            "/v1/logs": Signal(logs.ExportLogsServiceRequest, logs.ExportLogsServiceResponse, self._take_logs),
        }

    def _take_spans(self, request: ExportTraceServiceRequest) -> None:
        came = spans_of(request)
        with self._changed:
            for span in came:
                key = (span.trace_id, span.span_id, span.kind)
                self._span_count += key not in self._spans
                self._spans[key] = span
                if len(self._spans) > self._keep:
                    self._spans.popitem(last=False)
            self._tell()
        if self._on_spans is not None:
            self._on_spans(came)

    def _take_points(self, request: ExportMetricsServiceRequest) -> None:
        came = [(point.key, point) for point in points_of(request)]
        with self._changed:
            for key, point in came:
                self._points[key] = point.after(self._points.get(key))
            self._tell()

    def _take_logs(self, request: ExportLogsServiceRequest) -> None:
        came = logs_of(request)
        with self._changed:
            self._logs.extend(came)
            self._tell()

    def _tell(self) -> None:
        self._changes += 1
        self._changed.notify_all()


def _serve_grpc(port: int, signals: Mapping[str, Signal], started: contextlib.ExitStack) -> int:
    """Serve until ``started`` is closed; the port."""
    import grpc

    # Bytes in and out: a message that is none is answered as over HTTP, in words.
    def method(signal: Signal) -> grpc.RpcMethodHandler[bytes, bytes]:
        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            try:
                return signal.take_protobuf(body)
            except Malformed as malformed:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(malformed))

        return grpc.unary_unary_rpc_method_handler(export)

    threads = started.enter_context(ThreadPoolExecutor(_GRPC_THREADS, thread_name_prefix="resilmesh-collector-grpc"))
    # Without so_reuseport=0 a second collector would take half of the messages, silently.
    server = grpc.server(threads, options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", LONGEST)])
    for path, signal in signals.items():
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICES[path], {"Export": method(signal)}),))
    try:
        bound = server.add_insecure_port(f"{_HOST}:{port}")
    except RuntimeError as error:
        raise _taken(port, error) from None
    server.start()
    started.callback(lambda: server.stop(_GRACE).wait())
    return bound


def _taken(port: int, error: Exception) -> CollectorError:
    return CollectorError(f"cannot listen on {_HOST}:{port}: {error}; choose another port, or 0 for any that is free")
