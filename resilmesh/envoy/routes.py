"""Envoy's routes of one service: matches, splits, timeouts, retries, what is changed or copied, and the filters that each switches on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resilmesh.envoy.clusters import PASSTHROUGH, cluster, duration
from resilmesh.envoy.filters import FAULT, Buckets, fault
from resilmesh.envoy.match import ANY_PATH, header_absent, method_is, route_match
from resilmesh.envoy.shaping import header_changes, mirror, retried, rewrite
from resilmesh.policy.resolve import Effective, effective

if TYPE_CHECKING:
    from resilmesh.policy.model import Classify, Match, Mirror, Policy, Retries

Json = dict[str, Any]

#: Methods that are not sent again once the service may have seen them.
UNSAFE_METHODS = ("POST", "PATCH")
#: Retry words for which the service cannot have seen the request.
_UNSENT_WORDS = ("connect-failure", "refused-stream", "reset-before-request")
#: Retry words that include all of those.
_COVERS_UNSENT = frozenset({"5xx", "gateway-error", "reset"})
#: Draws of another endpoint before one that was tried is taken again.
_DRAWS = 10


class Routes:
    """Translates routes, and keeps the clusters and rate limits that they use."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.clusters: dict[str, Json] = {}
        self.buckets = Buckets()
        self.uses_fault = False
        self.uses_passthrough = False

    def of_service(self, index: int) -> list[Json]:
        """The service's routes in order, and last one for every other request."""
        routes = self._policy.services[index].routes or []
        return [made for route in [*range(len(routes)), None] for made in self._translate(effective(self._policy, index, route))]

    def passthrough(self) -> Json:
        """A route that only forwards, to the host that the request names."""
        self.uses_passthrough = True
        return {"match": dict(ANY_PATH), "route": {"cluster": PASSTHROUGH, "timeout": "0s", "idle_timeout": "0s"}}

    def _translate(self, blocks: Effective) -> list[Json]:
        conditions: list[Match | None] = [None] if blocks.route is None or blocks.route.match is None else [*blocks.route.match]
        name = {"name": blocks.service.name + (f"/{blocks.route.name}" if blocks.route else "")}
        if blocks.mode != "ENFORCE":
            return [{**name, **self.passthrough(), "match": route_match(each)} for each in conditions]
        action = self._action(blocks)
        filters = self.buckets.switched_on_by(blocks)
        if blocks.fault is not None and blocks.fault.scope == "CALL":
            self.uses_fault = True
            filters[FAULT] = fault(blocks.fault)
        more = {**({"typed_per_filter_config": filters} if filters else {}), **header_changes(blocks.headers)}
        return [
            {**name, "match": match, "route": {**action, **retry}, **more}
            for condition in conditions
            for match, retry in _by_idempotency(condition, blocks.retries, blocks.classify)
        ]

    def _action(self, blocks: Effective) -> Json:
        action: Json = {
            "timeout": duration(blocks.timeout or 0), "idle_timeout": duration(blocks.idle_timeout or 0), **rewrite(blocks.rewrite),
        }
        if blocks.mirror is not None:
            action |= mirror(blocks.mirror, self._mirror_cluster(blocks.mirror))
        cluster_name = self._cluster(blocks)
        if blocks.split is None:
            return {"cluster": cluster_name, **action}
        labels = {subset.name: subset.labels for subset in blocks.service.subsets or ()}
        shares = [
            {
                "name": cluster_name, "weight": target.weight,
                "metadata_match": {"filter_metadata": {"envoy.lb": dict(labels[target.subset])}},
            }
            for target in blocks.split
        ]
        return {"weighted_clusters": {"clusters": shares}, **action}

    def _cluster(self, blocks: Effective) -> str:
        name = blocks.service.name
        if blocks.route is not None and has_cluster_of_its_own(blocks):
            name += "/" + blocks.route.name
        return self._clustered(name, blocks)

    def _mirror_cluster(self, block: Mirror) -> str:
        """The service's own cluster; for a subset one with its endpoints only, because a mirror cannot name a subset."""
        index = next(index for index, each in enumerate(self._policy.services) if each.name == block.service)
        blocks = effective(self._policy, index, None)
        if blocks.mode != "ENFORCE":
            blocks = replace(blocks, concurrency=None, connect_timeout=None)
        if block.subset is None:
            return self._clustered(block.service, blocks)
        wanted = next(each.labels for each in blocks.service.subsets or () if each.name == block.subset)
        chosen = [each for each in blocks.service.endpoints or () if wanted.items() <= each.labels.items()]
        only = replace(blocks, service=blocks.service.model_copy(update={"endpoints": chosen}))
        return self._clustered(f"{block.service}/subset/{block.subset}", only)

    def _clustered(self, name: str, blocks: Effective) -> str:
        if name not in self.clusters:
            self.clusters[name] = cluster(name, blocks)
        return name


