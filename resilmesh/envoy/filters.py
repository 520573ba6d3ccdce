"""Envoy's HTTP filters: faults and rate limits, in the library's order (fault, rate limit, then the router)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilmesh.envoy.clusters import DNS_CACHE, duration
from resilmesh.envoy.match import TYPE

if TYPE_CHECKING:
    from resilmesh.policy.model import Descriptor, Fault, RateLimit
    from resilmesh.policy.resolve import Effective

Json = dict[str, Any]

FAULT = "envoy.filters.http.fault"
_FAULT_TYPE = TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault"
#: Put on a route, it switches on a filter that is off everywhere else.
_ON: Json = {"@type": TYPE + "envoy.config.route.v3.FilterConfig", "config": {}}


class Buckets:
    """One filter for each token bucket, off by default and switched on by the routes that share it.

    A limit written on Envoy's own routes would be a bucket each, and a route of the policy may become several of
    Envoy's; a limit on the virtual host would be a bucket for all of its routes.
    """

    def __init__(self) -> None:
        self._filters: dict[str, Json] = {}

    def switched_on_by(self, blocks: Effective) -> Json:
        """What the route needs in its ``typed_per_filter_config``."""
        switches: Json = {}
        shared = 0
        for index, limit in enumerate(blocks.rate_limit or ()):
            if blocks.route is not None and blocks.owned_by_route("rate_limit") and limit.scope != "SERVICE":
                name = f"rateLimit/{blocks.service.name}/{blocks.route.name}#{index}"
            else:
                # The n-th limit of scope SERVICE is one bucket, wherever it stands.
                name = f"rateLimit/{blocks.service.name}#{shared}"
                shared += 1
            self._filters.setdefault(name, _rate_limit(name, limit, grpc=blocks.service.protocol == "GRPC"))
            switches[name] = _ON
        return switches

    def filters(self) -> list[Json]:
        return list(self._filters.values())


def _rate_limit(name: str, limit: RateLimit, *, grpc: bool) -> Json:
    always = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    bucket = {"max_tokens": limit.burst or limit.requests, "tokens_per_fill": limit.requests, "fill_interval": duration(limit.per)}
    return {
        "name": name,
        "disabled": True,
        "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            "stat_prefix": name,
            "token_bucket": bucket,
            "filter_enabled": always,
            "filter_enforced": always,
            # Otherwise gRPC's status is UNAVAILABLE.
            **({"rate_limited_as_resource_exhausted": True} if grpc else {}),
            **({} if limit.descriptor is None else _by_value(limit.descriptor, bucket)),
        },
    }


def _by_value(descriptor: Descriptor, bucket: Json) -> Json:
    """A bucket for each value of a header, made when the value is first seen. A request without the header makes no
    descriptor, and has the filter's own bucket."""
    key = "value"
    return {
        "rate_limits": [{"actions": [{"request_headers": {"header_name": descriptor.header, "descriptor_key": key}}]}],
        "descriptors": [{"entries": [{"key": key}], "token_bucket": bucket}],
        "max_dynamic_descriptors": descriptor.max_values,
        "always_consume_default_token_bucket": False,
    }


def fault_filter() -> Json:
    """The filter that does nothing until a route says what."""
    return {"name": FAULT, "typed_config": {"@type": _FAULT_TYPE}}


def fault(block: Fault) -> Json:
    """What a route's fault block puts in ``typed_per_filter_config``."""
    made: Json = {"@type": _FAULT_TYPE}
    if block.delay is not None:
        made["delay"] = {"fixed_delay": duration(block.delay.fixed_delay), "percentage": millionths(block.delay.percent)}
    if block.abort is not None:
        made["abort"] = {"percentage": millionths(block.abort.percent)}
        if block.abort.grpc_status is not None:
            made["abort"]["grpc_status"] = block.abort.grpc_status
        else:
            made["abort"]["http_status"] = block.abort.http_status
    return made


def millionths(percent: float) -> Json:
    """A percentage, as fine as Envoy takes one."""
    return {"numerator": round(percent * 10_000), "denominator": "MILLION"}


def host_lookup_filter() -> Json:
    """Looks up the request's own host for the clusters that call it."""
    return {
        "name": "envoy.filters.http.dynamic_forward_proxy",
        "typed_config": {
            "@type": TYPE + "envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig", "dns_cache_config": DNS_CACHE,
        },
    }


def router() -> Json:
    return {"name": "envoy.filters.http.router", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}
