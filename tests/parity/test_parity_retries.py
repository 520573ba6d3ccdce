"""retries: which attempts are repeated, how often, how soon, and to whom."""

from __future__ import annotations

import statistics
import time
from email.utils import formatdate

import pytest
from scripted import CLOSE, OK, RESET, Say, Seen, Service, refusing, status, unanswering
from sidebyside import Caller, covers, side_by_side

from tests.timing import in_time

Services = dict[str, Service]

SERVICE = """
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{{address: "{address}"}}]
  retries: {retries}
"""


def policy(retries: str, address: str = "$a") -> str:
    return SERVICE.format(retries=retries, address=address)


@covers("CallBlocks.retries", "Retries.max_retries", "Retries.retry_on")
def test_a_retry_succeeds(services: Services) -> None:
    text = policy("{maxRetries: 3, retryOn: [5xx]}")
    both = side_by_side(services, text, lambda caller: caller.get("/x?y=1"), a=[status(503), status(500), OK])
    both.agree()
    assert (both.envoy.statuses, both.envoy.attempts) == ([200], 3)


@covers("Retries.max_retries")
def test_one_retry_unless_written(services: Services) -> None:
    text = policy("{maxRetries: 1, retryOn: [5xx]}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=status(503))
    both.agree()
    assert both.envoy.attempts == 2


@covers("Retries.max_retries")
def test_no_retries_at_all(services: Services) -> None:
    both = side_by_side(services, policy("{maxRetries: 0, retryOn: [5xx]}"), lambda caller: caller.get(), a=status(503))
    both.agree()
    assert both.envoy.attempts == 1


@covers("Retries.max_retries")
def test_when_retries_are_used_up_the_last_response_is_the_answer(services: Services) -> None:
    text = policy("{maxRetries: 3, retryOn: [5xx]}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=[status(500), status(502), status(503), status(504)])
    both.agree()
    assert (both.envoy.bodies, both.envoy.attempts) == (["service says 504"], 4)


#: What the service does at /name.
OUTCOMES: dict[str, Say] = {
    **{str(code): status(code) for code in (202, 404, 409, 418, 429, 500, 501, 502, 503, 504)},
    "ratelimited": status(429, headers=(("x-envoy-ratelimited", "true"),)),
    "ratelimited200": status(200, headers=(("x-envoy-ratelimited", "true"),)),
    "ratelimited503": status(503, headers=(("x-envoy-ratelimited", "true"),)), "reset": RESET, "close": CLOSE,
}
#: What is retried on each word; everything else is not. Of an answer with x-envoy-ratelimited no other word is asked.
RETRIED: dict[str, set[str]] = {
    "5xx": {"500", "501", "502", "503", "504", "reset", "close"},
    "gateway-error": {"502", "503", "504", "reset", "close"},
    "reset": {"reset", "close"},
    "reset-before-request": set(),
    "connect-failure": set(),
    "refused-stream": set(),
    "retriable-4xx": {"409"},
    "envoy-ratelimited": {"ratelimited", "ratelimited200", "ratelimited503"},
    "202, 200": {"202"},
    "429, 418": {"429", "418"},
    "503": {"503"},
    "5xx, 409": {"500", "501", "502", "503", "504", "409", "reset", "close"},
}


def _by_path(request: Seen, _before: int) -> Say:
    return OUTCOMES[request.target.rpartition("/")[2]]


@covers("Retries.retry_on")
def test_every_retry_word(services: Services) -> None:
    """One route for each word; every outcome on every route."""
    routes = "".join(
        f"  - {{name: r{number}, match: {{path: {{prefix: /{number}/}}}}, retries: {{retryOn: [{words}], backoff: {{base: 1ms}}}}}}\n"
        for number, words in enumerate(RETRIED)
    )
    text = f"""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{{address: $a}}]
  routes:
{routes}"""

    def traffic(caller: Caller) -> None:
        for number in range(len(RETRIED)):
            for outcome in OUTCOMES:
                caller.get(f"/{number}/{outcome}")

    both = side_by_side(services, text, traffic, a=_by_path)
    expected = {
        f"/{number}/{outcome}": 2 if outcome in retried else 1 for number, retried in enumerate(RETRIED.values()) for outcome in OUTCOMES
    }
    for plane in both:
        targets = [each.target for each in plane.seen["a"]]
        assert {target: targets.count(target) for target in expected} == expected
    both.agree()


@pytest.mark.parametrize("word", ["connect-failure", "5xx", "gateway-error", "reset", "reset-before-request"])
@covers("Retries.retry_on")
def test_refused_connections_are_retried(services: Services, word: str) -> None:
    with refusing() as nobody:
        both = side_by_side(services, policy(f"{{maxRetries: 2, retryOn: [{word}]}}", nobody), lambda caller: caller.get())
    both.agree()
    assert both.envoy.bodies[0].endswith("retried and the latest reset reason: remote connection failure")


@pytest.mark.parametrize("word", ["refused-stream", "retriable-4xx", "503"])
@covers("Retries.retry_on")
def test_refused_connections_are_not_retried_on_other_words(services: Services, word: str) -> None:
    with refusing() as nobody:
        both = side_by_side(services, policy(f"{{maxRetries: 2, retryOn: [{word}]}}", nobody), lambda caller: caller.get())
    both.agree()
    assert both.envoy.bodies[0].endswith("before headers. reset reason: remote connection failure")


@covers("Retries.retry_on")
def test_a_body_that_breaks_off_is_not_retried(services: Services) -> None:
    text = policy("{maxRetries: 2, retryOn: [5xx, reset]}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=Say(how="half", body=b"0123456789"))
    both.agree()
    assert (both.envoy.replies[0].status, both.envoy.replies[0].cut, both.envoy.attempts) == (200, True, 1)


@pytest.mark.parametrize(("word", "attempts"), [("5xx", 3), ("gateway-error", 3), ("reset", 3), ("connect-failure", 1), ("504", 1)])
@covers("Retries.per_try_timeout", "Retries.retry_on")
def test_an_attempt_that_takes_too_long(services: Services, word: str, attempts: int) -> None:
    text = policy(f"{{maxRetries: 2, retryOn: [{word}], perTryTimeout: 150ms}}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=Say(delay=1.0))
    both.agree()
    assert (both.envoy.statuses, both.envoy.bodies, both.envoy.attempts) == ([504], ["upstream request timeout"], attempts)


@covers("Retries.per_try_timeout")
def test_per_try_timeout_ends_at_the_headers(services: Services) -> None:
    text = policy("{maxRetries: 2, retryOn: [5xx], perTryTimeout: 200ms}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=Say(body_delay=0.4))
    both.agree()
    assert (both.envoy.statuses, both.envoy.attempts) == ([200], 1)


@covers("Retries.per_try_timeout")
def test_difference_only_in_the_library_does_an_attempt_include_connecting(services: Services) -> None:
    with unanswering() as nobody:
        text = policy("{maxRetries: 1, retryOn: [connect-failure], perTryTimeout: 300ms}\n  connectTimeout: 700ms", nobody)
        both = side_by_side(services, text, lambda caller: caller.get())
    assert (both.library.statuses, both.library.bodies) == ([504], ["upstream request timeout"])
    in_time(both.library.replies[0].seconds, 0.9, least=0.6)
    assert both.envoy.statuses == [503]
    assert both.envoy.bodies[0].endswith("retried and the latest reset reason: connection timeout")
    in_time(both.envoy.replies[0].seconds, 1.7, least=1.4)


#: method, idempotency-key: attempts for `idempotent` absent, true, false.
IDEMPOTENT = {
    ("GET", False): (2, 2, 1), ("PUT", False): (2, 2, 1), ("DELETE", False): (2, 2, 1),
    ("POST", False): (1, 2, 1), ("PATCH", False): (1, 2, 1), ("POST", True): (2, 2, 1), ("PATCH", True): (2, 2, 1),
}


@pytest.mark.parametrize("outcome", [status(503), RESET], ids=["503", "reset"])
@covers("Retries.idempotent")
def test_idempotent(services: Services, outcome: Say) -> None:
    text = """
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{address: $a}]
  retries: {maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}
  routes:
  - {name: yes, match: {path: /1}, retries: {maxRetries: 1, retryOn: [5xx, 503], idempotent: true, backoff: {base: 1ms}}}
  - {name: no, match: {path: /2}, retries: {maxRetries: 1, retryOn: [5xx, 503], idempotent: false, backoff: {base: 1ms}}}
"""

    def traffic(caller: Caller) -> None:
        for method, key in IDEMPOTENT:
            for route in range(3):
                headers = [("idempotency-key", "k"), ("x-case", method)] if key else [("x-case", method)]
                caller.send(method, f"/{route}", headers=headers, content=b"body" if method.startswith("P") else None)

    both = side_by_side(services, text, traffic, a=outcome)
    for plane in both:
        seen = [(each.method, "idempotency-key" in each.headers, int(each.target[1:])) for each in plane.seen["a"]]
        assert {case: tuple(seen.count((*case, route)) for route in range(3)) for case in IDEMPOTENT} == IDEMPOTENT
    both.agree()


@pytest.mark.parametrize(("words", "retried"), [
    ("connect-failure", True), ("5xx", True), ("gateway-error", True), ("reset", True), ("reset-before-request", True),
    ("retriable-4xx", False), ("503", False),
])
@covers("Retries.idempotent")
def test_what_the_service_never_saw_is_always_sent_again(services: Services, words: str, retried: bool) -> None:
    text = policy(f"{{maxRetries: 1, retryOn: [{words}], idempotent: false}}", "{address}")
    with refusing() as nobody:
        both = side_by_side(services, text.replace("{address}", nobody), lambda caller: caller.post(content=b"order"))
    both.agree()
    assert ("retried and the latest" in both.envoy.bodies[0]) is retried


@covers("Retries.retry_on")
def test_the_same_body_is_sent_again(services: Services) -> None:
    body = b"0123456789" * 200_000  # above Envoy's own limit of 1 MiB for bodies that can be repeated
    text = policy("{maxRetries: 1, retryOn: [5xx]}")
    both = side_by_side(services, text, lambda caller: caller.send("PUT", content=body), a=[status(503), OK])
    both.agree()
    assert [each.body == body for each in both.envoy.seen["a"]] == [True, True]


@covers("CallBlocks.retries")
def test_difference_only_envoy_can_repeat_a_stream(services: Services) -> None:
    text = policy("{maxRetries: 1, retryOn: [5xx]}")
    both = side_by_side(services, text, lambda caller: caller.send("PUT", content=iter([b"one", b"two"])), a=[status(503), OK])
    assert (both.library.statuses, both.library.attempts) == ([503], 1)
    assert (both.envoy.statuses, [each.body for each in both.envoy.seen["a"]]) == ([200], [b"onetwo", b"onetwo"])


@covers("Retries.backoff", "Backoff.base")
def test_backoff_base(services: Services) -> None:
    """Before the first retry a time in [0, base)."""
    text = policy("{maxRetries: 1, retryOn: [5xx], backoff: {base: 400ms}}")
    both = side_by_side(services, text, lambda caller: caller.together(30), a=status(503))
    for plane in both:
        waits = [reply.seconds for reply in plane.replies]
        # The mean of 30 draws has a standard deviation of 21 ms.
        in_time(statistics.mean(waits), 0.3, least=0.1)
        in_time(max(waits), 0.4 + 0.2)
        assert plane.attempts == 60


@covers("Retries.backoff", "Backoff.max")
def test_backoff_max(services: Services) -> None:
    """Five retries: uncapped they would wait 100 + 300 + 700 + 1000 + 1000 ms at most, here 5 * 120."""
    text = policy("{maxRetries: 5, retryOn: [5xx], backoff: {base: 100ms, max: 120ms}}")
    both = side_by_side(services, text, lambda caller: caller.together(20), a=status(503))
    for plane in both:
        waits = [reply.seconds for reply in plane.replies]
        in_time(statistics.mean(waits), 0.41, least=0.17)
        in_time(max(waits), 0.6 + 0.2)
        assert plane.attempts == 120


@covers("Retries.retry_after")
def test_retry_after_in_seconds_is_obeyed_by_both(services: Services) -> None:
    text = policy("{maxRetries: 1, retryOn: [5xx], retryAfter: {max: 5s}}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=[status(503, headers=(("retry-after", "1"),)), OK])
    both.agree(tolerance=0.7)
    for plane in both:
        in_time(plane.replies[0].seconds, 1.75, least=1.0)


@covers("Retries.retry_after")
def test_of_an_answer_that_is_no_error_too(services: Services) -> None:
    text = policy("{maxRetries: 1, retryOn: [202], retryAfter: {max: 5s}, backoff: {base: 1ms}}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=[status(202, headers=(("retry-after", "1"),)), OK])
    both.agree(tolerance=0.7)
    for plane in both:
        in_time(plane.replies[0].seconds, 1.75, least=1.0)


@covers("Retries.retry_after")
def test_a_retry_after_of_nothing_leaves_the_backoff(services: Services) -> None:
    text = policy("{maxRetries: 4, retryOn: [5xx], retryAfter: {max: 5s}, backoff: {base: 200ms, max: 200ms}}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=status(503, headers=(("retry-after", "0"),)))
    for plane in both:
        assert plane.replies[0].seconds > 0.05
        assert plane.attempts == 5


@covers("Retries.retry_after")
def test_ratelimit_reset_is_obeyed_by_both(services: Services) -> None:
    text = policy("{maxRetries: 1, retryOn: [429], retryAfter: {max: 5s}}")

    def throttled(_request: Seen, before: int) -> Say:
        return OK if before else status(429, headers=(("x-ratelimit-reset", str(int(time.time()) + 2)),))

    both = side_by_side(services, text, lambda caller: caller.get(), a=throttled)
    for plane in both:
        assert plane.statuses == [200]
        # Whole seconds: at least one is left, and half of two more at most.
        in_time(plane.replies[0].seconds, 3.25, least=0.99)


@covers("Retries.retry_after", "RetryAfter.max")
def test_a_retry_after_beyond_the_maximum_is_ignored_by_both(services: Services) -> None:
    text = policy("{maxRetries: 1, retryOn: [5xx], retryAfter: {max: 2s}}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=[status(503, headers=(("retry-after", "10"),)), OK])
    both.agree()


@covers("Retries.retry_after")
def test_without_retry_after_nobody_obeys(services: Services) -> None:
    text = policy("{maxRetries: 1, retryOn: [5xx], retryAfter: null}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=[status(503, headers=(("retry-after", "1"),)), OK])
    both.agree()
    in_time(both.envoy.replies[0].seconds, 0.5)


@covers("Retries.retry_after", "RetryAfter.max")
def test_difference_an_http_date_is_obeyed_by_the_library_alone(services: Services) -> None:
    text = policy("{maxRetries: 1, retryOn: [5xx], retryAfter: {max: 9s}}")

    def busy(_request: Seen, before: int) -> Say:
        return OK if before else status(503, headers=(("retry-after", formatdate(time.time() + 2, usegmt=True)),))

    both = side_by_side(services, text, lambda caller: caller.get(), a=busy)
    assert both.library.statuses == both.envoy.statuses == [200]
    assert both.library.replies[0].seconds >= 0.99
    in_time(both.envoy.replies[0].seconds, 0.5)


@covers("Retries.retry_on")
def test_a_retry_goes_to_an_endpoint_that_was_not_tried(services: Services) -> None:
    text = policy("{maxRetries: 1, retryOn: [5xx]}").replace('[{address: "$a"}]', '[{address: "$a"}, {address: "$b"}]')
    both = side_by_side(services, text, lambda caller: caller.together(20), a=status(503), b=OK)
    for plane in both:
        assert plane.statuses == [200] * 20
        assert len(plane.seen["b"]) == 20


@covers("Retries.max_retries")
def test_retries_leave_the_turn_as_it_is(services: Services) -> None:
    """One of three fails: the retry of its calls goes on to the next, and the next call to the one after that."""
    text = policy("{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}")
    text = text.replace("endpoints: [", 'endpoints: [{address: "$b"}, {address: "$c"}, ')
    both = side_by_side(services, text, lambda caller: [caller.get() for _ in range(20)], a=status(503))
    for plane in both:
        assert plane.statuses == [200] * 20
        assert [len(plane.seen[name]) for name in "abc"] == pytest.approx([10, 10, 10], abs=1)
