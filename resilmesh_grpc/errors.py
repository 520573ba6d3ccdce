"""Our errors as gRPC's own: ``CircuitOpen`` from a channel is a ``grpc.RpcError`` with a code too.

    ours                                                          code
    RateLimited                                                   RESOURCE_EXHAUSTED
    CircuitOpen ConcurrencyExceeded NoHealthyEndpoint Forbidden   UNAVAILABLE
    TlsImpossible                                                 UNAVAILABLE
    DeadlineExceeded                                              DEADLINE_EXCEEDED   (Envoy: UNAVAILABLE for its route's timeout)
    InjectedFault                                                 the fault's grpcStatus, or its httpStatus as Envoy translates it

One class serves both APIs: it is a ``grpc.aio.AioRpcError``, and a finished ``grpc.Call`` and ``grpc.Future`` as the errors of
``grpc`` are. The classes are made when first raised, and can be pickled.
"""

from __future__ import annotations

from typing import Any, cast

import grpc
import grpc.aio

from resilmesh import errors
from resilmesh.errors import CallError, DeadlineExceeded, InjectedFault, RateLimited

#: An HTTP status that Envoy makes a gRPC status of (ENVOY.md 2l); any other is UNKNOWN.
_OF_HTTP: dict[int, grpc.StatusCode] = {
    200: grpc.StatusCode.UNKNOWN, 400: grpc.StatusCode.INTERNAL, 401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.UNIMPLEMENTED,
    **dict.fromkeys((429, 502, 503, 504), grpc.StatusCode.UNAVAILABLE),
}
#: By number, which is what policies and the wire have.
BY_NUMBER: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}

_MADE: dict[type[CallError], type[LocalError]] = {}


def of_fault(status: int, number: int | None) -> grpc.StatusCode:
    """The gRPC status of an injected fault: its own, or what its HTTP status is."""
    if number is not None:
        return BY_NUMBER[number]
    return _OF_HTTP.get(status, grpc.StatusCode.UNKNOWN)


def code_of(error: CallError) -> grpc.StatusCode:
    """The gRPC status that one of our errors is."""
    if isinstance(error, InjectedFault):
        return of_fault(error.status, error.grpc_status)
    if isinstance(error, DeadlineExceeded):
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.RESOURCE_EXHAUSTED if isinstance(error, RateLimited) else grpc.StatusCode.UNAVAILABLE


class LocalError(grpc.aio.AioRpcError, grpc.Call, grpc.Future):  # type: ignore[misc, type-arg]  # generic in its stubs only
    """A call that ended here, without a status from the service. Always beside one of our own classes."""

    _code: grpc.StatusCode

    def speak(self, code: grpc.StatusCode, details: str) -> None:
        """Take on what gRPC's own errors have."""
        self._code, self._details, self._debug_error_string = code, details, ""
        self._initial_metadata = self._trailing_metadata = grpc.aio.Metadata()

    # What a call that is over says of itself, as grpc's _InactiveRpcError does.

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> None:  # type: ignore[override]  # as grpc's own
        return None

    def cancel(self) -> bool:
        return False

    def add_callback(self, callback: Any) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def running(self) -> bool:
        return False

    def done(self) -> bool:
        return True

    def result(self, timeout: float | None = None) -> Any:
        raise self

    def exception(self, timeout: float | None = None) -> Exception:
        return self

    def traceback(self, timeout: float | None = None) -> Any:
        return self.__traceback__

    def add_done_callback(self, fn: Any) -> None:
        fn(self)


class Cancelled(LocalError):
    """The caller cancelled the call."""

    def __init__(self, details: str = "Locally cancelled by application!") -> None:  # grpc's own words
        Exception.__init__(self, details)
        self.speak(grpc.StatusCode.CANCELLED, details)

    def __reduce__(self) -> tuple[Any, ...]:
        return Cancelled, (self._details,)


def in_dialect(error: CallError) -> CallError:
    """``error`` as gRPC's own as well."""
    spoken = cast(CallError, _kind(type(error)).__new__(_kind(type(error))))
    spoken.args = error.args
    spoken.__dict__.update(error.__dict__)
    spoken.__cause__ = error.__cause__
    cast(LocalError, spoken).speak(code_of(error), str(error))
    return spoken


def _kind(kind: type[CallError]) -> type[LocalError]:
    made = _MADE.get(kind)
    if made is None:
        body = {
            "__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce__": _reduce, "__str__": kind.__str__,
            "__repr__": CallError.__repr__, "_ours": kind,
        }
        made = _MADE.setdefault(kind, type(kind.__name__, (kind, LocalError), body))
    return made


def _reduce(self: Any) -> tuple[Any, ...]:
    plain = self._ours.__new__(self._ours)
    plain.args = self.args
    plain.__dict__.update({name: value for name, value in self.__dict__.items() if name not in _SPOKEN})
    return _rebuild, (self._ours.__name__, plain.args, plain.__dict__)


_SPOKEN = ("_code", "_details", "_debug_error_string", "_initial_metadata", "_trailing_metadata")


def _rebuild(name: str, args: tuple[str, ...], state: dict[str, Any]) -> CallError:
    plain = getattr(errors, name)(*args)
    plain.__dict__.update(state)
    return in_dialect(plain)
