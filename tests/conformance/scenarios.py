"""What happens, as data: a policy, what the service does at each attempt, and the story that every driver must tell.

A call is a list of outcomes, one for each attempt that is made:

    ok           fail (503, or an exception)     throttled [N] (429, to come back in N seconds)     404  409
    refused      reset                           hang (until a limit ends it)                 gone (the caller is cancelled)
    2s OUTCOME   OUTCOME, after two seconds      (OUTCOME) ok, and a call with this outcome is made meanwhile
    -            no attempt is made

``+5s`` between calls lets time pass; ``within 2s`` before one gives it a deadline to inherit. The story has a word for
each event (``story``), and for each call what its caller got.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scenario:
    name: str
    blocks: dict[str, str]
    #: One string a call, its outcomes separated by commas.
    calls: list[str]
    #: What each caller got: ok, fail, throttled, gone, or the name of an error of ours.
    results: list[str]
    #: One line a call.
    story: list[str]
    mesh: str = ""
    #: What a driver must be able to do: "status" (there are statuses), "cut" (an attempt that hangs can be ended), "pushback"
    #: (gRPC's own way to say when to come back, in place of Retry-After: obeyed to the millisecond, without a limit; -1 forbids it).
    needs: frozenset[str] = field(default_factory=frozenset)
    idempotent: bool = True


STATUS, CUT = frozenset({"status"}), frozenset({"cut"})
PUSHBACK = STATUS | {"pushback"}
TWICE = "{maxRetries: 2, retryOn: [5xx, connect-failure], backoff: {base: 1ms}}"
OPEN = "{consecutiveFailures: 2, waitDurationInOpenState: 5s, permittedNumberOfCallsInHalfOpenState: 2}"

SCENARIOS = [
    Scenario("success", {"timeout": "9s"}, ["ok"], ["ok"], ["started, try 1, SUCCESS, end SUCCESS"]),
    Scenario("failure without retries", {}, ["fail"], ["fail"], ["started, try 1, FAILURE, end FAILURE"]),
    Scenario(
        "retried until it works", {"retries": TWICE}, ["fail, fail, ok"], ["ok"],
        ["started, try 1, FAILURE, backoff 0s, try 2, FAILURE, backoff 0s, try 3, SUCCESS, end SUCCESS"],
    ),
    Scenario(
        "retries exhausted", {"retries": TWICE}, ["fail, fail, fail"], ["fail"],
        ["started, try 1, FAILURE, backoff 0s, try 2, FAILURE, backoff 0s, try 3, FAILURE, end FAILURE"],
    ),
    Scenario(
        "a word that does not apply", {"retries": "{retryOn: [connect-failure, refused-stream]}"}, ["fail"], ["fail"],
        ["started, try 1, FAILURE, end FAILURE"],
    ),
    Scenario(
        "a reset by its word", {"retries": "{retryOn: [reset], backoff: {base: 1ms}}"}, ["reset, ok"], ["ok"],
        ["started, try 1, FAILURE, backoff 0s, try 2, SUCCESS, end SUCCESS"],
    ),
    Scenario(
        "what may have happened is not repeated", {"retries": TWICE}, ["fail"], ["fail"], ["started, try 1, FAILURE, end FAILURE"],
        idempotent=False,
    ),
    Scenario(
        "what was not sent is repeated", {"retries": TWICE}, ["refused, ok"], ["ok"],
        ["started, try 1, UNSENT, backoff 0s, try 2, SUCCESS, end SUCCESS"], needs=STATUS, idempotent=False,
    ),
    Scenario(
        "a status by its number", {"retries": "{retryOn: [404], backoff: {base: 1ms}}"}, ["404, ok", "404, 404"], ["ok", "ok"],
        ["started, try 1, SUCCESS, backoff 0s, try 2, SUCCESS, end SUCCESS"] * 2, needs=STATUS,
    ),
    Scenario(
        "a conflict by its word", {"retries": "{retryOn: [retriable-4xx], backoff: {base: 1ms}}"}, ["409, ok", "404"], ["ok", "ok"],
        ["started, try 1, SUCCESS, backoff 0s, try 2, SUCCESS, end SUCCESS", "started, try 1, SUCCESS, end SUCCESS"], needs=STATUS,
    ),
    Scenario(
        "throttled is passed on", {"retries": TWICE, "circuitBreaker": OPEN}, ["throttled 1", "throttled", "throttled"], ["throttled"] * 3,
        ["started, try 1, THROTTLED, end THROTTLED"] * 3, needs=STATUS,
    ),
    Scenario(
        "throttled says when to come back", {"retries": "{maxRetries: 2, retryOn: [429], retryAfter: {max: 10s}}"},
        ["throttled 2, ok", "throttled 99, ok"], ["ok", "ok"],
        [f"started, try 1, THROTTLED, backoff {seconds}s, try 2, SUCCESS, end SUCCESS" for seconds in (2, 0)], needs=STATUS,
    ),
    Scenario(
        "throttled pushes back", {"retries": "{maxRetries: 2, retryOn: [429], retryAfter: {max: 10s}}"},
        ["throttled 2, ok", "throttled 99, ok", "throttled, ok", "throttled -1"], ["ok", "ok", "ok", "throttled"], [
            *(f"started, try 1, THROTTLED, backoff {seconds}s, try 2, SUCCESS, end SUCCESS" for seconds in (2, 99, 0)),
            "started, try 1, THROTTLED, end THROTTLED",
        ], needs=PUSHBACK,
    ),
    Scenario(
        "the budget is spent", {"retries": TWICE, "retryBudget": "{percent: 0, minRetriesPerSecond: 1, ttl: 1s}"},
        ["fail, fail", "fail", "+2s", "fail, ok"], ["fail", "fail", "ok"], [
            "started, try 1, FAILURE, backoff 0s, try 2, FAILURE, no retry: budget, end FAILURE",
            "started, try 1, FAILURE, no retry: budget, end FAILURE",
            "started, try 1, FAILURE, backoff 0s, try 2, SUCCESS, end SUCCESS",
        ],
    ),
    Scenario(
        "the circuit opens and lets probes through", {"circuitBreaker": OPEN},
        ["fail", "ok", "fail", "fail", "-", "+5s", "ok", "ok", "ok"],
        ["fail", "ok", "fail", "fail", "CircuitOpen", "ok", "ok", "ok"], [
            "started, try 1, FAILURE, end FAILURE", "started, try 1, SUCCESS, end SUCCESS", "started, try 1, FAILURE, end FAILURE",
            "started, try 1, FAILURE, circuit OPEN, end FAILURE", "started, rejected CircuitOpen",
            "started, circuit HALF_OPEN, try 1, SUCCESS, end SUCCESS", "started, try 1, SUCCESS, circuit CLOSED, end SUCCESS",
            "started, try 1, SUCCESS, end SUCCESS",
        ],
    ),
    Scenario(
        "a failed probe opens it again", {"circuitBreaker": OPEN}, ["fail", "fail", "+5s", "fail", "-", "+5s", "ok", "ok"],
        ["fail", "fail", "fail", "CircuitOpen", "ok", "ok"], [
            "started, try 1, FAILURE, end FAILURE", "started, try 1, FAILURE, circuit OPEN, end FAILURE",
            "started, circuit HALF_OPEN, try 1, FAILURE, circuit OPEN, end FAILURE", "started, rejected CircuitOpen",
            "started, circuit HALF_OPEN, try 1, SUCCESS, end SUCCESS", "started, try 1, SUCCESS, circuit CLOSED, end SUCCESS",
        ],
    ),
    Scenario(
        "half-open admits no more than permitted", {"circuitBreaker": OPEN.replace("InHalfOpenState: 2", "InHalfOpenState: 1")},
        ["fail", "fail", "+5s", "(-)"], ["fail", "fail", "CircuitOpen", "ok"], [
            "started, try 1, FAILURE, end FAILURE", "started, try 1, FAILURE, circuit OPEN, end FAILURE",
            "started, circuit HALF_OPEN, try 1, started, rejected CircuitOpen, SUCCESS, circuit CLOSED, end SUCCESS",
        ],
    ),
    Scenario(
        "a cancelled probe does not wedge it", {"circuitBreaker": OPEN.replace("InHalfOpenState: 2", "InHalfOpenState: 1")},
        ["fail", "fail", "+5s", "gone", "ok"], ["fail", "fail", "gone", "ok"], [
            "started, try 1, FAILURE, end FAILURE", "started, try 1, FAILURE, circuit OPEN, end FAILURE",
            "started, circuit HALF_OPEN, try 1, abandoned", "started, try 1, SUCCESS, circuit CLOSED, end SUCCESS",
        ],
    ),
    Scenario(
        "a cancellation neither opens nor closes it", {"circuitBreaker": OPEN.replace("consecutiveFailures: 2", "consecutiveFailures: 1")},
        ["gone", "gone", "ok", "fail", "+5s", "gone", "gone", "ok", "ok"], ["gone", "gone", "ok", "fail", "gone", "gone", "ok", "ok"], [
            "started, try 1, abandoned", "started, try 1, abandoned", "started, try 1, SUCCESS, end SUCCESS",
            "started, try 1, FAILURE, circuit OPEN, end FAILURE", "started, circuit HALF_OPEN, try 1, abandoned",
            "started, try 1, abandoned", "started, try 1, SUCCESS, end SUCCESS", "started, try 1, SUCCESS, circuit CLOSED, end SUCCESS",
        ],
    ),
    Scenario(
        "a stale success does not close it", {"circuitBreaker": OPEN.replace("consecutiveFailures: 2", "consecutiveFailures: 1")},
        ["(fail)", "-"], ["fail", "ok", "CircuitOpen"], [
            "started, try 1, started, try 1, FAILURE, circuit OPEN, end FAILURE, SUCCESS, end SUCCESS", "started, rejected CircuitOpen",
        ],
    ),
    Scenario(
        "a stale failure does not open it again",
        {"circuitBreaker": "{consecutiveFailures: 1, waitDurationInOpenState: 5s, permittedNumberOfCallsInHalfOpenState: 1}"},
        ["(fail|+5s|ok) fail", "ok"], ["fail", "ok", "fail", "ok"], [
            "started, try 1, started, try 1, FAILURE, circuit OPEN, end FAILURE, started, circuit HALF_OPEN, try 1, SUCCESS, "
            "circuit CLOSED, end SUCCESS, FAILURE, end FAILURE", "started, try 1, SUCCESS, end SUCCESS",
        ],
    ),
    Scenario(
        "the circuit ends the retries", {"circuitBreaker": OPEN, "retries": TWICE}, ["fail, fail", "-"], ["fail", "CircuitOpen"], [
            "started, try 1, FAILURE, backoff 0s, try 2, FAILURE, circuit OPEN, no retry: circuit, end FAILURE",
            "started, rejected CircuitOpen",
        ],
    ),
    Scenario(
        "a share of failures", {"circuitBreaker": "{failureRateThreshold: 50, minimumNumberOfCalls: 4, slidingWindow: {size: 4}}"},
        ["fail", "ok", "ok", "fail", "-"], ["fail", "ok", "ok", "fail", "CircuitOpen"], [
            "started, try 1, FAILURE, end FAILURE", "started, try 1, SUCCESS, end SUCCESS", "started, try 1, SUCCESS, end SUCCESS",
            "started, try 1, FAILURE, circuit OPEN, end FAILURE", "started, rejected CircuitOpen",
        ],
    ),
    Scenario(
        "slow calls open it",
        {"circuitBreaker": "{slowCallRateThreshold: 99, slowCallDurationThreshold: 2s, minimumNumberOfCalls: 2, slidingWindow: {size: 2}}"},
        ["3s ok", "2s ok", "-"], ["ok", "ok", "CircuitOpen"], [
            "started, try 1, SUCCESS, end SUCCESS", "started, try 1, SUCCESS, circuit OPEN, end SUCCESS", "started, rejected CircuitOpen",
        ],
    ),
    Scenario(
        "the rate limit", {"rateLimit": "{requests: 1, per: 10s}"}, ["ok", "-", "+10s", "ok"], ["ok", "RateLimited", "ok"],
        ["started, try 1, SUCCESS, end SUCCESS", "started, rejected RateLimited", "started, try 1, SUCCESS, end SUCCESS"],
    ),
    Scenario(
        "no slot is free", {"concurrency": "{maxRequests: 1}"}, ["(-)", "ok"], ["ConcurrencyExceeded", "ok", "ok"],
        ["started, try 1, started, rejected ConcurrencyExceeded, SUCCESS, end SUCCESS", "started, try 1, SUCCESS, end SUCCESS"],
    ),
    Scenario(
        "a wait for a slot in vain", {"concurrency": "{maxRequests: 1, maxPending: 1, maxPendingWait: 2s}"}, ["(-)", "ok"],
        ["ConcurrencyExceeded", "ok", "ok"],
        ["started, try 1, started, queued, rejected ConcurrencyExceeded, SUCCESS, end SUCCESS", "started, try 1, SUCCESS, end SUCCESS"],
    ),
    Scenario(
        "a slot is held through the backoff", {"concurrency": "{maxRequests: 1}", "retries": TWICE}, ["fail, (-)"],
        ["ConcurrencyExceeded", "ok"],
        ["started, try 1, FAILURE, backoff 0s, try 2, started, rejected ConcurrencyExceeded, SUCCESS, end SUCCESS"],
    ),
    Scenario(
        "no time for another try", {"timeout": "2s", "retries": TWICE.replace("base: 1ms", "base: 100s, max: 100s")}, ["1s fail"], ["fail"],
        ["started, try 1, FAILURE, no retry: deadline, end FAILURE"],
    ),
    Scenario(
        "cut at the deadline", {"timeout": "30ms", "retries": TWICE}, ["hang"], ["DeadlineExceeded"],
        ["started, try 1, FAILURE, no retry: deadline, end FAILURE"], needs=CUT,
    ),
    Scenario(
        "each try is cut", {"retries": "{maxRetries: 1, perTryTimeout: 30ms, retryOn: [5xx], backoff: {base: 1ms}}"},
        ["hang, ok", "hang, hang"], ["ok", "DeadlineExceeded"],
        [f"started, try 1, FAILURE, backoff 0s, try 2, {ending}, end {ending}" for ending in ("SUCCESS", "FAILURE")], needs=CUT,
    ),
    Scenario(
        "cut at the inherited deadline", {"timeout": "9s", "retries": TWICE, "circuitBreaker": OPEN}, ["within 0.03s hang"] * 3 + ["ok"],
        ["DeadlineExceeded"] * 3 + ["ok"],
        ["started, try 1, IGNORED, end IGNORED"] * 3 + ["started, try 1, SUCCESS, end SUCCESS"], needs=CUT,
    ),
    Scenario(
        "the inherited deadline has passed", {"rateLimit": "{requests: 1, per: 1h}"}, ["within 0s -", "ok"], ["DeadlineExceeded", "ok"],
        ["started, end IGNORED", "started, try 1, SUCCESS, end SUCCESS"],
    ),
    Scenario(
        "a fault of the call", {"fault": "{abort: {httpStatus: 503}, delay: {fixedDelay: 2s}}", "retries": TWICE, "circuitBreaker": OPEN},
        ["-"] * 3, ["InjectedFault"] * 3, ["started, fault CALL delay, fault CALL abort, end IGNORED"] * 3,
    ),
    Scenario(
        "a fault of the attempt", {"fault": "{abort: {httpStatus: 503}, scope: ATTEMPT}", "retries": TWICE, "circuitBreaker": OPEN},
        ["-", "-"], ["InjectedFault", "CircuitOpen"], [
            "started, try 1, fault ATTEMPT abort, FAILURE, backoff 0s, try 2, fault ATTEMPT abort, FAILURE, circuit OPEN, "
            "no retry: circuit, end FAILURE", "started, rejected CircuitOpen",
        ],
    ),
    Scenario(
        "a delay of the attempt", {"fault": "{delay: {fixedDelay: 2s}, scope: ATTEMPT}"}, ["ok"], ["ok"],
        ["started, try 1, fault ATTEMPT delay, SUCCESS, end SUCCESS"],
    ),
    Scenario(
        "a bad endpoint is ejected", {
            "endpoints": '[{address: "10.0.0.1:80"}]', "outlierDetection": "{consecutive5xxErrors: 2, baseEjectionTime: 5s, interval: 1s}",
        }, ["fail", "fail", "-", "+6s", "ok"], ["fail", "fail", "NoHealthyEndpoint", "ok"], [
            "started, try 1, FAILURE, end FAILURE", "started, try 1, FAILURE, ejected 10.0.0.1:80, end FAILURE",
            "started, rejected NoHealthyEndpoint", "started, returned 10.0.0.1:80, try 1, SUCCESS, end SUCCESS",
        ],
    ),
    Scenario(
        "observed", {"rateLimit": "{requests: 1, per: 1h}", "retries": TWICE, "timeout": "1s"}, ["ok", "fail"], ["ok", "fail"],
        ["started, try 1, SUCCESS, end SUCCESS", "started, would reject RateLimited, try 1, FAILURE, end FAILURE"], mesh="{mode: OBSERVE}",
    ),
    Scenario(
        "switched off", {"rateLimit": "{requests: 1, per: 1h}"}, ["ok", "fail", "gone"], ["ok", "fail", "gone"], [""] * 3,
        mesh="{mode: OFF}",
    ),
    Scenario(
        "the caller goes away", {"concurrency": "{maxRequests: 1}", "retries": TWICE}, ["gone", "fail, gone", "ok"], ["gone", "gone", "ok"],
        ["started, try 1, abandoned", "started, try 1, FAILURE, backoff 0s, try 2, abandoned", "started, try 1, SUCCESS, end SUCCESS"],
    ),
]
