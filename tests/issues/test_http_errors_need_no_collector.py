"""What a client raised for a reset, or for a body that outlasted its call, was held by a frame of its own traceback."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

import resilmesh.http
from tests.drive.guarding import mesh_of
from tests.http.http_service import Act, Service, answer, drip_body, hang, reset

CASES: dict[str, tuple[Act, dict[str, str], str]] = {
    "reset": (reset, {}, "ReadError|RemoteProtocolError"),
    "reset, retried": (reset, {"retries": "{maxRetries: 1, retryOn: [reset], backoff: {base: 1ms}}"}, "ReadError|RemoteProtocolError"),
    "deadline": (hang(0.3), {"timeout": "50ms"}, "DeadlineExceeded"),
    "body": (drip_body(10, 0.05), {"timeout": "100ms"}, "DeadlineExceeded"),
    "rejected": (answer(), {"circuitBreaker": "{consecutiveFailures: 1}"}, "CircuitOpen"),
}


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def prepared(service: Service, case: str) -> tuple[resilmesh.Mesh, str]:
    service.otherwise, blocks, name = CASES[case]
    mesh = mesh_of(hosts="[svc.test]", endpoints=f'[{{address: "{service.address}"}}]', **blocks)
    if name == "CircuitOpen":
        mesh.force_circuit("svc", "OPEN")
    return mesh, name


def caught(error: Exception, name: str) -> weakref.ref[Exception]:
    assert type(error).__name__ in name.split("|")
    return weakref.ref(error)


@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize("case", CASES)
def test_blocking(library: ModuleType, service: Service, case: str) -> None:
    mesh, name = prepared(service, case)
    found: Any = None
    with library.Client(transport=resilmesh.http.Transport(mesh)) as client:
        try:
            client.get("http://svc.test/")
        except Exception as error:
            found = caught(error, name)
    assert found() is None


@pytest.mark.anyio
@pytest.mark.parametrize("library", [httpx, httpx2])
@pytest.mark.parametrize("case", CASES)
async def test_awaiting(library: ModuleType, service: Service, case: str) -> None:
    mesh, name = prepared(service, case)
    found: Any = None
    async with library.AsyncClient(transport=resilmesh.http.AsyncTransport(mesh)) as client:
        try:
            await client.get("http://svc.test/")
        except Exception as error:
            found = caught(error, name)
    assert found() is None
