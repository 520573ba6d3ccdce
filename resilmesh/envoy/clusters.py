"""Envoy's clusters: a service's endpoints, balancer, outlier detection and limits.

Whatever Envoy would fill in by itself is written out here, so that both planes run the same values: no panic
threshold of 50 %, no ejection of 10 % at most, no merge of health changes within a second, no limit of 1,024
requests or of three retries at once.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Any

from resilmesh.envoy.match import TYPE, condition
from resilmesh.envoy.tls import takes_names_from_the_request

if TYPE_CHECKING:
    from resilmesh.policy.model import Classify, Concurrency, Endpoint, LoadBalancer, OutlierDetection, RetryBudget, Service
    from resilmesh.policy.resolve import Effective

Json = dict[str, Any]

#: Where a request goes that no policy applies to: to the host it names.
PASSTHROUGH = "/passthrough"
#: All clusters that look up the request's own host share a cache, which has to be written the same everywhere.
DNS_CACHE: Json = {"name": "hosts", "dns_lookup_family": "V4_PREFERRED"}

_UNLIMITED = 2**32 - 1
#: Headers of a request or a response, and their size: the most that Envoy takes. Its defaults are 100 and 60 KiB.
MAX_HEADERS = 10_000
MAX_HEADERS_KB = 8192
#: What Envoy takes a shorter duration for is no limit at all: it counts milliseconds.
_SHORTEST = 0.001
#: For a policy that names none: httpx's default, and Envoy's.
_CONNECT_TIMEOUT = 5.0


def duration(seconds: float) -> str:
    """Seconds as protobuf's JSON writes a Duration: ``0.25`` is ``"0.25s"``. Less than a millisecond becomes one."""
    if 0 < seconds < _SHORTEST:
        seconds = _SHORTEST
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def socket_address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def cluster(name: str, effective: Effective, secured: Json) -> Json:
    """The cluster of a service, or of a route that has a concurrency limit of its own. ``secured``: its transport socket, if any."""
    service = effective.service
    made: Json = {
        "name": name,
        "connect_timeout": duration(effective.connect_timeout or _CONNECT_TIMEOUT),
        **_where(name, service),
        **_protocol(effective),
        **secured,
        "circuit_breakers": {"thresholds": [_thresholds(effective.concurrency, effective.retry_budget, service.protocol)]},
    }
    if service.endpoints is not None:
        outlier = effective.outlier_detection
        made |= _balancer(effective.load_balancer)
        made["common_lb_config"] = {
            "healthy_panic_threshold": {"value": 0.0 if outlier is None else outlier.panic_threshold}, "update_merge_window": "0s",
        }
        if outlier is not None:
            made["outlier_detection"] = _outlier_detection(outlier)
        if service.subsets is not None:
            made["lb_subset_config"] = _subset_config(service)
    return made


def forwarding(name: str, service: Service, secured: Json) -> Json:
    """The cluster that calls the request's own host, without limits, and by the TLS that no mode of the policy takes away."""
    options = "http_protocol_options" if service.protocol == "HTTP1" else "http2_protocol_options"
    return {
        "name": name, "connect_timeout": duration(_CONNECT_TIMEOUT), **_requested_host(), **secured,
        **_options({"explicit_http_config": {options: {}}, **takes_names_from_the_request(service)}),
        "circuit_breakers": {"thresholds": [_thresholds(None, None, service.protocol)]},
    }


def passthrough() -> Json:
    """The cluster that calls the request's own host, without limits, by the protocol in which the request came."""
    return {
        "name": PASSTHROUGH, "connect_timeout": duration(_CONNECT_TIMEOUT), **_requested_host(),
        **_options({"use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": {}}}),
        "circuit_breakers": {"thresholds": [_thresholds(None, None, "HTTP1")]},
    }


def is_address(endpoint: Endpoint) -> bool:
    """Whether the endpoint is a literal IP address, which nobody has to look up."""
    try:
        ipaddress.ip_address(_host_port(endpoint)[0])
    except ValueError:
        return False
    return True


def _where(name: str, service: Service) -> Json:
    if service.endpoints is None:
        return _requested_host()
    return {
        "type": "STATIC" if all(map(is_address, service.endpoints)) else "STRICT_DNS",
        "dns_lookup_family": "V4_PREFERRED",
        "load_assignment": {
            "cluster_name": name, "endpoints": [{"lb_endpoints": [_endpoint(each) for each in service.endpoints]}],
            # At Envoy's 140 there is no panic while 71.4 % are healthy, whatever the threshold.
            "policy": {"overprovisioning_factor": 100},
        },
    }


def _requested_host() -> Json:
    return {
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": {
            "name": "envoy.clusters.dynamic_forward_proxy",
            "typed_config": {
                "@type": TYPE + "envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
                "dns_cache_config": DNS_CACHE,
                # What it calls insecure is TLS without a name to check; this is plain HTTP.
                "allow_insecure_cluster_options": True,
            },
        },
    }


def _endpoint(endpoint: Endpoint) -> Json:
    made: Json = {"endpoint": {"address": socket_address(*_host_port(endpoint))}}
    if endpoint.labels:
        made["metadata"] = {"filter_metadata": {"envoy.lb": dict(endpoint.labels)}}
    return made


def _host_port(endpoint: Endpoint) -> tuple[str, int]:
    host, _, port = endpoint.address.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _protocol(effective: Effective) -> Json:
    options = "http_protocol_options" if effective.service.protocol == "HTTP1" else "http2_protocol_options"
    chosen: Json = {"explicit_http_config": {options: {}}, **takes_names_from_the_request(effective.service)}
    # What ends in a gRPC status is never asked about.
    if effective.classify is not None and effective.service.protocol != "GRPC":
        chosen["outlier_detection"] = {"error_matcher": _error_matcher(effective.classify)}
    return _options(chosen)


