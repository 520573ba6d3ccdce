"""The blocks of a policy: what may stand in ``defaults``, in a service and in a route.

``resilmesh.policy.model`` says at which levels each may stand.
"""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from resilmesh.policy.fields import (
    Block,
    Duration,
    Labels,
    Name,
    Number,
    Percent,
    approximates,
    field,
    library_only,
    maps_to,
    shaped,
)
from resilmesh.policy.matching import HeaderName

RetryWord = Literal[
    "5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-4xx",
    "envoy-ratelimited", "cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
]


class Backoff(Block):
    """Full jitter: before retry n a random time in [0, min(base * (2^n - 1), max))."""

    base: Duration = field(
        "Scale of the first wait.", 0.025, envoy=maps_to("retry_back_off.base_interval"), unit="duration",
        source="Envoy: 25 ms", ge=0.001,
    )
    max: Duration | None = field(
        "Longest wait. Absent: ten times base.", None, envoy=maps_to("retry_back_off.max_interval"), unit="duration",
        source="Envoy: 10 * base", ge=0.001,
    )


class RetryAfter(Block):
    """A service's own word on when to come back (Retry-After, or X-RateLimit-Reset in Unix time) replaces the backoff.

    Asked for no wait at all, the backoff stays.
    """

    max: Duration = field(
        "Longest value that is believed; a longer one is ignored and the backoff is used.", 60.0,
        envoy=approximates(
            "rate_limited_retry_back_off.max_interval",
            "Envoy understands seconds only; the library an HTTP-date too. Both add jitter of up to half the value.",
        ),
        unit="duration", source="Envoy: 300 s; ours is shorter because a thread waits", gt=0,
    )


def _retry_on(value: Any) -> Any:
    # One sensible complaint in place of one for each arm of the union.
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise PydanticCustomError("kind", "{wanted}", {"wanted": "a retry word or an HTTP status"})
    if isinstance(value, str) and value not in get_args(RetryWord):
        raise PydanticCustomError("word", "{words}", {"words": list(get_args(RetryWord))})
    if isinstance(value, int) and not 100 <= value <= 599:
        raise PydanticCustomError("bounds", "{bounds}", {"bounds": "an HTTP status is 100 to 599"})
    return value


RetryOn = Annotated[RetryWord | Annotated[int, Field(ge=100, le=599)], BeforeValidator(_retry_on)]


class Retries(Block):
    """Which attempts are repeated, and how often. Needs ``retryOn``: nothing is retried by default."""

    max_retries: int = field(
        "Attempts after the first.", 1,
        envoy=maps_to(
            "retry_policy.num_retries",
            over_grpc="A stream that the service refused is sent again once beside these, as gRPC does; to Envoy that is one of them.",
        ),
        unit="retries", source="Envoy: 1", ge=0, le=100,
    )
    retry_on: list[RetryOn] = field(
        "What is retried: Envoy's retry words, and HTTP statuses as numbers.", envoy=maps_to("retry_policy.retry_on"), min_length=1,
    )
    per_try_timeout: Duration | None = field(
        "Longest time from the start of an attempt to its response headers.", None,
        envoy=approximates(
            "retry_policy.per_try_timeout",
            "Envoy's begins when there is a connection, which connectTimeout bounds; the library's includes it.",
            over_grpc="Envoy's begins when there is a connection and ends at the initial metadata; the library's includes connecting, and "
            "ends at the first message. Envoy answers UNAVAILABLE, the library DEADLINE_EXCEEDED.",
        ),
        unit="duration", gt=0,
    )
    backoff: Backoff = field(
        "Wait between attempts. Over gRPC a service may say how long instead, by grpc-retry-pushback-ms.",
        envoy=maps_to("retry_policy.retry_back_off", over_grpc="Envoy does not understand grpc-retry-pushback-ms."), factory=Backoff,
    )
    retry_after: RetryAfter | None = field(
        "How far a Retry-After header of the service is obeyed. null: not at all, as Envoy by default. Not used over gRPC.",
        envoy=approximates("retry_policy.rate_limited_retry_back_off", "Envoy does not understand an HTTP-date.", over_grpc=""),
        factory=RetryAfter,
    )
    idempotent: bool | None = field(
        "true: every request of the route may be sent again; false: none that may have reached the service. "
        "Absent: by method, POST and PATCH only when the service never saw them; a request with an Idempotency-Key "
        "header may be sent again. Over gRPC: after a status of the service; when the outcome was lost (a reset, a time-out) only a method "
        "whose own idempotency_level says that it may be.",
        None, envoy=maps_to("a second route for POST and PATCH without idempotency-key; over gRPC other words in retry_on"),
    )


