"""Whose request it is, which route applies, and where it goes: hosts, match, split, endpoints, balancer, mode, outbound."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from h2_service import H2Service
from scripted import OK, Say, Service, status
from sidebyside import Caller, covers, side_by_side

import resilmesh.http
from resilmesh.mesh import Mesh

Services = dict[str, Service]
Request = tuple[str, str, list[tuple[str, str]]]


def routed(services: Services, matches: list[str], requests: list[tuple[Request, int | None]]) -> None:
    """Each match is a route that answers with a status of its own; each request names the index of its route."""
    routes = "\n".join(
        f"  - {{name: r{index}, match: {match}, fault: {{abort: {{httpStatus: {400 + index}}}}}}}" for index, match in enumerate(matches)
    )
    text = f"""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  fault: {{abort: {{httpStatus: 299}}}}
  routes:
{routes}
"""

    def traffic(caller: Caller) -> None:
        for (method, target, headers), _ in requests:
            caller.send(method, target, headers=headers)

    both = side_by_side(services, text, traffic)
    expected = [299 if route is None else 400 + route for _, route in requests]
    for plane in both:
        found = dict(zip([str(request) for request, _ in requests], plane.statuses, strict=True))
        assert found == dict(zip([str(request) for request, _ in requests], expected, strict=True))


def get(target: str, *headers: tuple[str, str]) -> Request:
    return "GET", target, list(headers)


@covers("Service.routes", "Route.match", "Match.method", "Match.path", "PathMatch.exact", "PathMatch.prefix", "PathMatch.regex")
def test_methods_and_paths(services: Services) -> None:
    routed(services, [
        "{method: [PUT, DELETE], path: {prefix: /v}}", "{path: {exact: /exact}}", "{path: {prefix: /v1/res}}",
        "{path: {regex: '/v[0-9]+/x'}}", "[{method: POST}, {path: /either}]", "{path: {prefix: /a%20b}}",
    ], [
        (("PUT", "/v9", []), 0), (("DELETE", "/v1/reservations", []), 0), (("PATCH", "/v9", []), None),
        (get("/exact"), 1), (get("/exact?q=1"), 1), (get("/exact/"), None), (get("/Exact"), None), (get("/exac"), None),
        (get("/v1/res"), 2), (get("/v1/reservations/7"), 2), (get("/v1/re"), None),
        (get("/v2/x"), 3), (get("/v22/x?y"), 3), (get("/v2/xy"), None), (get("/a/v2/x"), None),
        (("POST", "/anything", []), 4), (get("/either"), 4), (get("/"), None), (get("/a%20b/c"), 5),
    ])


@covers("Match.headers", "StringMatch.exact", "StringMatch.prefix", "StringMatch.suffix", "StringMatch.regex", "StringMatch.present")
def test_headers(services: Services) -> None:
    routed(services, [
        "{path: /e, headers: {x-a: One}}", "{path: /p, headers: {x-a: {prefix: ab}}}", "{path: /s, headers: {x-a: {suffix: yz}}}",
        "{path: /r, headers: {x-a: {regex: 'v[0-9]'}}}", "{path: /there, headers: {x-a: {present: true}}}",
        "{path: /not, headers: {x-a: {present: false}}}", "{path: /two, headers: {x-a: '1', x-b: '2'}}",
        "{path: /empty, headers: {x-a: ''}}",
    ], [
        (get("/e", ("X-A", "One")), 0), (get("/e", ("x-a", "one")), None), (get("/e"), None), (get("/e", ("x-a", "One,Two")), None),
        (get("/p", ("x-a", "abc")), 1), (get("/p", ("x-a", "cab")), None),
        (get("/s", ("x-a", "xyz")), 2), (get("/s", ("x-a", "yzx")), None),
        (get("/r", ("x-a", "v1")), 3), (get("/r", ("x-a", "v12")), None),
        (get("/there", ("x-a", "")), 4), (get("/there"), None),
        (get("/not"), 5), (get("/not", ("x-a", "1")), None),
        (get("/two", ("x-a", "1"), ("x-b", "2")), 6), (get("/two", ("x-a", "1")), None),
        (get("/empty", ("x-a", "")), 7), (get("/empty"), None),
        # Of a header that is sent several times one value must match.
        (get("/e", ("x-a", "Two"), ("x-a", "One")), 0), (get("/e", ("x-a", "One, Two")), None),
        (get("/e", ("x-a", "Two"), ("x-a", "Three")), None),
    ])


@covers("Match.query", "StringMatch.exact", "StringMatch.prefix", "StringMatch.suffix", "StringMatch.regex", "StringMatch.present")
def test_query(services: Services) -> None:
    routed(services, [
        "{path: /e, query: {a: One}}", "{path: /p, query: {a: {prefix: ab}}}", "{path: /s, query: {a: {suffix: yz}}}",
        "{path: /r, query: {a: {regex: 'v[0-9]'}}}", "{path: /there, query: {a: {present: true}}}",
        "{path: /not, query: {a: {present: false}}}", "{path: /two, query: {a: '1', b: '2'}}",
        "{path: /coded, query: {a: 'x%20y'}}", "{path: /empty, query: {a: ''}}", "{path: /regex, query: {a: {regex: ''}}}",
    ], [
        (get("/e?a=One"), 0), (get("/e?b=1&a=One"), 0), (get("/e?a=one"), None), (get("/e"), None), (get("/e?a=Two&a=One"), None),
        (get("/e?a=One&a=Two"), 0),
        (get("/p?a=abc"), 1), (get("/p?a=cab"), None), (get("/s?a=xyz"), 2), (get("/s?a=yzx"), None),
        (get("/r?a=v1"), 3), (get("/r?a=v12"), None),
        (get("/there?a"), 4), (get("/there?a="), 4), (get("/there?b"), None), (get("/not?b=1"), 5), (get("/not?a"), None),
        (get("/two?b=2&a=1"), 6), (get("/two?a=1"), None),
        # As it is sent, escapes and all.
        (get("/coded?a=x%20y"), 7), (get("/e?%61=One"), None), (get("/empty?a="), 8), (get("/empty?a"), 8), (get("/empty"), None),
        (get("/regex?a="), 9), (get("/regex?a=1"), None), (get("/regex"), None),
    ])


@covers("Match.grpc", "GrpcMatch.service", "GrpcMatch.method")
def test_grpc(services: Services) -> None:
    # Without a gRPC content type: to a real gRPC request Envoy's abort is a gRPC status.
    grpc: list[tuple[str, str]] = []
    routed(services, [
        "{grpc: {service: shop.v1.Stock, method: Take}}", "{grpc: {service: shop.v1.Stock}}", "{grpc: {method: Take}}",
    ], [
        (("POST", "/shop.v1.Stock/Take", grpc), 0), (("POST", "/shop.v1.Stock/Give", grpc), 1), (("POST", "/other.Stock/Take", grpc), 2),
        (("POST", "/other.Stock/Give", grpc), None), (("GET", "/shop.v1.Stock/Take", grpc), None),
        (("POST", "/shop-v1.Stock/Give", grpc), None), (("POST", "/a/b/Take", grpc), None),
    ])


@covers("Service.routes")
def test_the_first_match_wins(services: Services) -> None:
    routed(services, ["{path: {prefix: /a/b}}", "{path: {prefix: /a}}", "{path: {exact: /a/b/c}}"], [
        (get("/a/b/c"), 0), (get("/a/c"), 1), (get("/b"), None),
    ])


@covers("Service.hosts", "MeshBlock.outbound")
def test_hosts(services: Services) -> None:
    names = {
        401: ["api.test:8080"], 402: ["api.test", "api.test:9090"], 403: ["*.api.test"], 404: ["*.test:81"], 405: ["*.test"],
        406: ["only.test:7777"], 407: ["MiXed.example"], 408: ["[::1]"],
    }
    services_of = "\n".join(
        f"- {{name: s{code}, hosts: [{', '.join(repr(host) for host in hosts)}], fault: {{abort: {{httpStatus: {code}}}}}}}"
        for code, hosts in names.items()
    )
    expected = {
        "api.test:8080": 401, "api.test": 402, "api.test:9090": 402, "api.test:1": 402, "API.test:8080": 401,
        "a.api.test": 403, "a.b.api.test:81": 403, "other.test:81": 404, "other.test": 405, "other.test:80": 405, "other.test:8080": 405,
        "only.test:7777": 406, "only.test:1": 405, "only.test:81": 404, "mixed.EXAMPLE": 407, "[::1]:81": 408, "[::1]": 408,
        "test": 502, "elsewhere.example": 502,
    }

    def traffic(caller: Caller) -> None:
        for host in expected:
            caller.get(host=host)

    both = side_by_side(services, f"apiVersion: resilmesh/v1\nmesh: {{outbound: REGISTRY_ONLY}}\nservices:\n{services_of}\n", traffic)
    for plane in both:
        assert dict(zip(expected, plane.statuses, strict=True)) == expected
    both.agree()
    assert both.envoy.bodies[-1] == ""


@covers("MeshBlock.outbound", "Service.hosts")
def test_port_80_need_not_be_named(services: Services) -> None:
    service = "{name: s, hosts: ['a.test:80'], fault: {abort: {httpStatus: 201}}}"
    text = f"apiVersion: resilmesh/v1\nmesh: {{outbound: REGISTRY_ONLY}}\nservices: [{service}]"

    def traffic(caller: Caller) -> None:
        for host in ("a.test", "a.test:80", "a.test:8080"):
            caller.get(host=host)

    both = side_by_side(services, text, traffic)
    both.agree()
    assert both.envoy.statuses == [201, 201, 502]


@covers("MeshBlock.outbound")
def test_any_host(services: Services) -> None:
    service = "{name: s, hosts: [svc.test], fault: {abort: {httpStatus: 201}}}"
    text = f"apiVersion: resilmesh/v1\nmesh: {{outbound: ALLOW_ANY}}\nservices: [{service}]"
    both = side_by_side(services, text, lambda caller: caller.get("/x", host=services["a"].address), a=status(207))
    both.agree()
    assert (both.envoy.statuses, both.envoy.attempts) == ([207], 1)


@pytest.mark.parametrize("mode", ["OBSERVE", "OFF"])
@covers("MeshBlock.outbound")
def test_registry_only_is_enforced_only_in_enforce(services: Services, mode: str) -> None:
    text = f"apiVersion: resilmesh/v1\nmesh: {{outbound: REGISTRY_ONLY, mode: '{mode}'}}"
    both = side_by_side(services, text, lambda caller: caller.get(host=services["a"].address))
    both.agree()
    assert (both.envoy.statuses, both.envoy.attempts) == ([200], 1)


@covers("Service.hosts", "CallBlocks.concurrency", "CallBlocks.timeout")
def test_a_service_without_endpoints_has_every_limit_too(services: Services) -> None:
    text = f"""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: ["127.0.0.1:{services["a"].port}"]
  timeout: 700ms
  concurrency: {{maxRequests: 2}}
  routes: [{{name: slow, match: {{path: /slow}}, timeout: 200ms, concurrency: null}}]
