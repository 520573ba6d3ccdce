"""A handler whose own calls used up its caller's time raised our DeadlineExceeded, which left a server as UNKNOWN. It is DEADLINE_EXCEEDED
now; a call of the handler that ran out of some shorter time of its own still is what an exception of a handler is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

import resilmesh
from resilmesh.testing import ManualClock
from resilmesh_grpc import aio_server, server

INBOUND = "apiVersion: resilmesh/v1\ninbound: {concurrency: {maxRequests: 3}}\n"
#: Seconds that the caller has given, and those after which the handler's call fails.
CASES = [(5.0, 5.0, "DEADLINE_EXCEEDED"), (5.0, 4.999, "DEADLINE_EXCEEDED"), (5.0, 1.0, None), (None, 9.0, None)]


class Aborted(Exception):
    """What ``abort`` raises."""


class Context:
    """A servicer context, as far as it is asked."""

    def __init__(self, remaining: float | None) -> None:
        self._remaining = remaining
        self._code: Any = None

    def time_remaining(self) -> float | None:
        return self._remaining

    def invocation_metadata(self) -> Any:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:4711"

    def set_code(self, code: Any) -> None:
        self._code = code

    def code(self) -> Any:
        return self._code

    def is_active(self) -> bool:
        return True

    def done(self) -> bool:
        return False

    def add_callback(self, callback: Any) -> bool:
        return True

    def add_done_callback(self, callback: Any) -> None:
        """It never is."""

    def abort(self, code: grpc.StatusCode, details: str) -> Any:
        raise Aborted(code.name)


class AioContext(Context):
    async def abort(self, code: grpc.StatusCode, details: str) -> Any:
        raise Aborted(code.name)


def late() -> resilmesh.DeadlineExceeded:
    return resilmesh.DeadlineExceeded("too late", service="other", route=None, attempts=1)


@pytest.mark.parametrize("kind", ["unary", "stream", "aio unary", "aio stream"])
@pytest.mark.parametrize(("given", "after", "code"), CASES)
def test_whose_time_it_was(kind: str, given: float | None, after: float, code: str | None) -> None:
    clock = ManualClock()
    mesh = resilmesh.Mesh.from_text(INBOUND, clock=clock)

    def unary(request: Any, context: Any) -> Any:
        clock.advance(after)
        raise late()

    def stream(request: Any, context: Any) -> Iterator[str]:
        yield "first"
        unary(request, context)

    async def aio_unary(request: Any, context: Any) -> Any:
        unary(request, context)

    async def aio_stream(request: Any, context: Any) -> AsyncIterator[str]:
        yield "first"
        unary(request, context)

    async def drain(messages: AsyncIterator[str]) -> None:
        async for _ in messages:
            pass

    def serve() -> None:
        if kind == "unary":
            server.policed(mesh, "/a.B/C", unary, streams=False)("request", Context(given))
        elif kind == "stream":
            list(server.policed(mesh, "/a.B/C", stream, streams=True)("request", Context(given)))
        elif kind == "aio unary":
            asyncio.run(aio_server.policed(mesh, "/a.B/C", aio_unary, streams=False)("request", AioContext(given)))
        else:
            asyncio.run(drain(aio_server.policed(mesh, "/a.B/C", aio_stream, streams=True)("request", AioContext(given))))

    with pytest.raises(resilmesh.DeadlineExceeded if code is None else Aborted, match=code or "too late"):
        serve()
    counted = mesh.snapshot()["inbound"]["calls"]
    assert (counted["calls"], counted["failed"], counted["inFlight"]) == (1, 1, 0)