class RetryBudget(Block):
    """Bounds the share of traffic that may be retries, so that retries cannot multiply an outage."""

    percent: Percent = field(
        "Retries allowed per hundred calls of the last ttl.", 20.0,
        envoy=approximates(
            "circuit_breakers.retry_budget.budget_percent",
            "Envoy counts requests in flight now; the library counts calls started within ttl.",
        ),
        unit="percent", source="Finagle and Envoy: 20 %",
    )
    min_retries_per_second: int = field(
        "Retries always allowed, whatever the traffic.", 10,
        envoy=approximates("circuit_breakers.retry_budget.min_retry_concurrency", "Envoy's floor is a number of retries in flight."),
        unit="retries per second", source="Finagle: 10 per second", ge=0, le=1_000_000,
    )
    ttl: Duration = field(
        "How long a call counts towards the budget.", 10.0, envoy=library_only("Envoy's budget has no memory."),
        unit="duration", source="Finagle: 10 s", ge=1, le=3600,
    )


def _window_size(value: Any) -> Any:
    # As for `_retry_on`. Which kind fits the window's type is for `resilmesh.policy.check`.
    if isinstance(value, int) and not isinstance(value, bool):
        if not 1 <= value <= 1_000_000:
            raise PydanticCustomError("bounds", "{bounds}", {"bounds": "a window holds 1 to 1000000 calls"})
        return value
    if not isinstance(value, str | datetime.timedelta):
        raise PydanticCustomError("kind", "{wanted}", {"wanted": "a number of calls, or a duration such as 10s"})
    return value


class SlidingWindow(Block):
    """What the failure rate is computed over."""

    type: Literal["COUNT_BASED", "TIME_BASED"] = field(
        "COUNT_BASED: the last `size` calls. TIME_BASED: the calls of the last `size` of time.", "COUNT_BASED",
        envoy=library_only("Envoy has no failure-rate circuit breaker."), source="resilience4j: COUNT_BASED",
    )
    size: Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | Duration, BeforeValidator(_window_size)] = field(
        "A number of calls for COUNT_BASED, a duration of at least 100 ms for TIME_BASED.", 100,
        envoy=library_only("Envoy has no failure-rate circuit breaker."), source="resilience4j: 100",
    )


NO_BREAKER = library_only("Envoy has no failure-rate circuit breaker; its outlier detection ejects endpoints instead.")


class CircuitBreaker(Block):
    """Stops calling a service that fails: closed, open, half-open. resilience4j's words and defaults."""

    failure_rate_threshold: Percent | None = field(
        "Opens when this share of the window failed, or more. null: the rate does not open it.", 50.0, envoy=NO_BREAKER,
        unit="percent", source="resilience4j: 50 %", gt=0,
    )
    slow_call_rate_threshold: Percent | None = field(
        "Opens when this share of the window was slow, or more.", None, envoy=NO_BREAKER, unit="percent",
        source="resilience4j: 100 %, which never matters before the failure rate does", gt=0,
    )
    slow_call_duration_threshold: Duration = field(
        "A call of this length or longer is slow. Measured to the response headers.", 60.0, envoy=NO_BREAKER, unit="duration",
        source="resilience4j: 60 s", gt=0,
    )
    consecutive_failures: int | None = field(
        "Opens after this many failures in a row, whatever the window says.", None, envoy=NO_BREAKER, unit="failures",
        ge=1, le=1_000_000,
    )
    sliding_window: SlidingWindow = field("What the rates are computed over.", envoy=NO_BREAKER, factory=SlidingWindow)
    minimum_number_of_calls: int = field(
        "No rate is computed before the window holds this many calls. In a COUNT_BASED window never more than its size.",
        100, envoy=NO_BREAKER, unit="calls", source="resilience4j: 100", ge=1, le=1_000_000,
    )
    wait_duration_in_open_state: Duration = field(
        "How long an open circuit rejects before it lets probes through.", 60.0, envoy=NO_BREAKER, unit="duration",
        source="resilience4j: 60 s", gt=0,
    )
    permitted_number_of_calls_in_half_open_state: int = field(
        "Probes that a half-open circuit lets through, and whose results decide.", 10, envoy=NO_BREAKER, unit="calls",
        source="resilience4j: 10", ge=1, le=100_000,
    )
    count_throttled: bool = field(
        "Whether 429 and RESOURCE_EXHAUSTED count as failures in the window. They always fail a probe.", False, envoy=NO_BREAKER,
    )


