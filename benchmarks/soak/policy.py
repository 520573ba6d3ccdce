"""Two policies over the same services, between which the meshes go back and forth. Every block that is enforced is in one of them."""

from __future__ import annotations

_FIRST = """
apiVersion: resilmesh/v1
defaults:
  retryBudget: {percent: 20, minRetriesPerSecond: 50}
  outlierDetection: {consecutive5xxErrors: 5, interval: 100ms, baseEjectionTime: 50ms, maxEjectionPercent: 60,
                     successRate: {minimumHosts: 2, requestVolume: 10, stdevFactor: 1.0}}
services:
- name: web
  hosts: [web.test]
  endpoints: [{address: "ADDRESS0", labels: {v: a}}, {address: "ADDRESS1", labels: {v: b}}, {address: "127.0.0.1:DEAD", labels: {v: b}}]
  subsets: [{name: a, labels: {v: a}}, {name: b, labels: {v: b}}]
  split: [{subset: a, weight: 3}, {subset: b, weight: 1}]
  loadBalancer: {policy: LEAST_REQUEST, slowStart: {window: 200ms}}
  timeout: 400ms
  retries: {maxRetries: 2, perTryTimeout: 100ms, retryOn: [connect-failure, reset, 5xx], backoff: {base: 1ms, max: 3ms}}
  circuitBreaker: {failureRateThreshold: 60, minimumNumberOfCalls: 50, waitDurationInOpenState: 50ms}
  concurrency: {maxRequests: 12, maxPending: 8, maxPendingWait: 20ms}
  rateLimit: {requests: 4000, per: 1s, descriptor: {header: x-user, maxValues: 20}}
  headers: {request: {set: {x-soak: "1"}}, response: {remove: [x-kind]}}
  routes:
  - {name: copied, match: {path: {prefix: /copied}}, mirror: {service: mirror, percent: 50}, rewrite: {path: /elsewhere}}
  - {name: saved, match: {path: /saved}, fallback: {status: 203, body: saved}}
  - name: drilled
    match: {path: /drilled}
    fault: {scope: ATTEMPT, abort: {httpStatus: 503, percent: 20}, delay: {fixedDelay: 1ms, percent: 20}}
- name: mirror
  endpoints: [{address: "ADDRESS1"}]
  concurrency: {maxRequests: 8}
- name: work
  timeout: 1s
  retries: {maxRetries: 2, retryOn: [5xx], idempotent: true, backoff: {base: 1ms, max: 1ms}}
  circuitBreaker: {failureRateThreshold: 50, slidingWindow: {size: 100}, minimumNumberOfCalls: 20, waitDurationInOpenState: 5ms}
  concurrency: {maxRequests: 3, maxPending: 2, maxPendingWait: 2ms}
  rateLimit: {requests: 200000, per: 1s, burst: 5000}
  fault: {abort: {httpStatus: 503, percent: 1}}
- name: plain
  timeout: 5s
  circuitBreaker: {consecutiveFailures: 1000, failureRateThreshold: null}
"""
_GRPC = """
apiVersion: resilmesh/v1
defaults:
  retryBudget: {percent: 20, minRetriesPerSecond: 50}
  outlierDetection: {consecutive5xxErrors: 5, interval: 100ms, baseEjectionTime: 50ms, maxEjectionPercent: 60}
services:
- name: web
  hosts: [shop.test]
  protocol: GRPC
  endpoints: [{address: "ADDRESS0"}, {address: "ADDRESS1"}, {address: "127.0.0.1:DEAD"}]
  loadBalancer: LEAST_REQUEST
  connectTimeout: 200ms
  timeout: 600ms
  idleTimeout: 200ms
  retries: {maxRetries: 2, perTryTimeout: 200ms, retryOn: [connect-failure, reset, unavailable], backoff: {base: 1ms, max: 3ms}}
  circuitBreaker: {failureRateThreshold: 80, minimumNumberOfCalls: 50, waitDurationInOpenState: 50ms}
  concurrency: {maxRequests: 24, maxPending: 16, maxPendingWait: 50ms}
  rateLimit: {requests: 4000, per: 1s, descriptor: {header: x-user, maxValues: 20}}
  headers: {request: {set: {x-soak: "1"}}}
  routes:
  - {name: copied, match: {grpc: {method: Look}}, mirror: {service: mirror, percent: 50}}
  - name: drilled
    match: {grpc: {method: Collect}}
    fault: {scope: ATTEMPT, abort: {grpcStatus: 14, percent: 10}, delay: {fixedDelay: 1ms, percent: 10}}
- name: mirror
  protocol: GRPC
  endpoints: [{address: "ADDRESS1"}]
  concurrency: {maxRequests: 8}
- {name: work, timeout: 1s, circuitBreaker: {consecutiveFailures: 1000, failureRateThreshold: null}}
- {name: plain, timeout: 5s}
"""
_GRPC_CHANGES = (
    ("LEAST_REQUEST", "ROUND_ROBIN"), ("timeout: 600ms", "timeout: 400ms"), ("maxRequests: 24", "maxRequests: 12"),
    (", {address: \"127.0.0.1:DEAD\"}", ""), ("scope: ATTEMPT", "scope: CALL"), ("connectTimeout: 200ms", "connectTimeout: 300ms"),
)
_CHANGES = (
    ("LEAST_REQUEST", "ROUND_ROBIN"), ("timeout: 400ms", "timeout: 300ms"), ("maxRequests: 12", "maxRequests: 6"),
    ("maxRequests: 3, maxPending: 2", "maxRequests: 5, maxPending: 0"), ("size: 100}", "size: 2s, type: TIME_BASED}"),
    ("successRate: {minimumHosts: 2, requestVolume: 10, stdevFactor: 1.0}", "failurePercentage: {minimumHosts: 2, requestVolume: 10}"),
    (", {address: \"127.0.0.1:DEAD\", labels: {v: b}}", ""), ("percent: 1}", "percent: 3}"), ("scope: ATTEMPT", "scope: CALL"),
)


def policies(addresses: tuple[str, str], dead: int, protocol: str = "http") -> tuple[str, str]:
    """Both texts. ``dead``: a port on which nothing listens."""
    text, changes = (_GRPC, _GRPC_CHANGES) if protocol == "grpc" else (_FIRST, _CHANGES)
    first = text.replace("DEAD", str(dead)).replace("ADDRESS0", addresses[0]).replace("ADDRESS1", addresses[1])
    second = first
    for written, new in changes:
        old = written.replace("DEAD", str(dead))
        if old not in second:
            raise ValueError(f"the policy has no {old!r} to change")
        second = second.replace(old, new)
    return first, second
