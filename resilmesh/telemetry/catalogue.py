"""Every metric: its name, what it counts, and by what it is told apart. docs/reference/metrics.md is made of it (``make reference``).

Names are OpenTelemetry's where its semantic conventions have one (``http.client.request.duration``), and ``resilmesh.*`` elsewhere,
after gRPC's (gRFC A66, A96). Prometheus has the same with underscores, the unit at the end, and ``_total`` behind what only grows.

Every attribute has few values: what the policy names, what the standards enumerate, and the methods that the program calls (of which
200 outcomes on one route at most). None is a URL, a header or an address that a caller could make up.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

#: What only grows; what goes up and down, and is added up over workers; durations by bucket; likewise what is not added up: of several
#: workers the largest, or the smallest.
Kind = Literal["counter", "sum", "max", "min", "histogram"]


class Metric(NamedTuple):
    """One of the catalogue. ``unit``: in UCUM, as OpenTelemetry wants it; ``told`` in Markdown."""

    name: str
    kind: Kind
    unit: str
    told: str
    attributes: tuple[str, ...] = ()


_ROUTE = ("resilmesh.service", "resilmesh.route")
_SERVICE = ("resilmesh.service",)
_CIRCUIT_STATES = "`CLOSED`, `OPEN`, `HALF_OPEN`, and set by hand `FORCED_OPEN`, `FORCED_CLOSED`, `METRICS_ONLY`"

METRICS: tuple[Metric, ...] = (
    # -------------------------------------------------------------------------- OpenTelemetry's own names
    Metric("http.client.request.duration", "histogram", "s",
           "Attempts over HTTP, from the moment they are sent to the end of the body. `error.type`: the status from 400 on, or `timeout`, "
           "`not_sent` (no connection), `reset`, `incomplete_body`, `cancelled` (by the caller), `fault_injected` (nothing was sent)",
           ("http.request.method", "http.response.status_code", "error.type", "server.address", "server.port", *_ROUTE)),
    Metric("http.server.request.duration", "histogram", "s",
           "Requests that this workload has served or refused, by the inbound middlewares; to the end of the response",
           ("http.request.method", "http.response.status_code", "error.type")),
    Metric("rpc.client.call.duration", "histogram", "s",
           "Attempts over gRPC, to their status. `error.type` as for HTTP, or the name of the status",
           ("rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type", "server.address", "server.port", *_ROUTE)),
    Metric("rpc.server.call.duration", "histogram", "s",
           "gRPC calls that this workload has served or refused, by the server interceptors",
           ("rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type")),
    # ------------------------------------------------------------------------------------- calls and attempts
    Metric("resilmesh.calls", "counter", "{call}",
           "Calls that ended. `outcome`: `succeeded`, `failed`, `rejected` (nothing was sent), `abandoned` (the caller went away), "
           "`ignored` (the end says nothing about the service: an injected abort of scope CALL, an inherited deadline)",
           (*_ROUTE, "outcome")),
    Metric("resilmesh.calls.in_flight", "sum", "{call}", "Calls that have not ended: sent, waiting, or with a body still to come", _ROUTE),
    Metric("resilmesh.call.duration", "histogram", "s",
           "Calls as the program sees them: all attempts and waits, to the end of the body. Without those that were rejected, abandoned "
           "or ignored", (*_ROUTE, "outcome")),
    Metric("resilmesh.attempts", "counter", "{attempt}",
           "Attempts that began. Those that a fault answered in place of the service are among them", _ROUTE),
    Metric("resilmesh.attempts.injected", "counter", "{attempt}",
           "Attempts of which nothing was sent, because a fault of scope ATTEMPT stood in for the service", _ROUTE),
    Metric("resilmesh.attempts.unsuccessful", "counter", "{attempt}",
           "Attempts by a verdict other than SUCCESS: `FAILURE`, `UNSENT`, `THROTTLED`, `IGNORED`", (*_ROUTE, "verdict")),
    Metric("resilmesh.attempt.duration", "histogram", "s",
           "Attempts that succeeded or failed, over any protocol, functions included; each to the end of its body", (*_ROUTE, "outcome")),
    Metric("resilmesh.retries", "counter", "{attempt}", "Attempts after the first", _ROUTE),
    Metric("resilmesh.retries.refused", "counter", "{attempt}",
           "Retries that the policy wanted and that were not made. `reason`: `budget`, `deadline`, `circuit`, `endpoint`",
           (*_ROUTE, "reason")),
    Metric("resilmesh.retries.outer", "counter", "{call}",
           "Calls that said they are a repetition of a loop outside of the library, such as an SDK's own", _ROUTE),
    Metric("resilmesh.rejections", "counter", "{call}",
           "Calls of which nothing was sent. `reason`: `CircuitOpen`, `ConcurrencyExceeded`, `RateLimited`, `NoHealthyEndpoint`",
           (*_ROUTE, "reason")),
    Metric("resilmesh.rejections.observed", "counter", "{call}",
           "Under OBSERVE: calls that would have been rejected, and were made", (*_ROUTE, "reason")),
    Metric("resilmesh.faults", "counter", "{fault}", "Faults that were injected. `kind`: `abort`, `delay`", (*_ROUTE, "kind")),
    Metric("resilmesh.fallbacks", "counter", "{call}",
           "Outcomes that a fallback stood in for, which are counted as what they were too. `reason`: `REJECTED`, `DEADLINE`, `FAILURE`",
           (*_ROUTE, "reason")),
    Metric("resilmesh.mirrors", "counter", "{call}", "Copies that were sent to the service that `mirror` names", _ROUTE),
    Metric("resilmesh.mirrors.dropped", "counter", "{call}",
           "Copies that were not sent. `reason`: `streamed`, `busy`, `intercepted`", (*_ROUTE, "reason")),
    Metric("resilmesh.sent", "counter", "By", "Bytes written to HTTP connections, heads and bodies, without TLS", _ROUTE),
    Metric("resilmesh.received", "counter", "By", "Bytes read from HTTP connections, likewise", _ROUTE),
    # ---------------------------------------------------------------------------------------- circuits, endpoints
    Metric("resilmesh.circuit.state", "sum", "{worker}",
           f"How many workers have the circuit in the state: 1 or 0 in a single process. `state`: {_CIRCUIT_STATES}", (*_ROUTE, "state")),
    Metric("resilmesh.circuit.transitions", "counter", "{transition}", "How often the circuit came into the state", (*_ROUTE, "state")),
    Metric("resilmesh.circuit.failure_rate", "max", "1", "Share of failures in the sliding window, of several workers the largest", _ROUTE),
    Metric("resilmesh.endpoint.ejected", "sum", "{worker}",
           "How many workers have the endpoint ejected: 1 or 0 in a single process", (*_SERVICE, "resilmesh.endpoint")),
    Metric("resilmesh.endpoint.ejections", "counter", "{ejection}",
           "`reason`: the count or the rate that was reached, such as `consecutive5xxErrors`", (*_SERVICE, "resilmesh.endpoint", "reason")),
    Metric("resilmesh.endpoint.in_flight", "sum", "{attempt}", "Attempts in flight to the endpoint", (*_SERVICE, "resilmesh.endpoint")),
    # --------------------------------------------------------------------------------------------------- limits
    Metric("resilmesh.concurrency.limit", "sum", "{call}", "`maxRequests`; of several workers the sum, because each has a limit of its own",
           _ROUTE),
    Metric("resilmesh.concurrency.in_flight", "sum", "{call}", "Calls that hold a slot of the concurrency limit", _ROUTE),
    Metric("resilmesh.concurrency.queued", "sum", "{call}", "Calls that wait for one", _ROUTE),
    Metric("resilmesh.rate_limit.tokens", "sum", "{call}",
           "Tokens in the bucket. `limit`: its place in the list of limits", (*_ROUTE, "limit")),
    Metric("resilmesh.retry_budget.balance", "sum", "{attempt}", "Retries that could be paid for now", _SERVICE),
    # ------------------------------------------------------------------------------------------ policy, identity
    Metric("resilmesh.policy.revision", "min", "{revision}", "Number of the policy in force; of several workers the smallest"),
    Metric("resilmesh.policy.applied", "counter", "{policy}", "Policies that were put in force after the first"),
    Metric("resilmesh.policy.refused", "counter", "{policy}", "Policies that were refused: the last good one went on"),
    Metric("resilmesh.identity.expires_in", "min", "s", "Life that is left of this workload's certificate; negative: it has expired"),
    Metric("resilmesh.identity.rotations", "counter", "{certificate}", "Certificates and trust bundles that came into force"),
    Metric("resilmesh.identity.refusals", "counter", "{certificate}", "Those that were refused: the last good one went on"),
    Metric("resilmesh.authorization.decisions", "counter", "{decision}",
           "Requests that arrived. `decision`: `allowed`, `denied`, `audited`, `shadowDenied` (by policies of mode OBSERVE), "
           "`refused` (before any rule was asked)", ("decision",)),
    Metric("resilmesh.workers", "sum", "{worker}", "Processes whose figures these are, at this moment"),
)



class SpanKind(NamedTuple):
    """One kind of span. ``attributes`` and ``events``: those that it may have."""

    kind: str
    name: str
    when: str
    attributes: tuple[str, ...]
    events: tuple[str, ...] = ()


_OF_A_CALL = ("resilmesh.service", "resilmesh.route")
_IN_AN_ATTEMPT = ("circuit_changed", "endpoint_ejected", "retry_refused", "fault_injected", "mirrored", "mirror_dropped")

#: docs/reference/metrics.md tells them too. An event ``backoff`` is called ``resilmesh.backoff``, and has the detail of ``EVENTS``.
SPANS: tuple[SpanKind, ...] = (
    SpanKind("CLIENT", "`GET inventory/read`: method, service, route", "an attempt over HTTP, from when it is sent to the end of its body",
             ("http.request.method", "http.request.resend_count", "http.response.status_code", "error.type", "server.address",
              "server.port", "url.full", "resilmesh.endpoint", *_OF_A_CALL), _IN_AN_ATTEMPT),
    SpanKind("CLIENT", "`package.Service/Method`", "an attempt over gRPC, likewise; of a stream to its status",
             ("rpc.system.name", "rpc.method", "rpc.response.status_code", "error.type", "server.address", "server.port",
              "resilmesh.endpoint", "resilmesh.resend_count", *_OF_A_CALL), _IN_AN_ATTEMPT),
    SpanKind("INTERNAL", "`inventory/read`: service, route",
             "a call that was retried, had to wait, was rejected or met a fault: above its attempts. A guarded function's attempts have "
             "no spans of their own, but the event `attempt_ended`",
             ("resilmesh.attempts", "error.type", *_OF_A_CALL),
             ("backoff", "call_queued", "call_rejected", "attempt_ended", "would_reject", *_IN_AN_ATTEMPT)),
    SpanKind("SERVER", "`GET`, or `package.Service/Method`",
             "a request, or a gRPC call, that the inbound middlewares and interceptors serve or refuse",
             ("http.request.method", "http.response.status_code", "url.path", "client.address", "rpc.system.name", "rpc.method",
              "rpc.response.status_code", "error.type", "resilmesh.caller")),
)

BY_NAME = {metric.name: metric for metric in METRICS}
