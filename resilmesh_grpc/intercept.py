"""A policy for a channel that exists: everything but the choice of an endpoint, which the channel has made already."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio

from resilmesh.engine.call import SEND
from resilmesh_grpc.aio_calls import AioPending, AioReader, StreamStreamCall, StreamUnaryCall, UnaryStreamCall, UnaryUnaryCall
from resilmesh_grpc.aio_channel import AioPolicyChannel
from resilmesh_grpc.channel import PolicyChannel
from resilmesh_grpc.exchange import Caller
from resilmesh_grpc.subchannels import Method, Subchannels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from resilmesh.engine.call import Call
    from resilmesh.engine.verdict import Answer
    from resilmesh.mesh import Mesh
    from resilmesh_grpc.exchange import CodeFallback

C = TypeVar("C", grpc.Channel, grpc.aio.Channel)


def intercept(channel: C, mesh: Mesh, *, target: str | None = None, fallback: CodeFallback | None = None) -> C:
    """Apply a mesh's policy to every call on a channel, of ``grpc`` or of ``grpc.aio``: what it gives stands in for the channel.

    Everything of the policy but what is about endpoints: load balancing, outlier detection, split. ``target``: whose policy, as
    for ``channel``; absent, what the channel was made with. ``fallback``: as for ``channel``. Closing it closes the channel.
    The channel's own retries should be off (``("grpc.enable_retries", 0)``), or there are two layers of them.

    Raises ``TypeError`` for what is no channel, and ``ValueError`` when the channel does not say what it was made with.
    """
    if isinstance(channel, PolicyChannel | AioPolicyChannel):
        if channel.mesh is not mesh:
            raise ValueError("this channel has the policy of another mesh already")
        return cast(C, channel)
    if isinstance(channel, grpc.aio.Channel):
        return cast(C, AioPolicyChannel(mesh, target or target_of(channel), fallback=fallback, given=channel))
    if isinstance(channel, grpc.Channel):
        return cast(C, PolicyChannel(mesh, target or target_of(channel), fallback=fallback, given=channel))
    raise TypeError(f"{channel!r} is no channel: a grpc.Channel or a grpc.aio.Channel is needed")


def target_of(channel: Any) -> str:
    """What a channel was made with. grpc keeps it in attributes of its own (a test pins them)."""
    found: Any = channel
    while isinstance(found, grpc.Channel | grpc.aio.Channel) and getattr(found, "_channel", None) is not None:
        found = getattr(found, "_channel")  # noqa: B009  # an intercepted channel, grpc's own, and at last that of its C core
    text = getattr(found, "target", None)
    text = text() if callable(text) else text
    if not text:
        raise ValueError(f"{channel!r} does not say what it is for: pass target='host:port', or the name of a service of the policy")
    return text.decode() if isinstance(text, bytes) else str(text)


def aio_interceptors(
    mesh: Mesh, *, target: str | None = None, fallback: CodeFallback | None = None,
) -> Sequence[grpc.aio.ClientInterceptor]:
    """Interceptors for ``grpc.aio.insecure_channel(..., interceptors=aio_interceptors(mesh))``: what ``intercept`` does, but slower.

    For who cannot wrap the channel itself. ``target``: whose policy, as for ``channel``; absent, the one service of the policy
    with ``protocol: GRPC``, because an interceptor is not told whom its channel is for. One for each kind of call: grpc
    registers an interceptor for one kind only.

    Raises ``ValueError`` without ``target`` when the policy has no such service, or several.
    """
    caller = Caller(mesh, _only_service(mesh) if target is None else target, fallback, awaits=True, chooses=False)
    caller.subchannels = Subchannels(caller.target, _no_channel, _no_channel)
    return [_UnaryUnary(caller), _UnaryStream(caller), _StreamUnary(caller), _StreamStream(caller)]


def _no_channel(*_: Any) -> Any:
    raise RuntimeError("an interceptor has no channels of its own")


def _only_service(mesh: Mesh) -> str:
    names = [each.name for each in mesh.table.policy.services if each.protocol == "GRPC"]
    if len(names) != 1:
        there = f"has several: {', '.join(names)}" if names else "has none"
        raise ValueError(f"whose policy? Pass target=: of services with 'protocol: GRPC' the policy {there}")
    return names[0]


class _Interceptor:
    """What the four have in common: the plan of a call, and its attempts by way of ``continuation``."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def _exchange(self, kind: type[_Pending | _Reader], arity: str, continuation: Any, details: Any, requests: Any) -> Any:
        path = details.method.decode() if isinstance(details.method, bytes) else details.method
        method = Method(arity, path, None, None, None)
        metadata = None if details.metadata is None else list(details.metadata)
        plan = self._caller.plan(method, metadata)
        if plan is None:
            return None
        exchange = kind(self._caller, method, plan, requests, details.timeout, metadata, {})
        exchange.continuation, exchange.details = continuation, details
        return exchange

    async def _call(
        self, kind: type[_Pending | _Reader], arity: str, held: Any, continuation: Any, details: Any, requests: Any,
    ) -> Any:
        exchange = self._exchange(kind, arity, continuation, details, requests)
        if exchange is None:
            return await continuation(details, requests)
        await exchange.begin_below()
        return held(exchange)


