"""What a plane's own telemetry says of a run, beside what the test bed knows of it: a number that lies is a defect.

    figure    truth: what client and services noted          the library says                     Envoy says
    calls     calls that were made                           resilmesh.calls                      http.egress.downstream_rq_completed
    attempts  requests that arrived at a service             resilmesh.attempts that were sent    cluster.*.upstream_rq_total
    errors    calls whose caller got no good answer          resilmesh.calls failed, rejected,    http.egress.downstream_rq_5xx and own 429s
                                                             aborted by a fault
    retries   requests of a call after its first             resilmesh.retries, less unsent       cluster.*.upstream_rq_retry
    latency   from when a call began until it was over       resilmesh.call.duration              http.egress.downstream_rq_time

Latencies are of all calls, refused ones too. Of the library they are read from its histogram, evenly spread within a bucket; a call that
was refused took no time there. Envoy's are its own quantiles, of whole milliseconds and warm-up calls included. Over gRPC its stats know no
status, so that it says nothing of errors. What the client library does around the call is in the truth alone.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resilmesh.compare.stats import quantile
from resilmesh.telemetry.hystrix import quantile as of_buckets

if TYPE_CHECKING:
    from resilmesh.compare.measure import Call
    from resilmesh.envoy.process import Envoy

QUANTILES = (50, 90, 99)
#: Envoy adds its threads' durations up when it is asked, and has them at hand the next time.
_MERGED = 0.1


@dataclass(frozen=True, slots=True)
class Says:
    """Counts, and quantiles of the latency in seconds by percent; None: it does not say."""

    calls: int | None
    attempts: int | None
    errors: int | None
    retries: int | None
    latency: Mapping[int, float | None]

    def as_json(self) -> dict[str, Any]:
        return {
            "calls": self.calls, "attempts": self.attempts, "errors": self.errors, "retries": self.retries,
            "latency_ms": {f"p{percent}": None if value is None else round(value * 1000, 3) for percent, value in self.latency.items()},
        }


def truth(calls: Sequence[Call], succeeded: str) -> Says:
    """What the test bed knows of some calls, of which ``succeeded`` is the good outcome."""
    latencies = [call.latency - call.late for call in calls]
    return Says(
        len(calls), sum(call.attempts.total() for call in calls), sum(call.outcome != succeeded for call in calls),
        sum(max(0, call.attempts.total() - 1) for call in calls),
        {percent: quantile(latencies, percent / 100) for percent in QUANTILES},
    )


def together(rounds: Sequence[Says]) -> Says:
    """Several rounds as one: counts added up, of each quantile the median."""
    def added(name: str) -> int | None:
        values = [getattr(each, name) for each in rounds]
        return None if None in values else sum(values)

    def median(percent: int) -> float | None:
        values = [value for each in rounds if (value := each.latency[percent]) is not None]
        return quantile(values, 0.5) if values else None

    return Says(
        added("calls"), added("attempts"), added("errors"), added("retries"), {percent: median(percent) for percent in QUANTILES},
    )


def relative_errors(told: Says, true: Says) -> dict[str, Any]:
    """By how much of the truth each figure is off: 0.02 is two percent too much. None: it does not say, or the truth is nothing."""
    found: dict[str, Any] = {
        name: _off(getattr(told, name), getattr(true, name)) for name in ("calls", "attempts", "errors", "retries")
    }
    found["latency"] = {f"p{percent}": _off(told.latency[percent], true.latency[percent]) for percent in QUANTILES}
    return found


def _off(told: float | None, true: float | None) -> float | None:
    if told is None or true is None:
        return None
    if told == true:
        return 0.0
    return round((told - true) / true, 4) if true else None


# --------------------------------------------------------------------------------------------- the library


def of_library(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> Says | None:
    """What its counters say, from the snapshots of every process before the run and after it; None where it counts nothing."""
    if not after or all(snapshot["mode"] == "OFF" for snapshot in after):
        return None
    sums = _Sums()
    for sign, snapshots in ((1, after), (-1, before)):
        for snapshot in snapshots:
            for service in snapshot["services"].values():
                for name, route in service["routes"].items():
                    if name != "(mirror)":
                        sums.add(sign, route)
    return sums.says()


class _Sums:
    def __init__(self) -> None:
        self.calls = self.attempts = self.errors = self.retries = 0
        self.counts: list[int] = []

    def add(self, sign: int, route: Mapping[str, Any]) -> None:
        unsent = sum(each["attempts"] for each in route["outcomes"] if each["error"] == "not_sent")
        refused = sum(route["rejected"].values()) + route["ignored"]
        self.calls += sign * (route["calls"] - route["inFlight"])
        self.attempts += sign * (route["attempts"] - route["injectedAttempts"] - unsent)
        self.errors += sign * (route["failed"] + refused)
        self.retries += sign * (route["retries"] - unsent)
        durations = route["durations"]
        counts = [good + bad for good, bad in zip(durations["succeeded"], durations["failed"], strict=True)]
        counts[0] += refused
        self.counts = [old + sign * new for old, new in zip(self.counts or [0] * len(counts), counts, strict=True)]

    def says(self) -> Says:
        latency = {percent: of_buckets(self.counts, percent / 100) for percent in QUANTILES}
        return Says(self.calls, self.attempts, self.errors, max(0, self.retries), latency)


# ---------------------------------------------------------------------------------------------------- Envoy


_COUNTED = re.compile(
    r"^(?P<calls>http\.egress\.downstream_rq_completed)$"
    r"|^(?P<errors>http\.egress\.downstream_rq_5xx|.*http_local_rate_limit\.rate_limited)$"
    r"|^cluster\.(?!/)[^.]+\.(?P<attempts>upstream_rq_total)$"
    r"|^cluster\.(?!/)[^.]+\.(?P<retries>upstream_rq_retry)$"
)
_ASKED = r"egress\.downstream_rq_(completed|5xx)$|http_local_rate_limit\.rate_limited$|upstream_rq_(total|retry)$"


def counters(envoys: Iterable[Envoy]) -> dict[str, int]:
    """What the Envoys of the callers have counted so far, by figure."""
    found = dict.fromkeys(("calls", "attempts", "errors", "retries"), 0)
    for envoy in envoys:
        stats = envoy.stats(_ASKED)
        if "http.egress.downstream_rq_completed" not in stats:
            continue  # it stands before a service
        for name, value in stats.items():
            matched = _COUNTED.match(name)
            if matched is not None and matched.lastgroup is not None:
                found[matched.lastgroup] += value
    return found


def of_envoy(envoys: Sequence[Envoy], before: Mapping[str, int], *, grpc: bool) -> Says | None:
    """What its stats say since ``before``; None where there is no Envoy. Of several callers no latencies: quantiles do not add up."""
    if not envoys:
        return None
    now = counters(envoys)
    grown = {name: now[name] - before[name] for name in now}
    callers = [envoy for envoy in envoys if "http.egress.downstream_rq_completed" in envoy.stats("egress.downstream_rq_completed")]
    latency: dict[int, float | None] = dict.fromkeys(QUANTILES)
    if len(callers) == 1:
        latency.update(_quantiles(callers[0]))
    return Says(grown["calls"], grown["attempts"], None if grpc else grown["errors"], grown["retries"], latency)


def _quantiles(envoy: Envoy) -> dict[int, float | None]:
    envoy.page("/stats?filter=egress.downstream_rq_time$")
    time.sleep(_MERGED)
    told = json.loads(envoy.page("/stats?format=json&filter=egress.downstream_rq_time$"))
    histograms = next((each["histograms"] for each in told["stats"] if "histograms" in each), None)
    if histograms is None or not histograms["computed_quantiles"]:
        return {}
    values = dict(zip(histograms["supported_quantiles"], histograms["computed_quantiles"][0]["values"], strict=True))
    return {
        percent: None if values[percent]["cumulative"] is None else values[percent]["cumulative"] / 1000 for percent in QUANTILES
    }
