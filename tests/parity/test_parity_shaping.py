"""headers, rewrite, mirror and classify: what is sent, what comes back, who gets a copy, and what counts as a failure."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from scripted import OK, RESET, Say, Seen, Service, status
from sidebyside import Both, Caller, covers, side_by_side

from tests.timing import in_time

Services = dict[str, Service]
Traffic = Callable[[Caller], object]


def policy(blocks: str) -> str:
    return f"""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{{address: "$a"}}]
  {blocks}
"""


def arrived(both: Both, service: str = "a") -> list[dict[str, str]]:
    """The headers of each request that ``service`` saw, which are the same in both planes but for each plane's own."""
    def own(seen: Seen) -> dict[str, str]:
        return {name: value for name, value in seen.headers.items() if name.startswith(("x-", "host", "cookie")) and name not in (
            "x-forwarded-proto", "x-forwarded-for", "x-request-id",
        ) and not name.startswith("x-envoy")}

    library, envoy = ([own(each) for each in plane.seen[service]] for plane in both)
    assert library == envoy
    return envoy


def gets(*paths: str, **more: object) -> Traffic:
    def traffic(caller: Caller) -> None:
        for path in paths:
            caller.get(path, **more)

    return traffic


# ------------------------------------------------------------------------------------------------- headers


@covers("CallBlocks.headers", "HeaderChanges.request", "HeaderOperations.set", "HeaderOperations.add", "HeaderOperations.remove")
def test_request_headers_are_removed_then_set_then_added(services: Services) -> None:
    """Once per call: the retry sends the same."""
    text = policy("""retries: {maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}
  headers:
    request:
      remove: [x-gone, x-both, x-not-there]
      set: {x-both: "100% %REQ(x-a)%", x-set: "%20", x-empty: "", x-word: "café"}
      add: {x-both: more, x-set: added, x-there: "2", x-new: "1", cookie: c=2}""")
    sent = [("x-gone", "1"), ("X-Gone", "2"), ("x-both", "b"), ("x-set", "s"), ("x-there", "1"), ("x-a", "a"), ("Cookie", "c=1")]
    both = side_by_side(services, text, gets("/", headers=sent), a=[status(503), OK])
    both.agree()
    expected = {
        "host": "svc.test", "x-both": "100% %REQ(x-a)%,more", "x-set": "%20,added", "x-empty": "",
        "x-word": "café".encode().decode("latin-1"),
        "x-there": "1,2", "x-new": "1", "x-a": "a", "cookie": "c=1,c=2",
    }
    assert arrived(both) == [expected, expected]


@covers("CallBlocks.headers", "HeaderOperations.set", "HeaderOperations.add", "HeaderOperations.remove")
def test_response_headers_are_removed_then_set_then_added(services: Services) -> None:
    """After the retries have looked at them, and whatever the status is."""
    text = policy("""retries: {maxRetries: 1, retryOn: [404], backoff: {base: 1ms}, retryAfter: {max: 5s}}
  headers:
    response: {remove: [retry-after, x-from], set: {content-type: "text/plain; 5%"}, add: {x-from: policy, x-twice: "2", x-new: "1"}}""")
    answer = status(404, headers=(("retry-after", "1"), ("x-from", "a"), ("X-From", "b"), ("content-type", "text/html"), ("x-twice", "1")))
    both = side_by_side(services, text, gets("/"), a=[answer, answer, OK])
    both.agree(tolerance=0.75)  # either waits up to half a second longer than it is asked to
    (reply,) = both.envoy.replies
    assert reply.status == 404
    assert reply.seconds >= 0.95
    assert reply.headers == {
        "content-length": "16", "content-type": "text/plain; 5%", "x-from": "policy", "x-twice": "1, 2", "x-new": "1",
    }


