"""What the adapter relies on inside httpx, httpx2, httpcore and httpcore2. A new version that changes it fails here first."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from http_driver import Driver
from http_service import Service

from resilmesh.http import pool
from resilmesh.http.backend import CURRENT, AsyncBackend, Backend, Wire
from resilmesh.http.connections import AsyncPool, Pool
from resilmesh.http.library import library_of, named
from resilmesh.state.ledger import Ledger
from resilmesh.state.stats import Stats


def core_of(library: ModuleType) -> ModuleType:
    return importlib.import_module(library.__name__.replace("httpx", "httpcore"))


OPTIONS: dict[str, Any] = {"retries": 2, "local_address": "127.0.0.1", "socket_options": [(6, 1, 1)]}
LIMITS: dict[str, Any] = {"max_connections": 5, "max_keepalive_connections": 4, "keepalive_expiry": 3.0}


def test_an_http2_clone_has_the_settings_and_a_pool_of_its_own(driver: Driver) -> None:
    library = driver.library
    transport = driver.plain_transport(http2=True, limits=library.Limits(**LIMITS), **OPTIONS)
    twin = pool.clone(transport, core_of(library), None)
    assert pool.is_plain(transport)
    assert pool.is_plain(twin)
    assert type(twin) is type(transport)
    ours, theirs = vars(twin._pool), vars(transport._pool)
    assert ours.keys() - {"create_connection"} == theirs.keys(), "clone copies everything that a pool has"
    fresh = {"_connections", "_requests", "_optional_thread_lock", "_network_backend"}
    for name in theirs.keys() - fresh:
        assert ours[name] is theirs[name]
    for name in fresh:
        assert ours[name] is not theirs[name]
    assert isinstance(twin._pool._network_backend, Backend if driver.blocking else AsyncBackend)
    assert pool.speaks_http2(twin)


def test_an_http1_clone_has_our_pool_and_httpcores_connections(driver: Driver) -> None:
    library, core = driver.library, core_of(driver.library)
    transport = driver.plain_transport(limits=library.Limits(**LIMITS), **OPTIONS)
    twin = pool.clone(transport, core, None)
    assert type(twin) is type(transport)
    assert isinstance(twin._pool, Pool if driver.blocking else AsyncPool)
    assert not pool.speaks_http2(twin)
    assert (twin._pool.max_connections, twin._pool.max_keepalive_connections) == (5, 4)
    origin = core.Origin(b"http", b"svc.test", 80)
    ours, theirs = twin._pool._create(origin), transport._pool.create_connection(origin)
    assert isinstance(ours, core.ConnectionInterface if driver.blocking else core.AsyncConnectionInterface)
    settings = ("_origin", "_ssl_context", "_keepalive_expiry", "_http1", "_http2", "_retries", "_local_address", "_uds", "_socket_options")
    for name in settings:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert isinstance(ours._network_backend, Backend if driver.blocking else AsyncBackend)
    unlimited = pool.clone(driver.plain_transport(limits=library.Limits()), core, None)._pool
    assert unlimited.max_connections == unlimited.max_keepalive_connections > 1_000_000


def test_a_transport_behind_a_proxy_is_known(driver: Driver) -> None:
    assert not pool.is_proxied(driver.plain_transport())
    for proxy in ("http://127.0.0.1:1", "socks5://127.0.0.1:1") if driver.library.__name__ == "httpx" else ("http://127.0.0.1:1",):
        assert pool.is_proxied(driver.plain_transport(proxy=proxy))


def test_a_subclass_is_not_plain(driver: Driver) -> None:
    kind = type(driver.plain_transport())
    assert not pool.is_plain(type("Own", (kind,), {})())
    assert not pool.is_plain(driver.library.MockTransport(lambda request: None))


def httpcores(driver: Driver) -> Any:
    """A clone with httpcore's own pool, as for HTTP/2, that speaks HTTP/1.1 to a service without TLS."""
    return pool.clone(driver.plain_transport(http2=True), core_of(driver.library), None)


