"""rateLimit, concurrency, retryBudget: what is refused, and who shares the limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from scripted import OK, Say, Seen, Service, status
from sidebyside import Caller, covers, side_by_side

from tests.timing import in_time

Services = dict[str, Service]

LIMITED = (429, "local_rate_limited")
OVERFLOW = (503, "upstream connect error or disconnect/reset before headers. reset reason: overflow")


def policy(blocks: str) -> str:
    return f"""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{{address: "$a"}}]
  {blocks}
"""


@covers("CallBlocks.rate_limit", "RateLimit.requests", "RateLimit.per")
def test_a_full_bucket_and_an_empty_one(services: Services) -> None:
    text = policy("rateLimit: {requests: 3, per: 60s}\n  retries: {maxRetries: 3, retryOn: [429]}")

    def traffic(caller: Caller) -> None:
        for _ in range(5):
            caller.get()

    both = side_by_side(services, text, traffic)
    both.agree()
    assert both.envoy.statuses == [200, 200, 200, 429, 429]
    assert (both.envoy.replies[3].status, both.envoy.replies[3].body) == LIMITED


@covers("RateLimit.requests", "RateLimit.per", "RateLimit.burst")
def test_tokens_flow_in_one_by_one(services: Services) -> None:
    """5 a second: one each 200 ms, and never more than two in the bucket."""
    text = policy("rateLimit: {requests: 5, per: 1s, burst: 2}")

    def traffic(caller: Caller) -> None:
        begun = time.monotonic()
        for due in (0.0, 0.0, 0.0, 0.1, 0.3, 0.3, 1.1, 1.1, 1.1):
            time.sleep(max(0.0, begun + due - time.monotonic()))
            caller.get()

    both = side_by_side(services, text, traffic)
    both.agree()
    assert both.envoy.statuses == [200, 200, 429, 429, 200, 429, 200, 200, 429]


@covers("RateLimit.burst")
def test_a_burst_above_the_rate(services: Services) -> None:
    def traffic(caller: Caller) -> None:
        for _ in range(6):
            caller.get()

    both = side_by_side(services, policy("rateLimit: {requests: 1, per: 60s, burst: 4}"), traffic)
    both.agree()
    assert both.envoy.statuses == [200] * 4 + [429] * 2


@covers("RateLimit.scope")
def test_who_shares_a_bucket(services: Services) -> None:
    text = policy("""rateLimit: {requests: 4, per: 60s}
  routes:
  - {name: inherits, match: {path: /inherits}}
  - {name: own, match: [{path: /own}, {path: /same, method: GET}], rateLimit: {requests: 2, per: 60s}}
  - {name: s1, match: {path: /s1}, rateLimit: [{requests: 1, per: 60s, scope: ROUTE}, {requests: 4, per: 60s, scope: SERVICE}]}
  - {name: s2, match: {path: /s2}, rateLimit: {requests: 4, per: 60s, scope: SERVICE}}
  - {name: alone, match: {path: /alone}, rateLimit: {requests: 1, per: 60s, scope: ROUTE}}
  - {name: free, match: {path: /free}, rateLimit: null}""")
    expected = {
        # The service's own limit, with the routes that inherit it and those that carry the same by scope SERVICE.
        "/inherits": [200], "/s1": [200], "/s2": [200], "/": [200, 429], "/inherits?": [429], "/s2?": [429],
        # One bucket for the two conditions of one route.
        "/own": [200], "/same": [200, 429], "/own?": [429],
        "/alone": [200, 429],
        "/free": [200] * 6,
    }

    def traffic(caller: Caller) -> None:
        for path, statuses in expected.items():
            for _ in statuses:
                caller.get(path)

    both = side_by_side(services, text, traffic)
    both.agree()
    assert both.envoy.statuses == [each for statuses in expected.values() for each in statuses]


def users(*names: str | None) -> Callable[[Caller], None]:
    """A GET of each user, one after the other; several values of the header are joined by ``|``."""
    def traffic(caller: Caller) -> None:
        for name in names:
            caller.get(headers=[] if name is None else [("X-User", each) for each in name.split("|")])

    return traffic


@covers("RateLimit.descriptor", "Descriptor.header")
def test_a_bucket_for_each_value_of_a_header(services: Services) -> None:
    """Of several values the first counts; the empty value is one; requests without the header share a bucket."""
    expected = {
        "a": [200, 200, 429], "A": [200], "a|b": [429], "b|a": [200, 200, 429], "b": [429], "a,b": [200], "": [200, 200, 429],
        None: [200, 200, 429], "x" * 300: [200, 200, 429], "x" * 300 + "y": [200],
    }
    names = [name for name, statuses in expected.items() for _ in statuses]
    both = side_by_side(services, policy("rateLimit: {requests: 2, per: 1h, descriptor: {header: x-user}}"), users(*names))
    both.agree()
    assert both.envoy.statuses == [each for statuses in expected.values() for each in statuses]


@covers("RateLimit.descriptor")
def test_tokens_flow_into_each_bucket(services: Services) -> None:
    text = policy("rateLimit: {requests: 5, per: 1s, burst: 1, descriptor: {header: x-user}}")

    def traffic(caller: Caller) -> None:
        begun = time.monotonic()
        for due, user in ((0.0, "a"), (0.0, "a"), (0.2, "b"), (0.3, "a"), (0.3, "b"), (0.3, "a")):
            time.sleep(max(0.0, begun + due - time.monotonic()))
            users(user)(caller)

    both = side_by_side(services, text, traffic)
    both.agree()
    assert both.envoy.statuses == [200, 429, 200, 200, 429, 429]


@covers("Descriptor.max_values")
def test_the_bucket_that_was_unused_for_longest_goes_first(services: Services) -> None:
    """A refused call is a use too. Requests without the header have a bucket of their own, which stays."""
    names = ["a", "b", "a", None, "c", "a", "b", "c", "c", None, "b"]
    text = policy("rateLimit: {requests: 1, per: 1h, descriptor: {header: x-user, maxValues: 2}}")
    both = side_by_side(services, text, users(*names))
    both.agree()
    #                               a    b    a    -    c    a    b    c    c    -    b
    assert both.envoy.statuses == [200, 200, 429, 200, 200, 429, 200, 200, 429, 429, 429]


@covers("RateLimit.descriptor")
def test_who_shares_the_buckets_of_a_header(services: Services) -> None:
    text = policy("""rateLimit: {requests: 2, per: 1h, descriptor: {header: x-user}}
  routes:
  - {name: own, match: [{path: /own}, {path: /same}], rateLimit: {requests: 2, per: 1h, descriptor: {header: x-user}}}
  - {name: two, match: {path: /two}, rateLimit: [{requests: 3, per: 1h, descriptor: {header: x-team}}, {requests: 9, per: 1h}]}""")

    def traffic(caller: Caller) -> None:
        for path in ("/", "/other", "/", "/own", "/same", "/own", "/two", "/two", "/two", "/two"):
            caller.get(path, headers=[("x-user", "a"), ("x-team", "t")])
        caller.get("/two", headers=[("x-team", "u")])

    both = side_by_side(services, text, traffic)
    both.agree()
    assert both.envoy.statuses == [200, 200, 429, 200, 200, 429, 200, 200, 200, 429, 200]


@covers("CallBlocks.rate_limit")
def test_difference_a_list_of_limits_spends_tokens_in_envoy_alone(services: Services) -> None:
    """The second limit refuses; the token of the first is back in the library's bucket, and gone from Envoy's."""
    text = policy("""routes:
  - {name: both, match: {path: /both}, rateLimit: [{requests: 3, per: 60s, scope: SERVICE}, {requests: 1, per: 60s, scope: ROUTE}]}
  - {name: first, match: {path: /first}, rateLimit: {requests: 3, per: 60s, scope: SERVICE}}""")

    def traffic(caller: Caller) -> None:
        for path in ("/both", "/both", "/both", "/first", "/first", "/first"):
            caller.get(path)

    both = side_by_side(services, text, traffic)
    assert both.library.statuses == [200, 429, 429, 200, 200, 429]
    assert both.envoy.statuses == [200, 429, 429, 429, 429, 429]


@covers("CallBlocks.concurrency", "Concurrency.max_requests")
def test_too_many_calls_at_once(services: Services) -> None:
    text = policy("concurrency: {maxRequests: 2}\n  retries: {maxRetries: 3, retryOn: [5xx, reset]}")
    both = side_by_side(services, text, lambda caller: caller.together(5), a=Say(delay=0.4))
    both.agree(in_any_order=True)
    assert sorted(both.envoy.statuses) == [200, 200, 503, 503, 503]
    refused = next(reply for reply in both.envoy.replies if reply.status == 503)
    assert (refused.status, refused.body, refused.headers["x-envoy-overloaded"]) == (*OVERFLOW, "true")
    in_time(refused.seconds, 0.3)


@covers("CallBlocks.concurrency", "Concurrency.max_requests")
def test_a_slot_is_held_until_the_body_ends(services: Services) -> None:
    text = policy("concurrency: {maxRequests: 1}")

    def traffic(caller: Caller) -> None:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(caller.get)
            time.sleep(0.3)
            second = pool.submit(caller.get)
            second.result()
            first.result()

    both = side_by_side(services, text, traffic, a=Say(body_delay=0.7))
    both.agree(in_any_order=True)
    assert sorted(both.envoy.statuses) == [200, 503]


@covers("CallBlocks.concurrency")
def test_a_route_has_a_limit_of_its_own(services: Services) -> None:
    text = policy("concurrency: {maxRequests: 4}\n  routes: [{name: narrow, match: {path: /narrow}, concurrency: {maxRequests: 1}}]")

    def traffic(caller: Caller) -> None:
        with ThreadPoolExecutor() as pool:
            for _ in range(3):
                pool.submit(caller.get, "/narrow")
                pool.submit(caller.get, "/wide")

    both = side_by_side(services, text, traffic, a=Say(delay=0.4))
    both.agree(in_any_order=True)
    assert sorted(both.envoy.statuses) == [200] * 4 + [503] * 2


@covers("CallBlocks.concurrency", "Concurrency.max_requests")
def test_difference_envoy_frees_the_slot_during_a_backoff(services: Services) -> None:
    text = policy("concurrency: {maxRequests: 1}\n  retries: {maxRetries: 1, retryOn: [5xx], retryAfter: {max: 9s}}")

    def traffic(caller: Caller) -> None:
        with ThreadPoolExecutor() as pool:
            first = pool.submit(caller.get, "/waits")
            time.sleep(0.4)
            pool.submit(caller.get, "/now").result()
            first.result()

    def busy(request: Seen, before: int) -> Say:
        return OK if before else status(503, headers=(("retry-after", "1"),))

    both = side_by_side(services, text, traffic, a=busy)
    # In the order of the answers: /now, then /waits.
    assert (both.library.statuses, both.library.replies[0].body) == ([503, 200], OVERFLOW[1])
    assert both.envoy.statuses == [200, 200]


@covers("Concurrency.max_requests", "Concurrency.max_pending")
def test_a_queue_is_first_in_first_out_in_both(services: Services) -> None:
    text = policy("concurrency: {maxRequests: 1, maxPending: 2}")

    def traffic(caller: Caller) -> None:
        with ThreadPoolExecutor() as pool:
            for number in range(4):
                pool.submit(caller.get, f"/{number}")
                time.sleep(0.07)

    both = side_by_side(services, text, traffic, a=Say(delay=0.35))
    for plane in both:
        assert sorted(plane.statuses) == [200, 200, 200, 503]
        assert [each.target for each in plane.seen["a"]] == ["/0", "/1", "/2"]
        assert max(reply.at for reply in plane.replies) >= 1.05


@covers("Concurrency.max_pending")
def test_difference_envoy_queues_for_a_connection(services: Services) -> None:
    """A body that nobody reads keeps the library's slot; Envoy, which has taken it into its buffer, frees its connection."""
    text = policy("concurrency: {maxRequests: 1, maxPending: 1}\n  timeout: 1s")

    def traffic(caller: Caller) -> None:
        with caller.open("/large") as large, ThreadPoolExecutor() as pool:
            second = pool.submit(caller.get, "/second")
            time.sleep(0.3)
            large.read()
            second.result()

    both = side_by_side(services, text, traffic, a=Say(body=b"x" * 30_000))
    assert both.library.statuses == both.envoy.statuses == [200]
    assert both.library.replies[0].seconds >= 0.28
    in_time(both.envoy.replies[0].seconds, 0.2)