@covers("CallBlocks.headers")
def test_the_nearest_headers_block_wins_whole(services: Services) -> None:
    text = """
apiVersion: resilmesh/v1
defaults: {headers: {request: {set: {x-level: defaults}}, response: {set: {x-from: defaults}}}}
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{address: "$a"}]
  routes:
  - {name: own, match: {path: /own}, headers: {request: {set: {x-level: route}}}}
  - {name: none, match: {path: /none}, headers: null}
- {name: other, hosts: [other.test], endpoints: [{address: "$a"}], headers: {response: {add: {x-from: service}}}}
"""

    def traffic(caller: Caller) -> None:
        gets("/", "/own", "/none")(caller)
        caller.get("/", host="other.test")

    both = side_by_side(services, text, traffic)
    both.agree()
    assert [each.get("x-level") for each in arrived(both)] == ["defaults", "route", None, None]
    assert [each.headers.get("x-from") for each in both.envoy.replies] == ["defaults", None, None, "service"]


@covers("CallBlocks.headers", "HeaderOperations.set")
def test_matches_limits_and_the_idempotency_rule_look_at_what_the_caller_sent(services: Services) -> None:
    text = policy("""routes:
  - {name: r, match: {headers: {x-kind: new}}, timeout: 1ms}
  - name: s
    rateLimit: {requests: 1, per: 1h, descriptor: {header: x-kind}}
    retries: {retryOn: [5xx], backoff: {base: 1ms}}
    headers: {request: {set: {x-kind: new, idempotency-key: k}}}""")

    def traffic(caller: Caller) -> None:
        for kind in ("a", "b", "a"):
            caller.post("/", content=b"x", headers=[("x-kind", kind)])

    both = side_by_side(services, text, traffic, a=status(503))
    both.agree()
    assert both.envoy.statuses == [503, 503, 429]
    assert both.envoy.attempts == 2


@covers("HeaderChanges.response")
def test_difference_envoy_changes_the_answers_it_makes_itself(services: Services) -> None:
    text = policy("""headers: {response: {set: {x-from: policy}}}
  routes:
  - {name: fault, match: {path: /fault}, fault: {abort: {httpStatus: 418}}}
  - {name: limit, match: {path: /limit}, rateLimit: {requests: 1, per: 1h}}
  - {name: late, match: {path: /late}, timeout: 50ms}
  - {name: reset, match: {path: /reset}}""")

    def script(seen: Seen, _before: int) -> Say:
        return RESET if seen.target == "/reset" else Say(delay=0.2) if seen.target == "/late" else OK

    both = side_by_side(services, text, gets("/", "/fault", "/limit", "/limit", "/late", "/reset"), a=script)
    assert both.library.statuses == both.envoy.statuses == [200, 418, 200, 429, 504, 503]
    assert [each.headers.get("x-from") for each in both.library.replies] == ["policy", None, "policy", None, None, None]
    assert [each.headers.get("x-from") for each in both.envoy.replies] == ["policy"] * 6


# ------------------------------------------------------------------------------------------------- rewrite


def targets(both: Both) -> list[str]:
    assert both.library.requests() == both.envoy.requests()
    return [each.target for each in both.envoy.seen["a"]]


@covers("Service.rewrite", "Route.rewrite", "Rewrite.path")
def test_a_path_takes_the_place_of_what_the_condition_matched(services: Services) -> None:
    text = policy("""rewrite: {path: /all/}
  routes:
  - {name: prefix, match: {path: {prefix: /v1/}}, rewrite: {path: /v2/}}
  - {name: exact, match: [{path: /one}, {path: {prefix: /many}, method: GET}, {path: {regex: "/x.*y"}}], rewrite: {path: "/b%20%%"}}
  - {name: anywhere, match: {headers: {x-a: {present: true}}}, rewrite: {path: /a/b}}
  - {name: grpc, match: {grpc: {service: shop.Stock}}, rewrite: {path: /v3/}}
  - {name: strange, match: {path: /strange}, rewrite: {path: "/<>`{d}|^~"}}
  - {name: slashes, match: {path: {prefix: /s}}, rewrite: {path: /}}
  - {name: kept, match: {path: {prefix: /kept}}, rewrite: null}""")

    def traffic(caller: Caller) -> None:
        gets("/strange?q=<", "/s/a", "/s")(caller)
        gets("/v1/a/v1/?q=/v1/", "/v1/", "/v1//a", "/one?q", "/many/more?q=1", "/xandy", "/xandy?q=y", "/kept", "/", "/v1")(caller)
        caller.get("/t/u?q", headers=[("x-a", "")])
        caller.post("/shop.Stock/Take", content=b"x")
        caller.post("/many", content=b"x")

    both = side_by_side(services, text, traffic)
    both.agree()
    assert targets(both) == [
        "/%3C%3E%60%7Bd%7D|^~?q=%3C", "//a", "/", "/v2/a/v1/?q=/v1/", "/v2/", "/v2//a", "/b%20%%?q", "/b%20%%/more?q=1",
        "/b%20%%", "/b%20%%?q=y",
        "/kept", "/all/", "/all/v1", "/a/bt/u?q", "/v3/shop.Stock/Take", "/all/many",
    ]


