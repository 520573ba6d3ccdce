"""The plane ``sidecar-defaults``: the translation of a policy without what nobody wrote.

``translate`` writes the library's defaults out, so that both planes run the same values. Here they are taken away
again, and Envoy's own stand in their place:

    panic threshold                 50 %, where the library has 0
    most endpoints ejected          10 % (of fewer than ten endpoints: none), where the library has 100 %
    health changes                  gathered for a second
    over-provisioning               140 %
    requests, pending, connections  1,024 of each at once; retries 3 at once, unless a retry budget is written
    timeout                         15 s, unless written
    a retry's endpoint              any, the one that just failed included
    a stream's silence              5 minutes at most
    retries                         of every method

What the policy does write is the same in both.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resilmesh.policy.resolve import Effective, effective

if TYPE_CHECKING:
    from resilmesh.policy.fields import Block
    from resilmesh.policy.model import Policy

Json = dict[str, Any]

#: Envoy's word for what a field of the policy becomes; without the field, the word goes.
_OUTLIER = {
    "consecutive_5xx_errors": ("consecutive_5xx", "enforcing_consecutive_5xx"),
    "consecutive_gateway_errors": ("consecutive_gateway_failure", "enforcing_consecutive_gateway_failure"),
    "split_external_local_origin_errors": ("split_external_local_origin_errors",),
    "consecutive_local_origin_failures": ("consecutive_local_origin_failure", "enforcing_consecutive_local_origin_failure"),
    "interval": ("interval",),
    "base_ejection_time": ("base_ejection_time",),
    "max_ejection_time": ("max_ejection_time",),
    "max_ejection_percent": ("max_ejection_percent",),
    # Rates: Envoy detects by success rate unless it is told not to.
    "success_rate": ("enforcing_success_rate", "enforcing_local_origin_success_rate"),
    "failure_percentage": ("enforcing_failure_percentage", "enforcing_failure_percentage_local_origin"),
}
_RETRIES = {
    "max_retries": ("num_retries",),
    "backoff": ("retry_back_off",),
    "retry_after": ("rate_limited_retry_back_off",),
}
_NOBODY_WROTE = ("retry_host_predicate", "host_selection_retry_max_attempts")


def with_envoys_defaults(bootstrap: Json, policy: Policy) -> Json:
    """A copy of ``bootstrap``, the translation of ``policy``, with Envoy's defaults in place of the library's."""
    made = copy.deepcopy(bootstrap)
    written = _by_name(policy)
    static = made["static_resources"]
    for cluster in static["clusters"]:
        if cluster["name"] in written:
            _of_cluster(cluster, written[cluster["name"]])
    manager = static["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    for name in ("stream_idle_timeout", "delayed_close_timeout"):
        manager.pop(name, None)
    for host in manager["route_config"]["virtual_hosts"]:
        for route in host["routes"]:
            if route.get("name") in written and "route" in route:
                _of_route(route["route"], written[route["name"]])
    return made


def _by_name(policy: Policy) -> dict[str, Effective]:
    found = {}
    for index, service in enumerate(policy.services):
        found[service.name] = effective(policy, index, None)
        for number, route in enumerate(service.routes or ()):
            found[f"{service.name}/{route.name}"] = effective(policy, index, number)
    return found


def _of_cluster(cluster: Json, blocks: Effective) -> None:
    common = cluster.pop("common_lb_config", {})
    outlier = blocks.outlier_detection
    if outlier is not None and "panic_threshold" in outlier.model_fields_set:
        cluster["common_lb_config"] = {"healthy_panic_threshold": common["healthy_panic_threshold"]}
    cluster.get("load_assignment", {}).pop("policy", None)
    if outlier is not None:
        _keep_written(cluster["outlier_detection"], outlier, _OUTLIER)
        cluster["outlier_detection"].pop("max_ejection_time_jitter", None)
    (thresholds,) = cluster["circuit_breakers"]["thresholds"]
    unlimited = thresholds["max_retries"]
    for name in [name for name, value in thresholds.items() if value == unlimited]:
        del thresholds[name]
    if blocks.connect_timeout is None:
        del cluster["connect_timeout"]


def _of_route(action: Json, blocks: Effective) -> None:
    for name in ("timeout", "idle_timeout"):
        if action.get(name) == "0s":
            del action[name]
    retry = action.get("retry_policy")
    if retry is not None and blocks.retries is not None:
        _keep_written(retry, blocks.retries, _RETRIES)
        for name in _NOBODY_WROTE:
            retry.pop(name, None)


def _keep_written(made: Json, block: Block, words: Mapping[str, tuple[str, ...]]) -> None:
    for name, envoys in words.items():
        if name not in block.model_fields_set:
            for word in envoys:
                made.pop(word, None)
