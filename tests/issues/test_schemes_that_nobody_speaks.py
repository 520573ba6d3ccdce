"""A request for ``ftp://`` through our own pool was a KeyError, and no exception of the client's."""

from __future__ import annotations

from types import ModuleType

import httpx
import httpx2
import pytest

import resilmesh.http
from tests.drive.guarding import mesh_of


@pytest.mark.anyio
@pytest.mark.parametrize("library", [httpx, httpx2])
async def test_the_client_says_so(library: ModuleType) -> None:
    mesh = mesh_of(hosts='["*"]', circuitBreaker="{}")
    with library.Client(transport=resilmesh.http.Transport(mesh)) as client, pytest.raises(library.UnsupportedProtocol, match="ftp"):
        client.get("ftp://127.0.0.1:1/")
    async with library.AsyncClient(transport=resilmesh.http.AsyncTransport(mesh)) as client:
        with pytest.raises(library.UnsupportedProtocol, match="ftp"):
            await client.get("ftp://127.0.0.1:1/")
    shown = mesh.snapshot()["services"]["svc"]["routes"]["*"]
    assert (shown["ignored"], shown["abandoned"], shown["inFlight"]) == (2, 0, 0)