@covers("Rewrite.path_regex", "PathRegexRewrite.match")
@pytest.mark.parametrize(("match", "by", "expected"), [
    ("o", "0", ["/f00/b00?q=o", "/a/1/2", "/f00f00%20"]),
    ("^/(a)/(.*)$$", r"/\\2/\\1/\\0", ["/foo/boo?q=o", "/1/2/a//a/1/2", "/foofoo%20"]),
    ("/(a)?(foo)?", r"/[\\1|\\2]%\\\\é",
     ["/[|foo]%\\%C3%A9/[|]%\\%C3%A9boo?q=o", "/[a|]%\\%C3%A9/[|]%\\%C3%A91/[|]%\\%C3%A92", "/[|foo]%\\%C3%A9foo%20"]),
    ("/foo", "/<#>`{é d}", ["/%3C%23%3E%60%7B%C3%A9%20d%7D/boo?q=o", "/a/1/2", "/%3C%23%3E%60%7B%C3%A9%20d%7Dfoo%20"]),
    ("(?i)/FOO", "/X", ["/X/boo?q=o", "/a/1/2", "/Xfoo%20"]),
    ("o*$$", "!", None), ("o*", "/-", None), (r"\\b", "/", None), ("(o|)", r"/\\1", None), ("[^/]*", "/x", None),
])
def test_every_find_of_an_expression_is_replaced(services: Services, match: str, by: str, expected: list[str] | None) -> None:
    """RE2 in both; also where it finds the empty text."""
    text = policy(f'rewrite: {{pathRegex: {{match: "{match}", rewrite: "{by}"}}}}')
    both = side_by_side(services, text, gets("/foo/boo?q=o", "/a/1/2", "/foofoo%20"))
    both.agree()
    assert expected is None or targets(both) == expected


@covers("PathRegexRewrite.rewrite")
def test_difference_a_path_without_its_slash_or_with_dots(services: Services) -> None:
    text = policy('rewrite: {pathRegex: {match: "^/a", rewrite: ""}}')
    both = side_by_side(services, text, gets("/a/b", "/ab", "/a?q=1"))
    assert [each.target for each in both.library.seen["a"]] == ["/b", "/b", "/?q=1"]
    assert [each.target for each in both.envoy.seen["a"]] == ["/b", "b", "/a?q=1"]
    both = side_by_side(services, policy('rewrite: {pathRegex: {match: "up", rewrite: ".."}}'), gets("/a/up/b"))
    assert [each.target for plane in both for each in plane.seen["a"]] == ["/b", "/a/../b"]


@covers("Rewrite.host", "Route.rewrite")
def test_another_host(services: Services) -> None:
    text = policy("""retries: {retryOn: [5xx], backoff: {base: 1ms}}
  rewrite: {host: "Other.test:8443"}
  routes:
  - {name: both, match: {path: {prefix: /v1}}, rewrite: {host: plain.test, path: /v2}}
  - {name: kept, match: {path: /kept}, rewrite: null}""")

    def traffic(caller: Caller) -> None:
        gets("/", "/v1/a", "/kept")(caller)
        caller.get("/", host="svc.test:81")

    both = side_by_side(services, text, traffic, a=[status(503), OK])
    both.agree()
    assert [each["host"] for each in arrived(both)] == ["Other.test:8443", "Other.test:8443", "plain.test", "svc.test", "Other.test:8443"]


# -------------------------------------------------------------------------------------------------- mirror


def mirroring(blocks: str, of_copies: str = "") -> str:
    return policy(blocks) + f"""
- name: copies
  endpoints: [{{address: "$b", labels: {{at: b}}}}, {{address: "$c", labels: {{at: c}}}}]
  subsets: [{{name: b, labels: {{at: b}}}}, {{name: c, labels: {{at: c}}}}]
  {of_copies}
"""


