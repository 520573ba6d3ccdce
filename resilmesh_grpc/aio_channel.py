"""``aio_channel(mesh, target)``: a ``grpc.aio.Channel`` that applies a mesh's policy to every call of every stub.

    async with resilmesh_grpc.aio_channel(mesh, "inventory.prod.svc") as channel:
        stub = InventoryStub(channel)
        await stub.Reserve(request)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from resilmesh_grpc import aio_calls
from resilmesh_grpc.aio_calls import AioPending, AioReader
from resilmesh_grpc.connectivity import together
from resilmesh_grpc.copies import Copies
from resilmesh_grpc.exchange import Caller, CodeFallback
from resilmesh_grpc.metadata import again
from resilmesh_grpc.subchannels import Method, Subchannels

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from resilmesh.mesh import Mesh
    from resilmesh_grpc.metadata import Metadata

Options = Sequence[tuple[str, Any]]

#: Where a channel of grpc's own keeps its interceptors (a test pins them).
_INTERCEPTORS = (
    "_unary_unary_interceptors", "_unary_stream_interceptors", "_stream_unary_interceptors", "_stream_stream_interceptors",
)


def aio_channel(
    mesh: Mesh, target: str, *, credentials: grpc.ChannelCredentials | None = None, options: Options | None = None,
    compression: grpc.Compression | None = None, interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
    fallback: CodeFallback | None = None,
) -> grpc.aio.Channel:
    """A channel to a service of the mesh's policy, with a sub-channel for each of its endpoints. Arguments as for ``channel``.

    ``interceptors``: for each sub-channel, so that they see every attempt. ``fallback`` may be a coroutine function, and give
    an asynchronous iterable. To be used on one event loop, as every ``grpc.aio`` channel.
    """
    return AioPolicyChannel(
        mesh, target, credentials=credentials, options=options, compression=compression, interceptors=interceptors, fallback=fallback,
    )


class AioPolicyChannel(grpc.aio.Channel):
    """See ``aio_channel``. ``given``: the one channel to send on, in place of sub-channels of our own."""

    def __init__(
        self, mesh: Mesh, target: str, *, credentials: grpc.ChannelCredentials | None = None, options: Options | None = None,
        compression: grpc.Compression | None = None, interceptors: Sequence[grpc.aio.ClientInterceptor] | None = None,
        fallback: CodeFallback | None = None, given: grpc.aio.Channel | None = None,
    ) -> None:
        def open_(address: str, arguments: Options, secured: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
            # By name: what instruments grpc adds interceptors of its own to those it finds under this name.
            shared: dict[str, Any] = {"options": arguments, "compression": compression, "interceptors": list(interceptors or ())}
            if secured is None:
                return self._share(grpc.aio.insecure_channel(address, **shared))
            return self._share(grpc.aio.secure_channel(address, secured, **shared))

        # Attributes of grpc's own channels, to which clients add interceptors that never came to the constructor.
        for name in _INTERCEPTORS:
            setattr(self, name, [] if given is None else getattr(given, name, []))
        self._shares = False

        self._caller = caller = Caller(mesh, target, fallback, awaits=True, chooses=given is None)
        self._closing: set[asyncio.Task[None]] = set()
        caller.subchannels = Subchannels(
            caller.target, open_, self._close_soon, options=options or (), credentials=credentials, given=given,
        )
        if given is None:
            caller.copies = Copies(caller, awaits=True)

    @property
    def mesh(self) -> Mesh:
        """The mesh whose policy applies."""
        return self._caller.mesh

    def _share(self, channel: grpc.aio.Channel) -> grpc.aio.Channel:
        """Have a new sub-channel look for its interceptors where those are that clients add to this one."""
        for name in _INTERCEPTORS:
            if not self._shares:
                getattr(self, name)[:0] = getattr(channel, name)
            setattr(channel, name, getattr(self, name))
        self._shares = True
        return channel

    def _close_soon(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(None))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    # -------------------------------------------------------------------------------------- connectivity

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """The connectivity of all endpoints together: READY when one is."""
        if self._caller.subchannels.closed:
            return grpc.ChannelConnectivity.SHUTDOWN
        if try_to_connect:
            self._caller.connect_all()
        return together(each.get_state(try_to_connect) for each in self._caller.subchannels.opened())

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Until it is another one."""
        self._caller.connect_all()
        while self.get_state() is last_observed_state:
            channels = self._caller.subchannels.opened()
            waits = [asyncio.ensure_future(each.wait_for_state_change(each.get_state())) for each in channels]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)

    async def channel_ready(self) -> None:
        """Until an endpoint is READY."""
        while (state := self.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
            await self.wait_for_state_change(state)

    # --------------------------------------------------------------------------------------------- calls

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False,
    ) -> UnaryUnary:
        """A callable for one message each way."""
        return UnaryUnary(self._caller, Method("unary_unary", method, request_serializer, response_deserializer, _registered_method))

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False,
    ) -> UnaryStream:
        """A callable that sends one message and gets several."""
        return UnaryStream(self._caller, Method("unary_stream", method, request_serializer, response_deserializer, _registered_method))

    def stream_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False,
    ) -> StreamUnary:
        """A callable that sends messages and gets one."""
        return StreamUnary(self._caller, Method("stream_unary", method, request_serializer, response_deserializer, _registered_method))

    def stream_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False,
    ) -> StreamStream:
        """A callable for messages both ways."""
        return StreamStream(self._caller, Method("stream_stream", method, request_serializer, response_deserializer, _registered_method))

    # ------------------------------------------------------------------------------------------- closing

    async def close(self, grace: float | None = None) -> None:
        """Close every sub-channel: calls in flight have ``grace`` seconds to end, then they are cancelled. Idempotent."""
        if self._caller.copies is not None:
            self._caller.copies.close()
        await asyncio.gather(*(each.close(grace) for each in self._caller.subchannels.clear()), *self._closing)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class _Callable:
    """What a stub calls for one of its methods."""

    #: What runs a call, and what its caller holds.
    _exchange: type[AioPending | AioReader]
    _held: Any

    def __init__(self, caller: Caller, method: Method) -> None:
        self._caller = caller
        self._method = method
        given = caller.subchannels.given
        if given is not None:
            method.on(given)  # now, as grpc does: its channel may be closed by the first call, and then it crashes

    def _begin(
        self, requests: Any, timeout: float | None, metadata: Metadata | None, credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None, compression: grpc.Compression | None,
    ) -> Any:
        caller = self._caller
        if metadata is not None:
            metadata = again(metadata)
        plan = caller.plan(self._method, metadata)
        options = {"credentials": credentials, "wait_for_ready": wait_for_ready, "compression": compression}
        if plan is None:
            return caller.passing(self._method)(requests, timeout=timeout, metadata=metadata, **options)
        exchange = self._exchange(caller, self._method, plan, requests, timeout, metadata, options)
        exchange.begin()
        return self._held(exchange)


