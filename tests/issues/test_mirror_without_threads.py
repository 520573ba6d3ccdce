"""What kept a copy from being sent, or ended, was raised in the caller: no thread to be had, an event loop that was gone."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest

import resilmesh.http
from resilmesh import Mesh
from resilmesh.drive.copies import TaskCopies
from tests.http.http_service import Service


def _mesh(service: Service, copies: Service) -> Mesh:
    return Mesh.from_text(f"""
apiVersion: resilmesh/v1
services:
- {{name: a, hosts: ["{service.address}"], mirror: {{service: b}}}}
- {{name: b, endpoints: [{{address: "{copies.address}"}}]}}
""")


@pytest.fixture
def services():  # type: ignore[no-untyped-def]  # of a fixture
    pair = Service(), Service()
    yield pair
    for each in pair:
        each.stop()


def test_no_thread_to_be_had(services: tuple[Service, Service], monkeypatch: pytest.MonkeyPatch) -> None:
    service, copies = services
    mesh = _mesh(service, copies)
    start = threading.Thread.start

    def refused(thread: threading.Thread) -> None:
        if thread.name == "resilmesh-mirror":
            raise RuntimeError("can't start new thread")
        start(thread)

    with httpx.Client(transport=resilmesh.http.Transport(mesh)) as client:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refused)
            connected = client.get(f"http://{service.address}/")
        assert connected.status_code == 200
        shown = mesh.snapshot()["services"]["a"]["routes"]["*"]
        assert (shown["mirrored"], shown["mirrorsDropped"], shown["inFlight"]) == (0, {"busy": 1}, 0)
        client.get(f"http://{service.address}/")
    assert mesh.snapshot()["services"]["a"]["routes"]["*"]["mirrored"] == 1


def test_a_loop_that_is_gone() -> None:
    copies = TaskCopies()

    async def never() -> None:
        await asyncio.get_running_loop().create_future()

    async def send() -> None:
        assert copies.send(never)
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(send())
    loop.close()
    copies.close()
    assert not copies._flying
