"""HTTP/2 over mutual TLS: certificates of both sides and the root are replaced under load, and no call fails."""

from __future__ import annotations

import asyncio
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import pytest

import resilmesh
from resilmesh.compare.service import Endpoint, Latency, Request, Script
from resilmesh.compare.service_http2 import Streams
from resilmesh.identity.source import Fixed
from resilmesh.identity.svid import Identity, TrustBundle
from resilmesh.identity.tls import LiveContext
from tests.identity.pki import INVENTORY, WEB, Authority

OLD, NEW = Authority(), Authority()
BOTH = TrustBundle("shop.example", (OLD.certificate, NEW.certificate))


def identity(authority: Authority, name: str) -> Identity:
    return Identity(authority.issue(name).identity().svid, {"shop.example": BOTH})


class Service:
    """Answers after some milliseconds, so that a connection has calls on it whenever certificates change."""

    def __init__(self) -> None:
        self.source = Fixed(identity(OLD, INVENTORY))
        self.context = LiveContext(self.source, serves=True, alpn=("h2",), now=time.time)
        self.protocols: Counter[str | None] = Counter()
        self.callers: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._endpoint = Endpoint(Script("a", latency=Latency(0.003, 0.3)), self._loop)

    def run(self, ready: Callable[[str], None]) -> None:
        async def serve() -> None:
            self._ended = asyncio.Event()
            server = await self._loop.create_server(lambda: _Connection(self, self._endpoint), "127.0.0.1", 0, ssl=self.context)
            ready(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
            await self._ended.wait()
            server.close()

        self._loop.run_until_complete(serve())
        self._loop.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)


class _Connection(asyncio.Protocol):
    """Notes what was agreed on, and leaves the rest to the test bed's own."""

    def __init__(self, service: Service, endpoint: Endpoint) -> None:
        self._service = service
        self._endpoint = endpoint

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        secured: ssl.SSLObject = transport.get_extra_info("ssl_object")
        self._service.protocols[secured.selected_alpn_protocol()] += 1
        self._service.callers.add(hash(secured.getpeercert(binary_form=True)))
        transport.set_protocol(Streams(self._endpoint, transport, Request))


@pytest.fixture
def service() -> Iterator[tuple[Service, str]]:
    made = Service()
    address: list[str] = []
    ready = threading.Event()

    def listening(at: str) -> None:
        address.append(at)
        ready.set()

    thread = threading.Thread(target=made.run, args=(listening,))
    thread.start()
    try:
        assert ready.wait(10)
        yield made, address[0]
    finally:
        made.stop()
        thread.join()


class Rotation:
    """A hundred of both sides, in the middle of which the root changes; the next begins when some calls have been answered."""

    def __init__(self, *sources: tuple[Fixed, str]) -> None:
        self._sources = sources
        self.answered = 0
        self.done = False

    def run(self) -> None:
        try:
            for number in range(100):
                for source, name in self._sources:
                    source.put(identity(OLD if number < 50 else NEW, name), time.time())
                enough, until = self.answered + 2, time.monotonic() + 10
                while self.answered < enough and time.monotonic() < until:
                    time.sleep(0.001)
        finally:
            self.done = True


def check(service: Service, rotation: Rotation, mesh: resilmesh.Mesh, failures: list[str]) -> None:
    shown: dict[str, Any] = mesh.snapshot()
    assert failures == []
    assert rotation.answered >= 200
    assert shown["identity"]["rotations"] == 100
    assert shown["inFlight"] == 0
    assert set(service.protocols) == {"h2"}
    assert len(service.callers) > 20


def policy(address: str) -> str:
    return f"""
apiVersion: resilmesh/v1
services:
- name: inventory
  hosts: [inventory.prod.svc]
  protocol: HTTP2
  tls: {{mode: MUTUAL, identities: ["{INVENTORY}"]}}
  endpoints: [{{address: "{address}"}}]
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_tasks_that_share_connections(service: tuple[Service, str], backend: str) -> None:
    server, address = service
    ours = Fixed(identity(OLD, WEB))
    rotation = Rotation((server.source, INVENTORY), (ours, WEB))
    failures: list[str] = []

    async def main(mesh: resilmesh.Mesh) -> None:
        transport = resilmesh.http.AsyncTransport(mesh, http2=True)
        async with httpx.AsyncClient(transport=transport) as client, anyio.create_task_group() as group:
            async def load() -> None:
                while not rotation.done:
                    try:
                        answer = await client.get("http://inventory.prod.svc/")
                        assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
                        rotation.answered += 1
                    except Exception as error:
                        failures.append(repr(error))

            for _ in range(8):
                group.start_soon(load)
            await anyio.to_thread.run_sync(rotation.run)

    with resilmesh.Mesh.from_text(policy(address), identity=ours) as mesh:
        anyio.run(main, mesh, backend=backend)
        check(server, rotation, mesh, failures)


def test_threads(service: tuple[Service, str]) -> None:
    """Each has connections of its own: on a blocking one a call that reads would hold up the others."""
    server, address = service
    ours = Fixed(identity(OLD, WEB))
    rotation = Rotation((server.source, INVENTORY), (ours, WEB))
    failures: list[str] = []

    with resilmesh.Mesh.from_text(policy(address), identity=ours) as mesh:
        with httpx.Client(transport=resilmesh.http.Transport(mesh, http2=True)) as client:
            def load() -> None:
                while not rotation.done:
                    try:
                        answer = client.get("http://inventory.prod.svc/")
                        assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
                        rotation.answered += 1
                    except Exception as error:
                        failures.append(repr(error))

            threads = [threading.Thread(target=each) for each in (load, load, load, rotation.run)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
        check(server, rotation, mesh, failures)