class Descriptor(Block):
    """What tells the buckets of a rate limit apart."""

    header: HeaderName = field(
        "Request header of which each value has a bucket of its own; of one that is sent several times the first value counts. "
        "Requests without it share a bucket of the same figures.",
        envoy=maps_to("local_ratelimit.rate_limits.actions.request_headers"),
    )
    max_values: int = field(
        "Buckets kept at once; the longest unused one goes first.", 10_000,
        envoy=maps_to("local_ratelimit.max_dynamic_descriptors"),
        unit="buckets", ge=1, le=1_000_000,
    )


class RateLimit(Block):
    """A token bucket that refills continuously. A call that finds no token is rejected at once."""

    requests: int = field(
        "Tokens that flow in per `per`.", envoy=maps_to("token_bucket.tokens_per_fill"), unit="calls", ge=1, le=10_000_000,
    )
    per: Duration = field(
        "Time in which `requests` tokens flow in.", 1.0, envoy=maps_to("token_bucket.fill_interval"), unit="duration",
        source="Envoy refuses less than 50 ms", ge=0.05, le=86400,
    )
    burst: int | None = field(
        "Most tokens the bucket holds, and holds at the start. Absent: `requests`.", None, envoy=maps_to("token_bucket.max_tokens"),
        unit="calls", ge=1, le=10_000_000,
    )
    scope: Literal["SERVICE", "ROUTE"] | None = field(
        "Who shares the bucket. SERVICE: every route of the service that carries a limit of this scope, which must be equal. "
        "ROUTE: this route alone. Absent: as wide as the block stands: a route's own, a service's or the defaults' for the whole service.",
        None, envoy=maps_to("a local_ratelimit filter for each bucket, switched on by its routes"),
    )
    descriptor: Descriptor | None = field(
        "A bucket for each value of a header.", None, envoy=maps_to("local_ratelimit.descriptors"),
    )


class Concurrency(Block):
    """Bounds the calls in flight, with a bounded queue. Envoy calls this a circuit breaker."""

    max_requests: int = field(
        "Calls in flight at once. A call holds its slot until its response body ends.",
        envoy=approximates(
            "circuit_breakers.thresholds.max_requests",
            "The same without retries and without a queue. Envoy frees the slot during a backoff; the library holds one slot a call.",
        ),
        unit="calls", ge=1, le=1_000_000,
    )
    max_pending: int = field(
        "Calls that may wait for a slot, first in, first out.", 0,
        envoy=approximates(
            "circuit_breakers.thresholds.max_pending_requests with max_connections (HTTP/1 only)",
            "Envoy queues for a connection, not for a slot; on HTTP/2 it does not queue at all.", exact_for=(0,),
        ),
        unit="calls", ge=0, le=1_000_000,
    )
    max_pending_wait: Duration | None = field(
        "Longest wait in the queue. Absent: until the call's deadline.", None,
        envoy=library_only("Envoy's queue is bounded by the route's timeout only."), unit="duration", gt=0,
    )


class FaultAbort(Block):
    """Answers in place of the service."""

    http_status: int | None = field(
        "Status of the answer over HTTP; for a function the status of the InjectedFault.", None,
        envoy=maps_to("fault.abort.http_status"), ge=200, le=599,
    )
    grpc_status: int | None = field(
        "gRPC status code of the answer, 1 to 16. A plain HTTP request gets status 200 with the fault's body, as from Envoy.", None,
        envoy=maps_to("fault.abort.grpc_status"), ge=1, le=16,
    )
    percent: Percent = field("Share of calls.", 100.0, envoy=maps_to("fault.abort.percentage"), unit="percent")


class FaultDelay(Block):
    """Waits before the call goes on."""

    fixed_delay: Duration = field("How long.", envoy=maps_to("fault.delay.fixed_delay"), unit="duration", gt=0, le=3600)
    percent: Percent = field(
        "Share of calls, drawn independently of the abort's.", 100.0, envoy=maps_to("fault.delay.percentage"), unit="percent",
    )