# What follows has the signatures of grpc's own, by whose names of arguments stubs may be called.


class _OneRequest(_Callable):
    def __call__(
        self, request: Any, *, timeout: float | None = None, metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None, wait_for_ready: bool | None = None, compression: grpc.Compression | None = None,
    ) -> Any:
        """Begin a call, which is awaited, or iterated."""
        return self._begin(request, timeout, metadata, credentials, wait_for_ready, compression)


class _ManyRequests(_Callable):
    def __call__(
        self, request_iterator: Any = None, timeout: float | None = None, metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None, wait_for_ready: bool | None = None, compression: grpc.Compression | None = None,
    ) -> Any:
        """Begin a call, which is awaited, or iterated. Without ``request_iterator`` its messages are written to it."""
        return self._begin(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)


class UnaryUnary(_OneRequest, grpc.aio.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # generic in its stubs only
    """One message each way."""

    _exchange, _held = AioPending, aio_calls.UnaryUnaryCall


class UnaryStream(_OneRequest, grpc.aio.UnaryStreamMultiCallable):  # type: ignore[type-arg]  # generic in its stubs only
    """One message there, several back."""

    _exchange, _held = AioReader, aio_calls.UnaryStreamCall


class StreamUnary(_ManyRequests, grpc.aio.StreamUnaryMultiCallable):  # type: ignore[type-arg]  # generic in its stubs only
    """Messages there, one back."""

    _exchange, _held = AioPending, aio_calls.StreamUnaryCall


class StreamStream(_ManyRequests, grpc.aio.StreamStreamMultiCallable):  # type: ignore[type-arg]  # generic in its stubs only
    """Messages both ways."""

    _exchange, _held = AioReader, aio_calls.StreamStreamCall
