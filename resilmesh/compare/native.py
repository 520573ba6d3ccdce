"""The plane ``grpc-native``: a policy as grpcio's own service config, as far as that can say it.

    timeout         timeout; grpcio lets it run out one to two seconds early (grpc/grpc#40633)
    retries         retryPolicy: maxAttempts, at most 5 in all; the gRPC words of retryOn as retryableStatusCodes; the backoff
    retryBudget     retryThrottling, which is another arithmetic to the same end
    loadBalancer    round_robin over the endpoints

It tells calls apart by method and has no word for anything else. What could not be said is told (``Native.differences``), and
a policy of which too little is left is not run (``Native.cannot``): the plane would be another experiment.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from resilmesh.policy.dangers import GRPC_WORDS
from resilmesh.policy.resolve import Effective, effective

if TYPE_CHECKING:
    from resilmesh.policy.model import Policy, Retries, RetryBudget

Json = dict[str, Any]

#: More are cut down to this by grpcio.
_MOST_ATTEMPTS = 5
#: From how many tokens a service config may begin.
_TOKENS = (1, 1000)

_EARLY = "runs out one to two seconds early (grpc/grpc#40633): one of up to a second ends every call at once"
_NOTHING = "no counterpart"
_ABSENT = {
    "circuitBreaker": _NOTHING,
    "outlierDetection": "consecutive errors are not among what its experimental outlier_detection policy counts",
    "concurrency": _NOTHING,
    "rateLimit": _NOTHING,
    "fault": _NOTHING,
    "split": _NOTHING,
    "routes": "it tells calls apart by method alone",
}
#: Without these a call does not go where, or meet what, the policy says.
_STEERING = ("fault", "split", "routes")


@dataclass(frozen=True, slots=True)
class Native:
    """What grpcio is given. ``differences`` are sentences; ``cannot`` says why the plane is not worth running, or is None."""

    service_config: Json
    differences: tuple[str, ...]
    cannot: str | None


def native(policy: Policy) -> Native:
    """Of the policy's first service; scenarios have one."""
    blocks = effective(policy, 0, None)
    absent = [name for name in _ABSENT if _is_written(blocks, name)]
    without = [name for name in absent if _ABSENT[name] == _NOTHING]
    differences = [f"{name} cannot be said: {_ABSENT[name]}" for name in absent if name not in without]
    if without:
        differences.insert(0, f"{', '.join(without)}: {_NOTHING}")
    method: Json = {"name": [{}]}
    config: Json = {"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": [method]}
    if blocks.timeout is not None:
        method["timeout"] = _seconds(blocks.timeout)
        differences.append(f"timeout {_EARLY}")
    if blocks.retries is not None:
        method["retryPolicy"] = _retry_policy(blocks.retries)
        differences += _of_retries(blocks.retries)
        if blocks.retry_budget is not None:
            config["retryThrottling"] = _throttling(blocks.retry_budget)
            differences.append(
                "retryBudget is retryThrottling: each failure takes a token, each success gives percent/100 back, and time gives none; "
                "it has no floor and no memory of ttl"
            )
    if blocks.load_balancer.policy != "ROUND_ROBIN":
        differences.append(f"loadBalancer {blocks.load_balancer.policy} is round_robin: grpcio has no other that suits")
    return Native(config, tuple(differences), _cannot(blocks, absent))


def _is_written(blocks: Effective, name: str) -> bool:
    if name == "routes":
        return bool(blocks.service.routes)
    attribute = {"circuitBreaker": "circuit_breaker", "outlierDetection": "outlier_detection", "rateLimit": "rate_limit"}.get(name, name)
    return getattr(blocks, attribute) is not None


def _cannot(blocks: Effective, absent: list[str]) -> str | None:
    steering = [name for name in _STEERING if name in absent]
    if steering:
        return f"a service config cannot say {' and '.join(steering)}"
    if blocks.retries is None:
        return f"of this policy a service config can say the time-out alone, not {', '.join(absent) or 'anything else'}"
    return None


def _retry_policy(retries: Retries) -> Json:
    backoff = retries.backoff
    codes = [word.upper().replace("-", "_") for word in map(str, retries.retry_on) if word in GRPC_WORDS]
    return {
        "maxAttempts": min(retries.max_retries + 1, _MOST_ATTEMPTS),
        "initialBackoff": _seconds(backoff.base), "maxBackoff": _seconds(backoff.max or 10 * backoff.base), "backoffMultiplier": 2,
        "retryableStatusCodes": codes,
    }


def _of_retries(retries: Retries) -> list[str]:
    transport = [word for word in map(str, retries.retry_on) if word not in GRPC_WORDS]
    found = ["backoff is drawn from 80 to 120 % of its scale, not from none to all of it"]
    if transport:
        found.append(
            f"{', '.join(transport)} in retryOn cannot be said: to grpcio a connection that is lost is UNAVAILABLE, and a stream that is "
            "reset mostly INTERNAL, each repeated where that code is"
        )
    if retries.per_try_timeout is not None:
        found.append(
            "perTryTimeout cannot be said: perAttemptRecvTimeout takes the experimental channel argument grpc.experimental.enable_hedging")
    if retries.max_retries + 1 > _MOST_ATTEMPTS:
        found.append(f"maxRetries: {_MOST_ATTEMPTS - 1} at most")
    return found


def _throttling(budget: RetryBudget) -> Json:
    """Retries stop at half of the tokens: so many failures in a row are let off as the policy's floor lets off in a second."""
    least, most = _TOKENS
    return {"maxTokens": max(least, min(most, 2 * budget.min_retries_per_second)), "tokenRatio": round(budget.percent / 100, 3)}


def _seconds(value: float) -> str:
    return f"{value:.9f}".rstrip("0").rstrip(".") + "s"
