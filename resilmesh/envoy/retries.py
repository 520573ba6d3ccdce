"""Which attempts Envoy repeats: the retry policies of a route.

    HTTP    words and statuses as they are written; where the service may have seen a POST or a PATCH, only the words for
            which it cannot have, by a route of its own
    gRPC    the words of gRPC as they are written, because the service itself said so; the words of a lost outcome (``5xx``,
            ``gateway-error``, ``reset``) only where ``idempotent`` is true; a refused stream always, as gRPC does by itself
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resilmesh.envoy.clusters import duration
from resilmesh.envoy.match import header_absent, method_is, route_match
from resilmesh.envoy.shaping import retried

if TYPE_CHECKING:
    from resilmesh.policy.model import Classify, Match, Retries
    from resilmesh.policy.resolve import Effective

Json = dict[str, Any]

#: Methods that are not sent again once the service may have seen them.
UNSAFE_METHODS = ("POST", "PATCH")
#: Retry words for which the service cannot have seen the request.
_UNSENT_WORDS = ("connect-failure", "refused-stream", "reset-before-request")
#: Retry words for an outcome that was lost: a reset, a time-out. They include all of those.
LOST_WORDS = frozenset({"5xx", "gateway-error", "reset"})
#: Retry words that describe an answer over HTTP, which of a gRPC service is a lost outcome.
_WORDS_OF_HTTP = frozenset({"retriable-4xx", *LOST_WORDS})
#: Draws of another endpoint before one that was tried is taken again.
_DRAWS = 10


def with_retries(condition: Match | None, blocks: Effective) -> list[tuple[Json, Json]]:
    """Match of each Envoy route that a condition becomes, and what its action says of retries."""
    match = route_match(condition)
    if blocks.service.protocol == "GRPC":
        return [(match, {"retry_policy": _of_grpc(blocks.retries)})]
    if blocks.retries is None:
        return [(match, {})]
    return _by_idempotency(match, condition, blocks.retries, blocks.classify)


def _by_idempotency(match: Json, condition: Match | None, retries: Retries, classify: Classify | None) -> list[tuple[Json, Json]]:
    """Two routes, where retries depend on the request.

    The one condition that a retry policy has (``retriable_request_headers``) would stop a POST's connect-failure retries
    too, which are safe.
    """
    words = _words(retries)
    statuses = [each for each in retries.retry_on if isinstance(each, int)]
    every = {"retry_policy": _retry_policy(retries, *retried(words, statuses, classify)) | _retry_after(retries)}
    safe = {"retry_policy": _retry_policy(retries, _unsent(words)) | _retry_after(retries)}
    if retries.idempotent is not None:
        return [(match, every if retries.idempotent else safe)]
    methods = UNSAFE_METHODS if condition is None or condition.method is None else condition.method
    if safe == every or not set(methods).intersection(UNSAFE_METHODS):
        return [(match, every)]
    unsafe = [*match.get("headers", ()), method_is(UNSAFE_METHODS), header_absent("idempotency-key")]
    return [({**match, "headers": unsafe}, safe), (match, every)]


def _of_grpc(retries: Retries | None) -> Json:
    if retries is None:
        # Once, and at once: after the shortest backoff that Envoy takes.
        return {"retry_on": "refused-stream", "num_retries": 1, "retry_back_off": {"base_interval": duration(0.001)}, **_elsewhere()}
    if not retries.max_retries:
        return {**_retry_policy(retries, ["refused-stream"]), "num_retries": 1}
    words = _words(retries)
    if not retries.idempotent:
        told = [] if retries.idempotent is False else [each for each in words if each not in _WORDS_OF_HTTP]
        words = [*told, *_unsent(words)]
    return _retry_policy(retries, list(dict.fromkeys([*words, "refused-stream"]))) | _retry_after(retries)


def _words(retries: Retries) -> list[str]:
    return [each for each in retries.retry_on if isinstance(each, str)]


def _unsent(words: Sequence[str]) -> list[str]:
    """What is left of the words where the service must not have seen the request."""
    return list(_UNSENT_WORDS) if LOST_WORDS.intersection(words) else [each for each in words if each in _UNSENT_WORDS]


def _retry_policy(retries: Retries, words: Sequence[str], statuses: Sequence[int] = ()) -> Json:
    backoff = retries.backoff
    made: Json = {
        "retry_on": ",".join([*words, *(["retriable-status-codes"] if statuses else [])]),
        "num_retries": retries.max_retries,
        "retry_back_off": {
            "base_interval": duration(backoff.base), "max_interval": duration(backoff.base * 10 if backoff.max is None else backoff.max),
        },
        **_elsewhere(),
    }
    if statuses:
        made["retriable_status_codes"] = list(statuses)
    if retries.per_try_timeout is not None:
        made["per_try_timeout"] = duration(retries.per_try_timeout)
    return made


def _retry_after(retries: Retries) -> Json:
    """What a service itself says of when to come back. Of gRPC's own word for it, grpc-retry-pushback-ms, Envoy knows nothing."""
    if retries.retry_after is None:
        return {}
    return {
        "rate_limited_retry_back_off": {
            "reset_headers": [
                {"name": "retry-after", "format": "SECONDS"}, {"name": "x-ratelimit-reset", "format": "UNIX_TIMESTAMP"},
            ],
            "max_interval": duration(retries.retry_after.max),
        },
    }


def _elsewhere() -> Json:
    """A retry goes to an endpoint that this call has not tried, while there is one."""
    kind = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    return {
        "retry_host_predicate": [{"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": kind}}],
        "host_selection_retry_max_attempts": _DRAWS,
    }