@covers("ServiceBlocks.retry_budget", "RetryBudget.percent", "RetryBudget.min_retries_per_second")
def test_difference_the_librarys_budget_remembers(services: Services) -> None:
    """One failing call after the other: the library's floor of 10 retries in 10 s is used up, Envoy's of one at a time is not."""
    text = policy("retries: {maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}\n"
                  "  retryBudget: {percent: 0, minRetriesPerSecond: 1, ttl: 10s}")

    def traffic(caller: Caller) -> None:
        for _ in range(20):
            caller.get()

    both = side_by_side(services, text, traffic, a=status(503))
    assert both.library.statuses == both.envoy.statuses == [503] * 20
    assert both.library.attempts == 20 + 10
    assert both.envoy.attempts == 20 + 20


@covers("ServiceBlocks.retry_budget", "RetryBudget.percent", "RetryBudget.min_retries_per_second")
def test_a_budget_bounds_the_retries_of_a_burst_in_both(services: Services) -> None:
    text = policy("retries: {maxRetries: 1, retryOn: [5xx], backoff: {base: 300ms}}\n"
                  "  retryBudget: {percent: 20, minRetriesPerSecond: 1, ttl: 1s}")
    both = side_by_side(services, text, lambda caller: caller.together(20), a=Say(status=503, delay=0.3))
    for plane in both:
        assert 21 <= plane.attempts <= 28, plane.attempts
