"""Metrics as OpenTelemetry's protocol (OTLP) carries them: points, added up where a sender tells only what is new."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from resilmesh.compare.otlp import Attributes, attributes_of, seconds

if TYPE_CHECKING:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.metrics.v1.metrics_pb2 import Exemplar as ExemplarProto
    from opentelemetry.proto.metrics.v1.metrics_pb2 import ExponentialHistogramDataPoint, HistogramDataPoint, Metric, NumberDataPoint

#: By their numbers in the protocol.
_TEMPORALITIES = ("", "DELTA", "CUMULATIVE")
_NO_VALUE = 1  # the flag of a point that says that there is none any more
_LARGEST_EXPONENT = 1024  # of a float


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One measurement as an example of many. The ids, hex text, are ``""`` where it was made outside of a trace."""

    at: float
    value: float
    attributes: Attributes
    trace_id: str
    span_id: str


@dataclass(frozen=True, slots=True)
class ExplicitBuckets:
    """``counts[i]`` measurements were in ``(bounds[i - 1], bounds[i]]``; the last ones above every bound."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]

    def plus(self, other: ExplicitBuckets) -> ExplicitBuckets | None:
        """Both together; ``None`` if their bounds are not the same."""
        if self.bounds != other.bounds or len(self.counts) != len(other.counts):
            return None
        return ExplicitBuckets(self.bounds, tuple(map(sum, zip(self.counts, other.counts, strict=True))))

    def ranges(self) -> Iterator[tuple[float, float, int]]:
        """Lower and upper bound of each bucket, and its count, upwards."""
        # What is measured is never negative where the first bound is not.
        lowest = 0.0 if self.bounds and self.bounds[0] > 0 else -math.inf
        yield from zip((lowest, *self.bounds), (*self.bounds, math.inf), self.counts, strict=False)

    def between(self, low: float, high: float, share: float) -> float:
        """Where in a bucket the measurement is which ``share`` of its others are below."""
        return low + (high - low) * share


@dataclass(frozen=True, slots=True)
class ExponentialBuckets:
    """``positive[i]`` measurements were in ``(base**i, base**(i + 1)]``, ``negative[i]`` were their mirror images; base: 2**(2**-scale).

    ``zeros`` were at most ``zero_threshold`` away from 0.
    """

    scale: int
    zeros: int
    zero_threshold: float
    positive: Mapping[int, int]
    negative: Mapping[int, int]

    def plus(self, other: ExponentialBuckets) -> ExponentialBuckets:
        """Both together, with the wider of their buckets."""
        scale = min(self.scale, other.scale)
        mine, others = self._coarser(scale), other._coarser(scale)
        return ExponentialBuckets(
            scale, self.zeros + other.zeros, max(self.zero_threshold, other.zero_threshold),
            Counter(mine.positive) + Counter(others.positive), Counter(mine.negative) + Counter(others.negative),
        )

    def ranges(self) -> Iterator[tuple[float, float, int]]:
        """Lower and upper bound of each bucket, and its count, upwards."""
        for index in sorted(self.negative, reverse=True):
            yield -self._power(index + 1), -self._power(index), self.negative[index]
        if self.zeros:
            yield -self.zero_threshold if self.negative else 0.0, self.zero_threshold, self.zeros
        for index in sorted(self.positive):
            yield self._power(index), self._power(index + 1), self.positive[index]

    def between(self, low: float, high: float, share: float) -> float:
        """As of ``ExplicitBuckets``, but evenly spread over the logarithms."""
        if low > 0:
            return low * math.pow(high / low, share)
        return high * math.pow(low / high, 1 - share) if high < 0 else low + (high - low) * share

    def _coarser(self, scale: int) -> ExponentialBuckets:
        shift = self.scale - scale
        return replace(self, scale=scale, positive=_shifted(self.positive, shift), negative=_shifted(self.negative, shift))

    def _power(self, index: int) -> float:
        exponent = math.ldexp(index, -self.scale)
        return math.pow(2.0, exponent) if exponent < _LARGEST_EXPONENT else math.inf


Buckets = ExplicitBuckets | ExponentialBuckets


@dataclass(frozen=True, slots=True)
class Point:
    """The last value of a metric for one set of attributes, of one sender (``resource``).

    ``kind``: ``sum``, ``gauge``, ``histogram`` or ``exponential_histogram``. ``value`` of a histogram is the sum of what was measured,
    ``count`` how often; of others ``count`` is 0. ``temporality``: ``CUMULATIVE``, or ``DELTA`` of a sender that tells what is new since
    it last did, which is added up here; ``""`` of a gauge. ``start`` and ``at``: unix seconds, since when and when it was measured.
    """

    name: str
    unit: str
    kind: str
    attributes: Attributes
    resource: Attributes
    scope: str
    start: float
    at: float
    value: float
    temporality: str = ""
    monotonic: bool = False
    count: int = 0
    least: float | None = None
    most: float | None = None
    buckets: Buckets | None = None
    exemplars: tuple[Exemplar, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What is equal of two points of which the later replaces the earlier."""
        return self.name, json.dumps([self.attributes, self.resource, self.scope, self.kind], sort_keys=True)

    def quantile(self, share: float) -> float | None:
        """The measurement that ``share`` (0 to 1) of all are below, as near as the buckets tell; ``None`` if they do not.

        Within a bucket measurements are taken to be evenly spread (of exponential ones: their logarithms); nothing is below the least
        or above the most that the sender has seen, if it says so. Raises ``ValueError`` where the point is no histogram.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"a quantile is from 0 to 1, not {share}")
        if self.buckets is None:
            raise ValueError(f"{self.name} is a {self.kind}, and only a histogram has quantiles")
        ranges = [each for each in self.buckets.ranges() if each[2]]
        rank, below = share * sum(count for _, _, count in ranges), 0
        for lower, upper, count in ranges:
            below += count
            if below >= rank:
                low, high = self._seen(lower), self._seen(upper)
                if math.isinf(low) or math.isinf(high):
                    # Of a bucket without an end nothing but its other end is known.
                    return next((end for end in (low, high) if not math.isinf(end)), None)
                return self.buckets.between(low, high, 1 - (below - rank) / count)
        return None

    def _seen(self, bound: float) -> float:
        if self.least is not None:
            bound = max(bound, self.least)
        return bound if self.most is None else min(bound, self.most)

    def after(self, earlier: Point | None) -> Point:
        """What is known when this point comes after ``earlier``: one that was sent twice, or overtaken, changes nothing."""
        if earlier is None:
            return self
        if self.at <= earlier.at:
            return earlier
        return self._plus(earlier) if self.temporality == "DELTA" else self

    def _plus(self, earlier: Point) -> Point:
        buckets: Buckets | None = None
        if isinstance(self.buckets, ExplicitBuckets) and isinstance(earlier.buckets, ExplicitBuckets):
            buckets = self.buckets.plus(earlier.buckets)
            if buckets is None:  # the sender has begun anew with other bounds
                return self
        elif isinstance(self.buckets, ExponentialBuckets) and isinstance(earlier.buckets, ExponentialBuckets):
            buckets = self.buckets.plus(earlier.buckets)
        return replace(
            self, start=earlier.start, value=self.value + earlier.value, count=self.count + earlier.count, buckets=buckets,
            least=_known(min, self.least, earlier.least), most=_known(max, self.most, earlier.most),
            exemplars=self.exemplars or earlier.exemplars,
        )


def points_of(request: ExportMetricsServiceRequest) -> list[Point]:
    """The points of one message. Summaries, which no OpenTelemetry SDK makes, are left out."""
    return [
        point
        for group in request.resource_metrics for scope in group.scope_metrics for metric in scope.metrics
        for point in _points(metric, attributes_of(group.resource.attributes), scope.scope.name)
    ]


def _points(metric: Metric, resource: Attributes, scope: str) -> Iterator[Point]:
    kind = metric.WhichOneof("data")
    if kind is None or kind == "summary":
        return
    data: Any = getattr(metric, kind)
    for each in data.data_points:
        if each.flags & _NO_VALUE:
            continue
        point = Point(
            metric.name, metric.unit, kind, attributes_of(each.attributes), resource, scope,
            start=seconds(each.start_time_unix_nano), at=seconds(each.time_unix_nano), value=0,
            temporality="" if kind == "gauge" else _TEMPORALITIES[data.aggregation_temporality],
            monotonic=kind == "sum" and data.is_monotonic, exemplars=tuple(map(_exemplar, each.exemplars)),
        )
        match kind:
            case "sum" | "gauge":
                yield _number(point, each)
            case "histogram":
                yield _histogram(point, each)
            case "exponential_histogram":
                yield _exponential(point, each)


def _number(point: Point, data: NumberDataPoint) -> Point:
    return replace(point, value=data.as_int if data.WhichOneof("value") == "as_int" else data.as_double)


def _histogram(point: Point, data: HistogramDataPoint) -> Point:
    return _measured(point, data, ExplicitBuckets(tuple(data.explicit_bounds), tuple(data.bucket_counts)))


def _exponential(point: Point, data: ExponentialHistogramDataPoint) -> Point:
    return _measured(point, data, ExponentialBuckets(
        data.scale, data.zero_count, data.zero_threshold,
        _indexed(data.positive.offset, data.positive.bucket_counts), _indexed(data.negative.offset, data.negative.bucket_counts),
    ))


def _measured(point: Point, data: HistogramDataPoint | ExponentialHistogramDataPoint, buckets: Buckets) -> Point:
    return replace(
        point, value=data.sum, count=data.count, buckets=buckets,
        least=data.min if data.HasField("min") else None, most=data.max if data.HasField("max") else None,
    )


def _exemplar(data: ExemplarProto) -> Exemplar:
    value = data.as_int if data.WhichOneof("value") == "as_int" else data.as_double
    return Exemplar(
        seconds(data.time_unix_nano), value, attributes_of(data.filtered_attributes), data.trace_id.hex(), data.span_id.hex())


def _indexed(offset: int, counts: Sequence[int]) -> dict[int, int]:
    return {offset + number: count for number, count in enumerate(counts) if count}


def _shifted(counts: Mapping[int, int], shift: int) -> Counter[int]:
    made: Counter[int] = Counter()
    for index, count in counts.items():
        made[index >> shift] += count
    return made


def _known(choose: Any, one: float | None, other: float | None) -> float | None:
    known: Iterable[float] = [each for each in (one, other) if each is not None]
    return choose(known, default=None)  # type: ignore[no-any-return]  # min or max
