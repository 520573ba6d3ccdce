"""The four kinds of client that a script must serve alike, called in one way."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from resilmesh import Mesh
from resilmesh.http import AsyncTransport, Transport
from resilmesh.testing import ScriptedTransport

KINDS = ["httpx", "httpx2", "httpx-async", "httpx2-async"]


class Client:
    """A client of one kind, over our transport and a script."""

    def __init__(self, kind: str, mesh: Mesh | None, service: ScriptedTransport, **settings: Any) -> None:
        name, _, self.awaits = kind.partition("-")
        self.library = importlib.import_module(name)
        transport: Any = service if mesh is None else (AsyncTransport if self.awaits else Transport)(mesh, inner=service)
        self.client = (self.library.AsyncClient if self.awaits else self.library.Client)(transport=transport, trust_env=False, **settings)

    async def request(self, method: str, url: str = "http://svc.test/", **arguments: Any) -> Any:
        response = self.client.request(method, url, **arguments)
        return await response if self.awaits else response

    async def get(self, url: str = "http://svc.test/", **arguments: Any) -> Any:
        return await self.request("GET", url, **arguments)

    @asynccontextmanager
    async def stream(self, url: str = "http://svc.test/") -> AsyncIterator[Any]:
        if self.awaits:
            async with self.client.stream("GET", url) as response:
                yield response
        else:
            with self.client.stream("GET", url) as response:
                yield response

    async def close(self) -> None:
        if self.awaits:
            await self.client.aclose()
        else:
            self.client.close()
