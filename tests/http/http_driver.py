"""What the cases of this directory are written with: a client under any runtime, a policy, and an assertion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from http_service import Service

import resilmesh
from resilmesh import Mesh
from resilmesh.http import AsyncTransport, Transport


class Driver:
    """A client library under one runtime, so that a case is written once.

    ``run(function, *args)`` calls a client's method: on this thread, or awaited on an event loop of its own.
    """

    def __init__(self, library: ModuleType, runtime: str, run: Callable[..., Any]) -> None:
        self.library = library
        self.runtime = runtime
        self.blocking = runtime == "sync"
        self.run = run

    def transport(self, mesh: Mesh, inner: Any = None, **options: Any) -> Any:
        return (Transport if self.blocking else AsyncTransport)(mesh, inner, **options)

    def plain_transport(self, **options: Any) -> Any:
        kind = "HTTPTransport" if self.blocking else "AsyncHTTPTransport"
        return getattr(self.library, kind)(**options)

    @contextmanager
    def client(self, **options: Any) -> Iterator[Client]:
        kind = self.library.Client if self.blocking else self.library.AsyncClient
        client = Client(self, kind(**options))
        try:
            yield client
        finally:
            client.close()


class Client:
    """An httpx client whose methods block under every runtime."""

    def __init__(self, driver: Driver, client: Any, deadline: float = float("inf")) -> None:
        self.driver = driver
        self.own = client
        self._deadline = deadline

    def within(self, seconds: float) -> Client:
        """The same client, called with an inherited deadline."""
        return Client(self.driver, self.own, seconds)

    def request(self, method: str, url: str, **options: Any) -> Any:
        async def awaited() -> Any:
            with resilmesh.deadline(self._deadline):
                return await self.own.request(method, url, **options)

        if not self.driver.blocking:
            return self.driver.run(awaited)
        with resilmesh.deadline(self._deadline):
            return self.own.request(method, url, **options)

    def get(self, url: str, **options: Any) -> Any:
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> Any:
        return self.request("POST", url, **options)

    def open(self, method: str, url: str, **options: Any) -> Any:
        """A response whose body is not read yet."""
        request = self.own.build_request(method, url, **options)

        async def awaited() -> Any:
            return await self.own.send(request, stream=True)

        return self.own.send(request, stream=True) if self.driver.blocking else self.driver.run(awaited)

    def read(self, response: Any) -> bytes:
        return response.read() if self.driver.blocking else self.driver.run(response.aread)

    def close_response(self, response: Any) -> None:
        self.driver.run(response.close if self.driver.blocking else response.aclose)

    def close(self) -> None:
        self.driver.run(self.own.close if self.driver.blocking else self.own.aclose)


def policy(*services: Service | str, mesh: str = "", **blocks: str) -> str:
    """A policy with one service, ``svc.test``, at the addresses of ``services``; ``blocks`` are written in YAML."""
    addresses = [each if isinstance(each, str) else each.address for each in services]
    lines = ["apiVersion: resilmesh/v1"]
    if mesh:
        lines.append(f"mesh: {mesh}")
    lines += ["services:", "- name: svc", "  hosts: [svc.test]"]
    if addresses:
        lines.append("  endpoints: [" + ", ".join(f'{{address: "{each}"}}' for each in addresses) + "]")
    lines += [f"  {name}: {value}" for name, value in blocks.items()]
    return "\n".join(lines) + "\n"


def mesh_of(*services: Service | str, seed: int = 7, **blocks: str) -> Mesh:
    return Mesh.from_text(policy(*services, **blocks), seed=seed)


def nothing_in_flight(mesh: Mesh) -> bool:
    """No call, slot, permit or endpoint is held by anything."""
    shown = mesh.snapshot()
    return shown["inFlight"] == 0 and _gauges(shown) == 0


def _gauges(shown: Any) -> int:
    if isinstance(shown, dict):
        own = sum(value for key, value in shown.items() if key in ("inFlight", "pending", "probesOut") and isinstance(value, int))
        return own + sum(_gauges(value) for value in shown.values())
    if isinstance(shown, list):
        return sum(_gauges(value) for value in shown)
    return 0
