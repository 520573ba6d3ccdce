"""A service mesh's traffic policy in grpcio: channels, interceptors for a channel one was given, and interceptors for servers.

    channel = resilmesh_grpc.channel(mesh, "inventory.prod.svc")
    stub = InventoryStub(channel)                                    # generated code, unchanged
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resilmesh_grpc.aio_channel import aio_channel
    from resilmesh_grpc.channel import channel
    from resilmesh_grpc.intercept import aio_interceptors, intercept

__all__ = ["aio_channel", "aio_interceptors", "channel", "intercept"]

#: Imported when first asked for: who serves needs nothing of what calls.
_LAZY = {
    "aio_channel": "resilmesh_grpc.aio_channel", "aio_interceptors": "resilmesh_grpc.intercept", "channel": "resilmesh_grpc.channel",
    "intercept": "resilmesh_grpc.intercept",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