class Fault(Block):
    """Fault injection. The delay is applied first."""

    abort: FaultAbort | None = field("Answer in place of the service.", None, envoy=maps_to("fault.abort"))
    delay: FaultDelay | None = field("Wait first.", None, envoy=maps_to("fault.delay"))
    scope: Literal["CALL", "ATTEMPT"] = field(
        "CALL: once per call, above the timeout, the limits and the retries, so that an abort is not retried, as in Envoy. "
        "ATTEMPT: each attempt, so that a drill exercises retries and breakers.", "CALL",
        envoy=library_only("Envoy cannot fault an attempt: its fault filter stands above the router.", exact_for=("CALL",)),
    )


class SplitTarget(Block):
    """One share of a split."""

    subset: Name = field("Name of a subset of the service.", envoy=maps_to("weighted_clusters.clusters.metadata_match"))
    weight: int = field(
        "Share, relative to the sum of all weights.", envoy=maps_to("weighted_clusters.clusters.weight"), unit="shares",
        ge=0, le=1_000_000,
    )


class Endpoint(Block):
    """One address of a service."""

    address: Annotated[str, shaped(
        "host:port or [ipv6]:port",
        r"^(\[[0-9a-fA-F:.%a-z0-9]+\]|[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?):[0-9]{1,5}$", max_length=512,
    )] = field("host:port, or [ipv6]:port.", envoy=maps_to("lb_endpoints.endpoint.address"))
    labels: Labels = field("What subsets select by.", envoy=maps_to("lb_endpoints.metadata envoy.lb"), factory=dict)


class Subset(Block):
    """The endpoints that carry all of these labels."""

    name: Name = field("Unique within the service.", envoy=maps_to("lb_subset_config"))
    labels: Labels = field("Labels an endpoint must carry, all of them.", envoy=maps_to("lb_subset_config"), min_length=1)


_EASED = "Envoy eases endpoints that are new to it; one that comes back from ejection gets its full share at once."


class SlowStart(Block):
    """Raises the share of an endpoint little by little: one that comes back from ejection, or that a new policy adds.

    Its share is the larger of ``minWeightPercent`` and (time / window) ^ (1 / aggression). The endpoints of the first policy
    have theirs at once, and so has one that is the only one left.
    """

    window: Duration = field(
        "How long it takes to the full share.", envoy=approximates("slow_start_config.slow_start_window", _EASED), unit="duration", gt=0,
    )
    aggression: Number = field(
        "1: linear in time. Larger: faster at first.", 1.0, envoy=approximates("slow_start_config.aggression", _EASED),
        source="Envoy: 1.0", ge=0.01, le=100,
    )
    min_weight_percent: Percent = field(
        "Share that an endpoint has at once.", 10.0, envoy=approximates("slow_start_config.min_weight_percent", _EASED), unit="percent",
        source="Envoy: 10 %",
    )


class LoadBalancer(Block):
    """How an endpoint is chosen for each attempt."""

    policy: Literal["ROUND_ROBIN", "LEAST_REQUEST", "RANDOM"] = field(
        "ROUND_ROBIN: in turn, from a random start. LEAST_REQUEST: the less loaded of two drawn at random. RANDOM: drawn.",
        "ROUND_ROBIN", envoy=maps_to("cluster.lb_policy"), source="Envoy: ROUND_ROBIN",
    )
    slow_start: SlowStart | None = field(
        "Eases traffic onto an endpoint that comes back.", None,
        envoy=approximates(
            "round_robin_lb_config.slow_start_config, least_request_lb_config.slow_start_config", f"{_EASED} It does not ease RANDOM.",
        ),
    )


class SuccessRate(Block):
    """Compares the endpoints of a service with each other, by the answers of one ``interval``.

    Ejects those whose share of good answers is below mean - stdevFactor * standard deviation. With
    ``splitExternalLocalOriginErrors`` answers and connections are compared apart.
    """

    minimum_hosts: int = field(
        "Endpoints with `requestVolume` that it takes to compare.", 5, envoy=maps_to("outlier_detection.success_rate_minimum_hosts"),
        unit="endpoints", source="Envoy: 5", ge=1, le=1_000_000,
    )
    request_volume: int = field(
        "Answers of an endpoint in one interval that it takes to count it.", 100,
        envoy=maps_to("outlier_detection.success_rate_request_volume"), unit="answers", source="Envoy: 100", ge=1, le=1_000_000_000,
    )
    stdev_factor: Number = field(
        "How many standard deviations below the mean is too far.", 1.9,
        envoy=maps_to("outlier_detection.success_rate_stdev_factor, in thousandths"), unit="standard deviations", source="Envoy: 1.9",
        ge=0.001, le=1000,
    )


