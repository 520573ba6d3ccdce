"""An ASGI application under uvicorn with the whole ``inbound`` block: ``resilmesh serve``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import uvicorn

from resilmesh.inbound.asgi import Middleware
from resilmesh.inbound.permissive import FirstByte
from resilmesh.inbound.tls import server_context
from resilmesh.inbound.uvicorn import H11Protocol

if TYPE_CHECKING:
    from resilmesh.mesh import Mesh


def configuration(app: Any, mesh: Mesh, **options: Any) -> uvicorn.Config:
    """What ``uvicorn.Server`` is to be made with.

    ``mtls: STRICT``: TLS alone. PERMISSIVE: TLS and plain text on one port, if this workload has an identity; else plain text, as
    under DISABLE. ``options`` are uvicorn's.
    """
    mtls = mesh.table.gate.mtls
    if mtls == "STRICT":
        options |= {"http": H11Protocol, "ssl_context_factory": lambda config, default: server_context(mesh)}
    elif mtls == "PERMISSIVE" and mesh.identity_source is not None:
        context = server_context(mesh)

        def http(**given: Any) -> FirstByte:
            return FirstByte(lambda: H11Protocol(**given), context, given["server_state"].connections)

        options["http"] = http
    else:
        options["http"] = H11Protocol
    # uvicorn would take the caller's address from whatever calls it from 127.0.0.1; whom to believe says `trustedProxies`.
    return uvicorn.Config(Middleware(app, mesh), proxy_headers=False, loop="asyncio", **options)
