"""``resilmesh.wrap``: a policy in a client that exists, whichever kind it is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

from resilmesh.mesh import default

if TYPE_CHECKING:
    from collections.abc import Callable

    from resilmesh.mesh import Mesh

C = TypeVar("C")


def wrap(client: C, mesh: Mesh | None = None, *, fallback: Callable[..., Any] | None = None) -> C:
    """Apply a mesh's policy to every call of a client or a channel that exists.

    An ``httpx`` or ``httpx2`` client, sync or async: the same client is returned, see ``resilmesh.http.wrap``. A ``grpc`` or
    ``grpc.aio`` channel: use what is returned in its place, see ``resilmesh_grpc.intercept``; endpoints stay the channel's own.

    ``mesh``: absent, the one that ``resilmesh.configure`` made. ``fallback``: as of ``resilmesh.http.Transport``, or of
    ``resilmesh_grpc.channel``. Wrapping again with the same mesh changes nothing. Raises ``ValueError`` when another mesh is
    there already, and ``TypeError`` for what is neither.
    """
    mesh = default.get() if mesh is None else mesh
    grpc = sys.modules.get("grpc")
    if grpc is not None and isinstance(client, grpc.Channel | grpc.aio.Channel):
        from resilmesh_grpc.intercept import intercept

        return cast(C, intercept(client, mesh, fallback=fallback))
    from resilmesh.http.wrap import wrap as wrap_client

    return wrap_client(client, mesh, fallback=fallback)