async def _go_on(exchange: _Pending | _Reader, call: Call, ended: Callable[[int, Any], None]) -> Any:
    """Make an attempt by going on with the interception."""
    timeout, metadata = exchange.limits(call)
    given, path = exchange.details, exchange.method.path
    details = given._replace(
        method=path.encode() if isinstance(given.method, bytes) else path, timeout=timeout,
        metadata=None if metadata is None else grpc.aio.Metadata(*metadata),
    )
    exchange.native = native = await exchange.continuation(details, exchange.request)
    if exchange.sent is not None:
        exchange.sent.set()
    native.add_done_callback(partial(ended, call.number))
    return native


class _Pending(AioPending):
    __slots__ = ("continuation", "details")
    continuation: Callable[[Any, Any], Any]
    details: Any

    def connected(self) -> bool:
        return False  # an interceptor cannot ask: grpc's word must do

    async def begin_below(self) -> None:
        """Have the first attempt made."""
        self.task = self.loop.create_task(self.drive(self.call.start(self.monotonic())))

    async def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call)
        try:
            native = await _go_on(self, call, lambda number, native: None)
            self.value = await native
        except grpc.aio.AioRpcError as error:
            return self.failed(error)
        if not self.reads_metadata:
            return self.succeeded()
        return self.succeeded(await native.initial_metadata(), await native.trailing_metadata())


class _Reader(AioReader):
    __slots__ = ("continuation", "details")
    continuation: Callable[[Any, Any], Any]
    details: Any

    def connected(self) -> bool:
        return False  # as above

    async def begin_below(self) -> None:
        """Make the first attempt, or see to it that it is made: whoever has the call need not read to have it sent."""
        call = self.call
        self._step = step = call.start(self.monotonic())
        try:
            if step is SEND and call.injected is None:
                await self.dial_later(call)
                return
        except grpc.aio.AioRpcError as error:  # an interceptor below has waited for its end
            self._step = call.answered(self.monotonic(), call.number, self.failed(error))
        except BaseException:
            self.abandon()
            raise
        self.open_alone()

    async def dial_later(self, call: Call) -> None:
        self.dialled(call, await _go_on(self, call, self.terminated))


class _UnaryUnary(_Interceptor, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._call(_Pending, "unary_unary", UnaryUnaryCall, continuation, client_call_details, request)


class _StreamUnary(_Interceptor, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._call(_Pending, "stream_unary", StreamUnaryCall, continuation, client_call_details, request_iterator)


class _UnaryStream(_Interceptor, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await self._call(_Reader, "unary_stream", UnaryStreamCall, continuation, client_call_details, request)


class _StreamStream(_Interceptor, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await self._call(_Reader, "stream_stream", StreamStreamCall, continuation, client_call_details, request_iterator)