"""

    def traffic(caller: Caller) -> None:
        caller.together(3, host=services["a"].address)
        caller.get("/slow", host=services["a"].address)

    both = side_by_side(services, text, traffic, a=Say(delay=0.4))
    both.agree(in_any_order=True)
    assert sorted(both.envoy.statuses) == [200, 200, 503, 504]


@covers("Service.hosts")
def test_a_host_for_everything_else(services: Services) -> None:
    text = """
apiVersion: resilmesh/v1
services:
- {name: one, hosts: [svc.test], fault: {abort: {httpStatus: 201}}}
- {name: rest, hosts: ["*"], retries: {maxRetries: 1, retryOn: [5xx]}}
"""

    def traffic(caller: Caller) -> None:
        caller.get()
        caller.get(host=services["a"].address)

    both = side_by_side(services, text, traffic, a=[status(503), OK])
    both.agree()
    assert (both.envoy.statuses, both.envoy.attempts) == ([201, 200], 2)


def _among(text: str) -> str:
    return f"""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  {text}
"""


THREE = 'endpoints: [{address: "$a", labels: {version: v1, zone: x}}, {address: "$b", labels: {version: v2, zone: x}}, ' \
        '{address: "$c", labels: {version: v2, zone: y}}]'


def many(count: int, path: str = "/") -> Callable[[Caller], None]:
    def traffic(caller: Caller) -> None:
        for _ in range(count):
            caller.get(path)

    return traffic


@covers("Service.endpoints", "Endpoint.address", "ServiceBlocks.load_balancer", "LoadBalancer.policy")
def test_round_robin(services: Services) -> None:
    both = side_by_side(services, _among(THREE + "\n  loadBalancer: ROUND_ROBIN"), many(30))
    for plane in both:
        assert {name: len(seen) for name, seen in plane.seen.items()} == {"a": 10, "b": 10, "c": 10}
        assert {each.headers["host"] for seen in plane.seen.values() for each in seen} == {"svc.test"}


@covers("ServiceBlocks.load_balancer", "LoadBalancer.policy")
def test_random(services: Services) -> None:
    both = side_by_side(services, _among(THREE + "\n  loadBalancer: RANDOM"), many(300))
    for plane in both:
        # 100 each are expected; 41 are five standard deviations.
        assert [len(seen) for seen in plane.seen.values()] == pytest.approx([100] * 3, abs=41)
        # In turn, the three would be seen equally often.
        assert len({len(seen) for seen in plane.seen.values()}) > 1


@covers("LoadBalancer.policy")
def test_least_request(services: Services) -> None:
    """Whoever has a slow endpoint drawn sees the other less loaded, while calls overlap."""
    def traffic(caller: Caller) -> None:
        until = time.monotonic() + 1.0

        def work() -> None:
            while time.monotonic() < until:
                caller.get()

        with ThreadPoolExecutor(12) as pool:
            for _ in range(12):
                pool.submit(work)

    slow, quick = Say(delay=0.4), Say(delay=0.01)
    both = side_by_side(services, _among(THREE + "\n  loadBalancer: {policy: LEAST_REQUEST}"), traffic, a=slow, b=quick, c=quick)
    for plane in both:
        assert set(plane.statuses) == {200}
        # In turn, or by chance, it would be a third.
        assert len(plane.seen["a"]) < plane.attempts / 4.5


@covers("Service.subsets", "Subset.name", "Subset.labels", "Endpoint.labels", "Service.split", "SplitTarget.subset", "SplitTarget.weight")
def test_a_split(services: Services) -> None:
    text = _among(THREE + """
  subsets: [{name: old, labels: {version: v1}}, {name: new, labels: {version: v2, zone: y}}, {name: none, labels: {version: v2}}]
  split: [{subset: old, weight: 3}, {subset: new, weight: 1}, {subset: none, weight: 0}]""")
    both = side_by_side(services, text, many(400))
    for plane in both:
        # 300 of 400 are expected; 43 are five standard deviations.
        assert len(plane.seen["a"]) == pytest.approx(300, abs=43)
        assert len(plane.seen["b"]) == 0
        assert len(plane.seen["c"]) == 400 - len(plane.seen["a"])


@covers("Route.split", "SplitTarget.subset", "Subset.labels", "Endpoint.labels")
def test_a_retry_stays_in_its_share(services: Services) -> None:
    text = _among(THREE + """
  subsets: [{name: old, labels: {version: v1}}, {name: new, labels: {version: v2}}]
  retries: {maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}
  routes:
  - {name: canary, match: {path: /canary}, split: [{subset: new, weight: 1}]}
  - {name: stable, match: {path: /stable}, split: [{subset: old, weight: 5}]}""")

    def traffic(caller: Caller) -> None:
        for path in ("/canary", "/canary", "/stable"):
            caller.get(path)

    both = side_by_side(services, text, traffic, a=status(503), b=status(503), c=OK)
    for plane in both:
        assert plane.statuses == [200, 200, 503]
        assert {each.target for each in plane.seen["a"]} == {"/stable"}
        assert len(plane.seen["a"]) == len(plane.seen["c"]) == 2


@covers("Service.split", "ServiceBlocks.outlier_detection")
def test_a_share_whose_endpoints_are_all_out_has_no_other(services: Services) -> None:
    text = _among(THREE + """
  subsets: [{name: old, labels: {version: v1}}]
  split: [{subset: old, weight: 1}]
  outlierDetection: {consecutive5xxErrors: 2}""")
    both = side_by_side(services, text, many(4), a=status(503))
    both.agree()
    assert both.envoy.bodies[2:] == ["no healthy upstream"] * 2
    assert both.envoy.attempts == 2


@covers("Endpoint.address", "Service.endpoints")
def test_an_endpoint_by_name(services: Services) -> None:
    text = _among(f'endpoints: [{{address: "localhost:{services["a"].port}"}}]')
    both = side_by_side(services, text, lambda caller: caller.get("/named"))
    both.agree()
    assert both.envoy.attempts == 1


@covers("Service.protocol")
def test_http2(services: Services) -> None:
    with H2Service() as h2:
        text = _among(f'endpoints: [{{address: "{h2.address}"}}]\n  protocol: HTTP2\n  timeout: 5s')
        both = side_by_side(services, text, lambda caller: caller.get())
        assert h2.requests == 2
    both.agree()
    assert both.envoy.bodies == ["h2"]


@covers("Service.protocol")
def test_difference_under_http1_the_librarys_transport_still_speaks_http2_if_told_to(services: Services) -> None:
    with H2Service() as h2:
        text = _among(f'endpoints: [{{address: "{h2.address}"}}]\n  protocol: HTTP1')
        both = side_by_side(services, text, lambda caller: caller.get(), transport={"http1": False, "http2": True})
    assert both.library.statuses == [200]
    assert both.envoy.statuses in ([502], [503])


@covers("MeshBlock.mode", "Service.mode", "Route.mode")
def test_difference_what_would_have_been_done_is_counted_by_the_library_alone(services: Services) -> None:
    address = services["a"].address
    for level in ("mesh", "service", "route"):
        for mode in ("OBSERVE", "OFF"):
            at = {each: f"mode: '{mode}'" if each == level else "x-mode: ENFORCE" for each in ("mesh", "service", "route")}
            both = side_by_side(services, f"""
