"""``/hystrix.stream``: what a Hystrix dashboard reads, a command for each route, over a sliding window of ten seconds. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from resilmesh.state.stats import BOUNDS
from resilmesh.telemetry.quantiles import Histogram

#: Seconds of the window, which is Hystrix's own default, and between two tellings.
WINDOW = 10.0
EVERY = 0.5
_QUANTILES = ("0", "25", "50", "75", "90", "95", "99", "99.5", "100")


class Rolling:
    """Figures of the last seconds, from snapshots that are given one after the other."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, Mapping[str, Any]]] = deque()

    def commands(self, now: float, unix: float, snapshot: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What is told of each route. ``now``: monotonic seconds; ``unix``: of the day."""
        self._seen.append((now, snapshot))
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()
        before = self._seen[0][1]["services"]
        for service, sections in snapshot["services"].items():
            for route, stats in sections["routes"].items():
                if stats["calls"]:
                    earlier = before.get(service, {}).get("routes", {}).get(route)
                    circuits = sections["circuitBreakers"]
                    circuit = circuits.get(route) or circuits.get("*")
                    name = service if route == "*" else f"{service}/{route}"
                    yield _command(name, service, unix, stats, earlier, circuit)


def _command(
    name: str, group: str, unix: float, stats: Mapping[str, Any], earlier: Mapping[str, Any] | None, circuit: Mapping[str, Any] | None,
) -> dict[str, Any]:
    def grown(key: str, label: str = "") -> int:
        new, old = ((each[key].get(label, 0) if label else each[key]) if each else 0 for each in (stats, earlier))
        return int(new - old)

    succeeded, failed = grown("succeeded"), grown("failed")
    open_, full, limited = (grown("rejected", each) for each in ("CircuitOpen", "ConcurrencyExceeded", "RateLimited"))
    unhealthy = grown("rejected", "NoHealthyEndpoint")
    errors = failed + open_ + full + limited + unhealthy
    requests = succeeded + errors
    counts = [
        sum(new) - (sum(old) if earlier else 0) for new, old in zip(
            zip(stats["durations"]["succeeded"], stats["durations"]["failed"], strict=True),
            zip(earlier["durations"]["succeeded"], earlier["durations"]["failed"], strict=True) if earlier
            else [(0, 0)] * (len(BOUNDS) + 1), strict=True,
        )
    ]
    seconds = sum(stats["durations"][key] - (earlier["durations"][key] if earlier else 0) for key in ("succeededSeconds", "failedSeconds"))
    mean = round(1000 * seconds / sum(counts)) if sum(counts) else 0
    latency = {each: round(1000 * quantile(counts, float(each) / 100)) for each in _QUANTILES}
    return {
        "type": "HystrixCommand", "name": name, "group": group, "currentTime": round(unix * 1000),
        "isCircuitBreakerOpen": circuit is not None and circuit["state"] in ("OPEN", "FORCED_OPEN"),
        "errorPercentage": round(100 * errors / requests) if requests else 0, "errorCount": errors, "requestCount": requests,
        "rollingCountBadRequests": 0, "rollingCountCollapsedRequests": 0, "rollingCountEmit": 0, "rollingCountExceptionsThrown": errors,
        "rollingCountFailure": failed, "rollingCountFallbackEmit": 0, "rollingCountFallbackFailure": 0, "rollingCountFallbackMissing": 0,
        "rollingCountFallbackRejection": 0,
        "rollingCountFallbackSuccess": sum(stats["fallbacks"].values()) - (sum(earlier["fallbacks"].values()) if earlier else 0),
        "rollingCountResponsesFromCache": 0, "rollingCountSemaphoreRejected": full + limited + unhealthy,
        "rollingCountShortCircuited": open_, "rollingCountSuccess": succeeded, "rollingCountThreadPoolRejected": 0,
        "rollingCountTimeout": 0, "rollingMaxConcurrentExecutionCount": stats["inFlight"],
        "currentConcurrentExecutionCount": stats["inFlight"],
        "latencyExecute_mean": mean, "latencyExecute": latency, "latencyTotal_mean": mean, "latencyTotal": latency,
        "propertyValue_circuitBreakerEnabled": circuit is not None,
        "propertyValue_circuitBreakerForceOpen": circuit is not None and circuit["state"] == "FORCED_OPEN",
        "propertyValue_circuitBreakerForceClosed": circuit is not None and circuit["state"] == "FORCED_CLOSED",
        "propertyValue_circuitBreakerErrorThresholdPercentage": 50, "propertyValue_circuitBreakerRequestVolumeThreshold": 0,
        "propertyValue_circuitBreakerSleepWindowInMilliseconds": 0, "propertyValue_executionIsolationStrategy": "SEMAPHORE",
        "propertyValue_executionIsolationThreadTimeoutInMilliseconds": 0,
        "propertyValue_executionIsolationSemaphoreMaxConcurrentRequests": 0,
        "propertyValue_executionIsolationThreadInterruptOnTimeout": False,
        "propertyValue_fallbackIsolationSemaphoreMaxConcurrentRequests": 0,
        "propertyValue_metricsRollingStatisticalWindowInMilliseconds": round(WINDOW * 1000),
        "propertyValue_requestCacheEnabled": False, "propertyValue_requestLogEnabled": False, "reportingHosts": 1,
        "threadPool": group,
    }


def quantile(counts: list[int], share: float) -> float:
    """Seconds within which that share of the durations lies; 0 of none, and the last bound of what lies beyond it."""
    found = Histogram(BOUNDS, counts, 0.0).quantile(share)
    return 0.0 if found is None else min(found.seconds, BOUNDS[-1])
