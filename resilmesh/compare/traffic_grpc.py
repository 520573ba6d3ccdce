"""The calls of ``traffic`` over gRPC: grpcio's channels, bare or the library's; all else is equal.

Messages are plain bytes, so that no code has to be generated. A call is ``unary``, or a ``stream`` of responses that is
read to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from resilmesh.compare.traffic import Came, Job

_MESSAGE = b'{"sku":"A-1"}'
#: The library's errors, by the names of their classes.
_ERRORS = {
    "CircuitOpen": "circuit open", "ConcurrencyExceeded": "limit reached", "RateLimited": "rate limited",
    "NoHealthyEndpoint": "no healthy endpoint", "DeadlineExceeded": "deadline", "InjectedFault": "injected fault",
}


class Client:
    """``request`` gives the metadata of a call that succeeded, or (of an asynchronous client) their awaitable; else it raises."""

    failure = grpc.RpcError
    #: What grpcio itself says where no service answers.
    texts = (
        ("failed to connect", "connect failure"), ("Connection refused", "connect failure"), ("Deadline Exceeded", "deadline"),
        ("RST_STREAM", "reset"), ("Connection reset", "reset"), ("Socket closed", "reset"), ("Stream removed", "reset"),
    )

    def __init__(self, job: Job, meshes: list[Any]) -> None:
        self._asynchronous = job.client.endswith("-async")
        self._timeout = job.timeout
        options = [("grpc.default_authority", job.host)]
        if job.service_config is not None:
            options.append(("grpc.service_config", job.service_config))
        self._stubs = [_Stubs(self._channel(target, options, meshes[0] if meshes else None)) for target in job.targets]

    def _channel(self, target: str, options: list[tuple[str, str]], mesh: Any) -> Any:
        if mesh is None:
            return (grpc.aio if self._asynchronous else grpc).insecure_channel(target, options=options)
        import resilmesh_grpc

        return resilmesh_grpc.aio_channel(mesh, target) if self._asynchronous else resilmesh_grpc.channel(mesh, target)

    def request(self, number: int, method: str, path: str, name: str) -> Any:
        stub = self._stubs[number % len(self._stubs)][method, path]
        send = _SENDS[method, self._asynchronous]
        return send(stub, timeout=self._timeout, metadata=(("x-call", name),))

    def came(self, response: Any, error: Any) -> Came:
        """What came of a call."""
        if error is None:
            return "OK", dict(response), "", ""
        metadata = dict((*(error.initial_metadata() or ()), *(error.trailing_metadata() or ())))
        word = next((_ERRORS[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _ERRORS), "")
        return error.code().name, metadata, error.details() or "", word


class _Stubs(dict[tuple[str, str], Any]):
    """What generated code would hold for a channel: a callable for each method, made once."""

    def __init__(self, channel: Any) -> None:
        super().__init__()
        self._make = {"unary": channel.unary_unary, "stream": channel.unary_stream}

    def __missing__(self, key: tuple[str, str]) -> Any:
        method, path = key
        self[key] = stub = self._make[method](path)
        return stub


def _unary(stub: Any, **options: Any) -> Any:
    _, call = stub.with_call(_MESSAGE, **options)
    return call.initial_metadata()


def _stream(stub: Any, **options: Any) -> Any:
    call = stub(_MESSAGE, **options)
    for _ in call:
        pass
    return call.initial_metadata()


async def _unary_async(stub: Any, **options: Any) -> Any:
    call = stub(_MESSAGE, **options)
    await call
    return await call.initial_metadata()


async def _stream_async(stub: Any, **options: Any) -> Any:
    call = stub(_MESSAGE, **options)
    async for _ in call:
        pass
    return await call.initial_metadata()


_SENDS = {
    ("unary", False): _unary, ("stream", False): _stream, ("unary", True): _unary_async, ("stream", True): _stream_async,
}
