"""Points as text for Prometheus, in its own format and in OpenMetrics.

``resilmesh.circuit.transitions`` is called ``resilmesh_circuit_transitions_total``, and an attribute's dots are underscores too. Of a
histogram's many buckets only the bounds that OpenTelemetry advises are told, which is exact, because they are among the others.
"""

from __future__ import annotations

from collections.abc import Iterator

from resilmesh.state.stats import BOUNDS, Exemplar, bucket
from resilmesh.telemetry.catalogue import METRICS, Metric
from resilmesh.telemetry.collect import Attributes, Durations, Points

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

#: Upper bounds that are told, in seconds: OpenTelemetry's for durations of HTTP and RPC, and 1 ms and 2.5 ms below them, because
#: many a call inside a data centre is faster than its first, 5 ms.
TOLD_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
#: For each, the first of our own buckets that is above it.
TOLD_ENDS = tuple(bucket(bound) + 1 for bound in TOLD_BOUNDS)
_UNITS = {"s": "_seconds", "By": "_bytes", "1": "_ratio"}


def prometheus_name(metric: Metric) -> str:
    """What a metric is called, without ``_total``, ``_bucket``, ``_sum`` and ``_count``."""
    return metric.name.replace(".", "_") + _UNITS.get(metric.unit, "")


def text(points: Points, *, openmetrics: bool = False) -> str:
    """Everything, as the answer to a scrape."""
    lines = [line for metric in METRICS if metric.name in points for line in _family(metric, points, openmetrics)]
    if openmetrics:
        lines.append("# EOF")
    return "\n".join(lines) + "\n"


def accepts_openmetrics(accept: str) -> bool:
    """Whether a scraper that sends such an ``Accept`` wants OpenMetrics: it names it, and does not rule it out."""
    for part in accept.lower().split(","):
        kind, *parameters = (each.strip() for each in part.split(";"))
        if kind == "application/openmetrics-text":
            return "q=0" not in parameters and "q=0.0" not in parameters
    return False


def _family(metric: Metric, points: Points, openmetrics: bool) -> Iterator[str]:
    name = prometheus_name(metric)
    kind = {"counter": "counter", "histogram": "histogram"}.get(metric.kind, "gauge")
    suffix = "_total" if kind == "counter" else ""
    titled = name if openmetrics else name + suffix
    yield f"# HELP {titled} {_escaped_help(metric.told)}"
    yield f"# TYPE {titled} {kind}"
    if openmetrics and metric.unit in _UNITS:
        yield f"# UNIT {titled} {_UNITS[metric.unit][1:]}"
    for point in points[metric.name]:
        if isinstance(point, Durations):
            yield from _buckets(name, point, openmetrics)
        else:
            yield f"{name}{suffix}{_labels(point.attributes)} {_number(point.value)}"


def _buckets(name: str, point: Durations, openmetrics: bool) -> Iterator[str]:
    begin, total = 0, 0
    bounds = [*zip(TOLD_BOUNDS, TOLD_ENDS, strict=True), (float("inf"), len(BOUNDS) + 1)]
    for bound, end in bounds:
        total += sum(point.counts[begin:end])
        label = "+Inf" if bound == float("inf") else repr(bound)
        told = _exemplar(point, begin, end) if openmetrics else ""
        yield f"{name}_bucket{_labels((*point.attributes, ('le', label)))} {total}{told}"
        begin = end
    yield f"{name}_sum{_labels(point.attributes)} {_number(point.seconds)}"
    yield f"{name}_count{_labels(point.attributes)} {total}"


def _exemplar(point: Durations, begin: int, end: int) -> str:
    found: list[Exemplar] = [point.exemplars[at] for at in range(begin, end) if at in point.exemplars]
    if not found:
        return ""
    newest = max(found, key=lambda each: each.at)
    return f' # {{trace_id="{newest.trace_id:032x}",span_id="{newest.span_id:016x}"}} {_number(newest.seconds)} {newest.at:.3f}'


def _labels(attributes: Attributes) -> str:
    if not attributes:
        return ""
    return "{" + ",".join(f'{name.replace(".", "_")}="{_escaped(str(value))}"' for name, value in attributes) + "}"


def _number(value: float) -> str:
    if isinstance(value, int) or value == int(value):
        return str(float(value)) if isinstance(value, float) and abs(value) < 1 else str(int(value))
    return repr(round(value, 9))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _escaped_help(told: str) -> str:
    return told.replace("\\", r"\\").replace("\n", r"\n")
