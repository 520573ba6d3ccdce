"""A mesh's metrics in the OpenTelemetry SDK that the program has set up.

Counters and gauges are observable instruments: the SDK asks when it collects, and a call costs it nothing. For histograms the SDK has no
such instrument, and recording each call costs 7 us; so ours are put among the metrics that a reader is about to receive
(``MetricReader._receive_metrics``, which the SDK documents for subclasses), as the data points that its own would have become.

Each process tells of itself, as OpenTelemetry wants it: ``service.instance.id`` keeps workers apart.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from resilmesh.state.stats import BOUNDS
from resilmesh.telemetry.catalogue import METRICS, Metric
from resilmesh.telemetry.collect import Durations, Points, added_up
from resilmesh.telemetry.prometheus import TOLD_BOUNDS, TOLD_ENDS

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation

log = logging.getLogger("resilmesh")

SCOPE = "resilmesh"


def meter_provider() -> Any:
    """The SDK's, if the program has set one up; ``None``: it has not."""
    if "opentelemetry.sdk.metrics" not in sys.modules:
        return None
    from opentelemetry.metrics import get_meter_provider
    from opentelemetry.sdk.metrics import MeterProvider

    found = get_meter_provider()
    return found if isinstance(found, MeterProvider) else None


def set_up(service_name: str | None) -> None:
    """Make the SDK's providers by the ``OTEL_*`` variables, with OTLP where they name no exporter, unless there are some already.

    ``service_name``: where ``OTEL_SERVICE_NAME`` does not say. Raises ``RuntimeError`` without the SDK.
    """
    try:
        from opentelemetry.sdk._configuration import _OTelSDKConfigurator
    except ImportError:
        raise RuntimeError("there is no OpenTelemetry SDK here: pip install 'resilmesh[otel]'") from None
    from opentelemetry.trace import get_tracer_provider

    if meter_provider() is not None or hasattr(get_tracer_provider(), "add_span_processor"):
        return
    class Configurator(_OTelSDKConfigurator):
        """The SDK's own way from its variables to its providers, which it wants to have subclassed."""

    given: dict[str, Any] = {}
    for signal in ("trace", "metric"):
        if not os.environ.get(f"OTEL_{signal.upper()}S_EXPORTER"):
            given[f"{signal}_exporter_names"] = ["otlp"]
    if service_name and not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        given["resource_attributes"] = {"service.name": service_name}
    Configurator().configure(**given)  # type: ignore[no-untyped-call]  # the SDK's own method has no types


#: One for each provider, so that the instruments of several meshes are the same.
_exports: weakref.WeakKeyDictionary[Any, Export] = weakref.WeakKeyDictionary()


def export(points: Callable[[], Points], provider: MeterProvider) -> Callable[[], None]:
    """Have a mesh's metrics told in a provider; the returned function ends that. ``points``: gives them anew."""
    found = _exports.get(provider)
    if found is None:
        found = _exports[provider] = Export(provider)
    found.sources.append(points)
    return partial(found.drop, points)


