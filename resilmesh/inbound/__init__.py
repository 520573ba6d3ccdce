"""This workload as a service: the policy's ``inbound`` block in front of an ASGI or a WSGI application.

    app = resilmesh.inbound.asgi.Middleware(app, mesh)
    app = resilmesh.inbound.wsgi.Middleware(app, mesh)

Within a request ``caller()`` says whom it is from, and ``deadline()`` by when it must be done. gRPC servers have interceptors:
``resilmesh_grpc.server_interceptor``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilmesh.drive.context import caller, deadline

if TYPE_CHECKING:
    from resilmesh.inbound import asgi, wsgi
    from resilmesh.inbound.tls import server_context

__all__ = ["asgi", "caller", "deadline", "server_context", "wsgi"]


def __getattr__(name: str) -> Any:
    import importlib

    if name in ("asgi", "wsgi"):
        return importlib.import_module(f"resilmesh.inbound.{name}")
    if name == "server_context":
        from resilmesh.inbound.tls import server_context

        return server_context
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
