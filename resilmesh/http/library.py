"""Which client library a request belongs to: httpx, or httpx2, its maintained continuation.

One source serves both: they have the same transport interface and distinct classes. The library is known by
the class of the request, so neither is imported before the user's own code has done so.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

#: What may be called, by the name of its package, and the package that does its I/O.
_CORES = {"httpx": "httpcore", "httpx2": "httpcore2"}
#: As many addresses are remembered.
_MOST_PLACES = 4096


class Library:
    """The names that the adapter needs from one client library."""

    __slots__ = ("_made", "_places", "byte_stream", "client", "core", "name", "response")

    def __init__(self, name: str) -> None:
        self.name = name
        self.client: Any = sys.modules[name]
        self.core: ModuleType = importlib.import_module(_CORES[name])
        self.byte_stream: type[Any] = self.client.ByteStream
        self.response: type[Any] = self.client.Response
        self._made: dict[type[Any], type[Any]] = {}
        #: How the library writes an address in a URL, by scheme, host and port.
        self._places: dict[tuple[str, str, int], Any] = {}

    def moved(self, url: Any, host: str, port: int) -> Any:
        """``url`` at another address. The client's own way takes the URL apart and builds it anew, which costs 35 us."""
        place = (url.scheme, host, port)
        try:
            parts = self._places[place]
        except KeyError:
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            parts = self._places[place] = self.client.URL(scheme=url.scheme, host=host, port=port)._uri_reference
        moved = object.__new__(type(url))
        moved._uri_reference = url._uri_reference._replace(host=parts.host, port=parts.port)
        return moved

    def stream(self, kind: type[Any], base: str) -> type[Any]:
        """``kind``, a stream of ours, as a subclass of the library's ``base``, which clients check for."""
        try:
            return self._made[kind]
        except KeyError:
            made = type(kind.__name__, (kind, getattr(self.client, base)), {"__slots__": (), "__module__": kind.__module__})
            return self._made.setdefault(kind, made)


_BY_NAME: dict[str, Library] = {}
_BY_REQUEST: dict[type[Any], Library] = {}


def named(name: str) -> Library:
    """The library ``"httpx"`` or ``"httpx2"``, which must have been imported."""
    found = _BY_NAME.get(name)
    return found if found is not None else _BY_NAME.setdefault(name, Library(name))


def library_of(request: Any) -> Library:
    """The library that ``request`` (or a client, or a transport) was made by. Raises ``TypeError`` for anything else."""
    kind = type(request)
    try:
        return _BY_REQUEST[kind]
    except KeyError:
        library = _BY_REQUEST[kind] = named(_package(kind))
        return library


def _package(kind: type[Any]) -> str:
    for base in kind.__mro__:
        package = base.__module__.partition(".")[0]
        if package in _CORES:
            return package
    raise TypeError(f"{kind.__module__}.{kind.__qualname__} belongs to neither httpx nor httpx2")