class FailurePercentage(Block):
    """Ejects an endpoint that failed too often in one ``interval``, whatever the others do.

    With ``splitExternalLocalOriginErrors`` answers and connections are judged apart.
    """

    threshold: int = field(
        "Ejects at this share of failures, or more.", 85, envoy=maps_to("outlier_detection.failure_percentage_threshold"), unit="percent",
        source="Envoy: 85", ge=1, le=100,
    )
    minimum_hosts: int = field(
        "Endpoints with `requestVolume` that it takes to judge any.", 5,
        envoy=maps_to("outlier_detection.failure_percentage_minimum_hosts"), unit="endpoints", source="Envoy: 5", ge=1, le=1_000_000,
    )
    request_volume: int = field(
        "Answers of an endpoint in one interval that it takes to judge it.", 50,
        envoy=maps_to("outlier_detection.failure_percentage_request_volume"), unit="answers", source="Envoy: 50", ge=1, le=1_000_000_000,
    )


class OutlierDetection(Block):
    """Takes an endpoint that keeps failing out of the balancer for a while. Envoy's rules."""

    consecutive_5xx_errors: int | None = field(
        "Ejects after this many failures in a row: 5xx, resets, time-outs. null: not counted.", 5,
        envoy=maps_to("outlier_detection.consecutive_5xx"), unit="failures", source="Envoy and Istio: 5", ge=1, le=1_000_000,
    )
    consecutive_gateway_errors: int | None = field(
        "Ejects after this many 502, 503, 504, resets or time-outs in a row. null: not counted.", None,
        envoy=maps_to("outlier_detection.consecutive_gateway_failure"), unit="failures", source="Istio: off", ge=1, le=1_000_000,
    )
    split_external_local_origin_errors: bool = field(
        "Count what never became an answer (refused, connect time-out) apart: towards consecutiveLocalOriginFailures only.", False,
        envoy=maps_to("outlier_detection.split_external_local_origin_errors"), source="Envoy: false",
    )
    consecutive_local_origin_failures: int | None = field(
        "With splitExternalLocalOriginErrors: ejects after this many connect failures in a row.", None,
        envoy=maps_to("outlier_detection.consecutive_local_origin_failure"), unit="failures",
        source="Envoy: 5 when split", ge=1, le=1_000_000,
    )
    success_rate: SuccessRate | None = field(
        "Ejects the endpoints that do worse than the others. Absent: not looked at.", None,
        envoy=maps_to("outlier_detection.enforcing_success_rate, enforcing_local_origin_success_rate"), source="ours: off; Envoy: on",
    )
    failure_percentage: FailurePercentage | None = field(
        "Ejects the endpoints that fail too often. Absent: not looked at.", None,
        envoy=maps_to("outlier_detection.enforcing_failure_percentage, enforcing_failure_percentage_local_origin"), source="Envoy: off",
    )
    interval: Duration = field(
        "Rates are judged and ejections end at a multiple of this, and an endpoint's growth shrinks by one each.", 10.0,
        envoy=maps_to("outlier_detection.interval"), unit="duration", source="Envoy: 10 s", ge=0.001,
    )
    base_ejection_time: Duration = field(
        "Ejected for this times the number of times ejected, rounded up to an interval.", 30.0,
        envoy=maps_to("outlier_detection.base_ejection_time"), unit="duration", source="Envoy: 30 s", ge=0.001,
    )
    max_ejection_time: Duration = field(
        "Longest ejection; never less than baseEjectionTime.", 300.0, envoy=maps_to("outlier_detection.max_ejection_time"), unit="duration",
        source="Envoy: 300 s", ge=0.001,
    )
    max_ejection_percent: Percent = field(
        "Most endpoints that may be out at once. Below 100/n per cent nothing is ever ejected.", 100.0,
        envoy=maps_to("outlier_detection.max_ejection_percent"), unit="percent",
        source="ours: at Envoy's 10 % a service with fewer than ten endpoints never ejects",
    )
    panic_threshold: Percent = field(
        "When fewer endpoints than this are healthy, all are used. 0: never, and no healthy endpoint is an error.", 0.0,
        envoy=maps_to("common_lb_config.healthy_panic_threshold"), unit="percent",
        source="ours: at Envoy's 50 % an ejection of the only endpoint has no effect",
    )
