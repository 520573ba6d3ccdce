"""What is said of a policy that Envoy does otherwise: derived from the model, at the place where it was written."""

from __future__ import annotations

from resilmesh.envoy.notes import Note, notes_on
from resilmesh.policy.load import load_text


def notes(text: str) -> list[Note]:
    return notes_on(load_text("apiVersion: resilmesh/v1\n" + text).policy)


def blocks(text: str) -> list[tuple[str, str]]:
    return [(note.block, note.fidelity) for note in notes(text)]


ENDPOINT = "hosts: [a.test], endpoints: [{address: '127.0.0.1:1'}]"


def test_nothing_to_say() -> None:
    assert notes(f"""
mesh: {{mode: ENFORCE, localReplies: RESPOND, outbound: REGISTRY_ONLY}}
services:
- {{name: a, {ENDPOINT}, connectTimeout: 1s, rateLimit: {{requests: 5}}, loadBalancer: RANDOM, outlierDetection: {{interval: 1s}},
   fault: {{abort: {{httpStatus: 503}}, scope: CALL}}}}
""") == []


def test_a_difference_is_the_models_own_words() -> None:
    (note,) = notes(f"services: [{{name: a, {ENDPOINT}, circuitBreaker: {{failureRateThreshold: 20}}}}]")
    assert note.path == ("services", 0, "circuitBreaker")
    assert (note.block, note.fidelity) == ("circuitBreaker", "library-only")
    assert note.message == "Envoy has no failure-rate circuit breaker; its outlier detection ejects endpoints instead."


def test_a_block_that_is_in_force_without_being_written() -> None:
    assert blocks(f"services: [{{name: a, {ENDPOINT}, retries: {{retryOn: [5xx]}}}}]") == [
        ("retries", "approximate"), ("retries.retryAfter", "approximate"),
    ]


def test_a_value_that_is_not_written_is_not_reported() -> None:
    assert blocks(f"defaults: {{retryBudget: {{ttl: 5s}}}}\nservices: [{{name: a, {ENDPOINT}}}]") == [
        ("retryBudget", "approximate"), ("retryBudget.ttl", "library-only"),
    ]


def test_values_without_a_difference_are_not_reported() -> None:
    text = "services: [{{name: a, {}, {}}}]"
    assert blocks(text.format(ENDPOINT, "fault: {abort: {httpStatus: 503}, scope: ATTEMPT}")) == [("fault.scope", "library-only")]
    assert blocks("mesh: {mode: OBSERVE, localReplies: RAISE}") == [("mode", "approximate"), ("localReplies", "approximate")]
    assert blocks(text.format(ENDPOINT, "concurrency: {maxRequests: 1, maxPending: 0}")) == [("concurrency.maxRequests", "approximate")]


def test_places_in_a_route() -> None:
    (note,) = notes(f"services: [{{name: a, {ENDPOINT}, routes: [{{name: r, timeout: 1s}}]}}]")
    assert (note.path, note.block) == (("services", 0, "routes", 0, "timeout"), "timeout")


def test_a_service_without_hosts_is_one_note() -> None:
    (note,) = notes("services: [{name: ledger, timeout: 1s, circuitBreaker: {}}]")
    assert (note.path, note.block, note.fidelity) == (("services", 0), "hosts", "library-only")


def test_differences_of_combinations() -> None:
    found = blocks("""
services:
- name: a
  hosts: [a.test]
  endpoints: [{address: "db.internal:1"}]
  outlierDetection: {maxEjectionPercent: 33.3}
  routes:
  - {name: r, rateLimit: [{requests: 1}, {requests: 2}], concurrency: {maxRequests: 1}}
  - {name: s, match: {path: /s}, retries: {retryOn: [5xx], retryAfter: null}}
- {name: b, hosts: [b.test]}
""")
    assert found == [
        ("concurrency.maxRequests", "approximate"), ("retries", "approximate"), ("endpoints.address", "approximate"),
        ("rateLimit", "approximate"),
        ("concurrency", "approximate"), ("outlierDetection.maxEjectionPercent", "approximate"), ("outlierDetection", "approximate"),
        ("endpoints", "approximate"),
    ]


def test_an_inherited_block_is_reported_once() -> None:
    assert blocks(f"""
defaults: {{rateLimit: [{{requests: 1}}, {{requests: 2}}]}}
services:
- {{name: a, {ENDPOINT}, routes: [{{name: r, match: {{path: /}}}}, {{name: s, match: {{path: /s}}}}]}}
""") == [("rateLimit", "approximate")]


