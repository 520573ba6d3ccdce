"""HTTP/2: calls share a connection, and one that ends early does not disturb its neighbours."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import anyio
import pytest
from http2_service import Http2Service
from http_driver import Driver, mesh_of, nothing_in_flight

import resilmesh
from resilmesh import Mesh
from resilmesh.http import AsyncTransport, Transport
from tests.timing import in_time, lasts

LATE = 0.15
BASE = "http://svc.test"
HTTP2 = {"http1": False, "http2": True}


@pytest.fixture
def h2_service() -> Iterator[Http2Service]:
    service = Http2Service()
    yield service
    service.stop()


def test_the_policy_makes_it_the_only_protocol(driver: Driver, h2_service: Http2Service) -> None:
    mesh = mesh_of(h2_service.address, protocol="HTTP2", timeout="2s")
    with driver.client(transport=driver.transport(mesh)) as client:
        response = client.get(BASE + "/ok")
    assert (response.status_code, response.http_version) == (200, "HTTP/2")


def test_without_h2_the_policy_says_what_is_missing(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = mesh_of("127.0.0.1:1", protocol="HTTP2")
    with driver.client(transport=driver.transport(mesh)) as client:
        monkeypatch.setitem(sys.modules, "h2", None)
        with pytest.raises(ImportError, match=r"needs the h2 package: pip install"):
            client.get(BASE + "/ok")
    assert mesh.snapshot()["inFlight"] == 0


def test_a_call_over_http2(driver: Driver, h2_service: Http2Service) -> None:
    mesh = mesh_of(h2_service.address, timeout="2s")
    with driver.client(transport=driver.transport(mesh, **HTTP2)) as client:
        response = client.get(BASE + "/ok")
    assert (response.status_code, response.text, response.http_version) == (200, "ok", "HTTP/2")
    assert nothing_in_flight(mesh)


@pytest.mark.parametrize("path", ["/hang", "/drip/40"])
def test_the_deadline_is_exact_and_the_connection_lives_on(driver: Driver, h2_service: Http2Service, path: str) -> None:
    mesh = mesh_of(h2_service.address, timeout="150ms")
    with driver.client(transport=driver.transport(mesh, **HTTP2)) as client:
        assert client.get(BASE + "/ok").status_code == 200
        for _ in range(3):
            with pytest.raises(driver.library.ReadTimeout), lasts(0.149, 0.15 + LATE):
                client.get(BASE + path)
        assert client.get(BASE + "/ok").status_code == 200
    assert h2_service.connections == 1
    assert h2_service.resets == [8, 8, 8], "a stream that nobody reads any more is cancelled"
    assert nothing_in_flight(mesh)


def test_a_refused_stream_was_not_seen_and_is_retried_even_for_post(driver: Driver, h2_service: Http2Service) -> None:
    mesh = mesh_of(h2_service.address, retries="{maxRetries: 1, retryOn: [refused-stream], backoff: {base: 1ms}}")
    with driver.client(transport=driver.transport(mesh, **HTTP2)) as client:
        response = client.post(BASE + "/refuse", content=b"x")
        assert (response.status_code, response.extensions["resilmesh"]["attempts"]) == (200, 2)
        with pytest.raises(driver.library.RemoteProtocolError):
            client.post(BASE + "/reset", content=b"x")
    assert h2_service.seen.count("/reset") == 1


@pytest.mark.parametrize(("path", "text"), [("/reset", "remote reset"), ("/refuse", "remote refused stream reset")])
def test_respond_says_which_reset_it_was(driver: Driver, h2_service: Http2Service, path: str, text: str) -> None:
    mesh = mesh_of(h2_service.address, mesh="{localReplies: RESPOND}")
    with driver.client(transport=driver.transport(mesh, **HTTP2)) as client:
        response = client.get(BASE + path)
    assert response.status_code == 503
    assert response.text.endswith("reset reason: " + text)


# ------------------------------------------------------------------------------------------ neighbours


async def _timed(client: Any, path: str, deadline: float = 5.0) -> tuple[str, float]:
    began = time.monotonic()
    with resilmesh.deadline(deadline):
        try:
            response = await client.get(BASE + path)
        except resilmesh.DeadlineExceeded:
            return "late", time.monotonic() - began
    return str(response.status_code), time.monotonic() - began


async def _neighbours(library: ModuleType, mesh: Mesh, calls: list[tuple[str, float]]) -> list[tuple[str, float]]:
    outcomes: list[Any] = [None] * len(calls)
    async with library.AsyncClient(transport=AsyncTransport(mesh, **HTTP2)) as client:
        await client.get(BASE + "/ok")  # so that the connection is there, and says how many streams it carries

        async def one(index: int, path: str, deadline: float) -> None:
            outcomes[index] = await _timed(client, path, deadline)

        async with anyio.create_task_group() as group:
            for index, (path, deadline) in enumerate(calls):
                group.start_soon(one, index, path, deadline)
        assert (await client.get(BASE + "/ok")).status_code == 200
    return outcomes


@pytest.mark.parametrize("runtime", ["asyncio", "trio"])
def test_each_neighbour_meets_its_own_deadline(library: ModuleType, h2_service: Http2Service, runtime: str) -> None:
    mesh = mesh_of(h2_service.address, timeout="5s")
    calls = [("/hang", 0.6), ("/hang", 0.1), ("/after/400", 5.0), ("/hang", 0.2), ("/drip/30", 0.3), ("/after/150", 5.0)]
    outcomes = anyio.run(_neighbours, library, mesh, calls, backend=runtime)
    for (path, deadline), (outcome, took) in zip(calls, outcomes, strict=True):
        if path.startswith("/after"):
            assert outcome == "200"
        else:
            assert outcome == "late"
            in_time(took, deadline + LATE, least=deadline - 0.01)
    assert h2_service.connections == 1
    assert nothing_in_flight(mesh)


@pytest.mark.parametrize("runtime", ["asyncio", "trio"])
def test_bodies_that_nobody_reads_do_not_use_up_the_shared_window(library: ModuleType, h2_service: Http2Service, runtime: str) -> None:
    mesh = mesh_of(h2_service.address, timeout="5s")

    async def leave_early() -> None:
        async with library.AsyncClient(transport=AsyncTransport(mesh, **HTTP2)) as client:
            await client.get(BASE + "/ok")
            for _ in range(4):
                async with client.stream("GET", BASE + "/flood/12000000") as response:
                    assert response.status_code == 200
                await anyio.sleep(0.05)
            # The window of a connection is 16 MiB; this needs half of it.
            response = await client.get(BASE + "/flood/8000000")
            assert len(response.content) == 8_000_000

    anyio.run(leave_early, backend=runtime)
    assert h2_service.connections == 1
    assert nothing_in_flight(mesh)


def test_threads_do_not_hold_up_each_others_deadlines(library: ModuleType, h2_service: Http2Service) -> None:
    mesh = mesh_of(h2_service.address, timeout="5s")
    outcomes: dict[float, float] = {}

    def one(client: Any, path: str, deadline: float) -> None:
        began = time.monotonic()
        with resilmesh.deadline(deadline), pytest.raises(resilmesh.DeadlineExceeded):
            client.get(BASE + path)
        outcomes[deadline] = time.monotonic() - began

    with library.Client(transport=Transport(mesh, **HTTP2)) as client:
        client.get(BASE + "/ok")
        threads = [threading.Thread(target=one, args=(client, "/hang", deadline)) for deadline in (0.6, 0.1, 0.3, 0.2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert client.get(BASE + "/ok").status_code == 200
    assert len(outcomes) == 4
    for deadline, took in outcomes.items():
        in_time(took, deadline + LATE, least=deadline - 0.01)
    assert nothing_in_flight(mesh)