def test_requests_and_streams_are_where_heal_looks(driver: Driver, service: Service) -> None:
    transport = httpcores(driver)
    with driver.client(transport=transport) as client:
        request = client.own.build_request("GET", f"http://{service.address}/")
        response = driver.run(transport.handle_request if driver.blocking else transport.handle_async_request, request)
        [pool_request] = transport._pool._requests
        [connection] = transport._pool._connections
        body = response.stream._httpcore_stream
        assert body._pool_request is pool_request
        assert body._closed is False
        assert pool_request.connection is connection
        assert not pool.is_idle(transport)
        assert pool.heal(transport._pool, response.stream) == [], "what is in use is not touched"
        assert not connection.is_idle()
        driver.run(response.stream.close if driver.blocking else response.stream.aclose)
        assert body._closed is True
        assert pool.is_idle(transport)
        assert connection.is_closed(), "an unread body takes its connection with it"


def test_a_connection_that_nothing_uses_is_taken_out(driver: Driver, service: Service) -> None:
    transport = httpcores(driver)
    with driver.client(transport=transport) as client:
        request = client.own.build_request("GET", f"http://{service.address}/")
        response = driver.run(transport.handle_request if driver.blocking else transport.handle_async_request, request)
        # As after a cancellation while httpcore closes the response.
        body = response.stream._httpcore_stream
        body._closed = True
        broken = pool.heal(transport._pool, response.stream)
        assert len(broken) == 1
        assert transport._pool._connections == []
        assert pool.is_idle(transport)
        driver.run(broken[0].close if driver.blocking else broken[0].aclose)
        response = driver.run(transport.handle_request if driver.blocking else transport.handle_async_request, request)
        driver.run(response.stream.close if driver.blocking else response.stream.aclose)


@pytest.fixture
def wire() -> Iterator[Wire]:
    """An attempt without limits, for which the test does its I/O."""
    wire = Wire()
    wire.monotonic = time.monotonic
    wire.until = wire.connect_timeout = wire.idle_timeout = float("inf")
    wire.written = wire.alone = True
    wire.stats = Stats(Ledger(), "nowhere", "*")
    CURRENT.set(wire)
    yield wire
    CURRENT.set(None)


def test_bytes_written_are_known(library: ModuleType, service: Service, wire: Wire) -> None:
    core = core_of(library)
    stream = Backend(core.SyncBackend(), core, ("127.0.0.1", service.port)).connect_tcp("nowhere.test", 1)
    assert wire.written is False
    stream.write(b"G")
    assert wire.written is True
    stream.close()


def test_a_torn_connection_refuses_to_go_on(library: ModuleType, service: Service, wire: Wire) -> None:
    core = core_of(library)
    stream = Backend(core.SyncBackend(), core, None).connect_tcp("127.0.0.1", service.port)
    stream.torn = True
    with pytest.raises(core.WriteError, match="cut short"):
        stream.write(b"more")
    stream.close()


@pytest.mark.parametrize("address", [("10.0.0.1", 8080), ("::1", 80), ("Häuser.TEST", 443), ("inner.test", 80)])
@pytest.mark.parametrize("url", ["http://user:pw@svc.test/a%20b?c=d&e#f", "https://svc.test:8443", "http://svc.test/?"])
def test_a_url_is_moved_as_the_client_would(library: ModuleType, url: str, address: tuple[str, int]) -> None:
    host, port = address
    before = library.URL(url)
    expected = before.copy_with(host=host, port=port)
    for _ in range(2):
        moved = named(library.__name__).moved(before, host, port)
        assert type(moved) is library.URL
        assert vars(moved) == vars(expected)
        assert (moved, moved.raw_path, moved.netloc) == (expected, expected.raw_path, expected.netloc)
    assert before == library.URL(url)


def test_the_library_is_known_by_the_request(library: ModuleType) -> None:
    class Own(library.Request):  # type: ignore[misc, name-defined]  # a parameter
        pass

    for request in (library.Request("GET", "http://a/"), Own("GET", "http://a/")):
        found: Any = library_of(request)
        assert found is named(library.__name__)
        assert found.client is library
        assert found.core is core_of(library)
    with pytest.raises(TypeError):
        library_of(object())
