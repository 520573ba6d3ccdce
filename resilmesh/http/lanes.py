"""Lanes: one inner transport for each endpoint, and one for "where the URL says".

An endpoint has a lane of its own because httpcore's pool knows connections by the URL's origin, and two endpoints of
a service share that. The client's ``limits`` therefore hold for each endpoint.

A transport that is not the client library's own (``MockTransport``, ``ASGITransport``, a caching or an aiohttp
transport) is the only lane there is, and learns the endpoint from the URL of the request; so does a transport behind
a proxy, which dials for us.
"""

from __future__ import annotations

import threading
from difflib import get_close_matches
from functools import partial
from typing import TYPE_CHECKING, Any

from resilmesh.errors import TlsImpossible
from resilmesh.http import pool

if TYPE_CHECKING:
    from collections.abc import Collection

    from resilmesh.drive.copies import TaskCopies, ThreadCopies
    from resilmesh.engine.plan import Plan, Tls
    from resilmesh.http.library import Library
    from resilmesh.mesh import Mesh
    from resilmesh.state.outlier import Endpoint


#: What the HTTPTransport of httpx and httpx2 takes. Known here, so that a slip is told where it is made: neither is imported.
OPTIONS = (
    "verify", "cert", "trust_env", "http1", "http2", "limits", "proxy", "uds", "local_address", "retries", "socket_options",
)


class Lane:
    """An inner transport and what a call must know about it."""

    __slots__ = ("foreign", "identity", "inner", "multiplexed", "rewrites")

    def __init__(
        self, inner: Any, *, foreign: bool = False, multiplexed: bool = False, rewrites: bool = False, identity: object = None,
    ) -> None:
        self.inner = inner
        #: Of the connections: who this workload was, and whom it trusted, when it was opened.
        self.identity = identity
        #: Not the client's own transport: our network backend is not underneath.
        self.foreign = foreign
        #: Calls may share a connection (HTTP/2).
        self.multiplexed = multiplexed
        #: The endpoint is written into the URL, in place of being dialled.
        self.rewrites = rewrites


class Lanes:
    """The lanes of one transport. ``kind`` is the name of the library's own transport class."""

    def __init__(self, mesh: Mesh, kind: str, inner: Any, options: dict[str, Any], copies: ThreadCopies | TaskCopies) -> None:
        if inner is not None and options:
            raise TypeError(f"give {', '.join(options)} to the inner transport: with inner= they would have no effect")
        for name in options.keys() - OPTIONS:
            close = get_close_matches(name, OPTIONS, 1)
            hint = f": did you mean {close[0]!r}?" if close else f"; there are {', '.join(OPTIONS)}"
            raise TypeError(f"there is no option {name!r}{hint}")
        self._mesh = mesh
        self._kind = kind
        #: The transport that the user gave; it is entered and closed with ours.
        self.given = inner
        self._options = options
        self._foreign = Lane(inner, foreign=True, rewrites=True) if inner is not None and not pool.is_plain(inner) else None
        self._prototypes: dict[str, Any] = {}
        #: By library, address, host that TLS is to prove, whether `protocol: HTTP2` asks for nothing else, and the policy's TLS.
        self._lanes: dict[tuple[str, str | None, str | None, bool, Tls | None], Lane] = {}
        #: Lanes to endpoints that have left the policy, until the last call on each has ended.
        self.retired: list[Lane] = []
        self._lock = threading.Lock()
        #: Sends the copies that ``mirror`` asks for.
        self.copies: Any = copies

    def to(self, library: Library, endpoint: Endpoint | None, request: Any, plan: Plan) -> Lane:
        """The lane to an endpoint, or to where the URL says. Raises ``TlsImpossible``."""
        if self._foreign is not None:
            if plan.tls is not None and not pool.is_in_memory(self._foreign.inner):
                name = type(self._foreign.inner).__name__
                raise TlsImpossible(f"{name} makes its connections itself, so the policy's TLS cannot be added")
            return self._foreign
        address = None if endpoint is None else endpoint.address
        try:
            return self._lanes[library.name, address, None, plan.http2, plan.tls]
        except KeyError:
            return self._open(library, endpoint, request.url.host, plan)

    def warm(self, library: Library) -> None:
        """Make the client's own transport, which reads every CA certificate, before the first call's time begins to run."""
        if self._foreign is None and library.name not in self._prototypes:
            self._prototype(library)

    def passing(self, library: Library) -> Any:
        """The inner transport for requests that no policy applies to: nothing of ours is in it."""
        return self._foreign.inner if self._foreign is not None else self._prototype(library)

    def _prototype(self, library: Library) -> Any:
        found = self._prototypes.get(library.name)
        if found is None:
            made = self.given if self.given is not None else getattr(library.client, self._kind)(**self._options)
            found = self._prototypes.setdefault(library.name, made)
        return found

    def _open(self, library: Library, endpoint: Endpoint | None, host: str, plan: Plan) -> Lane:
        http2, tls = plan.http2, plan.tls
        with self._lock:
            prototype = self._prototype(library)
            # Behind a proxy the endpoint stands in the URL, and a connection is good for the one host that TLS proved.
            proxied = endpoint is not None and pool.is_proxied(prototype)
            key = (library.name, None if endpoint is None else endpoint.address, host if proxied else None, http2, tls)
            if key not in self._lanes:
                if tls is not None and pool.is_proxied(prototype):
                    raise TlsImpossible(f"a proxy makes the connections, so the policy's TLS cannot be added: have {host} go without it")
                identity = None if tls is None else self._mesh.identity
                secure = None if tls is None else partial(self._mesh.tls_context, tls)
                inner = pool.clone(prototype, library.core, endpoint, proves=host if proxied else None, http2=http2, secure=secure)
                self._lanes[key] = Lane(inner, multiplexed=pool.speaks_http2(inner), rewrites=proxied, identity=identity)
            return self._lanes[key]

    def retire(self, addresses: Collection[str]) -> None:
        """Take the lanes to endpoints that are not among ``addresses`` out of use, and those of an identity that was renewed."""
        identity = self._mesh.identity
        with self._lock:
            for key, lane in list(self._lanes.items()):
                gone = key[1] is not None and key[1] not in addresses
                if gone or (key[4] is not None and lane.identity is not identity):
                    self.retired.append(self._lanes.pop(key))

    def drained(self) -> list[Any]:
        """The inner transports of retired lanes whose last call has ended: for the caller to close."""
        with self._lock:
            done = [lane for lane in self.retired if pool.is_idle(lane.inner)]
            self.retired = [lane for lane in self.retired if lane not in done]
        return [lane.inner for lane in done]

    def clear(self) -> list[Any]:
        """Forget everything; gives the inner transports to close."""
        self.copies.close()
        with self._lock:
            inner = [lane.inner for lane in (*self._lanes.values(), *self.retired)]
            inner += self._prototypes.values()
            if self.given is not None and self.given not in inner:
                inner.append(self.given)
            self._lanes, self._prototypes, self.retired = {}, {}, []
        return inner