def test_percents_that_are_not_whole() -> None:
    found = notes(f"services: [{{name: a, {ENDPOINT}, outlierDetection: {{maxEjectionPercent: 33.4, panicThreshold: 66.5}}}}]")
    assert [(note.block, note.message) for note in found] == [
        ("outlierDetection.maxEjectionPercent", "Envoy takes whole percents: 33"),
        ("outlierDetection.panicThreshold", "Envoy takes whole percents: 67"),
    ]


def test_rates_that_envoy_takes_otherwise() -> None:
    found = notes(f"services: [{{name: a, {ENDPOINT}, outlierDetection: {{successRate: {{stdevFactor: 1.2345}}}}}}]")
    shown = [(note.block, note.message) for note in found]
    assert shown == [("outlierDetection.successRate.stdevFactor", "Envoy takes thousandths: 1.234")]
    (note,) = notes(f"services: [{{name: a, {ENDPOINT}, outlierDetection: {{successRate: {{}}, failurePercentage: {{}}}}}}]")
    assert (note.block, note.fidelity) == ("outlierDetection", "approximate")
    assert "counts an endpoint that successRate and failurePercentage eject at once as two" in note.message


def test_words_of_grpc_on_a_service_that_speaks_none() -> None:
    found = blocks(f"services: [{{name: a, {ENDPOINT}, retries: {{retryOn: [unavailable], retryAfter: null}}}}]")
    assert ("retries.retryOn", "approximate") in found


def test_headers_that_envoy_handles_itself() -> None:
    match = "match: {headers: {connection: close, accept: a, x-envoy-internal: 'true', x-a: b}}"
    found = notes(f"services: [{{name: a, {ENDPOINT}, routes: [{{name: r, {match}}}]}}]")
    assert [note.block for note in found] == ["match.headers.connection", "match.headers.accept", "match.headers.x-envoy-internal"]
    assert found[0].path == ("services", 0, "routes", 0, "match", 0, "headers", "connection")


def test_an_abort_whose_status_has_no_body() -> None:
    text = "services: [{{name: a, {}, fault: {{abort: {{httpStatus: {}}}}}}}]"
    assert blocks(text.format(ENDPOINT, 304)) == [("fault.abort.httpStatus", "approximate")]
    assert blocks(text.format(ENDPOINT, 404)) == []


def test_header_changes_that_envoy_understands_otherwise() -> None:
    request = "request: {set: {x-envoy-max-retries: '3', accept: a}, add: {accept: b, x-a: c}}"
    response = "response: {set: {via: a}, add: {via: b, accept: c}, remove: [date, server]}"
    found = notes(f"services: [{{name: a, {ENDPOINT}, headers: {{{request}, {response}}}}}]")
    assert [note.block for note in found] == [
        "headers.response", "headers.request.set.x-envoy-max-retries", "headers.request.add.accept", "headers.response.add.via",
        "headers.response.remove",
    ]
    assert found[1].path == ("services", 0, "headers", "request", "set", "x-envoy-max-retries")


def test_another_host_without_endpoints() -> None:
    rewrite = "rewrite: {host: other.test, path: /}"
    assert ("rewrite.host", "approximate") in blocks(f"services: [{{name: a, hosts: [a.test], {rewrite}}}]")
    assert blocks(f"services: [{{name: a, {ENDPOINT}, {rewrite}}}]") == []


def test_a_route_that_classifies_for_itself_has_its_own_ejections() -> None:
    route = "routes: [{{name: r, match: {{path: /}}, classify: {{failureStatuses: [404]}}{}}}]"
    ejecting = f"services: [{{name: a, {ENDPOINT}, outlierDetection: {{}}, "
    assert blocks(ejecting + route.format("") + "}]") == [("classify", "approximate")]
    assert blocks(f"services: [{{name: a, {ENDPOINT}, " + route.format("") + "}]") == []
    assert "classify" not in dict(blocks("services: [{name: a, hosts: [a.test], outlierDetection: {}, " + route.format("") + "}]"))
    both = blocks(ejecting + route.format(", concurrency: {maxRequests: 1}") + "}]")
    assert both == [("concurrency.maxRequests", "approximate"), ("concurrency", "approximate")]


def test_a_mirror_and_a_limit() -> None:
    found = blocks(f"services: [{{name: a, {ENDPOINT}, mirror: {{service: a}}, concurrency: {{maxRequests: 1}}}}]")
    assert ("mirror", "approximate") in found