class Export:
    """The metrics of one provider's meshes."""

    def __init__(self, provider: MeterProvider) -> None:
        #: Of each mesh, what gives its points.
        self.sources: list[Callable[[], Points]] = []
        #: Since when was counted, in nanoseconds of Unix time.
        self.began = time.time_ns()
        self._now: Points = {}
        meter = provider.get_meter(SCOPE)
        make = {
            "counter": meter.create_observable_counter, "sum": meter.create_observable_up_down_counter,
            "max": meter.create_observable_gauge, "min": meter.create_observable_gauge,
        }
        # Instruments are asked in the order in which they were made: the first looks, the others tell of the same moment.
        for number, metric in enumerate(each for each in METRICS if each.kind != "histogram"):
            asked = partial(self._observe, metric.name, number == 0)
            make[metric.kind](metric.name, callbacks=[asked], unit=metric.unit, description=metric.told)
        readers = getattr(provider, "_metric_readers", None)
        if readers is None:
            log.warning("this OpenTelemetry SDK does not tell its metric readers: durations are not exported, everything else is")
        for reader in readers or ():
            reader._receive_metrics = _Adding(self, reader)
        if hasattr(os, "register_at_fork"):
            held = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _begin_anew(held()))

    def drop(self, points: Callable[[], Points]) -> None:
        """Tell no more of a mesh."""
        if points in self.sources:
            self.sources.remove(points)

    def _look(self) -> None:
        together: Points = {}
        for source in list(self.sources):
            for name, points in source().items():
                together.setdefault(name, []).extend(points)
        self._now = together if len(self.sources) < 2 else {name: added_up(name, points) for name, points in together.items()}

    def _observe(self, name: str, first: bool, options: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        if first:
            self._look()
        return [Observation(each.value, dict(each.attributes)) for each in self._now.get(name, ()) if not isinstance(each, Durations)]

    def histograms(self) -> Iterable[tuple[Metric, list[Durations]]]:
        """Those of the moment at which the instruments were asked."""
        for metric in METRICS:
            if metric.kind == "histogram":
                found = [each for each in self._now.get(metric.name, ()) if isinstance(each, Durations)]
                if found:
                    yield metric, found


def _begin_anew(export: Export | None) -> None:
    if export is not None:
        export.began = time.time_ns()


class _Adding:
    """In place of a reader's ``_receive_metrics``: puts the histograms among them."""

    def __init__(self, export: Export, reader: Any) -> None:
        from opentelemetry.sdk.metrics.export import AggregationTemporality

        self._export = export
        self._receive = reader._receive_metrics
        wanted = {kind.__name__.strip("_"): temporality for kind, temporality in reader._instrument_class_temporality.items()}
        self._temporality = wanted.get("Histogram", AggregationTemporality.CUMULATIVE)
        self._delta = self._temporality == AggregationTemporality.DELTA
        #: Of a reader that wants differences: what it was told last, and when.
        self._told: dict[tuple[str, Any], tuple[list[int], float]] = {}
        self._told_at = export.began

    def __call__(self, metrics_data: Any, *arguments: Any, **options: Any) -> None:
        self._receive(self._with(metrics_data), *arguments, **options)

    def _with(self, data: Any) -> Any:
        from opentelemetry.sdk.metrics.export import Histogram as Data
        from opentelemetry.sdk.metrics.export import Metric as Told

        now, made = time.time_ns(), []
        for metric, points in self._export.histograms():
            told = [each for each in (self._point(metric.name, point, now) for point in points) if each is not None]
            if told:
                made.append(Told(metric.name, metric.told, metric.unit, Data(told, self._temporality)))
        self._told_at = now
        if not made or data is None:
            return data
        first, *rest = data.resource_metrics
        scopes = [replace(each, metrics=[*each.metrics, *made]) if each.scope.name == SCOPE else each for each in first.scope_metrics]
        return replace(data, resource_metrics=[replace(first, scope_metrics=scopes), *rest])

    def _point(self, name: str, point: Durations, now: int) -> Any:
        from opentelemetry.sdk.metrics.export import HistogramDataPoint

        counts, seconds = list(point.counts), point.seconds
        begun = self._export.began
        if self._delta:
            before, its = self._told.get((name, point.attributes), ([0] * len(counts), 0.0))
            self._told[name, point.attributes] = counts, seconds
            counts, seconds, begun = [new - old for new, old in zip(counts, before, strict=True)], seconds - its, self._told_at
            if not any(counts):
                return None
        ends = (*TOLD_ENDS, len(BOUNDS) + 1)
        buckets = [sum(counts[begin:end]) for begin, end in zip((0, *ends[:-1]), ends, strict=True)]
        # What was least and most nobody has kept: None is left out on the wire.
        return HistogramDataPoint(
            dict(point.attributes), begun, now, sum(buckets), seconds, buckets, TOLD_BOUNDS, min=None, max=None,  # type: ignore[arg-type]
            exemplars=[_exemplar(each) for each in point.exemplars.values()],
        )


def _exemplar(kept: Any) -> Any:
    from opentelemetry.sdk.metrics import Exemplar

    return Exemplar({}, kept.seconds, int(kept.at * 1e9), kept.span_id, kept.trace_id)
