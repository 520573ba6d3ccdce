"""resilmesh, set up for each case by a policy, as its users do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.overhead.floor import LIMIT, MANY, MINIMUM, RETRIES, SECONDS
from resilmesh import Mesh

Function = Callable[..., Any]

_BREAKER = (
    f"circuitBreaker: {{slidingWindow: {{type: TIME_BASED, size: 10s}}, minimumNumberOfCalls: {MINIMUM}, waitDurationInOpenState: 1h}}"
)
_CONSECUTIVE = f"circuitBreaker: {{failureRateThreshold: null, consecutiveFailures: {MINIMUM}, waitDurationInOpenState: 1h}}"
_RATE = f"rateLimit: {{requests: {MANY}, per: 1s}}"
_CONCURRENCY = f"concurrency: {{maxRequests: {LIMIT}}}"
_RETRY = f"retries: {{maxRetries: {RETRIES}, retryOn: [5xx]}}"
_DEADLINE = f"timeout: {SECONDS:g}s"
_STACK = (_RETRY, _BREAKER, _RATE, _CONCURRENCY)

BLOCKS: dict[str, tuple[str, ...]] = {
    "breaker": (_BREAKER,),
    "consecutive": (_CONSECUTIVE,),
    "rate": (_RATE,),
    "concurrency": (_CONCURRENCY,),
    "retry": (_RETRY,),
    "deadline": (_DEADLINE,),
    "stack": _STACK,
    "stack+deadline": (*_STACK, _DEADLINE),
    "rejected": (_BREAKER,),
}


def guard(case: str) -> Callable[[Function], Function]:
    """A guard for ``case`` on a mesh of its own."""
    lines = ["apiVersion: resilmesh/v1", "services:", "- name: service", *(f"  {block}" for block in BLOCKS[case])]
    return Mesh.from_text("\n".join(lines)).guard("service", idempotent=True)
