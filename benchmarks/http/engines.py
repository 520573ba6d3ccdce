"""The same request over httpx, httpx2, httpx-aiohttp and pyqwest: bare, and each below a transport of ours with the full policy."""

from __future__ import annotations

from typing import Any

import httpx
import httpx2
import httpx_aiohttp
import pyqwest
from pyqwest.httpx import AsyncPyqwestTransport, PyqwestTransport

import resilmesh.http
from benchmarks.http.clients import FULL, Get, GetAsync


def _mesh(port: int) -> resilmesh.Mesh:
    return resilmesh.Mesh.from_text(FULL.format(port=port, mode="ENFORCE"))


def sync_clients(port: int, url: str) -> dict[str, tuple[Get, Any]]:
    """Name to a request and the client to close. aiohttp has no blocking form."""

    def qwest() -> PyqwestTransport:
        return PyqwestTransport(pyqwest.SyncHTTPTransport(http_version=pyqwest.HTTPVersion.HTTP1))

    def ours(inner: Any = None) -> resilmesh.http.Transport:
        return resilmesh.http.Transport(_mesh(port), inner)

    clients: dict[str, Any] = {
        "httpx": httpx.Client(),
        "httpx + resilmesh": httpx.Client(transport=ours()),
        "httpx2": httpx2.Client(),
        "httpx2 + resilmesh": httpx2.Client(transport=ours()),
        "pyqwest": httpx.Client(transport=qwest()),
        "pyqwest + resilmesh": httpx.Client(transport=ours(qwest())),
    }
    return {name: (lambda get=client.get: get(url).content, client) for name, client in clients.items()}


def async_clients(port: int, url: str) -> dict[str, tuple[GetAsync, Any]]:
    """The same with coroutines."""

    def qwest() -> AsyncPyqwestTransport:
        return AsyncPyqwestTransport(pyqwest.HTTPTransport(http_version=pyqwest.HTTPVersion.HTTP1))

    def ours(inner: Any = None) -> resilmesh.http.AsyncTransport:
        return resilmesh.http.AsyncTransport(_mesh(port), inner)

    clients: dict[str, Any] = {
        "httpx": httpx.AsyncClient(),
        "httpx + resilmesh": httpx.AsyncClient(transport=ours()),
        "httpx2": httpx2.AsyncClient(),
        "httpx2 + resilmesh": httpx2.AsyncClient(transport=ours()),
        "httpx-aiohttp": httpx.AsyncClient(transport=httpx_aiohttp.AiohttpTransport()),
        "httpx-aiohttp + resilmesh": httpx.AsyncClient(transport=ours(httpx_aiohttp.AiohttpTransport())),
        "pyqwest": httpx.AsyncClient(transport=qwest()),
        "pyqwest + resilmesh": httpx.AsyncClient(transport=ours(qwest())),
    }

    def request(client: Any) -> GetAsync:
        async def get() -> bytes:
            content: bytes = (await client.get(url)).content
            return content

        return get

    return {name: (request(client), client) for name, client in clients.items()}
