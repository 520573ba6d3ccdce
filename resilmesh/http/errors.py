"""Our errors in the client's own dialect: ``CircuitOpen`` from an httpx client is an ``httpx.TransportError`` too.

    ours                  also, in the client that raised it
    every Rejected        TransportError     (not ConnectError: handlers retry that, and a rejection must cool down)
    DeadlineExceeded      ReadTimeout        (the time-out that handlers take for "may have been sent")

The classes are made when first raised, one set for each client library, and can be pickled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from resilmesh import errors
from resilmesh.errors import CallError, DeadlineExceeded

if TYPE_CHECKING:
    from resilmesh.http.library import Library

_MADE: dict[tuple[str, type[CallError]], type[CallError]] = {}


def in_dialect(error: CallError, library: Library, request: Any) -> CallError:
    """``error`` as an exception of the client library as well, with the request that it belongs to."""
    spoken = _kind(library, type(error))(*error.args)
    spoken.__dict__.update(error.__dict__)
    spoken._request = request  # type: ignore[attr-defined]  # where httpx keeps what `error.request` gives
    return spoken


def raise_in_dialect(error: CallError, library: Library, request: Any) -> NoReturn:
    raise in_dialect(error, library, request) from error.__cause__


def _kind(library: Library, kind: type[CallError]) -> type[CallError]:
    made = _MADE.get((library.name, kind))
    if made is None:
        base = library.client.ReadTimeout if issubclass(kind, DeadlineExceeded) else library.client.TransportError
        body = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce__": _reduce, "_library": library.name, "_ours": kind}
        made = _MADE.setdefault((library.name, kind), type(kind.__name__, (kind, base), body))
    return made


def _reduce(self: Any) -> tuple[Any, ...]:
    return _rebuild, (self._library, self._ours.__name__, self.args, self.__dict__)


def _rebuild(library: str, name: str, args: tuple[str, ...], state: dict[str, Any]) -> CallError:
    import importlib

    from resilmesh.http.library import named

    importlib.import_module(library)
    error = _kind(named(library), getattr(errors, name))(*args)
    error.__dict__.update(state)
    return error
