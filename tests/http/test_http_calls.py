"""A policy over HTTP: where calls go, what is retried, and what the user gets."""

from __future__ import annotations

import io
import pickle
import time
from typing import Any

import pytest
from http_driver import Driver, mesh_of, nothing_in_flight, policy
from http_service import Service, answer, close, drip_body, drip_head, hang, raw, reset, unused_port

import resilmesh
from tests.timing import Late, lasts

#: How late a deadline may be noticed on a busy machine.
LATE = 0.15
URL = "http://svc.test/things"


def test_an_endpoint_is_dialled_while_url_and_host_stay(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service)
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.get("http://svc.test:8080/things?a=1")
    assert response.status_code == 200
    assert str(response.url) == "http://svc.test:8080/things?a=1"
    assert service.seen[0].headers["host"] == "svc.test:8080"
    assert service.seen[0].target == "/things?a=1"
    assert response.extensions["resilmesh"] == {"service": "svc", "route": None, "attempts": 1, "endpoint": service.address}
    assert response.extensions["http_version"] == b"HTTP/1.1"
    assert response.reason_phrase == "Scripted"
    assert "network_stream" in response.extensions
    assert nothing_in_flight(mesh)


def test_without_endpoints_the_url_says_where(driver: Driver, service: Service) -> None:
    mesh = resilmesh.Mesh.from_text(policy(timeout="1s").replace("svc.test", "127.0.0.1"))
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.get(f"http://{service.address}/")
    assert response.extensions["resilmesh"]["endpoint"] is None
    assert response.extensions["resilmesh"]["attempts"] == 1


def test_a_host_of_no_service_passes_untouched(driver: Driver, service: Service) -> None:
    with driver.client(transport=driver.transport(mesh_of(service, timeout="1s"))) as client:
        response = client.get(f"http://{service.address}/")
    assert response.status_code == 200
    assert "resilmesh" not in response.extensions