def _options(chosen: Json) -> Json:
    kind = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    limits = {"max_headers_count": MAX_HEADERS, "max_response_headers_kb": MAX_HEADERS_KB}
    return {"typed_extension_protocol_options": {kind: {"@type": TYPE + kind, "common_http_protocol_options": limits, **chosen}}}


def _error_matcher(classify: Classify) -> Json:
    """The answers that outlier detection counts, in place of Envoy's own "every 5xx"; all others are successes to it."""
    failures = sorted({*range(500, 600)}.difference(classify.success_statuses or ()).union(classify.failure_statuses or ()))
    status = {"name": ":status", "string_match": {"safe_regex": {"regex": "|".join(map(str, failures))}}}
    headers = [status, *(condition(name, wanted) for name, wanted in (classify.failure_headers or {}).items())]
    # The headers of one match must all be there, and any one of ours is enough. An "or" of one is refused.
    rules = [{"http_response_headers_match": {"headers": [each]}} for each in headers]
    return rules[0] if len(rules) == 1 else {"or_match": {"rules": rules}}


def _thresholds(concurrency: Concurrency | None, budget: RetryBudget | None, protocol: str) -> Json:
    made: Json = {
        "max_connections": _UNLIMITED, "max_pending_requests": _UNLIMITED, "max_requests": _UNLIMITED, "max_retries": _UNLIMITED,
    }
    if concurrency is not None:
        made["max_requests"] = concurrency.max_requests
        # A request that waits for its first connection is pending too, so that "no queue" cannot be written as a
        # queue of none; and HTTP/2 has no queue, because one connection carries every request.
        if concurrency.max_pending and protocol == "HTTP1":
            made["max_connections"] = concurrency.max_requests
            made["max_pending_requests"] = concurrency.max_pending
    if budget is not None:
        made["retry_budget"] = {
            "budget_percent": {"value": budget.percent}, "min_retry_concurrency": budget.min_retries_per_second,
        }
    return made


#: Where Envoy takes a slow start from. It has none for RANDOM.
_EASED = {"ROUND_ROBIN": "round_robin_lb_config", "LEAST_REQUEST": "least_request_lb_config"}


def _balancer(balancer: LoadBalancer) -> Json:
    slow = balancer.slow_start
    if slow is None or balancer.policy not in _EASED:
        return {"lb_policy": balancer.policy}
    config = {
        "slow_start_window": duration(slow.window),
        "aggression": {"default_value": slow.aggression, "runtime_key": "resilmesh.slow_start.aggression"},
        "min_weight_percent": {"value": slow.min_weight_percent},
    }
    return {"lb_policy": balancer.policy, _EASED[balancer.policy]: {"slow_start_config": config}}


def _outlier_detection(outlier: OutlierDetection) -> Json:
    # A count that may not eject keeps Envoy's threshold of 5 and enforces it in 0 % of cases.
    return {
        "consecutive_5xx": outlier.consecutive_5xx_errors or 5,
        "enforcing_consecutive_5xx": 100 if outlier.consecutive_5xx_errors else 0,
        "consecutive_gateway_failure": outlier.consecutive_gateway_errors or 5,
        "enforcing_consecutive_gateway_failure": 100 if outlier.consecutive_gateway_errors else 0,
        "split_external_local_origin_errors": outlier.split_external_local_origin_errors,
        "consecutive_local_origin_failure": outlier.consecutive_local_origin_failures or 5,
        "enforcing_consecutive_local_origin_failure": 100 if outlier.consecutive_local_origin_failures else 0,
        "interval": duration(outlier.interval),
        "base_ejection_time": duration(outlier.base_ejection_time),
        "max_ejection_time": duration(max(outlier.base_ejection_time, outlier.max_ejection_time)),
        "max_ejection_time_jitter": "0s",
        "max_ejection_percent": int(outlier.max_ejection_percent),
        **_rates(outlier),
    }


def _rates(outlier: OutlierDetection) -> Json:
    # Envoy judges by success rate unless it is told not to.
    rate, percentage = outlier.success_rate, outlier.failure_percentage
    by_rate, by_percentage = 100 if rate else 0, 100 if percentage else 0
    made: Json = {
        "enforcing_success_rate": by_rate, "enforcing_local_origin_success_rate": by_rate,
        "enforcing_failure_percentage": by_percentage, "enforcing_failure_percentage_local_origin": by_percentage,
    }
    if rate is not None:
        made |= {
            "success_rate_minimum_hosts": rate.minimum_hosts,
            "success_rate_request_volume": rate.request_volume,
            "success_rate_stdev_factor": round(1000 * rate.stdev_factor),
        }
    if percentage is not None:
        made |= {
            "failure_percentage_minimum_hosts": percentage.minimum_hosts,
            "failure_percentage_request_volume": percentage.request_volume,
            "failure_percentage_threshold": percentage.threshold,
        }
    return made


def _subset_config(service: Service) -> Json:
    # One selector for each set of keys. A subset without an endpoint is an error, a route without one uses them all.
    keys = {tuple(sorted(subset.labels)) for subset in service.subsets or ()}
    return {
        "fallback_policy": "ANY_ENDPOINT",
        "subset_selectors": [{"keys": list(each), "fallback_policy": "NO_FALLBACK"} for each in sorted(keys)],
    }
