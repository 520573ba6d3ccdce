"""The translation, field by field, as plain data; and every kind of policy accepted by a real Envoy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import resilmesh
from resilmesh.envoy.match import claims_by_domain, split_host
from resilmesh.envoy.process import validate
from resilmesh.envoy.tls import IdentityFiles
from resilmesh.envoy.translate import translate
from resilmesh.policy.check import check
from resilmesh.policy.load import load_text
from tests.identity.pki import WEB, Authority

Json = dict[str, Any]
UNLIMITED = 2**32 - 1


def bootstrap(text: str, **more: Any) -> Json:
    loaded = load_text("apiVersion: resilmesh/v1\n" + text)
    assert [each for each in check(loaded) if each.severity == "error"] == []
    return translate(loaded.policy, **more).bootstrap


def service(blocks: str) -> Json:
    endpoints = "[{address: '127.0.0.1:1'}, {address: '127.0.0.1:2'}]"
    return bootstrap(f"services:\n- name: svc\n  hosts: [svc.test]\n  endpoints: {endpoints}\n  {blocks}\n")


def cluster(made: Json, name: str = "svc") -> Json:
    found: Json = next(each for each in made["static_resources"]["clusters"] if each["name"] == name)
    return found


def manager(made: Json) -> Json:
    config: Json = made["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return config


def routes(made: Json, domain: str = "svc.test") -> list[Json]:
    hosts = manager(made)["route_config"]["virtual_hosts"]
    found: list[Json] = next(host["routes"] for host in hosts if host["domains"] == [domain])
    return found


# ------------------------------------------------------------------------------------------- defaults


def test_what_envoy_would_fill_in_is_written_out() -> None:
    made = service("protocol: HTTP1")
    upstream = cluster(made)
    assert upstream["circuit_breakers"]["thresholds"] == [
        {"max_connections": UNLIMITED, "max_pending_requests": UNLIMITED, "max_requests": UNLIMITED, "max_retries": UNLIMITED},
    ]
    assert upstream["common_lb_config"] == {"healthy_panic_threshold": {"value": 0.0}, "update_merge_window": "0s"}
    assert upstream["connect_timeout"] == "5s"
    assert upstream["lb_policy"] == "ROUND_ROBIN"
    assert "outlier_detection" not in upstream
    (route,) = routes(made)
    assert route["route"] == {"cluster": "svc", "timeout": "0s", "idle_timeout": "0s"}
    assert manager(made)["stream_idle_timeout"] == "0s"


def test_two_envoys_cannot_share_the_port() -> None:
    assert bootstrap("services: []")["static_resources"]["listeners"][0]["enable_reuse_port"] is False


def test_outlier_detection_says_all_it_enforces() -> None:
    made = cluster(service("outlierDetection: {consecutiveGatewayErrors: 3, maxEjectionTime: 10s, panicThreshold: 20}"))
    assert made["outlier_detection"] == {
        "consecutive_5xx": 5, "enforcing_consecutive_5xx": 100,
        "consecutive_gateway_failure": 3, "enforcing_consecutive_gateway_failure": 100,
        "split_external_local_origin_errors": False,
        "consecutive_local_origin_failure": 5, "enforcing_consecutive_local_origin_failure": 0,
        "interval": "10s", "base_ejection_time": "30s",
        "max_ejection_time": "30s",  # never less than the base
        "max_ejection_time_jitter": "0s", "max_ejection_percent": 100,
        "enforcing_success_rate": 0, "enforcing_local_origin_success_rate": 0,
        "enforcing_failure_percentage": 0, "enforcing_failure_percentage_local_origin": 0,
    }
    assert made["common_lb_config"]["healthy_panic_threshold"] == {"value": 20.0}


def test_rates_are_enforced_where_they_are_written() -> None:
    made = cluster(service("outlierDetection: {successRate: {stdevFactor: 1.5}}"))["outlier_detection"]
    rates = {key: made[key] for key in made if "success_rate" in key or "failure_percentage" in key}
    assert rates == {
        "enforcing_success_rate": 100, "enforcing_local_origin_success_rate": 100,
        "success_rate_minimum_hosts": 5, "success_rate_request_volume": 100, "success_rate_stdev_factor": 1500,
        "enforcing_failure_percentage": 0, "enforcing_failure_percentage_local_origin": 0,
    }
    made = cluster(service("outlierDetection: {failurePercentage: {}}"))["outlier_detection"]
    rates = {key: made[key] for key in made if "success_rate" in key or "failure_percentage" in key}
    assert rates == {
        "enforcing_success_rate": 0, "enforcing_local_origin_success_rate": 0,
        "enforcing_failure_percentage": 100, "enforcing_failure_percentage_local_origin": 100,
        "failure_percentage_minimum_hosts": 5, "failure_percentage_request_volume": 50, "failure_percentage_threshold": 85,
    }


@pytest.mark.parametrize(("policy", "where"), [
    ("ROUND_ROBIN", "round_robin_lb_config"), ("LEAST_REQUEST", "least_request_lb_config"), ("RANDOM", None),
])
def test_slow_start_is_a_balancers(policy: str, where: str | None) -> None:
    made = cluster(service(f"loadBalancer: {{policy: {policy}, slowStart: {{window: 30s, aggression: 2}}}}"))
    assert made["lb_policy"] == policy
    written = {key: value for key, value in made.items() if key.endswith("_lb_config") and key != "common_lb_config"}
    slow = {
        "slow_start_window": "30s", "min_weight_percent": {"value": 10.0},
        "aggression": {"default_value": 2.0, "runtime_key": "resilmesh.slow_start.aggression"},
    }
    assert written == ({} if where is None else {where: {"slow_start_config": slow}})


@pytest.mark.parametrize(("blocks", "expected"), [
    ("concurrency: {maxRequests: 7}", {"max_requests": 7}),
    ("concurrency: {maxRequests: 7, maxPending: 3}", {"max_requests": 7, "max_connections": 7, "max_pending_requests": 3}),
    ("concurrency: {maxRequests: 7, maxPending: 3}\n  protocol: HTTP2", {"max_requests": 7}),
    (
        "retryBudget: {percent: 12.5, minRetriesPerSecond: 4}",
        {"retry_budget": {"budget_percent": {"value": 12.5}, "min_retry_concurrency": 4}},
    ),
])
def test_limits(blocks: str, expected: Json) -> None:
    unlimited = {"max_connections": UNLIMITED, "max_pending_requests": UNLIMITED, "max_requests": UNLIMITED, "max_retries": UNLIMITED}
    assert cluster(service(blocks))["circuit_breakers"]["thresholds"] == [unlimited | expected]


def test_a_routes_own_concurrency_is_a_cluster_of_its_own() -> None:
    made = service("concurrency: {maxRequests: 9}\n  routes:\n  - {name: own, match: {path: /own}, concurrency: {maxRequests: 2}}\n"
                   "  - {name: free, match: {path: /free}, concurrency: null}\n  - {name: same, match: {path: /same}}")
    assert [route["route"]["cluster"] for route in routes(made)] == ["svc/own", "svc/free", "svc", "svc"]
    limits = [cluster(made, name)["circuit_breakers"]["thresholds"][0]["max_requests"] for name in ("svc/own", "svc/free", "svc")]
    assert limits == [2, UNLIMITED, 9]


def test_http2_to_the_service() -> None:
    (options,) = cluster(service("protocol: HTTP2"))["typed_extension_protocol_options"].values()
    assert options["explicit_http_config"] == {"http2_protocol_options": {}}


# ------------------------------------------------------------------------------------------- shaping


def test_header_changes_in_envoys_order_and_its_percent_signs() -> None:
    (route,) = routes(service("headers: {request: {add: {x-b: ''}, set: {x-a: 'a%'}, remove: [x-c]}, response: {remove: [x-d]}}"))
    assert route["request_headers_to_remove"] == ["x-c"]
    assert route["response_headers_to_remove"] == ["x-d"]
    assert "response_headers_to_add" not in route
    assert route["request_headers_to_add"] == [
        {"header": {"key": "x-a", "value": "a%%"}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD", "keep_empty_value": True},
        {"header": {"key": "x-b", "value": ""}, "append_action": "APPEND_IF_EXISTS_OR_ADD", "keep_empty_value": True},
    ]


def test_a_mirrored_service_is_a_cluster_even_if_no_call_goes_to_it() -> None:
    made = bootstrap("""services:
- {name: svc, hosts: [svc.test], endpoints: [{address: '127.0.0.1:1'}], mirror: {service: copies, percent: 0.5},
   routes: [{name: r, match: {path: /r}, mirror: {service: copies, subset: b}}]}
- {name: copies, endpoints: [{address: '127.0.0.1:2', labels: {at: a}}, {address: '127.0.0.1:3', labels: {at: b}}],
   subsets: [{name: b, labels: {at: b}}], concurrency: {maxRequests: 3}}
""")
    to_subset, to_all = [route["route"]["request_mirror_policies"] for route in routes(made)]
    assert to_all == [
        {"cluster": "copies", "runtime_fraction": {"default_value": {"numerator": 5000, "denominator": "MILLION"}}},
    ]
    assert to_subset[0]["cluster"] == "copies/subset/b"
    ports = {
        each["name"]: [
            endpoint["endpoint"]["address"]["socket_address"]["port_value"]
            for endpoint in each["load_assignment"]["endpoints"][0]["lb_endpoints"]
        ]
        for each in made["static_resources"]["clusters"] if "load_assignment" in each
    }
    assert ports == {"svc": [1], "copies": [2, 3], "copies/subset/b": [3]}
    assert cluster(made, "copies/subset/b")["circuit_breakers"]["thresholds"][0]["max_requests"] == 3
    assert validate(made) is None


def test_copies_to_a_service_that_is_only_observed_know_no_limits() -> None:
    made = bootstrap("""services:
- {name: svc, hosts: [svc.test], endpoints: [{address: '127.0.0.1:1'}], mirror: {service: copies}}
- {name: copies, mode: OBSERVE, endpoints: [{address: '127.0.0.1:2'}], concurrency: {maxRequests: 3}, connectTimeout: 1s}
""")
    copies = cluster(made, "copies")
    assert copies["circuit_breakers"]["thresholds"][0]["max_requests"] == UNLIMITED
    assert copies["connect_timeout"] == "5s"


def _matcher(blocks: str, name: str = "svc") -> Any:
    (options,) = cluster(service(blocks), name)["typed_extension_protocol_options"].values()
    return options.get("outlier_detection", {}).get("error_matcher")


def _statuses(header: Json) -> set[int]:
    assert header["name"] == ":status"
    return set(map(int, header["string_match"]["safe_regex"]["regex"].split("|")))


def test_what_counts_as_failure_is_said_of_the_cluster() -> None:
    assert _matcher("outlierDetection: {}") is None
    (only,) = _matcher("classify: {failureStatuses: [404], successStatuses: [503]}")["http_response_headers_match"]["headers"]
    assert _statuses(only) == {404, *range(500, 600)} - {503}
    rules = _matcher("classify: {failureHeaders: {x-a: {present: true}, x-b: {prefix: b}}}")["or_match"]["rules"]
    status, *others = [header for rule in rules for header in rule["http_response_headers_match"]["headers"]]
    assert _statuses(status) == set(range(500, 600))
    assert others == [{"name": "x-a", "present_match": True}, {"name": "x-b", "string_match": {"prefix": "b"}}]
    own = "routes: [{name: r, match: {path: /r}, classify: {failureStatuses: [404]}}]"
    assert {each["route"]["cluster"] for each in routes(service(own))} == {"svc"}
    assert _matcher(f"outlierDetection: {{}}\n  {own}", "svc/r") is not None
    assert _matcher(f"outlierDetection: {{}}\n  {own}") is None


@pytest.mark.parametrize(("words", "retry_on", "statuses"), [
    ("[5xx]", "reset,retriable-status-codes", {*range(500, 600)} - {503}),
    ("[gateway-error, connect-failure, 404]", "reset,connect-failure,retriable-status-codes", {502, 504, 404}),
    ("[gateway-error, 503]", "reset,retriable-status-codes", {502, 503, 504}),
    ("[5xx, reset]", "reset,retriable-status-codes", {*range(500, 600)} - {503}),
    ("[reset]", "reset", set()),
])
def test_a_retry_word_leaves_out_what_counts_as_success(words: str, retry_on: str, statuses: set[int]) -> None:
    blocks = f"retries: {{idempotent: true, retryOn: {words}}}\n  classify: {{successStatuses: [503]}}"
    ((_, policy),) = policies(service(blocks))
    assert policy["retry_on"] == retry_on
    assert set(policy.get("retriable_status_codes", ())) == statuses


def test_a_bucket_for_each_value_of_a_header() -> None:
    made = service("rateLimit: {requests: 5, burst: 7, per: 2s, descriptor: {header: x-user, maxValues: 9}}")
    (limit,) = [each["typed_config"] for each in manager(made)["http_filters"] if each["name"] == "rateLimit/svc#0"]
    assert limit["descriptors"] == [{"entries": [{"key": "value"}], "token_bucket": limit["token_bucket"]}]
    assert limit["max_dynamic_descriptors"] == 9
    assert limit["always_consume_default_token_bucket"] is False
    (action,) = limit["rate_limits"][0]["actions"]
    assert action == {"request_headers": {"header_name": "x-user", "descriptor_key": "value"}}


# ------------------------------------------------------------------------------------------- retries


def policies(made: Json) -> list[tuple[Json, Json]]:
    return [(route["match"], route["route"]["retry_policy"]) for route in routes(made)]


def test_retries_by_method_are_two_routes() -> None:
    (unsafe, safe_words), (every, words) = policies(service("retries: {maxRetries: 2, retryOn: [5xx, 429], perTryTimeout: 1500ms}"))
    assert every == {"prefix": "/"}
    assert [condition["name"] for condition in unsafe["headers"]] == [":method", "idempotency-key"]
    assert safe_words["retry_on"] == "connect-failure,refused-stream,reset-before-request"
    assert "retriable_status_codes" not in safe_words
    assert (words["retry_on"], words["retriable_status_codes"], words["num_retries"]) == ("5xx,retriable-status-codes", [429], 2)
    assert words["per_try_timeout"] == safe_words["per_try_timeout"] == "1.5s"


@pytest.mark.parametrize(("retry_on", "unsafe"), [
    *((word, "connect-failure,refused-stream,reset-before-request") for word in ("5xx", "reset", "gateway-error")),
    ("retriable-4xx, connect-failure", "connect-failure"), ("503", ""),
])
def test_only_words_that_were_written_are_kept(retry_on: str, unsafe: str) -> None:
    assert policies(service(f"retries: {{retryOn: [{retry_on}]}}"))[0][1]["retry_on"] == unsafe


@pytest.mark.parametrize(("blocks", "expected"), [
    ("retries: {retryOn: [5xx], idempotent: true}", ["5xx"]),
    ("retries: {retryOn: [5xx], idempotent: false}", ["connect-failure,refused-stream,reset-before-request"]),
    ("retries: {retryOn: [connect-failure]}", ["connect-failure"]),
])
def test_one_route_is_enough_where_the_method_does_not_matter(blocks: str, expected: list[str]) -> None:
    assert [policy["retry_on"] for _, policy in policies(service(blocks))] == expected


def test_a_route_for_get_needs_no_second_route() -> None:
    made = service("routes: [{name: read, match: {method: [GET, HEAD]}, retries: {retryOn: [5xx]}}]")
    assert [route["name"] for route in routes(made)] == ["svc/read", "svc"]


def test_backoff_is_written_out() -> None:
    backoff = [policy["retry_back_off"] for _, policy in policies(service("retries: {retryOn: [connect-failure], backoff: {base: 40ms}}"))]
    assert backoff == [{"base_interval": "0.04s", "max_interval": "0.4s"}]


# ------------------------------------------------------------------------------------------------- gRPC

UNSENT = "connect-failure,refused-stream,reset-before-request"


@pytest.mark.parametrize(("retries", "retry_on", "number"), [
    ("null", "refused-stream", 1),
    ("{maxRetries: 0, retryOn: [unavailable]}", "refused-stream", 1),
    ("{maxRetries: 3, retryOn: [unavailable, internal]}", "unavailable,internal,refused-stream", 3),
    ("{maxRetries: 3, retryOn: [5xx, unavailable, 503, retriable-4xx]}", f"unavailable,{UNSENT}", 3),
    ("{maxRetries: 3, retryOn: [connect-failure, envoy-ratelimited]}", "connect-failure,envoy-ratelimited,refused-stream", 3),
    ("{maxRetries: 3, retryOn: [reset, unavailable], idempotent: false}", UNSENT, 3),
    ("{maxRetries: 3, retryOn: [cancelled], idempotent: false}", "refused-stream", 3),
    ("{maxRetries: 3, retryOn: [reset, unavailable, 503], idempotent: true}", "reset,unavailable,refused-stream", 3),
])
def test_a_grpc_status_is_repeated_as_it_is_and_a_lost_outcome_where_it_is_idempotent(retries: str, retry_on: str, number: int) -> None:
    made = service(f"protocol: GRPC\n  retries: {retries}")
    ((match, policy),) = policies(made)
    assert match == {"prefix": "/"}
    assert (policy["retry_on"], policy["num_retries"]) == (retry_on, number)
    assert "retriable_status_codes" not in policy
    assert ("rate_limited_retry_back_off" in policy) is (number > 1)  # of what is sent again once anyway nobody asks when
    assert validate(made) is None


def test_a_try_has_its_time_where_nothing_is_repeated() -> None:
    retries = "{maxRetries: 0, retryOn: [reset], perTryTimeout: 1s, backoff: {base: 9ms}}"
    ((_, policy),) = policies(service(f"protocol: GRPC\n  retries: {retries}"))
    assert (policy["per_try_timeout"], policy["retry_back_off"]["base_interval"]) == ("1s", "0.009s")


def test_what_grpc_needs_of_cluster_and_filters() -> None:
    made = service("protocol: GRPC\n  rateLimit: {requests: 1}\n  concurrency: {maxRequests: 7, maxPending: 3}\n"
                   "  outlierDetection: {}\n  routes: [{name: r, match: {path: /r}, classify: {failureStatuses: [404]}}]")
    (options,) = cluster(made)["typed_extension_protocol_options"].values()
    assert options["explicit_http_config"] == {"http2_protocol_options": {}}
    assert "outlier_detection" not in options
    assert {each["route"]["cluster"] for each in routes(made)} == {"svc"}
    assert cluster(made)["circuit_breakers"]["thresholds"][0]["max_connections"] == UNLIMITED
    (limit,) = [each for each in manager(made)["http_filters"] if each["name"].startswith("rateLimit")]
    assert limit["typed_config"]["rate_limited_as_resource_exhausted"] is True


def test_what_no_policy_is_for_is_forwarded_as_it_came() -> None:
    (options,) = cluster(service("protocol: GRPC\n  mode: OBSERVE"), "/passthrough")["typed_extension_protocol_options"].values()
    assert set(options["use_downstream_protocol_config"]) == {"http_protocol_options", "http2_protocol_options"}


# ------------------------------------------------------------------------------------- limits and faults


def test_a_bucket_is_a_filter_that_its_routes_switch_on() -> None:
    made = service("""rateLimit: {requests: 9, per: 2s}
  routes:
  - {name: own, match: [{path: /a}, {path: /b}], rateLimit: [{requests: 1, burst: 5}, {requests: 9, per: 2s, scope: SERVICE}]}
  - {name: free, match: {path: /c}, rateLimit: null}""")
    filters = {each["name"]: each for each in manager(made)["http_filters"]}
    assert list(filters)[:2] == ["rateLimit/svc/own#0", "rateLimit/svc#0"]
    assert filters["rateLimit/svc/own#0"]["disabled"] is True
    bucket = filters["rateLimit/svc/own#0"]["typed_config"]["token_bucket"]
    assert bucket == {"max_tokens": 5, "tokens_per_fill": 1, "fill_interval": "1s"}
    on = [list(route.get("typed_per_filter_config", {})) for route in routes(made)]
    assert on == [["rateLimit/svc/own#0", "rateLimit/svc#0"], ["rateLimit/svc/own#0", "rateLimit/svc#0"], [], ["rateLimit/svc#0"]]


def test_faults_stand_above_the_limits() -> None:
    fault_block = "{abort: {httpStatus: 503, percent: 0.5}, delay: {fixedDelay: 300ms, percent: 12.25}}"
    made = service(f"rateLimit: {{requests: 1}}\n  fault: {fault_block}")
    assert [each["name"] for each in manager(made)["http_filters"]][:2] == ["envoy.filters.http.fault", "rateLimit/svc#0"]
    fault = routes(made)[0]["typed_per_filter_config"]["envoy.filters.http.fault"]
    assert fault["abort"] == {"http_status": 503, "percentage": {"numerator": 5_000, "denominator": "MILLION"}}
    assert fault["delay"] == {"fixed_delay": "0.3s", "percentage": {"numerator": 122_500, "denominator": "MILLION"}}


def test_an_attempts_fault_is_not_exported() -> None:
    assert "typed_per_filter_config" not in routes(service("fault: {abort: {httpStatus: 503}, scope: ATTEMPT}"))[0]


# --------------------------------------------------------------------------------------- hosts and routes


@pytest.mark.parametrize(("host", "expected"), [
    ("a.test", ("a.test", None)), ("A.Test:80", ("a.test", 80)), ("*.test:81", ("*.test", 81)), ("*", ("*", None)),
    ("[::1]", ("[::1]", None)), ("[::1]:8080", ("[::1]", 8080)),
])
def test_split_host(host: str, expected: tuple[str, int | None]) -> None:
    assert split_host(host) == expected


def test_a_domain_claimed_for_some_ports_goes_on_with_the_wider_one() -> None:
    found = claims_by_domain([("api.b.test", 0), ("api.b.test:81", 1), ("x.b.test:82", 2), ("*.b.test:83", 3), ("*.test", 4), ("*", 5)])
    assert found == {
        "api.b.test": [(81, 1), (None, 0)],
        "x.b.test": [(82, 2), (83, 3), (None, 4)],
        "*.b.test": [(83, 3), (None, 4)],
        "*.test": [(None, 4)],
        "*": [(None, 5)],
    }


def test_outbound() -> None:
    assert routes(bootstrap("mesh: {outbound: REGISTRY_ONLY}"), "*") == [{"match": {"prefix": "/"}, "direct_response": {"status": 502}}]
    (route,) = routes(bootstrap("services: []"), "*")
    assert route["route"]["cluster"] == "/passthrough"
    assert cluster(bootstrap("services: []"), "/passthrough")["cluster_type"]["name"] == "envoy.clusters.dynamic_forward_proxy"


def test_a_service_without_hosts_is_not_exported() -> None:
    made = bootstrap("mesh: {outbound: REGISTRY_ONLY}\nservices: [{name: ledger, timeout: 1s}]")
    assert made["static_resources"]["clusters"] == []


@pytest.mark.parametrize("mode", ["OBSERVE", '"OFF"'])
def test_what_is_not_enforced_only_forwards(mode: str) -> None:
    made = service(f"mode: {mode}\n  timeout: 1s\n  rateLimit: {{requests: 1}}\n  retries: {{retryOn: [5xx]}}")
    (route,) = routes(made)
    assert route["route"] == {"cluster": "/passthrough", "timeout": "0s", "idle_timeout": "0s"}
    assert "typed_per_filter_config" not in route


def test_subsets_are_one_cluster() -> None:
    made = bootstrap("""services:
