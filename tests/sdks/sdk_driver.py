"""What the cases of this directory are written with: a client under either runtime, and a policy of one service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from resilmesh import Mesh

#: The host that the SDKs are told; the policy says where it is.
HOST = "sdk.internal"
RETRIED = "{maxRetries: 2, retryOn: [5xx, connect-failure], backoff: {base: 1ms}}"
RETRIED_POSTS = RETRIED.replace("{maxRetries", "{idempotent: true, maxRetries", 1)


@dataclass
class Runtime:
    """``run(function, *args, **named)`` calls a method of a client: on this thread, or awaited on an event loop of its own."""

    blocking: bool
    run: Callable[..., Any]

    def collect(self, source: Callable[..., Any], *args: Any, **named: Any) -> list[Any]:
        """Everything that a streaming method gives."""
        if self.blocking:
            return list(source(*args, **named))

        async def collected() -> list[Any]:
            return [each async for each in await source(*args, **named)]

        return list(self.run(collected))


def mesh_of(*addresses: str, mesh: str = "{}", **blocks: str) -> Mesh:
    """A policy of one service, ``sdk``, at ``HOST``; its blocks are written in YAML."""
    endpoints = ", ".join(f'{{address: "{each}"}}' for each in addresses)
    lines = ["apiVersion: resilmesh/v1", f"mesh: {mesh}", "services:", "- name: sdk", f"  hosts: [{HOST}]", f"  endpoints: [{endpoints}]"]
    return Mesh.from_text("\n".join([*lines, *(f"  {name}: {value}" for name, value in blocks.items())]) + "\n", seed=7)


def counted(mesh: Mesh) -> tuple[int, int, int]:
    """Calls, the repetitions by the SDK among them as far as it says so, and the attempts that we repeated. Nothing is in flight."""
    shown = mesh.snapshot()
    assert shown["inFlight"] == 0
    route = shown["services"]["sdk"]["routes"]["*"]
    return route["calls"], route["outerRetries"], route["retries"]


def cause_of(error: BaseException, kind: type[BaseException]) -> Any:
    """The first of ``kind`` along ``__cause__``."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__
    assert cause is not None, f"no {kind.__name__} is a cause of {error!r}"
    return cause