def has_cluster_of_its_own(blocks: Effective) -> bool:
    """Whether a route says what Envoy can only say of a whole cluster: limits, and what outlier detection counts."""
    ejects = blocks.outlier_detection is not None and blocks.service.endpoints is not None
    return blocks.owned_by_route("concurrency") or (ejects and blocks.owned_by_route("classify"))


def _by_idempotency(condition: Match | None, retries: Retries | None, classify: Classify | None) -> list[tuple[Json, Json]]:
    """Match and retry policy of each Envoy route that a condition becomes.

    Two routes, where retries depend on the request: the one condition that a retry policy has
    (``retriable_request_headers``) would stop a POST's connect-failure retries too, which are safe.
    """
    match = route_match(condition)
    if retries is None:
        return [(match, {})]
    words: list[str] = [each for each in retries.retry_on if isinstance(each, str)]
    safe_words = list(_UNSENT_WORDS) if _COVERS_UNSENT.intersection(words) else [each for each in words if each in _UNSENT_WORDS]
    statuses = [each for each in retries.retry_on if isinstance(each, int)]
    every = {"retry_policy": _retry_policy(retries, *retried(words, statuses, classify))}
    safe = {"retry_policy": _retry_policy(retries, safe_words, [])}
    if retries.idempotent is not None:
        return [(match, every if retries.idempotent else safe)]
    methods = UNSAFE_METHODS if condition is None or condition.method is None else condition.method
    if safe == every or not set(methods).intersection(UNSAFE_METHODS):
        return [(match, every)]
    unsafe = [*match.get("headers", ()), method_is(UNSAFE_METHODS), header_absent("idempotency-key")]
    return [({**match, "headers": unsafe}, safe), (match, every)]


def _retry_policy(retries: Retries, words: Sequence[str], statuses: Sequence[int]) -> Json:
    backoff = retries.backoff
    made: Json = {
        "retry_on": ",".join([*words, *(["retriable-status-codes"] if statuses else [])]),
        "num_retries": retries.max_retries,
        "retry_back_off": {
            "base_interval": duration(backoff.base), "max_interval": duration(backoff.base * 10 if backoff.max is None else backoff.max),
        },
        # A retry goes to an endpoint that this call has not tried, while there is one.
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
                },
            }
        ],
        "host_selection_retry_max_attempts": _DRAWS,
    }
    if statuses:
        made["retriable_status_codes"] = list(statuses)
    if retries.per_try_timeout is not None:
        made["per_try_timeout"] = duration(retries.per_try_timeout)
    if retries.retry_after is not None:
        made["rate_limited_retry_back_off"] = {
            "reset_headers": [
                {"name": "retry-after", "format": "SECONDS"}, {"name": "x-ratelimit-reset", "format": "UNIX_TIMESTAMP"},
            ],
            "max_interval": duration(retries.retry_after.max),
        }
    return made
