"""The policy's ``inbound`` block, and the caller's deadline, in a ``grpc.aio.server``.

    server = grpc.aio.server(interceptors=[resilmesh_grpc.aio_server_interceptor(mesh)])

A call waits in the task of its handler, which grpc cancels when the client goes away: everything ends at once. To a handler that reads
requests they may just end before that, as if the client had no more; one that returns then has succeeded. A handler that is no
coroutine runs in a thread, as grpc has it, and there like one of a ``grpc.server``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial, wraps
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import TYPE_CHECKING, Any

import grpc.aio

from resilmesh.drive.aio import start
from resilmesh.drive.context import CALLER, DEADLINE, PASSED_ON, unset
from resilmesh.engine.call import RAISE
from resilmesh_grpc.server import policed as policed_in_thread
from resilmesh_grpc.serving import HEALTH, Serving, wrapped

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from resilmesh.engine.call import Call
    from resilmesh.mesh import Mesh

Behaviour = Callable[..., Any]


class AioServing(Serving):
    """A served call in its task. ``async with`` it the handler runs, once the policy has let the call through."""

    __slots__ = ("_seat", "_tokens")
    _tokens: tuple[Token[Any], ...]

    async def __aenter__(self) -> AioServing:
        if self.denied is not None:
            await self.context.abort(*self.told(*self.denied))
        if self.call is not None:
            await self._admit(self.call)
        self._seat = self.served.enter()
        self._tokens = DEADLINE.set(self.inside), CALLER.set(self.caller), PASSED_ON.set(self.passed_on)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for token in self._tokens:
            unset(token)
        self.served.leave(self._seat)
        ran_out = self.ran_out(error)
        self.done(error)
        if ran_out and not self.context.done():
            await self.context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, str(error))

    async def _admit(self, call: Call) -> None:
        """Wait for leave to serve the call. Where there is none the call is aborted, as a handler would do it."""
        # grpc drops the generator of a stream whose caller went away, and does not close it.
        self.context.add_done_callback(lambda context: self._gone(call))
        if await start(call, self.clock) is RAISE:
            await self.context.abort(*self.refusal(call))
        drilled = self.drilled(call)
        if drilled is not None:
            await self.context.abort(*drilled)

    def _gone(self, call: Call) -> None:
        """The RPC is over, however it ended."""
        call.abandon(self.clock.monotonic())
        self.served.over(grpc.StatusCode.CANCELLED.name, "cancelled")


def policed(mesh: Mesh, method: str, behaviour: Behaviour, streams: bool) -> Behaviour:
    """A handler's behaviour under the policy, of the kind that grpc takes it for: it looks at what the function is."""
    serve: Behaviour
    if isasyncgenfunction(behaviour):
        async def serve(request: Any, context: Any) -> AsyncIterator[Any]:
            async with AioServing(mesh, context, method) as serving, aclosing(behaviour(request, context)) as messages:
                async for message in messages:
                    serving.message()
                    yield message
    elif iscoroutinefunction(behaviour):
        async def serve(request: Any, context: Any) -> Any:
            async with AioServing(mesh, context, method):
                return await behaviour(request, context)
    else:
        return policed_in_thread(mesh, method, behaviour, streams, _end_of_rpc())
    return wraps(behaviour)(serve)


def _end_of_rpc() -> Callable[[Callable[[], None]], object]:
    """Has what it is given called when the RPC of this task is over. The context of a handler in a thread does not tell."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    return lambda left: loop.call_soon_threadsafe(task.add_done_callback, lambda _: left())


class _Interceptor(grpc.aio.ServerInterceptor):
    def __init__(self, mesh: Mesh, *, health: bool) -> None:
        self._mesh = mesh
        self._health = health

    async def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        handler = await continuation(details)
        if handler is None or (not self._health and details.method.startswith(HEALTH)):
            return handler
        return wrapped(handler, partial(policed, self._mesh, details.method))


def aio_server_interceptor(mesh: Mesh, *, health: bool = False) -> grpc.aio.ServerInterceptor:
    """``server_interceptor`` for a ``grpc.aio.server``."""
    return _Interceptor(mesh, health=health)
