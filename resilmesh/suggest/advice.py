"""What follows from what was observed: each value with the measurement behind it, and what cannot be said, with why.

The factors are chosen so that no figure would have refused what was observed, as far as a profile can tell.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from resilmesh.suggest.profile import Profile, RouteProfile, ServiceProfile
from resilmesh.telemetry.quantiles import Histogram, Quantile
from resilmesh.units import MAX_SECONDS, format_duration, parse_duration

#: Calls that a p99 needs: fewer, and it is the one slowest of them.
ENOUGH_FOR_P99 = 200
#: Calls, or attempts, that a share needs.
ENOUGH_FOR_SHARE = 100
#: A time-out is this many times the p99.
TIMEOUT_FACTOR = 2
#: No time-out is shorter than this: a busy machine stalls a healthy call for some milliseconds.
SHORTEST = 0.01
#: A concurrency limit is this many times the mean in flight, and so many more, which small means need.
LOAD_FACTOR, LOAD_FLOOR = 4, 10
#: A normal share of failures may be this many times smaller than the threshold, or more; and never is the threshold lower than the least.
THRESHOLD_FACTOR, LEAST_THRESHOLD, MOST_THRESHOLD = 3, 50, 90
#: Windows of a circuit breaker, the shortest that holds enough calls is taken.
WINDOWS = (10, 30, 60, 300, 600)
#: Above this share of failures retries would add load to a service that is in trouble.
TROUBLE = 0.2
#: Chance of an ejection by nothing but the normal failures, in all that was observed.
FALSE_EJECTION = 0.01
#: The largest number that a policy takes for a count.
_MOST = 1_000_000


class Said(NamedTuple):
    """A value and the measurement behind it; ``None``: nothing can be said, and why."""

    value: str | int | list[str] | dict[str, str] | None
    why: str


#: The keys of one block.
Block = dict[str, Said]
#: What is said of one level of a policy, by block.
Advice = dict[str, "Said | Block"]


def of_route(route: RouteProfile, *, grpc: bool) -> Advice:
    """``timeout`` and ``retries`` of a route, or of what no route matches."""
    retries = _retries(route, grpc=grpc)
    return {"timeout": _timeout(route, retries), "retries": retries}


def of_service(profile: Profile, service: ServiceProfile, own: Mapping[str, Collection[str]], endpoints: int | None = None) -> Advice:
    """What the routes of a service share. ``own``: routes with a block of their own, by block. ``endpoints``: those of the policy."""
    def sharing(block: str) -> list[RouteProfile]:
        return [route for name, route in service.routes.items() if route.calls and name not in own.get(block, ())]

    return {
        "concurrency": _concurrency(profile, service, sharing("concurrency")),
        "circuitBreaker": _circuit_breaker(profile, sharing("circuitBreaker")),
        "retryBudget": _retry_budget(profile, sharing("retryBudget")),
        "outlierDetection": _outlier_detection(service, sharing("outlierDetection"), endpoints),
    }


# --------------------------------------------------------------------------------------------------- words


def shown(seconds: float) -> str:
    """A measured duration in three digits, such as 212 ms."""
    unit, size = ("s", 1.0) if seconds >= 1 else ("ms", 1e-3) if seconds >= 1e-3 else ("us", 1e-6)
    return f"{seconds / size:.3g} {unit}" if seconds / size < 1000 else f"{seconds / size:,.0f} {unit}"


def percent(share: float) -> str:
    """A share in percent, such as 0.28 %."""
    return f"{100 * share:.3g} %"


def readable(seconds: float) -> str:
    """A duration for a policy, rounded up to two digits that people write."""
    scale = 10.0 ** math.floor(math.log10(seconds))
    steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)
    up = next((step * scale for step in steps if step * scale >= seconds * (1 - 1e-9)), 10 * scale)
    return format_duration(round(up, 6))


def _of(part: int, whole: int, what: str) -> str:
    return f"{part:,} of {whole:,} {what} ({percent(part / whole)})" if whole else f"none of 0 {what}"


# --------------------------------------------------------------------------------------------------- times


def _p99(found: Histogram | None, what: str) -> tuple[Quantile | None, str]:
    """The p99 and the words for it, or the reason why there is none."""
    number = 0 if found is None else found.number
    if found is None or number < ENOUGH_FOR_P99:
        return None, f"only {number:,} {what}, and a p99 needs {ENOUGH_FOR_P99} of them, {ENOUGH_FOR_P99 - number:,} more"
    quantile = found.quantile(0.99)
    assert quantile is not None  # of so many
    if math.isinf(quantile.seconds):
        return None, f"the p99 of {number:,} {what} is above {shown(quantile.low)}, in the last bucket, which has no bound"
    width = f" (between {shown(quantile.low)} and {shown(quantile.high)}: the bucket is that wide)" if quantile.coarse else ""
    return quantile, f"p99 of {number:,} {what} was {shown(quantile.seconds)}{width}"


def _timeout(route: RouteProfile, retries: Said | Block) -> Said:
    quantile, words = _p99(route.succeeded, "calls that succeeded")
    if quantile is None or route.succeeded is None:
        return Said(None, words)
    wanted, words = TIMEOUT_FACTOR * quantile.seconds, f"{words}; x{TIMEOUT_FACTOR}"
    per_try = _doubled(route.attempts_succeeded)
    if isinstance(retries, dict) and per_try is not None and 2 * per_try > wanted:
        wanted, words = 2 * per_try, f"{words}, and room for 2 attempts by their perTryTimeout"
    return _time(max(wanted, SHORTEST), words, route.succeeded, "calls")


def _doubled(found: Histogram | None) -> float | None:
    quantile, _ = _p99(found, "")
    return None if quantile is None else max(SHORTEST, TIMEOUT_FACTOR * quantile.seconds)


def _time(seconds: float, words: str, found: Histogram, what: str) -> Said:
    if seconds > MAX_SECONDS / 10:
        return Said(None, f"{words}: longer than a policy's durations may be")
    value = readable(seconds)
    if seconds == SHORTEST:
        words += f", and at least {shown(SHORTEST)}: a busy machine stalls that long"
    longer = found.longer(parse_duration(value))
    return Said(value, f"{words}. {_of(longer, found.number, what)} took longer for certain" if longer else words)


# ------------------------------------------------------------------------------------------------- retries


def _retries(route: RouteProfile, *, grpc: bool) -> Said | Block:
    if route.attempts < ENOUGH_FOR_SHARE:
        return Said(None, f"only {route.attempts:,} attempts, and {ENOUGH_FOR_SHARE} are needed to know how many fail normally")
    share = route.attempts_failed / route.attempts
    failed = f"{_of(route.attempts_failed, route.attempts, 'attempts')} failed"
    if share > TROUBLE:
        return Said(None, f"{failed}: repeating them would add load to a service that is in trouble. Observe it on a good day")
    words = ["unavailable"] if grpc else ["connect-failure", "gateway-error"]
    quantile, words_of_p99 = _p99(route.attempts_succeeded, "attempts that succeeded, body included,")
    if quantile is None or route.attempts_succeeded is None:
        per_try = Said(None, words_of_p99 if route.attempts_succeeded is not None else "the profile has no durations of attempts")
    else:
        seconds = max(SHORTEST, TIMEOUT_FACTOR * quantile.seconds)
        per_try = _time(seconds, f"{words_of_p99}; x{TIMEOUT_FACTOR}", route.attempts_succeeded, "attempts")
    return {
        "maxRetries": Said(1, f"{failed}; once more is enough for what is rare"),
        "retryOn": Said(words, "what says that another try may fare better. No POST is repeated that the service may have seen"),
        "perTryTimeout": per_try,
    }


def _retry_budget(profile: Profile, routes: list[RouteProfile]) -> Said | Block:
    calls, attempts = sum(route.calls for route in routes), sum(route.attempts for route in routes)
    if attempts < ENOUGH_FOR_SHARE:
        return Said(None, f"only {attempts:,} attempts, and {ENOUGH_FOR_SHARE} are needed to know how many fail normally")
    retries, failed = sum(route.retries for route in routes), sum(route.attempts_failed for route in routes)
    wanted = max(2 * 100 * retries / max(1, calls), min(20.0, 2 * 100 * failed / attempts), 5.0)
    each_second = retries / profile.seconds
    return {
        "percent": Said(
            min(100, math.ceil(wanted)),
            f"{_of(retries, calls, 'calls')} were retried and {_of(failed, attempts, 'attempts')} failed; x2, but at least 5,"
            " and for failures at most 20",
        ),
        "minRetriesPerSecond": Said(
            min(_MOST, max(1, math.ceil(2 * each_second))),
            f"{each_second:.3g} retries a second{_together(profile)}; x2, and at least 1, so that a quiet service can be retried at all",
        ),
    }


# --------------------------------------------------------------------------------------------- concurrency


def _concurrency(profile: Profile, service: ServiceProfile, routes: list[RouteProfile]) -> Said | Block:
    ended = sum(route.ended for route in routes)
    if ended < ENOUGH_FOR_SHARE:
        return Said(None, f"only {ended:,} calls ended, and {ENOUGH_FOR_SHARE} are needed to know how long one stays in the service")
    rate, each = ended / profile.seconds, sum(route.seconds for route in routes) / ended
    seen, load = sum(route.in_flight for route in routes), rate * each
    wanted = max(math.ceil(LOAD_FACTOR * load) + LOAD_FLOOR, 2 * seen)
    words = (
        f"{rate:.3g} calls/s x {shown(each)} in the service = {load:.3g} in flight on the average{_together(profile)}"
        f" (Little's law); x{LOAD_FACTOR} + {LOAD_FLOOR}. {seen:,} were in flight when the profile was taken"
    )
    full = sum(route.refused.get("ConcurrencyExceeded", 0) for route in routes)
    if full:
        limit = max((service.limits[name] for name in service.limits), default=0)
        wanted = max(wanted, 2 * limit)
        words += f". {full:,} calls were above the limit of {limit:,} that there was, so it is x2 of that at least"
    if wanted > _MOST:
        return Said(None, f"{words}: more than a policy's limits may be")
    return {"maxRequests": Said(
        wanted, f"{words}. A profile does not tell the highest peak: look at wouldReject under OBSERVE before this refuses anybody",
    )}


def _together(profile: Profile) -> str:
    return f", {profile.workers} workers together, while the limit is each one's" if profile.workers > 1 else ""


# ----------------------------------------------------------------------------------------- circuit breaker


def _circuit_breaker(profile: Profile, routes: list[RouteProfile]) -> Said | Block:
    attempts, failed = sum(route.attempts for route in routes), sum(route.attempts_failed for route in routes)
    if attempts < ENOUGH_FOR_SHARE:
        return Said(None, f"only {attempts:,} attempts, and {ENOUGH_FOR_SHARE} are needed to know how many fail normally")
    share = failed / attempts
    words = f"{_of(failed, attempts, 'attempts')} failed"
    opened = sum(route.refused.get("CircuitOpen", 0) for route in routes)
    if opened:
        return Said(None, f"{words}, and the circuit breaker that there was spoke against {opened:,} calls: that was no normal time")
    threshold = max(LEAST_THRESHOLD, 5 * math.ceil(100 * THRESHOLD_FACTOR * share / 5))
    if threshold > MOST_THRESHOLD:
        return Said(None, f"{words}: a threshold well above that would never be reached. Observe it on a good day")
    rate = attempts / profile.seconds / profile.workers
    # Five standard deviations: so few attempts, with the normal share of failures, are never by chance above the threshold.
    needed = max(20, math.ceil(25 * share * (1 - share) / (threshold / 100 - share) ** 2))
    window = next((size for size in WINDOWS if rate * size >= 2 * needed), None)
    if window is None:
        return Said(None, (
            f"{rate:.3g} attempts/s in each process: {needed} of them, which a rate needs, are {shown(needed / rate)} of traffic,"
            f" and {shown(2 * needed / rate)} is too long for a circuit to open; at least {2 * needed / WINDOWS[-1]:.2g}/s are needed"
        ))
    minimum = min(_MOST, max(needed, math.ceil(rate * window / 4)))
    return {
        "failureRateThreshold": Said(threshold, f"{words}; x{THRESHOLD_FACTOR}, and at least {LEAST_THRESHOLD}"),
        "slidingWindow": Said(
            {"type": "TIME_BASED", "size": f"{window}s"}, f"{rate:.3g} attempts/s in each process: about {rate * window:,.0f} in it",
        ),
        "minimumNumberOfCalls": Said(
            minimum, f"a quarter of those, and at least {needed}: fewer could fail by chance, at the share that is normal",
        ),
    }


# --------------------------------------------------------------------------------------- outlier detection


def _outlier_detection(service: ServiceProfile, routes: list[RouteProfile], in_policy: int | None) -> Said | Block:
    number = len(service.endpoints) if in_policy is None else in_policy
    attempts, failed = sum(route.attempts for route in routes), sum(route.attempts_failed for route in routes)
    if number < 2:
        return Said(None, f"{number} endpoint{'s' if number != 1 else ''}: there must be another one to turn to")
    if attempts < ENOUGH_FOR_SHARE:
        return Said(None, f"only {attempts:,} attempts, and {ENOUGH_FOR_SHARE} are needed to know how many fail normally")
    share, words = failed / attempts, f"{_of(failed, attempts, 'attempts')} failed"
    if share > TROUBLE:
        return Said(None, f"{words}: endpoints would be ejected for what seems to be everybody's. Observe it on a good day")
    by_chance = math.ceil(math.log(FALSE_EJECTION / attempts) / math.log(share)) if failed else 0
    in_a_row = max((row for row, _ in service.endpoints.values()), default=0)
    ejections = sum(count for _, count in service.endpoints.values())
    told = f"; {ejections:,} times one was, or would have been, ejected" if ejections else ""
    return {
        "consecutive5xxErrors": Said(
            min(_MOST, max(5, by_chance, in_a_row + 1)),
            f"{words}: by chance {by_chance} in a row would come once in a hundred such profiles; at least 5, and more than the {in_a_row}"
            f" in a row that an endpoint has now{told}",
        ),
        "maxEjectionPercent": Said(math.ceil(100 * (number // 2) / number), f"{number // 2} of {number} endpoints at most"),
    }
