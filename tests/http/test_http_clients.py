"""Everything that a client does today goes on working with the transport inserted."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import respx
from http_driver import Driver, mesh_of, nothing_in_flight, policy
from http_proxy import Proxy
from http_service import Service, answer, drip_body, raw

import resilmesh
from resilmesh.http import AsyncTransport, Transport
from resilmesh.http.lanes import OPTIONS
from tests.timing import lasts

URL = "http://svc.test/things"
RETRY = "{maxRetries: 2, retryOn: [5xx], backoff: {base: 1ms}}"
FULL = {
    "timeout": "2s", "retries": RETRY, "circuitBreaker": "{}", "concurrency": "{maxRequests: 10}", "rateLimit": "{requests: 100000}",
    "outlierDetection": "{}", "retryBudget": "{}",
}


# ------------------------------------------------------------------------------------------- the client


def test_redirects_are_calls_of_their_own(driver: Driver, service: Service) -> None:
    service.script = [answer(302, b"", {"location": "/elsewhere"}), answer(503), answer(200, b"there")]
    mesh = mesh_of(service, **FULL)
    with driver.client(transport=driver.transport(mesh), follow_redirects=True) as client:
        response = client.get(URL)
    assert (response.text, response.url.path, len(response.history)) == ("there", "/elsewhere", 1)
    assert response.extensions["resilmesh"]["attempts"] == 2
    assert mesh.snapshot()["services"]["svc"]["routes"]["*"]["calls"] == 2
    assert nothing_in_flight(mesh)


def test_cookies_params_and_base_url(driver: Driver, service: Service) -> None:
    service.script = [answer(200, headers={"set-cookie": "seen=1; Path=/"})]
    with driver.client(transport=driver.transport(mesh_of(service, **FULL)), base_url="http://svc.test/v1/", params={"a": "b"}) as client:
        client.get("things")
        client.get("things")
    assert [seen.target for seen in service.seen] == ["/v1/things?a=b"] * 2
    assert service.seen[1].headers["cookie"] == "seen=1"


def test_digest_auth_answers_a_challenge(driver: Driver, service: Service) -> None:
    challenge = 'Digest realm="r", nonce="abc", qop="auth", algorithm=SHA-256'
    service.script = [answer(401, b"", {"www-authenticate": challenge})]
    with driver.client(transport=driver.transport(mesh_of(service, **FULL)), auth=driver.library.DigestAuth("user", "secret")) as client:
        assert client.get(URL).status_code == 200
    sent = dict(re.findall(r'(\w+)="?([^",]+)"?', service.seen[1].headers["authorization"]))

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()

    expected = digest(f"{digest('user:r:secret')}:abc:{sent['nc']}:{sent['cnonce']}:auth:{digest('GET:/things')}")
    assert sent["response"] == expected


def test_event_hooks_see_the_call_once(driver: Driver, service: Service) -> None:
    service.script = [answer(503)]
    told: list[str] = []

    def on_request(request: Any) -> None:
        told.append(f"request {request.url}")

    def on_response(response: Any) -> None:
        told.append(f"response {response.status_code}")

    async def on_request_async(request: Any) -> None:
        on_request(request)

    async def on_response_async(response: Any) -> None:
        on_response(response)

    hooks = {"request": [on_request], "response": [on_response]}
    if not driver.blocking:
        hooks = {"request": [on_request_async], "response": [on_response_async]}  # type: ignore[list-item]
    with driver.client(transport=driver.transport(mesh_of(service, **FULL)), event_hooks=hooks) as client:
        client.get(URL)
    assert told == [f"request {URL}", "response 200"]


def test_trace_callbacks_go_on(driver: Driver, service: Service) -> None:
    told: list[str] = []

    def trace(name: str, info: dict[str, Any]) -> None:
        told.append(name)

    async def trace_async(name: str, info: dict[str, Any]) -> None:
        told.append(name)

    with driver.client(transport=driver.transport(mesh_of(service, **FULL))) as client:
        client.get(URL, extensions={"trace": trace if driver.blocking else trace_async})
    assert "connection.connect_tcp.started" in told
    assert "http11.receive_response_headers.complete" in told


def test_statuses_and_bodies_as_they_come(driver: Driver, service: Service) -> None:
    packed = gzip.compress(b"unpacked" * 1000)
    with driver.client(transport=driver.transport(mesh_of(service, **FULL))) as client:
        service.script = [answer(200, b"never sent", {"content-length": "10"})]
        assert client.request("HEAD", URL).content == b""
        service.script = [raw(b"HTTP/1.1 304 Not Modified\r\n\r\n", then_close=False)]
        assert client.get(URL).status_code == 304
        service.script = [raw(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", b"HTTP/1.1 204 Done\r\n\r\n", then_close=False)]
        assert client.get(URL).status_code == 204
        service.script = [answer(200, packed, {"content-encoding": "gzip"})]
        assert client.get(URL).content == b"unpacked" * 1000
        service.script = [raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", then_close=False)]
        assert client.get(URL).text == "abc"
        service.script = [raw(b"HTTP/1.0 200 OK\r\n\r\nto the end")]
        assert client.get(URL).text == "to the end"
        service.script = [answer(200, b"L" * 5_000_000)]
        assert len(client.get(URL).content) == 5_000_000
        assert client.post(URL, content=b"U" * 5_000_000).status_code == 200
    assert len(service.seen[-1].body) == 5_000_000


def test_a_kept_gzip_body_can_still_be_read(driver: Driver, service: Service) -> None:
    packed = gzip.compress(b"why" * 100)
    service.script = [answer(503, packed, {"content-encoding": "gzip"})]
    mesh = mesh_of(
        service, retries="{maxRetries: 1, retryOn: [5xx], backoff: {base: 50ms, max: 50ms}}",
        circuitBreaker="{consecutiveFailures: 1, waitDurationInOpenState: 60s}",
    )
    # The circuit is open already when the retry is decided: the response is returned as it is, not kept.
    with driver.client(transport=driver.transport(mesh)) as client:
        assert client.get(URL).content == b"why" * 100


def test_server_sent_events_arrive_one_by_one(library: ModuleType, service: Service) -> None:
    events = [b"data: %d\n\n" % n for n in range(5)]
    service.otherwise = raw(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", *events, every=0.05)
    mesh = mesh_of(service, idleTimeout="1s", retries=RETRY)
    import time

    with library.Client(transport=Transport(mesh)) as client, client.stream("GET", URL) as response:
        came = [(line, time.monotonic()) for line in response.iter_lines() if line]
    assert [line for line, _ in came] == [f"data: {n}" for n in range(5)]
    assert came[-1][1] - came[0][1] > 0.1
    assert nothing_in_flight(mesh)


def test_a_retried_response_of_any_size_is_set_aside(driver: Driver, service: Service) -> None:
    service.script = [answer(503, b"B" * 3_000_000), drip_503(), answer(200, b"fine")]
    mesh = mesh_of(service, retries=RETRY)
    with driver.client(transport=driver.transport(mesh)) as client, lasts(0, 1.0):
        assert client.get(URL).text == "fine"
    assert nothing_in_flight(mesh)


def drip_503() -> Any:
    return raw(b"HTTP/1.1 503 No\r\nContent-Length: 1000\r\n\r\n", *[b"."] * 1000, every=0.05)


# ----------------------------------------------------------------------------------- foreign transports


def test_mock_transport(driver: Driver) -> None:
    asked: list[Any] = []

    def handler(request: Any) -> Any:
        asked.append(request)
        return driver.library.Response(503 if len(asked) < 3 else 200, json={"n": len(asked)})

    mesh = mesh_of("10.1.2.3:8080", **FULL)
    with driver.client(transport=driver.transport(mesh, driver.library.MockTransport(handler))) as client:
        response = client.request("PUT", URL, json={"a": 1})
    assert response.json() == {"n": 3}
    assert str(asked[0].url) == "http://10.1.2.3:8080/things"
    assert asked[0].headers["host"] == "svc.test"
    assert str(response.request.url) == URL
    assert nothing_in_flight(mesh)


def test_mock_transport_without_endpoints_sees_the_url(driver: Driver) -> None:
    seen: list[str] = []

    def handler(request: Any) -> Any:
        seen.append(str(request.url))
        return driver.library.Response(200, text="mocked")

    with driver.client(transport=driver.transport(mesh_of(**FULL), driver.library.MockTransport(handler))) as client:
        response = client.post(URL, files={"f": b"x"})
        assert response.text == "mocked"
        assert b"x" in response.request.content
    assert seen == [URL]


def test_errors_of_a_mock_are_classified(driver: Driver) -> None:
    def handler(request: Any) -> Any:
        raise driver.library.ConnectError("refused", request=request)

    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 2}")
    with driver.client(transport=driver.transport(mesh, driver.library.MockTransport(handler))) as client:
        for _ in range(2):
            with pytest.raises(driver.library.ConnectError):
                client.get(URL)
        with pytest.raises(resilmesh.CircuitOpen):
            client.get(URL)


def test_a_foreign_transport_that_breaks_may_have_sent_the_request(driver: Driver) -> None:
    asked: list[Any] = []

    def handler(request: Any) -> Any:
        asked.append(request)
        raise driver.library.ReadError("reset", request=request)

    mesh = mesh_of(retries="{maxRetries: 2, retryOn: [reset], backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh, driver.library.MockTransport(handler))) as client:
        with pytest.raises(driver.library.ReadError):
            client.post(URL, json={})
        assert len(asked) == 1
        with pytest.raises(driver.library.ReadError):
            client.get(URL)
        assert len(asked) == 4


def test_a_bug_in_a_mock_is_nobodys_failure(driver: Driver) -> None:
    def handler(request: Any) -> Any:
        raise ZeroDivisionError

    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}", retries=RETRY)
    with driver.client(transport=driver.transport(mesh, driver.library.MockTransport(handler))) as client:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                client.get(URL)
    assert nothing_in_flight(mesh)


def test_a_streaming_mock(driver: Driver) -> None:
    def parts() -> Iterator[bytes]:
        yield b"a"
        yield b"b"

    async def async_parts() -> Any:
        yield b"a"
        yield b"b"

    def handler(request: Any) -> Any:
        return driver.library.Response(200, content=parts() if driver.blocking else async_parts())

    mesh = mesh_of(**FULL)
    with driver.client(transport=driver.transport(mesh, driver.library.MockTransport(handler))) as client:
        assert client.get(URL).text == "ab"
    assert nothing_in_flight(mesh)


def test_asgi_and_wsgi_applications(driver: Driver) -> None:
    async def asgi(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": dict(scope["headers"])[b"host"]})

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["HTTP_HOST"].encode()]

    inner = driver.library.WSGITransport(app=wsgi) if driver.blocking else driver.library.ASGITransport(app=asgi)
    mesh = mesh_of("10.0.0.1:80", **FULL)
    with driver.client(transport=driver.transport(mesh, inner)) as client:
        assert client.get(URL).text == "svc.test"
    assert nothing_in_flight(mesh)


def test_a_foreign_async_transport_that_hangs_meets_the_deadline(driver: Driver) -> None:
    if driver.blocking:
        inner: Any = driver.library.MockTransport(lambda request: driver.library.Response(200))
    else:
        import anyio

        async def never(request: Any) -> Any:
            await anyio.sleep(10)

        inner = driver.library.MockTransport(never)
    mesh = mesh_of(timeout="100ms")
    with driver.client(transport=driver.transport(mesh, inner)) as client:
        if driver.blocking:
            assert client.get(URL).status_code == 200
        else:
            with pytest.raises(resilmesh.DeadlineExceeded), lasts(0.09, 0.25):
                client.get(URL)
    assert nothing_in_flight(mesh)


def test_a_generator_that_hangs_meets_the_deadline(library: ModuleType, service: Service) -> None:
    import anyio

    mesh = mesh_of(service, timeout="100ms")

    async def stuck() -> Any:
        yield b"first"
        await anyio.sleep(10)

    async def call() -> None:
        async with library.AsyncClient(transport=AsyncTransport(mesh)) as client:
            with pytest.raises(resilmesh.DeadlineExceeded), lasts(0.09, 0.25):
                await client.post(URL, content=stuck())

    anyio.run(call)
    assert nothing_in_flight(mesh)


def test_options_and_inner_do_not_go_together(driver: Driver) -> None:
    with pytest.raises(TypeError, match="verify"):
        driver.transport(mesh_of(**FULL), driver.plain_transport(), verify=False)


def test_a_plain_inner_transport_is_cloned_for_each_endpoint(driver: Driver, service: Service, other: Service) -> None:
    inner = driver.plain_transport()
    with driver.client(transport=driver.transport(mesh_of(service, other), inner)) as client:
        for _ in range(4):
            assert client.get(URL).status_code == 200
    assert (len(service.seen), len(other.seen)) == (2, 2)


# ----------------------------------------------------------------------------------------- mocking tools


def test_respx_goes_on_matching() -> None:
    mesh = mesh_of("10.0.0.1:80", **FULL)
    with respx.mock(assert_all_called=True) as router, httpx.Client(transport=Transport(mesh)) as client:
        router.get(URL).mock(side_effect=[httpx.Response(503), httpx.Response(200, text="respx")])
        assert client.get(URL).text == "respx"
        router.get("http://other.test/").respond(204)
        assert client.get("http://other.test/").status_code == 204
    assert nothing_in_flight(mesh)


def test_respx_goes_on_matching_httpx_transports() -> None:
    mesh = mesh_of("10.0.0.1:80", **FULL)
    with respx.mock(using="httpx") as router, httpx.Client(transport=Transport(mesh)) as client:
        router.post(URL).mock(side_effect=httpx.ConnectError)
        with pytest.raises(httpx.ConnectError):
            client.post(URL, json={})
    assert nothing_in_flight(mesh)


def test_pytest_httpx_goes_on_matching(httpx_mock: Any) -> None:
    httpx_mock.add_response(url=URL, status_code=500)
    httpx_mock.add_response(url=URL, text="mocked", match_headers={"x": "y"})
    mesh = mesh_of("10.0.0.1:80", **FULL)
    with httpx.Client(transport=Transport(mesh)) as client:
        assert client.get(URL, headers={"x": "y"}).text == "mocked"
    assert [str(request.url) for request in httpx_mock.get_requests()] == [URL, URL]
    assert nothing_in_flight(mesh)


@pytest.mark.anyio
async def test_pytest_httpx_goes_on_matching_async(httpx_mock: Any, anyio_backend: str) -> None:
    httpx_mock.add_response(url=URL, text="mocked")
    async with httpx.AsyncClient(transport=AsyncTransport(mesh_of("10.0.0.1:80", **FULL))) as client:
        assert (await client.get(URL)).text == "mocked"


# ------------------------------------------------------------------------------------- proxies, sockets


@pytest.fixture
def proxy(service: Service) -> Iterator[Proxy]:
    proxy = Proxy({"svc.test:80": service.address, "svc.test": service.address})
    yield proxy
    proxy.stop()


def test_a_forward_proxy_is_asked_for_the_url(driver: Driver, service: Service, proxy: Proxy) -> None:
    mesh = mesh_of(timeout="2s")
    with driver.client(transport=driver.transport(mesh, proxy=proxy.url)) as client:
        assert client.get(URL).status_code == 200
    assert proxy.asked == [f"GET {URL} HTTP/1.1"]


def test_a_forward_proxy_is_asked_for_the_endpoint(driver: Driver, service: Service, proxy: Proxy) -> None:
    mesh = mesh_of(service, timeout="2s")
    with driver.client(transport=driver.transport(mesh, proxy=proxy.url)) as client:
        assert client.get(URL).status_code == 200
    assert proxy.asked == [f"GET http://{service.address}/things HTTP/1.1"]
    assert service.seen[0].headers["host"] == "svc.test"


def test_a_proxy_that_refuses_is_a_connect_failure(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, mesh="{localReplies: RESPOND}")
    with driver.client(transport=driver.transport(mesh, proxy=f"http://{service.address}"), verify=False) as client:
        service.otherwise = answer(403)
        response = client.get("https://svc.test/")
    assert response.status_code == 503
    assert response.extensions["resilmesh"]["flag"] == "UF"


def test_a_unix_socket_is_dialled_whatever_the_endpoint(driver: Driver, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix")

    thread = threading.Thread(target=serve)
    thread.start()
    with driver.client(transport=driver.transport(mesh_of("127.0.0.1:1", timeout="2s"), uds=path)) as client:
        assert client.get(URL).text == "unix"
    thread.join()
    listener.close()


# --------------------------------------------------------------------------------------- wrap and reload


def test_wrap_keeps_what_the_client_is(driver: Driver, service: Service, proxy: Proxy) -> None:
    service.script = [answer(503)]
    mesh = mesh_of(service, **FULL)
    kind = driver.library.Client if driver.blocking else driver.library.AsyncClient
    mocked = driver.library.MockTransport(lambda request: driver.library.Response(418))
    options = {
        "headers": {"x-own": "1"}, "cookies": {"c": "d"}, "timeout": 3.0, "auth": ("user", "secret"),
        "mounts": {"http://mocked.test": mocked, "http://direct.test": None},
        "limits": driver.library.Limits(max_connections=3, max_keepalive_connections=2, keepalive_expiry=7.0),
    }
    with driver.client(**options) as client:
        assert resilmesh.wrap(client.own, mesh) is client.own
        assert isinstance(client.own, kind)
        assert client.get(URL).status_code == 200
        assert client.get("http://mocked.test/").status_code == 418
        assert service.seen[1].headers["x-own"] == "1"
        assert service.seen[1].headers["cookie"] == "c=d"
        assert service.seen[1].headers["authorization"].startswith("Basic ")
        pools = [lane.inner._pool for lane in client.own._transport._lanes._lanes.values()]
        assert [(pool.max_connections, pool.max_keepalive_connections) for pool in pools] == [(3, 2)]
        assert [each._keepalive_expiry for pool in pools for each in pool._open] == [7.0]
    with driver.client(proxy=proxy.url) as client:
        resilmesh.wrap(client.own, mesh)
        assert client.get(URL).status_code == 200
    assert len(proxy.asked) == 1
    assert nothing_in_flight(mesh)


def test_an_option_that_does_not_exist_is_refused_at_once(driver: Driver) -> None:
    with pytest.raises(TypeError, match="no option 'verfy': did you mean 'verify'"):
        driver.transport(mesh_of("127.0.0.1:1"), verfy=False)
    with pytest.raises(TypeError, match="no option 'zzz'; there are verify, cert, "):
        driver.transport(mesh_of("127.0.0.1:1"), zzz=1)


def test_the_options_are_those_of_the_client(driver: Driver) -> None:
    assert tuple(inspect.signature(type(driver.plain_transport())).parameters) == OPTIONS


def test_wrapping_twice(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, **FULL)
    with driver.client() as client:
        resilmesh.wrap(client.own, mesh)
        transport = client.own._transport
        resilmesh.wrap(client.own, mesh)
        assert client.own._transport is transport
        with pytest.raises(ValueError, match="another mesh"):
            resilmesh.wrap(client.own, mesh_of(service))
        assert client.get(URL).extensions["resilmesh"]["attempts"] == 1
    with pytest.raises(TypeError, match="is no client: wrap an instance of httpx"):
        resilmesh.wrap(object(), mesh)
    with pytest.raises(TypeError, match="no client"):
        resilmesh.wrap(driver.library.Request("GET", URL), mesh)


def test_wrap_uses_the_configured_mesh(driver: Driver, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(policy(service, timeout="2s"))
    mesh = resilmesh.configure(file)
    with driver.client() as client:
        resilmesh.wrap(client.own)
        assert client.get(URL).extensions["resilmesh"]["service"] == "svc"
    mesh.close()


def test_a_reload_moves_new_calls_and_closes_drained_lanes(driver: Driver, service: Service, other: Service) -> None:
    mesh = mesh_of(service, timeout="5s")
    service.script = [drip_body(parts=4, every=0.05)]
    with driver.client(transport=driver.transport(mesh)) as client:
        slow = client.open("GET", URL)
        mesh.apply_text(policy(other, timeout="5s"))
        assert client.get(URL).extensions["resilmesh"]["endpoint"] == other.address
        assert client.read(slow) == b"xxxx", "a call in flight ends as it began"
        client.get(URL)
        with lasts(0, 1):
            while service.open_connections:
                pass
        assert (len(service.seen), len(other.seen)) == (1, 2)


def test_closing_the_client_closes_every_connection(driver: Driver, service: Service, other: Service) -> None:
    with driver.client(transport=driver.transport(mesh_of(service, other, timeout="2s"))) as client:
        for _ in range(4):
            client.get(URL)
        assert (service.open_connections, other.open_connections) == (1, 1)
    with lasts(0, 1):
        while service.open_connections or other.open_connections:
            pass


def test_importing_the_adapter_imports_no_client() -> None:
    import subprocess
    import sys

    code = "import sys, resilmesh.http; print([m for m in ('httpx', 'httpx2', 'httpcore', 'anyio', 'trio') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