def copied(services: Services, traffic: Traffic, copies: int, at_most: float = 3.0) -> Traffic:
    """The traffic, and then until the copies are there; a moment more would show one too many."""
    def until(caller: Caller) -> None:
        traffic(caller)
        end = time.monotonic() + at_most
        while len(services["b"].seen) + len(services["c"].seen) < copies and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.1)

    return until


def copies(both: Both) -> list[list[tuple[str, str, str, bytes]]]:
    """Of each plane the method, host, target and body of the copies."""
    return [
        sorted((each.method, each.headers["host"], each.target, each.body) for name in "bc" for each in plane.seen[name]) for plane in both
    ]


def agree_but_for_copies(both: Both) -> None:
    """Which endpoint gets a copy is each plane's own turn."""
    library, envoy = both
    assert library.replies == envoy.replies
    assert library.requests()["a"] == envoy.requests()["a"]


@covers("Service.mirror", "Route.mirror", "Mirror.service", "Mirror.percent")
def test_a_copy_of_what_is_sent_once_per_call(services: Services) -> None:
    text = mirroring("""mirror: {service: copies}
  retries: {maxRetries: 2, retryOn: [5xx], idempotent: true, backoff: {base: 1ms}}
  headers: {request: {set: {x-set: "1"}, remove: [x-gone]}, response: {set: {x-from: policy}}}
  routes:
  - {name: none, match: {path: /none}, mirror: null}
  - {name: never, match: {path: /never}, mirror: {service: copies, percent: 0}}
  - {name: moved, match: {path: {prefix: /v1}}, rewrite: {path: /v2, host: "other.test:81"}}""",
        "retries: {maxRetries: 3, retryOn: [5xx]}\n  rateLimit: {requests: 1, per: 1h}\n  fault: {abort: {httpStatus: 500}}")

    def calls(caller: Caller) -> None:
        caller.get("/a?q=1", headers=[("x-gone", "1")])
        caller.post("/b", content=b"x" * 3000, host="svc.test:8080")
        gets("/none", "/never", "/v1/c")(caller)

    both = side_by_side(services, text, copied(services, calls, 3), a=[status(503), status(503), OK], b=status(503), c=RESET)
    agree_but_for_copies(both)
    assert both.envoy.statuses == [200] * 5
    assert len(both.envoy.seen["a"]) == 7
    library, envoy = copies(both)
    assert library == envoy == [
        ("GET", "other.test-shadow:81", "/v2/c", b""), ("GET", "svc.test-shadow", "/a?q=1", b""),
        ("POST", "svc.test-shadow:8080", "/b", b"x" * 3000),
    ]
    for plane in both:
        assert all(each.headers["x-set"] == "1" and "x-gone" not in each.headers for name in "bc" for each in plane.seen[name])


@covers("Mirror.service")
def test_nobody_waits_for_a_copy(services: Services) -> None:
    """Slow, failing or refused: the caller sees nothing of it."""
    both = side_by_side(services, mirroring("mirror: {service: copies}"), copied(services, gets("/", "/", "/", "/"), 4),
                        b=Say(delay=0.6), c=RESET)
    agree_but_for_copies(both)
    assert both.envoy.statuses == [200] * 4
    for plane in both:
        in_time(max(each.seconds for each in plane.replies), 0.3)
        assert [len(plane.seen[name]) for name in "bc"] == [2, 2]


@covers("Mirror.service")
def test_no_copy_of_what_is_not_sent(services: Services) -> None:
    text = mirroring("""mirror: {service: copies}
  routes:
  - {name: limit, match: {path: /limit}, rateLimit: {requests: 1, per: 1h}}
  - {name: fault, match: {path: /fault}, fault: {abort: {httpStatus: 503}}}""")
    both = side_by_side(services, text, copied(services, gets("/limit", "/limit", "/fault", "/"), 2))
    agree_but_for_copies(both)
    assert both.envoy.statuses == [200, 429, 503, 200]
    library, envoy = copies(both)
    assert [target for _, _, target, _ in library] == [target for _, _, target, _ in envoy] == ["/", "/limit"]


