"""``resilmesh collector``: take the spans of programs and Envoys, and print each trace as a tree, for who has no backend."""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilmesh.compare.collector import Collector
    from resilmesh.compare.otlp import Span

#: Seconds without another span after which a trace is taken to be whole.
_QUIET = 1.0
_LOOK = 0.2


def add(parser: argparse.ArgumentParser) -> None:
    """Describe the verb's words."""
    parser.add_argument("--grpc", type=int, default=4317, metavar="PORT", help="where OTLP over gRPC is taken (%(default)s; 0: any)")
    parser.add_argument("--http", type=int, default=4318, metavar="PORT", help="where OTLP over HTTP is taken (%(default)s; 0: any)")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each span, in place of trees")


def run(options: argparse.Namespace) -> int:
    """Take spans until interrupted. 1: it cannot listen, or a package is missing."""
    from resilmesh.compare.collector import Collector, CollectorError

    newest: dict[str, float] = {}
    lock = threading.Lock()

    def came(spans: list[Span]) -> None:
        with lock:
            newest.update(dict.fromkeys((span.trace_id for span in spans), time.monotonic()))
        if options.json:
            for span in spans:
                print(json.dumps(asdict(span), default=str), flush=True)

    try:
        with Collector(grpc_port=options.grpc, http_port=options.http, on_spans=came) as collector:
            _greet(collector)
            _print_traces(collector, newest, lock, quietly=options.json)
    except CollectorError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _greet(collector: Collector) -> None:
    for protocol, endpoint in (("grpc", collector.grpc_endpoint), ("http/protobuf", collector.http_endpoint)):
        print(f"OTEL_EXPORTER_OTLP_ENDPOINT={endpoint} OTEL_EXPORTER_OTLP_PROTOCOL={protocol}", file=sys.stderr)
    print("Waiting for traces; Ctrl-C ends it.", file=sys.stderr, flush=True)


def _print_traces(collector: Collector, newest: dict[str, float], lock: threading.Lock, *, quietly: bool) -> None:
    """Until interrupted. A span that comes late has its trace printed again, whole."""
    seen: set[str] = set()
    try:
        while True:
            time.sleep(_LOOK)
            with lock:
                whole = [trace for trace, at in newest.items() if time.monotonic() - at >= _QUIET]
                for trace in whole:
                    del newest[trace]
            for trace in whole:
                seen.add(trace)
                if not quietly:
                    print(collector.render(trace), end="\n\n", flush=True)
    except KeyboardInterrupt:
        seen.update(newest)
        for trace in () if quietly else list(newest):
            print(collector.render(trace), end="\n\n")
        told = f"{collector.span_count} spans of {len(seen)} traces, {len({point.name for point in collector.points})} metrics"
        print(told, file=sys.stderr)
