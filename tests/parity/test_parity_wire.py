"""What travels: bodies, headers, methods and paths of every kind, and connections that come and go."""

from __future__ import annotations

import time
from collections.abc import Iterator

from scripted import OK, RESET, Say, Seen, Service, refusing, status
from sidebyside import Caller, covers, side_by_side

from resilmesh.envoy.clusters import duration

Services = dict[str, Service]

BIG = b"z" * 1_000_000
ANY = "retries: {maxRetries: 2, retryOn: [5xx], idempotent: true, backoff: {base: 1ms}}"


def policy(more: str = "", address: str = "$a") -> str:
    return f"""
apiVersion: resilmesh/v1
mesh: {{outbound: REGISTRY_ONLY}}
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{{address: "{address}"}}]
  {more}
"""


# ------------------------------------------------------------------------------------------------ bodies


def test_large_bodies_both_ways_and_again(services: Services) -> None:
    def traffic(caller: Caller) -> None:
        caller.post(content=BIG)
        caller.send("PUT", content=BIG)

    script = [status(503), Say(body=BIG), RESET, Say(status=503, body=BIG), Say(status=503, body=BIG)]
    both = side_by_side(services, policy(ANY), traffic, a=script)
    both.agree(tolerance=1.0)
    assert both.envoy.statuses == [200, 503]
    assert [len(each.body) for each in both.envoy.seen["a"]] == [len(BIG)] * 5


def test_a_body_that_is_made_on_the_way(services: Services) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"one"
        yield b"two"

    def traffic(caller: Caller) -> None:
        caller.post(content=pieces())
        caller.post(content=iter(()))

    both = side_by_side(services, policy(ANY), traffic)
    both.agree()
    assert [each.body for each in both.envoy.seen["a"]] == [b"onetwo", b""]


def test_expect_continue(services: Services) -> None:
    def traffic(caller: Caller) -> None:
        caller.post(content=b"body", headers=[("expect", "100-continue")])

    both = side_by_side(services, policy(ANY), traffic, a=[status(503), OK])
    both.agree()
    assert both.envoy.statuses == [200]


def test_answers_without_a_body(services: Services) -> None:
    def traffic(caller: Caller) -> None:
        for _ in range(3):
            caller.send("HEAD")
        for _ in range(4):
            caller.get()

    script = [
        status(503), Say(body=b"x" * 100), *[status(503)] * 3, Say(delay=0.5),
        status(503), Say(status=304, body=b"", headers=(("etag", "x"),)), Say(status=204, body=b""), Say(status=205, body=b""), OK,
    ]
    both = side_by_side(services, policy(f"timeout: 250ms\n  {ANY}"), traffic, a=script)
    both.agree()
    assert both.envoy.statuses == [200, 503, 504, 304, 204, 205, 200]


def test_a_local_reply_to_head(services: Services) -> None:
    def traffic(caller: Caller) -> None:
        caller.send("HEAD")
        caller.send("HEAD", host="nobody.test")

    with refusing() as nobody:
        both = side_by_side(services, policy(ANY, nobody), traffic)
    both.agree()
    assert both.envoy.statuses == [503, 502]


# --------------------------------------------------------------------------------- heads: methods, headers, paths


def test_methods_of_every_kind(services: Services) -> None:
    methods = ["OPTIONS", "TRACE", "REPORT", "M-SEARCH", "PURGE", "BREW"]

    def traffic(caller: Caller) -> None:
        for method in methods:
            caller.send(method)

    both = side_by_side(services, policy(), traffic)
    both.agree()
    assert [each.method for each in both.envoy.seen["a"]] == methods


def test_many_headers_and_long_ones(services: Services) -> None:
    many = tuple((f"x-{number}", "y") for number in range(200))

    def traffic(caller: Caller) -> None:
        caller.get(headers=many)
        caller.get(headers=[("x-long", "y" * 80_000)])
        caller.get("/" + "p" * 60_000 + "?" + "q" * 4_000)

    both = side_by_side(services, policy(), traffic, a=[Say(headers=many), Say(headers=(("x-from", "z" * 80_000),)), OK])
    both.agree()
    assert both.envoy.statuses == [200, 200, 200]
    for plane in both:
        assert plane.replies[1].headers["x-from"] == "z" * 80_000


def test_a_status_that_no_standard_knows_is_no_failure(services: Services) -> None:
    text = policy(f"{ANY}\n  outlierDetection: {{consecutive5xxErrors: 1}}")
    both = side_by_side(services, text, lambda caller: [caller.get() for _ in range(2)], a=[status(600), status(999)])
    both.agree()
    assert both.envoy.statuses == [600, 999]


def _matching(conditions: list[str]) -> str:
    return policy("routes:" + "".join(
        f"\n  - {{name: r{index}, match: {{headers: {{{condition}}}}}, fault: {{abort: {{httpStatus: {400 + index}}}}}}}"
        for index, condition in enumerate(conditions)
    ))


@covers("Match.headers")
def test_header_values_beyond_ascii_are_bytes(services: Services) -> None:
    conditions = ["x-a: caf\xe9", "x-b: {regex: 'caf.'}", "x-c: {suffix: \xe9}", "x-d: {regex: 'caf..'}"]
    values = ["caf\xe9".encode(), "caf\xe9".encode("latin-1")]

    def traffic(caller: Caller) -> None:
        for name in ("x-a", "x-b", "x-c", "x-d"):
            for value in values:
                caller.get(headers=[(name, value)])

    both = side_by_side(services, _matching(conditions), traffic)
    both.agree()
    assert both.envoy.statuses == [400, 200, 200, 401, 402, 200, 403, 200]