@covers("Mirror.service")
def test_copies_have_the_other_services_ejections_and_limit(services: Services) -> None:
    text = mirroring("mirror: {service: copies, subset: b}", "outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 60s}")

    def in_turn(caller: Caller) -> None:
        for number in range(4):
            copied(services, gets("/"), min(number + 1, 2))(caller)

    both = side_by_side(services, text, in_turn, b=status(503))
    agree_but_for_copies(both)
    assert [len(plane.seen["b"]) for plane in both] == [2, 2]
    text = mirroring("mirror: {service: copies}", "concurrency: {maxRequests: 1}")
    both = side_by_side(services, text, copied(services, gets("/", "/", "/"), 1), b=Say(delay=0.5), c=Say(delay=0.5))
    agree_but_for_copies(both)
    assert [len(each) for each in copies(both)] == [1, 1]


@covers("Mirror.service")
def test_a_copy_ends_with_the_time_of_its_call(services: Services) -> None:
    """The first copy, which is never answered, holds the only slot until then."""
    text = mirroring("mirror: {service: copies}\n  timeout: 300ms", "concurrency: {maxRequests: 1}")

    def calls(caller: Caller) -> None:
        copied(services, gets("/first", "/none"), 1)(caller)
        time.sleep(0.4)
        copied(services, gets("/second"), 2)(caller)

    both = side_by_side(services, text, calls, b=Say(delay=1), c=Say(delay=1))
    agree_but_for_copies(both)
    assert [[target for _, _, target, _ in each] for each in copies(both)] == [["/first", "/second"]] * 2


@covers("Mirror.service")
def test_difference_a_streamed_body_is_copied_by_envoy_alone(services: Services) -> None:
    def body() -> Iterator[bytes]:
        yield from (b"x" * 1000, b"y" * 1000)

    both = side_by_side(services, mirroring("mirror: {service: copies}"),
                        copied(services, lambda caller: caller.send("PUT", content=body()), 1, at_most=0.3))
    agree_but_for_copies(both)
    library, envoy = copies(both)
    assert library == []
    assert envoy == [("PUT", "svc.test-shadow", "/", b"x" * 1000 + b"y" * 1000)]


@covers("Mirror.subset")
def test_difference_the_subset_of_a_mirror_has_ejections_of_its_own(services: Services) -> None:
    """A call to the service itself finds the endpoint ejected in the library, and not in Envoy."""
    text = mirroring("mirror: {service: copies, subset: b}", """hosts: [copies.test]
  split: [{subset: b, weight: 1}]
  outlierDetection: {consecutive5xxErrors: 1, baseEjectionTime: 60s}""")

    def traffic(caller: Caller) -> None:
        copied(services, gets("/"), 1)(caller)
        caller.get("/itself", host="copies.test")

    both = side_by_side(services, text, traffic, b=[status(503), OK])
    assert both.library.statuses == [200, 503]
    assert both.envoy.statuses == [200, 200]
    assert not any(plane.seen["c"] for plane in both)


# ------------------------------------------------------------------------------------------------ classify


def one_by_one(*paths: str) -> Traffic:
    """With a pause: Envoy ejects in another thread than the one that counts, and a busy machine lets a call slip by."""
    def traffic(caller: Caller) -> None:
        for path in paths:
            caller.get(path)
            time.sleep(0.01)

    return traffic


