"""`protocol: GRPC`: the same policy through `resilmesh_grpc.channel` and a real Envoy; and, by name, where they differ on purpose."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_sides import Both, Caller, grpc_sides
from h2.errors import ErrorCodes
from scripted import refusing
from sidebyside import covers

from tests.grpc.grpc_service import HANG, OK, GrpcService, Say, Seen, status
from tests.grpc.protos.shop_pb2 import Order, Receipt
from tests.grpc.raw_http2 import Close, RawHttp2, Read, Reset, Script, answer, failure, html

Shops = dict[str, GrpcService]

REFUSED = [Reset(ErrorCodes.REFUSED_STREAM)]
TEA = answer(Receipt(text="tea"))
EVERY_STATUS = [code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK]
#: Metadata sent before the status: the answer has begun.
BEGUN = (("x-begun", "1"),)


@pytest.fixture(scope="module")
def shops() -> Iterator[Shops]:
    with GrpcService(name="a") as a, GrpcService(name="b") as b:
        yield {"a": a, "b": b}


def policy(blocks: str = "", endpoints: str = '[{address: "$a"}]') -> str:
    return f"""
apiVersion: resilmesh/v1
mesh: {{outbound: REGISTRY_ONLY}}
services:
- name: svc
  protocol: GRPC
  hosts: [svc.test]
  endpoints: {endpoints}
  {blocks}