@covers("Match.headers")
def test_difference_headers_that_envoy_handles_itself(services: Services) -> None:
    """The notes name them: of the connection, or kept as one value."""

    def traffic(caller: Caller) -> None:
        caller.get(headers=[("keep-alive", "timeout=5")])
        caller.get(headers=[("accept", "text/a"), ("accept", "text/b")])

    both = side_by_side(services, _matching(["keep-alive: {present: true}", "accept: text/a"]), traffic)
    assert both.library.statuses == [400, 401]
    assert both.envoy.statuses == [200, 200]


ODD_PATHS = [
    "//", "//a", "/a//b", "/a/./b", "/a/../b", "/%2e%2e/a", "/a%2fb", "/a%2Fb", "/a%5Cb", "/%00", "/%zz", "/a%", "/caf%C3%A9", "/caf\xe9",
    "/a b", "/a+b", "/??", "/a?b?c", "/a?b#c", "/a;b=c", "/:a", "/@", "/~", "/[x]", "/{x}", "/|", '/"', "/*", "/a?b=%20", "/a?b=c d",
]


def test_odd_paths_arrive_as_they_are_and_find_their_routes(services: Services) -> None:
    exact = ["//", "/a//b", "/a/../b", "/%2e%2e/a", "/a%2fb", "/a%2Fb", "/caf%C3%A9", "/a%20b", "/a+b", "/a/b"]
    routes = "".join(
        f"\n  - {{name: r{index}, match: {{path: '{path}'}}, fault: {{abort: {{httpStatus: {400 + index}}}}}}}"
        for index, path in enumerate(exact)
    )

    def traffic(caller: Caller) -> None:
        for path in ODD_PATHS:
            caller.get(path)

    both = side_by_side(services, policy(f"routes:{routes}"), traffic)
    both.agree()
    assert {400, 401, 406, 407} <= set(both.envoy.statuses)
    assert [each.target for each in both.library.seen["a"]] == [each.target for each in both.envoy.seen["a"]]


def test_hosts_however_they_are_written(services: Services) -> None:
    hosts = {
        "svc.test": 200, "SVC.TEST": 200, "svc.test:80": 200, "Svc.test:8080": 200,
        "svc.test.": 502, "svc.test.:80": 502, "x.svc.test": 502,
    }

    def traffic(caller: Caller) -> None:
        for host in hosts:
            caller.get(host=host)

    both = side_by_side(services, policy(), traffic)
    both.agree()
    assert dict(zip(hosts, both.envoy.statuses, strict=True)) == hosts


# ------------------------------------------------------------------------------------------- connections


@covers("Endpoint.address")
def test_an_ipv6_endpoint(services: Services) -> None:
    with Service("::1") as service:
        both = side_by_side({**services, "v6": service}, policy(ANY, "$v6"), lambda caller: caller.post(content=b"x"), v6=[status(503), OK])
    both.agree()
    assert (both.envoy.statuses, both.envoy.attempts) == ([200], 2)


def test_a_service_that_goes_away_and_comes_back(services: Services) -> None:
    """Refused, there, gone in the middle of it, and there again."""
    with refusing() as nobody:
        port = int(nobody.rpartition(":")[2])
    seen: list[list[Seen]] = []

    def traffic(caller: Caller) -> None:
        for _ in range(2):
            caller.get()
            with Service(port=port) as service:
                caller.post(content=b"x")
                caller.get()
            seen.append(service.seen)
        caller.get()

    both = side_by_side(services, policy(ANY, nobody), traffic)
    both.agree()
    assert both.envoy.statuses == [503, 200, 200, 503, 200, 200, 503]
    assert list(map(len, seen)) == [2, 2, 2, 2]


def test_an_endpoint_that_dies_is_worked_around(services: Services) -> None:
    text = policy(ANY).replace("endpoints: [", 'endpoints: [{address: "$b"}, ')
    count = 12

    def script(_seen: Seen, before: int) -> Say:
        return OK if before < 2 else RESET

    both = side_by_side(services, text, lambda caller: [caller.get() for _ in range(count)], a=script)
    for plane in both:
        assert plane.statuses == [200] * count


def test_connections_that_the_service_closes_between_requests(services: Services) -> None:
    def traffic(caller: Caller) -> None:
        for _ in range(4):
            caller.get()
            time.sleep(0.05)  # without it, request and end of the connection meet on the way, as they do without a policy

    both = side_by_side(services, policy(), traffic, a=Say(how="last"))
    both.agree()
    assert both.envoy.statuses == [200] * 4


# ------------------------------------------------------------------------------------------- durations


@covers("CallBlocks.timeout", "Retries.per_try_timeout")
def test_less_than_a_millisecond_is_a_limit_too(services: Services) -> None:
    """Envoy counts milliseconds, and takes none for no limit."""
    assert [duration(seconds) for seconds in (0, 0.0004, 0.001, 0.0015)] == ["0s", "0.001s", "0.001s", "0.0015s"]
    for block in ("timeout: 500us", "retries: {maxRetries: 1, retryOn: [5xx], perTryTimeout: 500us, backoff: {base: 1ms}}"):
        both = side_by_side(services, policy(block), lambda caller: caller.get(), a=Say(delay=0.5))
        assert both.library.statuses == both.envoy.statuses == [504]
