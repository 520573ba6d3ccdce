"""``resilmesh.wrap(client)``: a policy in a client that exists.

The client keeps what it is: time-outs, cookies, auth, hooks, mounts, proxies, SSL context, limits, HTTP/2. Each of its
transports becomes the inner transport of one of ours; one of the library's own kind is cloned for each endpoint.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from resilmesh.http.aio import AsyncTransport
from resilmesh.http.base import PolicyTransport
from resilmesh.http.library import library_of
from resilmesh.http.transport import Transport
from resilmesh.mesh import default

if TYPE_CHECKING:
    from resilmesh.http.exchange import CodeFallback
    from resilmesh.mesh import Mesh

C = TypeVar("C")


def wrap(client: C, mesh: Mesh | None = None, *, fallback: CodeFallback | None = None) -> C:
    """Apply a mesh's policy to every request of an ``httpx`` or ``httpx2`` client, sync or async, and return the same client.

    ``mesh``: absent, the one that ``resilmesh.configure`` made. ``fallback``: as of ``resilmesh.http.Transport``.

    Wrapping again with the same mesh changes nothing. Raises ``ValueError`` when another mesh is there already, and
    ``TypeError`` for what is not such a client. Calls in flight are not affected; connections that were open are
    not used for policy-governed requests any more.
    """
    target: Any = client
    if not hasattr(target, "_transport") or not hasattr(target, "_mounts"):
        raise TypeError(f"{client!r} is no client: wrap an instance of httpx's or httpx2's Client or AsyncClient")
    library_of(client)
    mesh = default.get() if mesh is None else mesh
    kind = AsyncTransport if hasattr(target, "aclose") else Transport
    present = [each for each in (target._transport, *target._mounts.values()) if isinstance(each, PolicyTransport)]
    if any(each.mesh is not mesh for each in present):
        raise ValueError("this client has the policy of another mesh already")
    made: dict[int, Any] = {}

    def ours(transport: Any) -> Any:
        if transport is None or isinstance(transport, PolicyTransport):
            return transport
        return made.setdefault(id(transport), kind(mesh, inner=transport, fallback=fallback))

    target._transport = ours(target._transport)
    target._mounts = {pattern: ours(transport) for pattern, transport in target._mounts.items()}
    return client
