"""A request as the policy would have it: its ``headers`` and ``rewrite`` (``resilmesh.engine.shape``) in the client's own objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from resilmesh.engine.shape import Shape
    from resilmesh.http.library import Library


def passing_on(request: Any, headers: Sequence[tuple[str, str]], library: Library) -> Any:
    """A copy of ``request`` with those of ``headers`` that it lacks: what the request that is served here told of its trace."""
    lacking = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers if name not in request.headers]
    if not lacking:
        return request
    sent = object.__new__(type(request))
    sent.__dict__.update(request.__dict__)
    sent.headers = library.client.Headers([*request.headers.raw, *lacking])
    return sent


def shaped(request: Any, shape: Shape, library: Library) -> Any:
    """A copy of ``request`` with other headers, path or host; the request itself where only responses are changed."""
    if shape.request is None and shape.target is None and shape.host is None:
        return request
    sent = object.__new__(type(request))
    sent.__dict__.update(request.__dict__)
    headers = request.headers.raw
    if shape.request is not None:
        headers = shape.request(headers)
    if shape.host is not None:
        host = shape.host.encode()
        headers = [(name, host if name.lower() == b"host" else value) for name, value in headers]
    sent.headers = library.client.Headers(headers)
    if shape.target is not None:
        target = shape.target(request.method, request.url.raw_path.decode("ascii"), request.headers)
        sent.url = request.url.copy_with(raw_path=target.encode("ascii"))
    return sent
