"""``channel(mesh, target)``: a ``grpc.Channel`` that applies a mesh's policy to every call of every stub.

    with resilmesh_grpc.channel(mesh, "inventory.prod.svc") as channel:
        stub = InventoryStub(channel)
        stub.Reserve(request)

The callables of a stub are wrapped, not intercepted: an interceptor of grpc's would cost several times what the policy does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from resilmesh.drive import sync
from resilmesh.engine.call import RETURN
from resilmesh_grpc.calls import Blocking, FutureCall, PendingCall, StreamCall, StreamReader
from resilmesh_grpc.connectivity import Connectivity
from resilmesh_grpc.copies import Copies
from resilmesh_grpc.exchange import Caller, CodeFallback
from resilmesh_grpc.metadata import again
from resilmesh_grpc.subchannels import Method, Subchannels
from resilmesh_grpc.timers import timers

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from resilmesh.mesh import Mesh
    from resilmesh_grpc.metadata import Metadata

Options = Sequence[tuple[str, Any]]


def channel(
    mesh: Mesh, target: str, *, credentials: grpc.ChannelCredentials | None = None, options: Options | None = None,
    compression: grpc.Compression | None = None, fallback: CodeFallback | None = None,
) -> grpc.Channel:
    """A channel to a service of the mesh's policy, with a sub-channel for each of its endpoints.

    ``target``: a host of the service (``host``, ``host:port``, ``dns:///host:port``) or the service's name; it stays the calls'
    ``:authority``. A host of no service is called without policy. ``credentials``: as of ``grpc.secure_channel``; absent, plain
    text. ``options`` and ``compression``: as grpc's, for each sub-channel. ``fallback(method, request, error)`` is called when a
    call was rejected, ran out of time or failed; it gives the response in its place, for a response stream an iterable of
    messages, or ``None`` to let the error pass.

    Raises ``TypeError`` and ``ValueError`` for a target or a fallback that cannot be one.
    """
    return PolicyChannel(mesh, target, credentials=credentials, options=options, compression=compression, fallback=fallback)


class PolicyChannel(grpc.Channel):
    """See ``channel``. ``given``: the one channel to send on, in place of sub-channels of our own."""

    def __init__(
        self, mesh: Mesh, target: str, *, credentials: grpc.ChannelCredentials | None = None, options: Options | None = None,
        compression: grpc.Compression | None = None, fallback: CodeFallback | None = None, given: grpc.Channel | None = None,
    ) -> None:
        def open_(address: str, arguments: Options, secured: grpc.ChannelCredentials | None) -> grpc.Channel:
            if secured is None:
                return grpc.insecure_channel(address, arguments, compression)
            return grpc.secure_channel(address, secured, arguments, compression)

        self._caller = caller = Caller(mesh, target, fallback, awaits=False, chooses=given is None)
        # On a thread of our own: the last call of a sub-channel ends on a thread that closing the channel waits for.
        caller.subchannels = Subchannels(
            caller.target, open_, lambda each: timers.after(0, each.close), options=options or (), credentials=credentials,
            given=given,
        )
        if given is None:
            caller.copies = Copies(caller, awaits=False)
        self._connectivity = Connectivity(self._all_channels)

    @property
    def mesh(self) -> Mesh:
        """The mesh whose policy applies."""
        return self._caller.mesh

    def _all_channels(self) -> list[grpc.Channel]:
        self._caller.connect_all()
        return self._caller.subchannels.opened()

    def subscribe(self, callback: Callable[[grpc.ChannelConnectivity], None], try_to_connect: bool | None = False) -> None:
        """Have ``callback`` called with the connectivity of all endpoints together, now and when it changes: READY when one is."""
        self._connectivity.subscribe(callback, bool(try_to_connect))

    def unsubscribe(self, callback: Callable[[grpc.ChannelConnectivity], None]) -> None:
        """Undo ``subscribe``."""
        self._connectivity.unsubscribe(callback)

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False,
    ) -> UnaryUnary:
        """A callable for one message each way."""
        return UnaryUnary(self._caller, Method("unary_unary", method, request_serializer, response_deserializer, _registered_method))

    def stream_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False,
    ) -> StreamUnary:
        """A callable that sends messages and gets one."""
        return StreamUnary(self._caller, Method("stream_unary", method, request_serializer, response_deserializer, _registered_method))

    def unary_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False,
    ) -> UnaryStream:
        """A callable that sends one message and gets several."""
        return UnaryStream(self._caller, Method("unary_stream", method, request_serializer, response_deserializer, _registered_method))

    def stream_stream(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, _registered_method: bool | None = False,
    ) -> StreamStream:
        """A callable for messages both ways."""
        return StreamStream(self._caller, Method("stream_stream", method, request_serializer, response_deserializer, _registered_method))

    def close(self) -> None:
        """Cancel what is in flight and close every sub-channel. Idempotent."""
        self._connectivity.close()
        if self._caller.copies is not None:
            self._caller.copies.close()
        for each in self._caller.subchannels.clear():
            each.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Callable:
    """What a stub calls for one of its methods."""

    def __init__(self, caller: Caller, method: Method) -> None:
        self._caller = caller
        self._method = method
        given = caller.subchannels.given
        if given is not None:
            method.on(given)  # now, as grpc does: its channel may be closed by the first call, and then it crashes


class _UnaryResponse(_Callable):
    """Calls that get one message."""

    def _blocking(
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
        exchange = Blocking(caller, self._method, plan, requests, timeout, metadata, options)
        step = sync.run(exchange.call, exchange, caller.clock)
        return exchange.value if step is RETURN and exchange.error is None else exchange.otherwise(step)

    def _with_call(
        self, requests: Any, timeout: float | None, metadata: Metadata | None, credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None, compression: grpc.Compression | None,
    ) -> tuple[Any, grpc.Call]:
        caller = self._caller
        if metadata is not None:
            metadata = again(metadata)
        plan = caller.plan(self._method, metadata)
        options = {"credentials": credentials, "wait_for_ready": wait_for_ready, "compression": compression}
        if plan is None:
            found: tuple[Any, grpc.Call] = caller.passing(self._method).with_call(requests, timeout=timeout, metadata=metadata, **options)
            return found
        exchange = Blocking(caller, self._method, plan, requests, timeout, metadata, options)
        exchange.with_call = True
        step = sync.run(exchange.call, exchange, caller.clock)
        value = exchange.value if step is RETURN and exchange.error is None else exchange.otherwise(step)
        return value, exchange.native

    def _future(
        self, requests: Any, timeout: float | None, metadata: Metadata | None, credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None, compression: grpc.Compression | None,
    ) -> Any:
        caller = self._caller
        if metadata is not None:
            metadata = again(metadata)
        plan = caller.plan(self._method, metadata)
        options = {"credentials": credentials, "wait_for_ready": wait_for_ready, "compression": compression}
        if plan is None:
            return caller.passing(self._method).future(requests, timeout=timeout, metadata=metadata, **options)
        pending = PendingCall(caller, self._method, plan, requests, timeout, metadata, options)
        pending.begin()
        return FutureCall(pending)


class _StreamResponse(_Callable):
    """Calls that get a stream of messages."""

    def _streaming(
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
        reader = StreamReader(caller, self._method, plan, requests, timeout, metadata, options)
        reader.begin()
        return StreamCall(reader)


# What follows has the signatures of grpc's own, by whose names of arguments stubs may be called.

class UnaryUnary(_UnaryResponse, grpc.UnaryUnaryMultiCallable):  # type: ignore[type-arg]  # generic in its stubs only
    """One message each way."""

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None, wait_for_ready: bool | None = None, compression: grpc.Compression | None = None,
    ) -> Any:
        """Send the message and give the response. Raises ``grpc.RpcError``."""
        return self._blocking(request, timeout, metadata, credentials, wait_for_ready, compression)

    def with_call(
        self, request: Any, timeout: float | None = None, metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None, wait_for_ready: bool | None = None, compression: grpc.Compression | None = None,
    ) -> tuple[Any, grpc.Call]:
        """The same, with the call that gave the response: its code and metadata."""
        return self._with_call(request, timeout, metadata, credentials, wait_for_ready, compression)

    def future(
        self, request: Any, timeout: float | None = None, metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None, wait_for_ready: bool | None = None, compression: grpc.Compression | None = None,
    ) -> Any:
        """The same without waiting: a ``grpc.Future`` that is a ``grpc.Call``. Its retries run on their own."""
        return self._future(request, timeout, metadata, credentials, wait_for_ready, compression)


class StreamUnary(_UnaryResponse, grpc.StreamUnaryMultiCallable):  # type: ignore[type-arg]  # generic in its stubs only
    """Messages there, one back."""

    def __call__(
        self, request_iterator: Any, timeout: float | None = None, metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None, wait_for_ready: bool | None = None, compression: grpc.Compression | None = None,
    ) -> Any:
        """Send the messages and give the response. Raises ``grpc.RpcError``."""
        return self._blocking(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)

    def with_call(
        self, request_iterator: Any, timeout: float | None = None, metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None, wait_for_ready: bool | None = None, compression: grpc.Compression | None = None,
    ) -> tuple[Any, grpc.Call]:
        """The same, with the call that gave the response: its code and metadata."""
        return self._with_call(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)

    def future(
        self, request_iterator: Any, timeout: float | None = None, metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None, wait_for_ready: bool | None = None, compression: grpc.Compression | None = None,
    ) -> Any:
        """The same without waiting: a ``grpc.Future`` that is a ``grpc.Call``. Its retries run on their own."""
        return self._future(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)


class UnaryStream(_StreamResponse, grpc.UnaryStreamMultiCallable):  # type: ignore[type-arg]  # generic in its stubs only
    """One message there, several back."""

    def __call__(
        self, request: Any, timeout: float | None = None, metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None, wait_for_ready: bool | None = None, compression: grpc.Compression | None = None,
    ) -> Any:
        """Send what there is to send, and give an iterator over the responses, which is a ``grpc.Call``.

        A call that has to wait for a slot, or for an injected delay, waits here. Everything else, rejections included, shows
        when the responses are asked for.
        """
        return self._streaming(request, timeout, metadata, credentials, wait_for_ready, compression)


class StreamStream(_StreamResponse, grpc.StreamStreamMultiCallable):  # type: ignore[type-arg]  # generic in its stubs only
    """Messages both ways."""

    def __call__(
        self, request_iterator: Any, timeout: float | None = None, metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None, wait_for_ready: bool | None = None, compression: grpc.Compression | None = None,
    ) -> Any:
        """Send what there is to send, and give an iterator over the responses, which is a ``grpc.Call``.

        A call that has to wait for a slot, or for an injected delay, waits here. Everything else, rejections included, shows
        when the responses are asked for.
        """
        return self._streaming(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)
