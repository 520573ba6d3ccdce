"""anthropic over our transport: its calls and streams, its own loop, and what its user sees of a policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anthropic
import httpx2
import pytest
from sdk_driver import HOST, RETRIED, RETRIED_POSTS, Runtime, cause_of, counted, mesh_of
from sdk_service import anthropic_api, anthropic_events, events, reply

import resilmesh
from resilmesh import Mesh
from resilmesh.http import AsyncTransport, Transport
from tests.http.http_service import Service, hang, unused_port

ASK: Any = {"model": "claude-test", "max_tokens": 9, "messages": [{"role": "user", "content": "say hello"}]}
#: Its loop waits 0.5 s and more, unless the service says how long.
UNAVAILABLE = reply({"type": "error", "error": {"type": "api_error", "message": "busy"}}, 503, retry_after_ms="1")


@contextmanager
def client_of(mesh: Mesh, runtime: Runtime, **options: Any) -> Iterator[Any]:
    if runtime.blocking:
        http: Any = anthropic.DefaultHttpxClient(transport=Transport(mesh))
    else:
        http = anthropic.DefaultAsyncHttpxClient(transport=AsyncTransport(mesh))
    kind: Any = anthropic.Anthropic if runtime.blocking else anthropic.AsyncAnthropic
    client = kind(api_key="none", base_url=f"http://{HOST}", http_client=http, **options)
    try:
        yield client
    finally:
        runtime.run(client.close)


@pytest.fixture(autouse=True)
def api(service: Service) -> None:
    service.otherwise = anthropic_api


def test_a_call(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, timeout="3s")
    with client_of(mesh, runtime) as client:
        message = runtime.run(client.messages.create, **ASK)
    assert message.content[0].text == "hello"
    assert service.seen[0].headers["host"] == HOST
    assert service.seen[0].headers["x-stainless-retry-count"] == "0"
    assert "idempotency-key" not in service.seen[0].headers
    assert counted(mesh) == (1, 0, 0)


def test_a_stream(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, timeout="3s")
    with client_of(mesh, runtime) as client:
        told = runtime.collect(client.messages.create, stream=True, **ASK)
    assert "".join(each.delta.text for each in told if each.type == "content_block_delta") == "hello"
    assert counted(mesh) == (1, 0, 0)


def test_the_deadline_covers_the_stream(runtime: Runtime, service: Service) -> None:
    service.script = [events(*anthropic_events(*"abcdefghij"), named=True, every=0.1)]
    mesh = mesh_of(service.address, timeout="350ms", retries=RETRIED_POSTS)
    with client_of(mesh, runtime) as client, pytest.raises(resilmesh.DeadlineExceeded, match="did not end within the timeout of 350ms"):
        runtime.collect(client.messages.create, stream=True, **ASK)
    assert len(service.seen) == 1, "what has begun is not repeated, by nobody"
    assert counted(mesh) == (1, 0, 0)


def test_our_retry_with_its_own_loop_off(runtime: Runtime, service: Service) -> None:
    service.script = [UNAVAILABLE, UNAVAILABLE]
    mesh = mesh_of(service.address, retries=RETRIED_POSTS)
    with client_of(mesh, runtime, max_retries=0) as client:
        assert runtime.run(client.messages.create, **ASK).content[0].text == "hello"
    assert [seen.headers["x-stainless-retry-count"] for seen in service.seen] == ["0", "0", "0"]
    assert counted(mesh) == (1, 0, 2)


def test_both_loops_multiply(runtime: Runtime, service: Service) -> None:
    service.otherwise = UNAVAILABLE
    mesh = mesh_of(service.address, retries=RETRIED_POSTS)
    with client_of(mesh, runtime) as client, pytest.raises(anthropic.InternalServerError):
        runtime.run(client.messages.create, **ASK)
    assert [seen.headers["x-stainless-retry-count"] for seen in service.seen] == list("000111222")
    assert counted(mesh) == (3, 2, 6)


def test_a_post_is_repeated_by_us_only_when_it_does_no_harm(runtime: Runtime, service: Service) -> None:
    service.script = [UNAVAILABLE, UNAVAILABLE]
    mesh = mesh_of(service.address, retries=RETRIED)
    with client_of(mesh, runtime, max_retries=0) as client:
        with pytest.raises(anthropic.InternalServerError):
            runtime.run(client.messages.create, **ASK)
        assert (len(service.seen), counted(mesh)) == (1, (1, 0, 0))
        runtime.run(client.messages.create, extra_headers={"Idempotency-Key": "one"}, **ASK)
    assert (len(service.seen), counted(mesh)) == (3, (2, 0, 1))


def test_what_was_never_sent_is_repeated(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(f"127.0.0.1:{unused_port()}", service.address, retries=RETRIED)
    with client_of(mesh, runtime, max_retries=0) as client:
        for _ in range(2):
            runtime.run(client.messages.create, **ASK)
    calls, repetitions, retries = counted(mesh)
    assert (len(service.seen), calls, repetitions) == (2, 2, 0)
    assert retries >= 1, "the endpoint that refuses had its turn"


def test_a_rejection(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, rateLimit="{requests: 1, per: 1m}")
    with client_of(mesh, runtime, max_retries=0) as client:
        runtime.run(client.messages.create, **ASK)
        with pytest.raises(anthropic.APIConnectionError) as raised:
            runtime.run(client.messages.create, **ASK)
        cause = cause_of(raised.value, resilmesh.RateLimited)
        assert 50 < cause.retry_after <= 60
        assert isinstance(raised.value.__cause__, httpx2.TransportError)
        assert counted(mesh) == (2, 0, 0)
        # It takes a rejection for a broken connection, and its loop asks again.
        with pytest.raises(anthropic.APIConnectionError):
            runtime.run(client.with_options(max_retries=1).messages.create, **ASK)
    assert (len(service.seen), counted(mesh)) == (1, (4, 1, 0))


def test_an_open_circuit(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, circuitBreaker="{failureRateThreshold: 50}")
    mesh.force_circuit("sdk", "OPEN")
    with client_of(mesh, runtime, max_retries=0) as client, pytest.raises(anthropic.APIConnectionError) as raised:
        runtime.run(client.messages.create, **ASK)
    cause_of(raised.value, resilmesh.CircuitOpen)
    assert service.seen == []


@pytest.mark.parametrize(("blocks", "kind"), [
    ({"rateLimit": "{requests: 1, per: 1m}"}, anthropic.RateLimitError),
    ({"circuitBreaker": "{failureRateThreshold: 50}"}, anthropic.InternalServerError),
])
def test_rejections_as_responses(runtime: Runtime, service: Service, blocks: dict[str, str], kind: type[Exception]) -> None:
    mesh = mesh_of(service.address, mesh="{localReplies: RESPOND}", **blocks)
    with client_of(mesh, runtime, max_retries=0) as client:
        runtime.run(client.messages.create, **ASK)
        if "circuitBreaker" in blocks:
            mesh.force_circuit("sdk", "OPEN")
        with pytest.raises(kind):
            runtime.run(client.messages.create, **ASK)
    assert len(service.seen) == 1


def test_the_policy_ends_a_call_that_the_client_would_wait_for(runtime: Runtime, service: Service) -> None:
    service.script = [hang()]
    mesh = mesh_of(service.address, timeout="200ms")
    with client_of(mesh, runtime, max_retries=0) as client:
        assert client.timeout.read == 600
        with pytest.raises(anthropic.APITimeoutError) as raised:
            runtime.run(client.messages.create, **ASK)
    assert cause_of(raised.value, resilmesh.DeadlineExceeded).attempts == 1


def test_a_shorter_time_out_of_the_client_ends_an_attempt(runtime: Runtime, service: Service) -> None:
    service.script = [hang(), hang()]
    mesh = mesh_of(service.address, timeout="3s", retries=RETRIED_POSTS)
    with client_of(mesh, runtime, max_retries=0) as client:
        assert runtime.run(client.messages.create, timeout=0.1, **ASK).id == "msg_1"
    assert counted(mesh) == (1, 0, 2), "each of our attempts has the client's time-out"
