"""timeout, idleTimeout, connectTimeout: what ends a call, when, and how it looks to the client."""

from __future__ import annotations

import time
from collections.abc import Iterator

from scripted import OK, Say, Service, status, unanswering
from sidebyside import Caller, covers, side_by_side

from tests.timing import in_time

Services = dict[str, Service]


def policy(blocks: str, address: str = "$a") -> str:
    return f"""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{{address: "{address}"}}]
  {blocks}
"""


@covers("CallBlocks.timeout")
def test_a_response_that_comes_too_late(services: Services) -> None:
    both = side_by_side(services, policy("timeout: 300ms"), lambda caller: caller.get(), a=Say(delay=1.0))
    both.agree()
    reply = both.envoy.replies[0]
    assert (reply.status, reply.body) == (504, "upstream request timeout")
    in_time(reply.seconds, 0.5, least=0.28)


@covers("CallBlocks.timeout")
def test_a_response_in_time(services: Services) -> None:
    both = side_by_side(services, policy("timeout: 900ms"), lambda caller: caller.get(), a=Say(delay=0.3))
    both.agree()
    assert both.envoy.statuses == [200]


@covers("CallBlocks.timeout")
def test_the_timeout_bounds_all_attempts_together(services: Services) -> None:
    text = policy("timeout: 500ms\n  retries: {maxRetries: 5, retryOn: [5xx], perTryTimeout: 200ms, backoff: {base: 1ms}}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=Say(delay=1.0))
    both.agree()
    assert both.envoy.bodies == ["upstream request timeout"]
    in_time(both.envoy.replies[0].seconds, 0.7, least=0.48)
    assert both.envoy.attempts == 3


@covers("CallBlocks.timeout")
def test_the_timeout_covers_the_body(services: Services) -> None:
    both = side_by_side(services, policy("timeout: 400ms"), lambda caller: caller.get(), a=Say(body_delay=1.5))
    both.agree()
    reply = both.envoy.replies[0]
    assert (reply.status, reply.cut) == (200, True)
    in_time(reply.seconds, 0.75, least=0.38)


@covers("CallBlocks.timeout")
def test_without_a_timeout_nothing_ends_a_slow_call(services: Services) -> None:
    text = policy("timeout: 300ms\n  routes:\n  - {name: patient, match: {path: /patient}, timeout: null}")
    both = side_by_side(services, text, lambda caller: caller.get("/patient"), a=Say(delay=0.5))
    both.agree()
    assert both.envoy.statuses == [200]


@covers("CallBlocks.timeout")
def test_difference_a_backoff_that_does_not_fit_ends_the_call_in_the_library_alone(services: Services) -> None:
    """The library gives back what the service said last; Envoy waits for nothing."""
    text = policy("timeout: 600ms\n  retries: {maxRetries: 1, retryOn: [5xx], retryAfter: {max: 9s}}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=status(503, headers=(("retry-after", "3"),)))
    assert (both.library.bodies, both.envoy.bodies) == (["service says 503"], ["upstream request timeout"])
    in_time(both.library.replies[0].seconds, 0.3)
    in_time(both.envoy.replies[0].seconds, 0.8, least=0.58)


@covers("CallBlocks.timeout")
def test_difference_only_in_the_library_does_the_timeout_include_sending_the_request(services: Services) -> None:
    def slowly() -> Iterator[bytes]:
        for _ in range(4):
            time.sleep(0.15)
            yield b"part"

    both = side_by_side(services, policy("timeout: 400ms"), lambda caller: caller.send("PUT", content=slowly()), a=OK)
    assert both.library.statuses == [504]
    assert both.envoy.statuses == [200]


@covers("CallBlocks.idle_timeout")
def test_difference_silence_before_the_headers_has_another_name(services: Services) -> None:
    both = side_by_side(services, policy("idleTimeout: 300ms"), lambda caller: caller.get(), a=Say(delay=1.0))
    assert both.library.statuses == both.envoy.statuses == [504]
    assert (both.library.bodies, both.envoy.bodies) == (["upstream request timeout"], ["stream timeout"])
    in_time(abs(both.envoy.replies[0].seconds - both.library.replies[0].seconds), 0.2)


@covers("CallBlocks.idle_timeout")
def test_silence_in_the_body(services: Services) -> None:
    both = side_by_side(services, policy("idleTimeout: 300ms"), lambda caller: caller.get(), a=Say(body_delay=1.2))
    both.agree(tolerance=0.35)
    assert both.envoy.replies[0].cut


@covers("CallBlocks.idle_timeout")
def test_difference_only_the_library_repeats_an_attempt_that_fell_silent(services: Services) -> None:
    text = policy("idleTimeout: 300ms\n  retries: {maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}")
    both = side_by_side(services, text, lambda caller: caller.get(), a=[Say(delay=1.0), OK])
    assert (both.library.statuses, both.library.attempts) == ([200], 2)
    assert (both.envoy.statuses, both.envoy.attempts) == ([504], 1)


@covers("ServiceBlocks.connect_timeout")
def test_a_connection_that_never_opens(services: Services) -> None:
    with unanswering() as nobody:
        both = side_by_side(services, policy("connectTimeout: 400ms", nobody), lambda caller: caller.get())
    both.agree()
    reply = both.envoy.replies[0]
    assert reply.status == 503
    assert reply.body.endswith("before headers. reset reason: connection timeout")
    in_time(reply.seconds, 0.6, least=0.38)


@covers("ServiceBlocks.connect_timeout")
def test_a_connect_timeout_is_a_connect_failure_and_retried(services: Services) -> None:
    with unanswering() as nobody:
        text = policy("connectTimeout: 300ms\n  retries: {maxRetries: 1, retryOn: [connect-failure]}", nobody)
        both = side_by_side(services, text, lambda caller: caller.get())
    both.agree()
    assert both.envoy.bodies[0].endswith("retried and the latest reset reason: connection timeout")


@covers("ServiceBlocks.connect_timeout")
def test_a_connect_timeout_does_not_bound_the_answer(services: Services) -> None:
    def traffic(caller: Caller) -> None:
        caller.get()
        caller.get()

    both = side_by_side(services, policy("connectTimeout: 150ms"), traffic, a=Say(delay=0.3))
    both.agree()
    assert both.envoy.statuses == [200, 200]