"""


def often(count: int, call: Callable[[Caller], Any] = Caller.buy) -> Callable[[Caller], None]:
    def traffic(caller: Caller) -> None:
        for _ in range(count):
            call(caller)
            time.sleep(0.03)  # Envoy ejects on its main thread

    return traffic


def raw(shops: Shops, script: Script, blocks: str) -> tuple[Both, list[int]]:
    """One call to a service of raw HTTP/2: what both saw, and how many streams the service saw from each plane."""
    seen: list[int] = []
    with RawHttp2(script) as server:

        def traffic(caller: Caller) -> None:
            server.play(script)
            caller.buy()
            seen.append(len(server.seen))

        both = grpc_sides(shops, policy(blocks, f'[{{address: "{server.address}"}}]'), traffic)
    return both, seen


# ---------------------------------------------------------------------------------------------- retries

WORDS = {
    "cancelled": "CANCELLED", "deadline-exceeded": "DEADLINE_EXCEEDED", "internal": "INTERNAL",
    "resource-exhausted": "RESOURCE_EXHAUSTED", "unavailable": "UNAVAILABLE", "5xx": "", "gateway-error": "", "reset": "", "503": "",
}


@covers("Retries.retry_on", "Match.headers", "Service.protocol", "Retries.idempotent")
def test_every_retry_word_and_every_status_unary_and_streaming(shops: Shops) -> None:
    routes = "".join(
        f"\n  - {{name: on-{word}{suffix}, match: {{headers: {{x-case: '{word}{suffix}'}}}}, "
        f"retries: {{retryOn: [{word}], backoff: {{base: 1ms}}, idempotent: {idempotent}}}}}"
        for word in WORDS for suffix, idempotent in (("", "true"), ("-never", "false"))
    )

    def script(seen: Seen, _before: int) -> Say:
        return status(str(seen.metadata["x-want"]), messages=0)

    def traffic(caller: Caller) -> None:
        for word in WORDS:
            for code in EVERY_STATUS:
                for case in (word, f"{word}-never"):
                    caller.buy(f"{case}/{code}", case=case, metadata=(("x-want", code),))
                caller.watch(1, case=word, metadata=(("x-want", code),))

    both = grpc_sides(shops, policy(f"routes:{routes}"), traffic, a=script)
    both.agree()
    for plane in both:
        sent = [order.text for each in plane.seen["a"] if each.method == "Buy" for order in each.messages]
        assert {
            case: sent.count(f"{case}/{code}") == 2 for case in WORDS for code in EVERY_STATUS if sent.count(f"{case}/{code}") != 1
        } == {case: True for case, code in WORDS.items() if code}
        assert not [text for text in sent if "-never/" in text and sent.count(text) != 1]


@covers("Retries.max_retries", "CallBlocks.retries")
def test_a_retry_succeeds_and_when_they_are_used_up_the_last_status_is_the_answer(shops: Shops) -> None:
    text = policy("retries: {maxRetries: 2, retryOn: [unavailable], backoff: {base: 1ms}}")
    unavailable = status("UNAVAILABLE", trailers=(("x-why", "busy"),))
    both = grpc_sides(shops, text, lambda caller: [caller.buy("x"), caller.watch(2), caller.buy("y")], a=[
        unavailable, unavailable, OK, status("UNAVAILABLE", messages=0), OK, unavailable,
    ])
    both.agree()
    assert both.envoy.codes == ["OK", "OK", "UNAVAILABLE"]
    assert both.envoy.replies[2].trailing == (("x-why", "busy"),)
    assert both.envoy.attempts == 8


@covers("Retries.retry_after", "RetryAfter.max")
def test_a_service_says_when_to_come_back(shops: Shops) -> None:
    text = policy("retries: {maxRetries: 1, retryOn: [unavailable], backoff: {base: 1ms}, retryAfter: {max: 5s}}")
    both = grpc_sides(shops, text, lambda caller: [caller.buy("soon"), caller.buy("never")], a=[
        status("UNAVAILABLE", trailers=(("retry-after", "1"),)), OK, status("UNAVAILABLE", trailers=(("retry-after", "99"),)), OK,
    ])
    both.agree()
    for plane in both:
        soon, never = plane.replies
        assert (soon.code, never.code) == ("OK", "OK")
        assert 0.95 < soon.seconds < 4  # 1.0 to 1.5, and what the machine adds
        assert never.seconds < 3


@covers("Retries.retry_on")
def test_a_stream_that_has_begun_is_not_repeated(shops: Shops) -> None:
    text = policy("retries: {maxRetries: 2, retryOn: [unavailable, reset], idempotent: true}")
    both = grpc_sides(shops, text, lambda caller: caller.watch(5), a=[status("UNAVAILABLE", messages=2), OK])
    both.agree()
    assert (len(both.envoy.replies[0].messages), both.envoy.attempts) == (2, 1)


@covers("CallBlocks.retries")
def test_difference_only_envoy_repeats_a_stream_of_requests_and_only_the_library_what_has_begun_without_a_message(shops: Shops) -> None:
    text = policy("retries: {maxRetries: 2, retryOn: [unavailable], backoff: {base: 1ms}}")
    both = grpc_sides(shops, text, lambda caller: caller.collect("a", "b"), a=[status("UNAVAILABLE"), OK])
    assert (both.library.codes, both.library.attempts) == (["UNAVAILABLE"], 1)
    assert (both.envoy.codes, both.envoy.attempts) == (["OK"], 2)
    both = grpc_sides(shops, text, lambda caller: caller.buy(), a=[status("UNAVAILABLE", initial=BEGUN), OK])
    assert (both.library.codes, both.library.attempts) == (["OK"], 2)
    assert (both.envoy.codes, both.envoy.attempts) == (["UNAVAILABLE"], 1)


@covers("Retries.max_retries")
def test_difference_a_refused_stream_is_sent_again_by_both_and_counted_by_envoy(shops: Shops) -> None:
    both, seen = raw(shops, [REFUSED, TEA], "timeout: 5s")
    both.agree()
    assert (both.envoy.codes, seen) == (["OK"], [2, 2])
    script = [REFUSED, failure(14), TEA]
    both, seen = raw(shops, script, "retries: {maxRetries: 1, retryOn: [unavailable], backoff: {base: 1ms}}")
    assert (both.library.codes, both.envoy.codes, seen) == (["OK"], ["UNAVAILABLE"], [3, 2])


@pytest.mark.parametrize(("lost", "code"), [
    ([Read(), Reset(ErrorCodes.INTERNAL_ERROR)], "INTERNAL"), ([Read(), Close()], "UNAVAILABLE"), (html(503), "UNAVAILABLE"),
], ids=["reset", "close", "html"])
@covers("Retries.retry_on", "Retries.idempotent")
def test_what_was_lost_is_repeated_where_it_is_idempotent(shops: Shops, lost: Any, code: str) -> None:
    """Of a reset grpcio names what its code stands for; to Envoy every lost answer is UNAVAILABLE."""
    for idempotent, attempts in (("true", 2), ("null", 1), ("false", 1)):
        blocks = f"retries: {{maxRetries: 1, retryOn: [5xx, unavailable, 503], idempotent: {idempotent}, backoff: {{base: 1ms}}}}"
        both, seen = raw(shops, [lost, TEA], blocks)
        assert (both.library.codes, both.envoy.codes) == (["OK"], ["OK"]) if attempts == 2 else ([code], ["UNAVAILABLE"])
        assert seen == [attempts] * 2


@covers("Retries.retry_on")
def test_what_another_envoy_throttled_has_a_word_of_its_own(shops: Shops) -> None:
    for word, attempts in (("unavailable", 1), ("envoy-ratelimited", 2)):
        throttled = failure(14, "", ("x-envoy-ratelimited", "true"))
        both, seen = raw(shops, [throttled, TEA], f"retries: {{retryOn: [{word}], backoff: {{base: 1ms}}}}")
        both.agree()
        assert seen == [attempts] * 2


@covers("Retries.retry_on")
def test_a_service_that_is_not_there(shops: Shops) -> None:
    with refusing() as nobody:
        for word in ("unavailable", "connect-failure"):
            text = policy(f"retries: {{maxRetries: 1, retryOn: [{word}], backoff: {{base: 1ms}}}}", f'[{{address: "{nobody}"}}]')
            both = grpc_sides(shops, text, lambda caller: [caller.buy(), caller.watch(1)])
            both.agree()
            assert both.envoy.codes == ["UNAVAILABLE"] * 2


@covers("Retries.backoff")
def test_difference_the_service_says_when_and_only_the_library_listens(shops: Shops) -> None:
    text = policy("retries: {maxRetries: 1, retryOn: [unavailable], backoff: {base: 1ms}}")
    for pushback, codes, attempts in (("300", ["OK"], 2), ("-1", ["UNAVAILABLE"], 1)):
        busy = status("UNAVAILABLE", trailers=(("grpc-retry-pushback-ms", pushback),))
        both = grpc_sides(shops, text, lambda caller: caller.buy(), a=[busy, OK])
        assert (both.library.codes, both.library.attempts) == (codes, attempts)
        assert (both.envoy.codes, both.envoy.attempts) == (["OK"], 2)
        assert both.library.replies[0].seconds >= (0.3 if attempts == 2 else 0)


# ------------------------------------------------------------------------------------------------ times


@covers("CallBlocks.timeout")
def test_difference_the_status_of_a_timeout(shops: Shops) -> None:
    def traffic(caller: Caller) -> None:
        caller.buy()
        caller.watch(2)

    both = grpc_sides(shops, policy("timeout: 300ms"), traffic, a=HANG)
    assert both.library.codes == ["DEADLINE_EXCEEDED"] * 2
    assert both.envoy.codes == ["UNAVAILABLE", "INTERNAL"]
    for plane in both:
        assert len(plane.replies[1].messages) == 2
        assert all(reply.seconds >= 0.29 for reply in plane.replies)
    assert both.library.seen["a"][0].remaining is not None
    assert both.library.seen["a"][0].remaining <= 0.31


@covers("CallBlocks.timeout")
def test_difference_only_the_library_ends_a_stream_that_the_caller_keeps_open(shops: Shops) -> None:
    def talking() -> Iterator[Order]:
        yield Order(text="a")
        time.sleep(0.9)
        yield Order(text="b")

    both = grpc_sides(shops, policy("timeout: 300ms"), lambda caller: caller.call("Chat", talking()))
    assert both.library.codes == ["DEADLINE_EXCEEDED"]
    assert both.envoy.codes == ["OK"]


def test_a_callers_own_deadline(shops: Shops) -> None:
    both = grpc_sides(shops, policy("timeout: 5s"), lambda caller: caller.buy(timeout=0.2), a=HANG)
    both.agree()
    assert both.envoy.codes == ["DEADLINE_EXCEEDED"]


@covers("CallBlocks.idle_timeout")
def test_difference_the_status_of_silence(shops: Shops) -> None:
    def traffic(caller: Caller) -> None:
        caller.buy()
        caller.watch(2)

    both = grpc_sides(shops, policy("idleTimeout: 300ms"), traffic, a=HANG)
    assert both.library.codes == ["DEADLINE_EXCEEDED"] * 2
    assert both.envoy.codes == ["UNAVAILABLE", "INTERNAL"]


@covers("Retries.per_try_timeout")
def test_difference_a_try_that_takes_too_long(shops: Shops) -> None:
    """Repeated by both; to Envoy it has ended with the initial metadata."""
    retries = "{maxRetries: 1, retryOn: [reset], idempotent: true, perTryTimeout: 200ms, backoff: {base: 1ms}}"
    text = policy(f"timeout: 900ms\n  retries: {retries}")
    both = grpc_sides(shops, text, lambda caller: caller.buy(), a=HANG)
    assert (both.library.codes, both.library.attempts) == (["DEADLINE_EXCEEDED"], 2)
    assert (both.envoy.codes, both.envoy.attempts) == (["UNAVAILABLE"], 2)
    both = grpc_sides(shops, text, lambda caller: caller.buy(), a=Say(how="hang", initial=BEGUN))
    assert (both.library.codes, both.library.attempts) == (["DEADLINE_EXCEEDED"], 2)
    assert (both.envoy.codes, both.envoy.attempts) == (["INTERNAL"], 1)


# --------------------------------------------------------------------------------------- limits, outliers


@covers("CallBlocks.rate_limit", "RateLimit.requests")
def test_a_rate_limit_is_resource_exhausted(shops: Shops) -> None:
    text = policy("rateLimit: {requests: 1, per: 1m}")
    both = grpc_sides(shops, text, lambda caller: [caller.buy(), caller.buy(), caller.watch(1)])
    both.agree()
    assert both.envoy.codes == ["OK", "RESOURCE_EXHAUSTED", "RESOURCE_EXHAUSTED"]


@covers("CallBlocks.concurrency")
def test_a_stream_holds_its_slot_until_it_ends(shops: Shops) -> None:
    text = policy("concurrency: {maxRequests: 1}")
    both = grpc_sides(shops, text, lambda caller: caller.together(3, "Watch"), a=Say(gap=0.6))
    both.agree(in_any_order=True)
    assert sorted(both.envoy.codes) == ["OK", "UNAVAILABLE", "UNAVAILABLE"]


@covers("ServiceBlocks.outlier_detection", "OutlierDetection.consecutive_5xx_errors")
def test_every_status_as_outlier_detection_counts_it(shops: Shops) -> None:
    services = "".join(
        f"\n- {{name: {code.lower().replace('_', '-')}, protocol: GRPC, hosts: [{code.lower().replace('_', '-')}.test], "
        "endpoints: [{address: $a}], outlierDetection: {consecutive5xxErrors: 2}}"
        for code in EVERY_STATUS
    )

    def script(seen: Seen, _before: int) -> Say:
        return status(str(seen.metadata["x-want"]))

    def traffic(caller: Caller) -> None:
        for round_ in range(3):
            for code in EVERY_STATUS:
                caller.buy(host=code.lower().replace("_", "-") + ".test", metadata=(("x-want", code),))
            time.sleep(0.1 if round_ else 0)

    both = grpc_sides(shops, f"apiVersion: resilmesh/v1\nservices:{services}", traffic, a=script)
    both.agree()
    ejected = {code for code, last in zip(EVERY_STATUS, both.envoy.details[-len(EVERY_STATUS):], strict=True) if "healthy" in last}
    assert ejected == {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}


@covers("ServiceBlocks.outlier_detection", "CallBlocks.classify", "Classify.failure_statuses")
def test_difference_what_envoy_does_not_count(shops: Shops) -> None:
    begun = policy("outlierDetection: {consecutive5xxErrors: 2}")
    both = grpc_sides(shops, begun, often(3), a=status("UNAVAILABLE", initial=BEGUN))
    assert (both.library.attempts, both.envoy.attempts) == (2, 3)
    classified = policy("outlierDetection: {consecutive5xxErrors: 2}\n  classify: {failureStatuses: [404]}")
    both = grpc_sides(shops, classified, often(3), a=status("NOT_FOUND"))
    assert (both.library.attempts, both.envoy.attempts) == (2, 3)


# ------------------------------------------------------------------------------------- faults and routing

BY_TABLE = {
    400: "INTERNAL", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "UNIMPLEMENTED", 429: "UNAVAILABLE", 500: "UNKNOWN",
    502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "UNAVAILABLE", 409: "UNKNOWN", 204: "UNKNOWN",
}


@covers("CallBlocks.fault", "FaultAbort.http_status", "FaultAbort.grpc_status")
def test_faults_of_every_status(shops: Shops) -> None:
    aborts = {**{f"h{code}": f"httpStatus: {code}" for code in BY_TABLE}, **{f"g{code}": f"grpcStatus: {code}" for code in range(1, 17)}}
    routes = "".join(
        f"\n  - {{name: {name}, match: {{headers: {{x-case: {name}}}}}, fault: {{abort: {{{abort}}}}}}}" for name, abort in aborts.items()
    )

    def traffic(caller: Caller) -> None:
        for name in aborts:
            caller.buy(case=name)
            caller.watch(1, case=name)

    both = grpc_sides(shops, policy(f"retries: {{retryOn: [unavailable]}}\n  routes:{routes}"), traffic)
    both.agree()
    assert both.envoy.codes[::2] == [*BY_TABLE.values(), *EVERY_STATUS]
    assert both.envoy.attempts == 0


@covers("Fault.delay", "FaultDelay.fixed_delay")
def test_a_delay_does_not_eat_the_timeout(shops: Shops) -> None:
    text = policy("timeout: 400ms\n  fault: {delay: {fixedDelay: 500ms}}")
    both = grpc_sides(shops, text, lambda caller: caller.buy())
    both.agree()
    assert both.envoy.codes == ["OK"]
    assert all(plane.replies[0].seconds >= 0.49 for plane in both)


@covers("Match.grpc", "GrpcMatch.service", "GrpcMatch.method", "HeaderChanges.request")
def test_matching_by_service_and_method_and_changed_metadata(shops: Shops) -> None:
    text = policy("""headers: {request: {set: {x-set: new}, add: {x-add: two}, remove: [x-gone]}}
  routes:
  - {name: buy, match: {grpc: {service: resilmesh.test.v1.Shop, method: Buy}, headers: {x-a: {prefix: b}}}, fault: {abort: {grpcStatus: 5}}}
  - {name: other, match: {grpc: {service: resilmesh.test.v1.Other}}, fault: {abort: {grpcStatus: 6}}}
  - {name: watch, match: {grpc: {method: Watch}}, fault: {abort: {grpcStatus: 7}}}
  - {name: collect, match: {path: /resilmesh.test.v1.Shop/Collect}, fault: {abort: {grpcStatus: 8}}}""")

    def traffic(caller: Caller) -> None:
        caller.buy(metadata=(("x-a", "bc"),))
        caller.watch(1)
        caller.collect("a")
        caller.buy(metadata=(("x-set", "old"), ("x-gone", "1")))

    both = grpc_sides(shops, text, traffic)
    both.agree()
    assert both.envoy.codes == ["NOT_FOUND", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "OK"]
    for plane in both:
        (seen,) = plane.seen["a"]
        assert {name: seen.metadata.get(name) for name in ("x-set", "x-add", "x-gone")} == {"x-set": "new", "x-add": "two", "x-gone": None}


@covers("Service.split", "SplitTarget.subset", "SplitTarget.weight")
def test_a_split_by_subset(shops: Shops) -> None:
    text = policy(
        "subsets: [{name: v1, labels: {v: '1'}}, {name: v2, labels: {v: '2'}}]\n"
        "  split: [{subset: v1, weight: 0}, {subset: v2, weight: 1}]",
        '[{address: "$a", labels: {v: "1"}}, {address: "$b", labels: {v: "2"}}]',
    )
    both = grpc_sides(shops, text, often(6))
    both.agree()
    assert [len(both.envoy.seen[name]) for name in "ab"] == [0, 6]


def test_a_host_of_no_service(shops: Shops) -> None:
    both = grpc_sides(shops, policy(), lambda caller: caller.buy(host="other.test"))
    both.agree()
    assert both.envoy.codes == ["UNAVAILABLE"]


# ---------------------------------------------------------------------------------------------- shaping


def calls_seen(server: RawHttp2) -> list[tuple[str, str, bytes]]:
    """Authority, method and body of what a service saw, in any order."""
    return sorted((seen.headers[":authority"], seen.path.rpartition("/")[2], seen.body) for seen in server.seen)


@covers("Service.mirror", "Route.mirror", "Mirror.service", "Rewrite.host", "Rewrite.path")
def test_a_copy_of_what_is_sent_once_per_call_under_another_authority(shops: Shops) -> None:
    copies_seen: list[list[tuple[str, str, bytes]]] = []
    own_seen: list[list[tuple[str, str, bytes]]] = []
    tea, watched = Receipt(text="tea"), answer(*(Receipt(number=number) for number in range(3)))
    with RawHttp2([TEA]) as own, RawHttp2([TEA]) as aside:
        text = policy("""mirror: {service: copies}
  retries: {maxRetries: 2, retryOn: [unavailable], backoff: {base: 1ms}}
  routes:
  - {name: none, match: {headers: {x-case: none}}, mirror: null}
  - {name: moved, match: {path: /resilmesh.test.v1.Shop/Look}, rewrite: {path: /resilmesh.test.v1.Shop/Buy, host: "other.test:81"}}""",
            f'[{{address: "{own.address}"}}]') + f"""
- name: copies
  protocol: GRPC
  endpoints: [{{address: "{aside.address}"}}]
  retries: {{maxRetries: 3, retryOn: [unavailable]}}
  rateLimit: {{requests: 1, per: 1h}}
  fault: {{abort: {{httpStatus: 500}}}}
"""

        def traffic(caller: Caller) -> None:
            own.play([failure(14), failure(14), answer(tea), answer(tea), answer(tea), watched])
            aside.play([failure(14), answer(tea), watched])
            caller.buy("again")
            caller.buy("none", case="none")
            caller.call("Look", Order(text="moved"))
            caller.watch(3)
            end = time.monotonic() + 3
            while len(aside.seen) < 3 and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.1)  # in which one too many would show
            own_seen.append(calls_seen(own))
            copies_seen.append(calls_seen(aside))

        both = grpc_sides(shops, text, traffic)
    both.agree()
    assert both.envoy.codes == ["OK"] * 4
    assert own_seen[0] == own_seen[1]
    assert copies_seen[0] == copies_seen[1]
    assert [(authority, method) for authority, method, _ in copies_seen[1]] == [
        ("other.test-shadow:81", "Buy"), ("svc.test-shadow", "Buy"), ("svc.test-shadow", "Watch"),
    ]