- name: svc
  hosts: [svc.test]
  endpoints: [{address: "127.0.0.1:1", labels: {version: v1, zone: x}}, {address: "127.0.0.1:2", labels: {version: v2, zone: x}}]
  subsets: [{name: old, labels: {version: v1}}, {name: new, labels: {version: v2}}, {name: near, labels: {zone: x, version: v1}}]
  split: [{subset: old, weight: 9}, {subset: new, weight: 1}]
""")
    assert [each["name"] for each in made["static_resources"]["clusters"]] == ["svc", "/passthrough"]
    assert cluster(made)["lb_subset_config"] == {
        "fallback_policy": "ANY_ENDPOINT",
        "subset_selectors": [
            {"keys": ["version"], "fallback_policy": "NO_FALLBACK"}, {"keys": ["version", "zone"], "fallback_policy": "NO_FALLBACK"},
        ],
    }
    shares = routes(made)[0]["route"]["weighted_clusters"]["clusters"]
    assert [(share["name"], share["weight"], share["metadata_match"]["filter_metadata"]["envoy.lb"]) for share in shares] == [
        ("svc", 9, {"version": "v1"}), ("svc", 1, {"version": "v2"}),
    ]


def test_addresses_of_listener_and_admin() -> None:
    made = bootstrap("services: []", listen=("0.0.0.0", 15001), admin=("127.0.0.1", 15000), access_log="/dev/stdout")
    assert made["static_resources"]["listeners"][0]["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 15001}
    assert made["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 15000}
    assert manager(made)["access_log"][0]["typed_config"]["path"] == "/dev/stdout"
    assert validate(made) is None


# ------------------------------------------------------------------------------------------ a real Envoy

#: Ours, and those that the comparison ships.
POLICIES = [*Path(__file__).parent.glob("policies/*.yaml"), *Path(resilmesh.__file__).parent.glob("compare/policies/*.yaml")]


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> IdentityFiles:
    """Of a workload, for the policies that ask for one."""
    made = tmp_path_factory.mktemp("identity")
    authority = Authority()
    leaf = authority.issue(WEB)
    (made / "tls.crt").write_bytes(leaf.certificates_pem())
    (made / "tls.key").write_bytes(leaf.key_pem())
    (made / "ca.crt").write_bytes(authority.bundle.pem())
    return IdentityFiles.in_directory(str(made))


@pytest.mark.parametrize("path", POLICIES, ids=lambda path: path.stem)
def test_a_real_envoy_accepts(path: Path, identity: IdentityFiles) -> None:
    loaded = load_text(path.read_bytes(), str(path))
    assert [each for each in check(loaded) if each.severity == "error"] == []
    made = translate(loaded.policy, identity=identity).bootstrap
    assert validate(made) is None
    assert json.loads(json.dumps(made)) == made