@pytest.mark.parametrize(("blocks", "answers", "sent"), [
    ("classify: {failureStatuses: [404, 429]}", [status(404), status(500), status(429)], 3),
    ("classify: {failureStatuses: [404]}", [status(404), OK, status(404), status(404), status(503)], 5),
    ("classify: {successStatuses: [503, 500]}", [status(503), status(500), status(503), status(502), status(502), status(502)], 6),
    ("classify: {successStatuses: [503]}", [RESET, status(503), RESET, RESET, RESET], 5),
    ("classify: {failureHeaders: {x-f: {present: true}, x-g: bad}}",
     [Say(headers=(("x-f", ""),)), Say(headers=(("X-G", "good"), ("x-g", "bad"))), Say(headers=(("x-g", "bad"),)), OK], 3),
    ("classify: {failureHeaders: {x-g: bad}}",
     [Say(headers=(("x-g", "bad, bad"),)), Say(headers=(("x-g", "Bad"),)), *[status(502)] * 3], 5),
    ("classify: {failureHeaders: {x-ok: {present: false}}}", [Say(headers=(("x-ok", ""),)), OK, OK, OK], 4),
    ("classify: {successStatuses: [503], failureHeaders: {x-f: {prefix: b}}}",
     [Say(503, headers=(("x-f", "a"),)), *[Say(503, headers=(("x-f", "b"),))] * 3], 4),
])
@pytest.mark.parametrize("count", ["consecutive5xxErrors: 3", "consecutive5xxErrors: null, consecutiveGatewayErrors: 3"])
def test_what_counts_towards_ejection(services: Services, blocks: str, answers: list[Say], sent: int, count: str) -> None:
    text = policy(f"outlierDetection: {{{count}, baseEjectionTime: 60s}}\n  {blocks}")
    both = side_by_side(services, text, one_by_one(*["/"] * 8), a=answers)
    both.agree()
    if count == "consecutive5xxErrors: 3":
        assert both.envoy.attempts == sent


@covers("CallBlocks.classify", "Classify.failure_statuses", "Classify.success_statuses", "Classify.failure_headers")
def test_every_rule_of_one_block(services: Services) -> None:
    text = policy("""outlierDetection: {consecutive5xxErrors: 4, baseEjectionTime: 60s}
  classify: {failureStatuses: [404], successStatuses: [503], failureHeaders: {x-f: {present: true}}}""")
    answers = [status(404), status(503), Say(headers=(("x-f", "1"),)), Say(503, headers=(("x-f", "1"),)), status(404), status(500)]
    both = side_by_side(services, text, one_by_one(*["/"] * 8), a=answers)
    both.agree()
    assert both.envoy.attempts == 6


@covers("Classify.success_statuses", "Classify.failure_statuses")
@pytest.mark.parametrize(("retry_on", "answer", "attempts"), [
    ("[5xx]", status(503), 1), ("[gateway-error]", status(503), 1), ("[5xx, 503]", status(503), 2),
    ("[gateway-error, reset]", status(502), 2),
    ("[5xx]", status(500), 2), ("[5xx]", RESET, 2), ("[gateway-error]", RESET, 2), ("[gateway-error]", status(500), 1),
    ("[5xx]", status(404), 1), ("[404]", status(404), 2), ("[5xx]", Say(503, headers=(("x-f", "1"),)), 1),
    ("[5xx]", Say(200, headers=(("x-f", "1"),)), 1), ("[5xx]", Say(503, headers=(("x-envoy-ratelimited", "1"),)), 1),
    ("[5xx]", Say(delay=0.3), 2), ("[5xx, connect-failure, retriable-4xx]", status(409), 2), ("[retriable-4xx]", status(409), 2),
])
def test_a_retry_is_still_a_matter_of_retry_on(services: Services, retry_on: str, answer: Say, attempts: int) -> None:
    text = policy(f"""retries: {{maxRetries: 1, retryOn: {retry_on}, perTryTimeout: 150ms, backoff: {{base: 1ms}}}}
  classify: {{failureStatuses: [404], successStatuses: [503], failureHeaders: {{x-f: {{present: true}}}}}}""")
    both = side_by_side(services, text, gets("/"), a=answer)
    both.agree()
    assert both.envoy.attempts == attempts


@covers("CallBlocks.classify")
def test_a_route_classifies_for_itself(services: Services) -> None:
    text = policy("""outlierDetection: {consecutive5xxErrors: 2, baseEjectionTime: 60s}
  classify: {failureStatuses: [404]}
  routes:
  - {name: plain, match: {path: /plain}, classify: null}
  - {name: own, match: {path: /own}, classify: {failureStatuses: [400]}}""")

    def script(seen: Seen, _before: int) -> Say:
        return status(400) if seen.target == "/own" else status(404)

    both = side_by_side(services, text, one_by_one(*["/plain"] * 3, *["/own"] * 3), a=script)
    both.agree()
    assert both.envoy.statuses == [404] * 3 + [400, 400, 503]
