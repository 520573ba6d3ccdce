"""``series`` of a report as it is drawn: plain data in, at most a hundred buckets out.

A run of a minute has 600 buckets of a tenth of a second, too many for a chart as wide as a hand. Some in a row are put
together: counts are added, the median of a quantile's values stands for p50 and the greatest for p99, and the worst state
for a circuit, so that nothing bad disappears.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

#: A state of a circuit is worse than those before it.
CIRCUIT_STATES = ("CLOSED", "METRICS_ONLY", "HALF_OPEN", "OPEN")

_MOST_BUCKETS = 100


@dataclass(frozen=True, slots=True)
class Mark:
    at: float
    what: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """One run of one plane. Every list has ``count`` values; rates are per second, latencies in milliseconds."""

    round: int
    #: Seconds.
    bucket: float
    count: int
    due: list[float]
    succeeded: list[float]
    errors: dict[str, list[float]]
    latency: dict[str, list[float | None]]
    requests: dict[str, list[float]]
    #: One list for each process; empty when the plane has no circuit breaker or was not watched.
    circuit: list[list[str]]
    #: By endpoint, the processes that hold it ejected; empty when the plane was not watched.
    ejected: dict[str, list[int]]
    watched: str | None
    processes: int
    marks: list[Mark]

    @property
    def end(self) -> float:
        """Seconds of the run at which the last bucket ends."""
        return self.bucket * self.count


def timeline(series: Mapping[str, Any]) -> Timeline:
    """From ``series`` of one plane in a report (``resilmesh.compare.series`` says what is in it)."""
    fine: float = series["bucket_s"]
    per = max(1, -(-len(series["start_s"]) // _MOST_BUCKETS))

    def rates(counts: Sequence[int]) -> list[float]:
        return _merged(counts, per, lambda some: sum(some) / (fine * len(some)))

    latencies = series["latency_ms"]
    return Timeline(
        round=series["round"], bucket=fine * per, count=-(-len(series["start_s"]) // per),
        due=rates(series["due"]), succeeded=rates(series["succeeded"]),
        errors={name: rates(counts) for name, counts in series["errors"].items()},
        latency={"p50": _merged(latencies["p50"], per, _known(median)), "p99": _merged(latencies["p99"], per, _known(max))},
        requests={name: rates(counts) for name, counts in series["requests"].items()},
        circuit=[_merged(states, per, _worst) for states in series["circuit"] or ()],
        ejected={name: _merged(holders, per, max) for name, holders in (series["ejected"] or {}).items()},
        watched=series["watched"], processes=series["processes"],
        marks=[Mark(mark["at_s"], mark["what"]) for mark in series["marks"]],
    )


def _merged(values: Sequence[Any], per: int, put_together: Callable[[Sequence[Any]], Any]) -> list[Any]:
    return [put_together(values[start:start + per]) for start in range(0, len(values), per)]


def _known(of: Callable[[list[float]], float]) -> Callable[[Sequence[float | None]], float | None]:
    def put_together(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return of(known) if known else None

    return put_together


def _worst(states: Sequence[str]) -> str:
    return max(states, key=lambda state: CIRCUIT_STATES.index(state) if state in CIRCUIT_STATES else len(CIRCUIT_STATES))