apiVersion: resilmesh/v1
mesh: {{{at["mesh"]}}}
services:
- name: svc
  hosts: ["{address}"]
  {at["service"]}
  rateLimit: {{requests: 1, per: 60s}}
  retries: {{maxRetries: 3, retryOn: [5xx]}}
  routes: [{{name: all, {at["route"]}}}]
""", lambda caller: [caller.get(host=address) for _ in range(3)], a=status(503))
            both.agree()
            assert (both.envoy.statuses, both.envoy.attempts) == ([503] * 3, 3)
            assert not [name for name, count in both.envoy.inside.items() if "rateLimit" in name and count]
            routes = both.library.inside["services"]["svc"]["routes"]
            assert mode == "OFF" or routes["all"]["wouldReject"] == {"RateLimited": 2}


@covers("MeshBlock.mode", "Service.mode", "Route.mode")
def test_the_weakest_mode_wins(services: Services) -> None:
    a = services["a"].address
    text = f"""
apiVersion: resilmesh/v1
mesh: {{mode: ENFORCE}}
services:
- name: svc
  hosts: ["{a}"]
  mode: ENFORCE
  fault: {{abort: {{httpStatus: 418}}}}
  routes:
  - {{name: observed, match: {{path: /observed}}, mode: OBSERVE}}
  - {{name: off, match: {{path: /off}}, mode: "OFF"}}
  - {{name: enforced, match: {{path: /enforced}}, mode: ENFORCE}}
"""

    def traffic(caller: Caller) -> None:
        for path in ("/observed", "/off", "/enforced", "/other"):
            caller.get(path, host=a)

    both = side_by_side(services, text, traffic)
    both.agree()
    assert both.envoy.statuses == [200, 200, 418, 418]


@covers("MeshBlock.local_replies")
def test_difference_only_the_library_can_raise(services: Services) -> None:
    text = _among('endpoints: [{address: "$a"}]\n  timeout: 200ms').replace(
        "services:", "mesh: {localReplies: RAISE}\nservices:",
    )
    both = side_by_side(services, text, lambda caller: caller.get(), a=Say(delay=0.6))
    both.agree()  # side_by_side overrides localReplies with RESPOND
    assert both.envoy.statuses == [504]
    services["a"].play(Say(delay=0.6))
    with Mesh.from_text(text.replace("$a", services["a"].address)) as mesh:
        client = httpx.Client(transport=resilmesh.http.Transport(mesh))
        with client, pytest.raises(httpx.ReadTimeout):
            client.get("http://svc.test/")