def test_a_5xx_is_retried_and_the_body_sent_again(driver: Driver, service: Service) -> None:
    service.script = [answer(503), answer(500)]
    mesh = mesh_of(service, retries="{maxRetries: 2, retryOn: [5xx], backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.request("PUT", URL, content=b"payload")
    assert (response.status_code, response.text) == (200, "ok")
    assert [seen.body for seen in service.seen] == [b"payload"] * 3
    assert response.extensions["resilmesh"]["attempts"] == 3
    assert service.connections == 1, "a response that is set aside gives its connection back"


def test_exhausted_retries_return_the_last_response(driver: Driver, service: Service) -> None:
    service.script = [answer(500, b"first"), answer(502, b"second")]
    mesh = mesh_of(service, retries="{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.get(URL)
    assert (response.status_code, response.text) == (502, "second")
    assert nothing_in_flight(mesh)


@pytest.mark.parametrize(("status", "words"), [(409, "retriable-4xx"), (404, "404"), (429, "429"), (418, "418")])
def test_4xx_are_retried_when_listed(driver: Driver, service: Service, status: int, words: str) -> None:
    service.script = [answer(status)]
    mesh = mesh_of(service, retries=f"{{maxRetries: 1, retryOn: [{words}], backoff: {{base: 1ms}}}}")
    with driver.client(transport=driver.transport(mesh)) as client:
        assert client.get(URL).status_code == 200
    assert len(service.seen) == 2


@pytest.mark.parametrize("status", [404, 409, 429])
def test_4xx_are_not_retried_on_5xx(driver: Driver, service: Service, status: int) -> None:
    service.script = [answer(status, b"no")]
    mesh = mesh_of(service, retries="{maxRetries: 3, retryOn: [5xx, gateway-error, reset, connect-failure], backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.get(URL)
    assert (response.status_code, response.text) == (status, "no")
    assert len(service.seen) == 1


@pytest.mark.parametrize("act", [close, reset], ids=["closed", "reset"])
def test_a_reset_is_retried_or_raised_as_the_clients_own(driver: Driver, service: Service, act: object) -> None:
    service.script = [act]  # type: ignore[list-item]
    mesh = mesh_of(service, retries="{maxRetries: 1, retryOn: [reset], backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh)) as client:
        assert client.get(URL).status_code == 200
        service.script = [act, act]  # type: ignore[list-item]
        with pytest.raises((driver.library.RemoteProtocolError, driver.library.ReadError)) as raised:
            client.get(URL)
    assert not isinstance(raised.value, resilmesh.ResilmeshError)
    assert nothing_in_flight(mesh)


def test_a_refused_connection_moves_on_to_another_endpoint_even_for_post(driver: Driver, service: Service) -> None:
    refused = f"127.0.0.1:{unused_port()}"
    mesh = mesh_of(refused, service, retries="{maxRetries: 1, retryOn: [connect-failure], backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh)) as client:
        responses = [client.post(URL, json={"n": n}) for n in range(4)]
    assert [response.status_code for response in responses] == [200] * 4
    assert sum(response.extensions["resilmesh"]["attempts"] for response in responses) > 4


def test_an_untouched_generator_is_sent_after_all(driver: Driver, service: Service) -> None:
    refused = f"127.0.0.1:{unused_port()}"
    mesh = mesh_of(refused, service, retries="{maxRetries: 1, retryOn: [connect-failure], backoff: {base: 1ms}}")

    def parts():  # type: ignore[no-untyped-def]
        yield b"a"
        yield b"b"

    async def async_parts():  # type: ignore[no-untyped-def]
        yield b"a"
        yield b"b"

    with driver.client(transport=driver.transport(mesh)) as client:
        for _ in range(3):
            assert client.post(URL, content=parts() if driver.blocking else async_parts()).status_code == 200
    assert [seen.body for seen in service.seen] == [b"ab"] * 3


def test_post_is_not_repeated_unless_somebody_says_so(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, retries="{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh)) as client:
        service.script = [answer(503)]
        assert client.post(URL, content=b"x").status_code == 503
        service.script = [answer(503)]
        assert client.post(URL, content=b"x", headers={"Idempotency-Key": "1"}).status_code == 200
        service.script = [answer(503)]
        assert client.post(URL, content=b"x", extensions={"resilmesh": {"idempotent": True}}).status_code == 200
        service.script = [answer(503)]
        assert client.get(URL, extensions={"resilmesh": {"idempotent": False}}).status_code == 503


def test_the_routes_word_wins_over_the_method(driver: Driver, service: Service) -> None:
    retries = "{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}, idempotent: %s}"
    with driver.client(transport=driver.transport(mesh_of(service, retries=retries % "true"))) as client:
        service.script = [answer(503)]
        assert client.post(URL).status_code == 200
    with driver.client(transport=driver.transport(mesh_of(service, retries=retries % "false"))) as client:
        service.script = [answer(503)]
        assert client.get(URL).status_code == 503


def test_what_can_be_sent_again_is_and_a_generator_is_not(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, retries="{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}, idempotent: true}")

    def parts():  # type: ignore[no-untyped-def]
        yield b"one"

    async def async_parts():  # type: ignore[no-untyped-def]
        yield b"one"

    file = io.BytesIO(b"a file")
    with driver.client(transport=driver.transport(mesh)) as client:
        service.script = [answer(503)]
        assert client.post(URL, files={"f": ("name", io.BytesIO(b"in a file"))}, data={"a": "b"}).status_code == 200
        assert service.seen[0].body == service.seen[1].body
        assert b"in a file" in service.seen[1].body
        service.script = [answer(503, b"as it was")]
        response = client.post(URL, content=parts() if driver.blocking else async_parts())
        assert (response.status_code, response.text) == (503, "as it was")
        if driver.blocking:
            service.script = [answer(503)]
            assert client.post(URL, content=file).status_code == 200
            assert [seen.body for seen in service.seen[-2:]] == [b"a file"] * 2
            service.script = [answer(503)]
            assert client.post(URL, content=[b"a", b"list"]).status_code == 200
            assert service.seen[-1].body == b"alist"


@pytest.mark.parametrize("library", ["httpx"], indirect=True)  # a second and more each, and whose response it was is no matter
def test_retry_after_replaces_the_backoff(driver: Driver, service: Service) -> None:
    service.script = [answer(503, headers={"retry-after": "1"})]
    mesh = mesh_of(service, retries="{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh)) as client, lasts(1.0, 1.5 + LATE):
        assert client.get(URL).status_code == 200


# ------------------------------------------------------------------------------------------------ time


@pytest.mark.parametrize("act", [hang(), drip_head(), drip_body()], ids=["hangs", "drips its headers", "drips its body"])
def test_the_deadline_is_exact_whatever_the_service_does(driver: Driver, service: Service, act: object) -> None:
    service.otherwise = act  # type: ignore[assignment]
    mesh = mesh_of(service, timeout="150ms")
    with driver.client(transport=driver.transport(mesh)) as client:
        for _ in range(2):
            with pytest.raises(resilmesh.DeadlineExceeded) as raised, lasts(0.149, 0.15 + LATE):
                client.get(URL)
    error = raised.value
    assert isinstance(error, driver.library.ReadTimeout)
    assert isinstance(error, TimeoutError)
    assert str(error.request.url) == URL
    assert (error.service, error.attempts) == ("svc", 1)
    assert nothing_in_flight(mesh)


def test_making_the_clients_transport_is_not_on_the_first_calls_time(
    driver: Driver, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = driver.library.HTTPTransport if driver.blocking else driver.library.AsyncHTTPTransport
    make = kind.__init__

    def read_certificates_slowly(self: Any, *arguments: Any, **options: Any) -> None:
        time.sleep(0.15)
        make(self, *arguments, **options)

    monkeypatch.setattr(kind, "__init__", read_certificates_slowly)
    with driver.client(transport=driver.transport(mesh_of(service, timeout="140ms"))) as client:
        assert client.get(URL).status_code == 200


def test_the_deadline_covers_every_attempt_and_backoff(driver: Driver, service: Service) -> None:
    service.otherwise = hang()
    mesh = mesh_of(service, timeout="350ms", retries="{maxRetries: 9, retryOn: [5xx], perTryTimeout: 100ms, backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh)) as client, pytest.raises(resilmesh.DeadlineExceeded), lasts(0.28, 0.35 + LATE):
        client.get(URL)
    assert len(service.seen) <= 4
    if len(service.seen) < 3:
        raise Late("an attempt took more than its 100 ms")


def test_a_per_try_timeout_is_retried(driver: Driver, service: Service) -> None:
    service.script = [hang(), drip_head()]
    mesh = mesh_of(service, retries="{maxRetries: 2, retryOn: [gateway-error], perTryTimeout: 100ms, backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh)) as client, lasts(0.2, 0.2 + LATE):
        response = client.get(URL)
    assert response.extensions["resilmesh"]["attempts"] == 3
    service.otherwise = hang()
    with driver.client(transport=driver.transport(mesh)) as client, pytest.raises(driver.library.ReadTimeout, match="perTryTimeout"):
        client.get(URL)
    assert nothing_in_flight(mesh)


def test_per_try_ends_at_the_headers(driver: Driver, service: Service) -> None:
    service.script = [drip_body(parts=6, every=0.04)]
    mesh = mesh_of(service, retries="{maxRetries: 1, retryOn: [5xx], perTryTimeout: 100ms}")
    with driver.client(transport=driver.transport(mesh)) as client:
        assert client.get(URL).text == "x" * 6


def test_idle_timeout_is_between_bytes_and_not_in_all(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, idleTimeout="150ms")
    with driver.client(transport=driver.transport(mesh)) as client:
        service.script = [drip_body(parts=8, every=0.05)]
        assert client.get(URL).text == "x" * 8
        service.script = [drip_body(parts=2, every=1.0)]
        with pytest.raises(driver.library.ReadTimeout, match="idleTimeout of 150ms"), lasts(0.15, 0.15 + LATE):
            client.get(URL)
        service.script = [hang()]
        with pytest.raises(driver.library.ReadTimeout, match="idleTimeout of 150ms"), lasts(0.15, 0.15 + LATE):
            client.get(URL)
    assert nothing_in_flight(mesh)


# httpcore 1.0 leaves the iterator over the request's body to the garbage collector, and trio says so.
@pytest.mark.filterwarnings("ignore:.*ByteStream.__aiter__.*:pytest.PytestUnraisableExceptionWarning")
def test_a_large_request_body_meets_the_deadline_when_nobody_reads_it(driver: Driver) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        mesh = mesh_of(f"127.0.0.1:{listener.getsockname()[1]}", timeout="300ms")
        with driver.client(transport=driver.transport(mesh)) as client, pytest.raises(resilmesh.DeadlineExceeded), lasts(0.299, 0.3 + LATE):
            client.post(URL, content=b"x" * 20_000_000)
    assert nothing_in_flight(mesh)


def test_connect_timeout_is_the_clients_connect_timeout(driver: Driver) -> None:
    import socket

    # A full backlog: the kernel answers no further SYN.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(address)
        time.sleep(0.05)
        mesh = mesh_of(f"127.0.0.1:{address[1]}", connectTimeout="150ms", timeout="2s")
        too_late = pytest.raises(driver.library.ConnectTimeout)
        with driver.client(transport=driver.transport(mesh)) as client, too_late, lasts(0.14, 0.15 + LATE):
            client.get(URL)
        mesh = mesh_of(f"127.0.0.1:{address[1]}", timeout="150ms")
        too_late = pytest.raises(resilmesh.DeadlineExceeded)
        with driver.client(transport=driver.transport(mesh)) as client, too_late, lasts(0.149, 0.15 + LATE):
            client.get(URL)
        for each in waiting:
            each.close()


def test_the_clients_own_time_out_stays_its_own(driver: Driver, service: Service) -> None:
    service.otherwise = hang()
    mesh = mesh_of(service, timeout="3s")
    with driver.client(transport=driver.transport(mesh), timeout=0.1) as client, pytest.raises(driver.library.ReadTimeout) as raised, \
            lasts(0.09, 0.1 + LATE):
        client.get(URL)
    assert not isinstance(raised.value, resilmesh.ResilmeshError)


def test_an_inherited_deadline_caps_the_call(driver: Driver, service: Service) -> None:
    service.script = [hang(), drip_body()]
    mesh = mesh_of(service, circuitBreaker="{consecutiveFailures: 1}")
    with driver.client(transport=driver.transport(mesh)) as client:
        for _ in range(2):
            with pytest.raises(resilmesh.DeadlineExceeded, match="inherited"), lasts(0.09, 0.1 + LATE):
                client.within(0.1).get(URL)
    assert mesh.snapshot()["services"]["svc"]["circuitBreakers"]["*"]["state"] == "CLOSED"


# ------------------------------------------------------------------------------------------- refusals


def test_an_open_circuit_is_the_clients_transport_error_and_can_be_pickled(driver: Driver, service: Service) -> None:
    service.otherwise = answer(500)
    mesh = mesh_of(service, circuitBreaker="{consecutiveFailures: 2, waitDurationInOpenState: 30s}")
    with driver.client(transport=driver.transport(mesh)) as client:
        assert [client.get(URL).status_code for _ in range(2)] == [500, 500]
        with pytest.raises(resilmesh.CircuitOpen) as raised:
            client.get(URL)
    error = raised.value
    assert isinstance(error, driver.library.TransportError)
    assert not isinstance(error, driver.library.NetworkError)
    assert error.attempts == 0
    assert 29 < error.retry_after < 30  # type: ignore[operator]
    assert error.request.method == "GET"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.args, again.service, again.retry_after, str(again.request.url)) == (error.args, "svc", error.retry_after, URL)
    assert len(service.seen) == 2


def test_a_deadline_can_be_pickled(driver: Driver, service: Service) -> None:
    service.otherwise = hang()
    with driver.client(transport=driver.transport(mesh_of(service, timeout="50ms"))) as client, pytest.raises(TimeoutError) as raised:
        client.get(URL)
    again = pickle.loads(pickle.dumps(raised.value))
    assert isinstance(again, driver.library.ReadTimeout)
    assert isinstance(again, resilmesh.DeadlineExceeded)
    assert again.attempts == 1


def test_a_circuit_that_opens_during_the_backoff_gives_back_what_was_kept(driver: Driver, service: Service) -> None:
    kept = b"k" * 1000
    service.script = [answer(500), answer(503, kept, {"x-why": "overloaded", "retry-after": "1"})]
    mesh = mesh_of(
        service, retries="{maxRetries: 3, retryOn: [5xx], backoff: {base: 1ms}}",
        circuitBreaker="{consecutiveFailures: 2, waitDurationInOpenState: 30s}",
    )
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.get(URL)
    assert response.status_code == 503
    assert response.content == kept
    assert response.headers["x-why"] == "overloaded"
    assert nothing_in_flight(mesh)


def test_a_slot_is_held_until_the_body_ends(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, concurrency="{maxRequests: 1}")
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.open("GET", URL)
        with pytest.raises(resilmesh.ConcurrencyExceeded):
            client.get(URL)
        assert client.read(response) == b"ok"
        assert client.get(URL).status_code == 200
        response = client.open("GET", URL)
        client.close_response(response)
        assert client.get(URL).status_code == 200
    assert nothing_in_flight(mesh)


def test_a_response_that_nobody_closes_gives_its_slot_back(driver: Driver, service: Service) -> None:
    import gc

    mesh = mesh_of(service, concurrency="{maxRequests: 1}")
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.open("GET", URL)
        del response
        gc.collect()
        assert client.get(URL).status_code == 200
    assert nothing_in_flight(mesh)


def test_a_body_that_breaks_off_counts_as_failure(driver: Driver, service: Service) -> None:
    service.otherwise = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
    mesh = mesh_of(service, circuitBreaker="{consecutiveFailures: 2}")
    with driver.client(transport=driver.transport(mesh)) as client:
        for _ in range(2):
            with pytest.raises(driver.library.RemoteProtocolError):
                client.get(URL)
        with pytest.raises(resilmesh.CircuitOpen):
            client.get(URL)


def test_an_unknown_host_is_forbidden_under_registry_only(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, mesh="{outbound: REGISTRY_ONLY}")
    with driver.client(transport=driver.transport(mesh)) as client, pytest.raises(resilmesh.Forbidden) as raised:
        client.get(f"http://{service.address}/")
    assert isinstance(raised.value, driver.library.TransportError)
    assert service.seen == []


def test_the_clients_pool_being_full_says_nothing_about_the_service(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, circuitBreaker="{consecutiveFailures: 1}")
    limits = driver.library.Limits(max_connections=1)
    timeout = driver.library.Timeout(1, pool=0.05)
    with driver.client(transport=driver.transport(mesh, limits=limits), timeout=timeout) as client:
        response = client.open("GET", URL)
        with pytest.raises(driver.library.PoolTimeout):
            client.get(URL)
        client.close_response(response)
        assert client.get(URL).status_code == 200


def test_waiting_for_the_pool_ends_with_the_deadline(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, timeout="1s", routes="[{name: short, match: {path: /short}, timeout: 100ms}]")
    limits = driver.library.Limits(max_connections=1)
    with driver.client(transport=driver.transport(mesh, limits=limits)) as client:
        response = client.open("GET", URL)
        with pytest.raises(resilmesh.DeadlineExceeded), lasts(0.09, 0.1 + LATE):
            client.get("http://svc.test/short")
        client.close_response(response)
        assert client.get("http://svc.test/short").status_code == 200
    assert nothing_in_flight(mesh)


# ------------------------------------------------------------------------------------- modes and faults


def test_observe_touches_nothing(driver: Driver, service: Service) -> None:
    refused = f"127.0.0.1:{unused_port()}"
    text = policy(
        refused, mesh="{mode: OBSERVE}", timeout="50ms", idleTimeout="50ms", retries="{maxRetries: 3, retryOn: [5xx]}",
        rateLimit="{requests: 1, per: 1h}", fault="{abort: {httpStatus: 500}}",
    ).replace("svc.test", "127.0.0.1")
    mesh = resilmesh.Mesh.from_text(text)
    service.script = [answer(503), answer(delay=0.2)]
    with driver.client(transport=driver.transport(mesh)) as client:
        assert client.get(f"http://{service.address}/").status_code == 503
        assert client.get(f"http://{service.address}/").status_code == 200
    assert len(service.seen) == 2
    assert mesh.snapshot()["services"]["svc"]["routes"]["*"]["wouldReject"] == {"RateLimited": 1}


def test_off_is_the_inner_transport_alone(driver: Driver, service: Service) -> None:
    text = policy(f"127.0.0.1:{unused_port()}", mode="'OFF'", timeout="50ms").replace("svc.test", "127.0.0.1")
    with driver.client(transport=driver.transport(resilmesh.Mesh.from_text(text))) as client:
        response = client.get(f"http://{service.address}/")
    assert "resilmesh" not in response.extensions


def test_an_injected_abort_is_a_response_and_is_not_retried(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, fault="{abort: {httpStatus: 418}}", retries="{maxRetries: 3, retryOn: [418]}")
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.get(URL)
    assert (response.status_code, response.text) == (418, "fault filter abort")
    assert response.headers["content-type"] == "text/plain"
    assert response.extensions["resilmesh"]["flag"] == "FI"
    assert service.seen == []
    assert nothing_in_flight(mesh)


def test_a_grpc_abort_of_a_plain_request_is_a_200(driver: Driver, service: Service) -> None:
    with driver.client(transport=driver.transport(mesh_of(service, fault="{abort: {grpcStatus: 14}}"))) as client:
        response = client.get(URL)
    assert (response.status_code, response.text) == (200, "fault filter abort")
    assert service.seen == []


def test_an_abort_of_attempt_scope_is_retried_and_feeds_the_circuit(driver: Driver, service: Service) -> None:
    mesh = mesh_of(
        service, fault="{abort: {httpStatus: 503}, scope: ATTEMPT}", retries="{maxRetries: 2, retryOn: [5xx], backoff: {base: 1ms}}",
        circuitBreaker="{consecutiveFailures: 3}",
    )
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.get(URL)
        assert (response.status_code, response.text) == (503, "fault filter abort")
        assert response.extensions["resilmesh"]["attempts"] == 3
        with pytest.raises(resilmesh.CircuitOpen):
            client.get(URL)
    assert service.seen == []


# -------------------------------------------------------------------------------------- localReplies


RESET = "upstream connect error or disconnect/reset before headers. "


@pytest.mark.parametrize(
    ("blocks", "act", "status", "body"),
    [
        ({}, reset, 503, RESET + "reset reason: connection termination"),
        ({}, close, 503, RESET + "reset reason: connection termination"),
        ({}, raw(b"nonsense\r\n\r\n"), 502, RESET + "reset reason: protocol error"),
        ({"timeout": "100ms"}, hang(), 504, "upstream request timeout"),
        ({"idleTimeout": "100ms"}, hang(), 504, "upstream request timeout"),
        (
            {"retries": "{maxRetries: 1, retryOn: [reset], backoff: {base: 1ms}}"}, reset, 503,
            RESET + "retried and the latest reset reason: connection termination",
        ),
        ({"retries": "{maxRetries: 1, retryOn: [5xx], perTryTimeout: 50ms}"}, hang(), 504, "upstream request timeout"),
    ],
)
def test_respond_answers_what_fails_on_the_way(
    driver: Driver, service: Service, blocks: dict[str, str], act: object, status: int, body: str
) -> None:
    service.otherwise = act  # type: ignore[assignment]
    mesh = mesh_of(service, mesh="{localReplies: RESPOND}", **blocks)
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.get(URL)
    assert (response.status_code, response.text) == (status, body)
    assert response.headers["content-type"] == "text/plain"
    assert nothing_in_flight(mesh)


def test_respond_answers_a_refused_connection(driver: Driver) -> None:
    mesh = mesh_of(f"127.0.0.1:{unused_port()}", mesh="{localReplies: RESPOND}")
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.get(URL)
    assert (response.status_code, response.text) == (503, RESET + "reset reason: remote connection failure")
    assert response.extensions["resilmesh"]["flag"] == "UF"
    assert "x-envoy-overloaded" not in response.headers


def test_respond_answers_rejections(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, mesh="{localReplies: RESPOND, outbound: REGISTRY_ONLY}", rateLimit="{requests: 1, per: 1h}")
    with driver.client(transport=driver.transport(mesh)) as client:
        assert client.get(URL).status_code == 200
        limited = client.get(URL)
        assert (limited.status_code, limited.text, "retry-after" in limited.headers) == (429, "local_rate_limited", False)
        assert limited.extensions["resilmesh"]["flag"] == "RL"
        assert client.get(f"http://{service.address}/").status_code == 502
    mesh = mesh_of(service, mesh="{localReplies: RESPOND}", concurrency="{maxRequests: 1}")
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.open("GET", URL)
        full = client.get(URL)
        assert (full.status_code, full.text) == (503, RESET + "reset reason: overflow")
        assert full.headers["x-envoy-overloaded"] == "true"
        client.close_response(response)


def test_respond_leaves_the_clients_own_read_time_out_alone(driver: Driver, service: Service) -> None:
    service.otherwise = hang()
    mesh = mesh_of(service, mesh="{localReplies: RESPOND}")
    with driver.client(transport=driver.transport(mesh), timeout=0.1) as client, pytest.raises(driver.library.ReadTimeout):
        client.get(URL)
