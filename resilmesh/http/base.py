"""What the blocking and the asynchronous transport share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from resilmesh.drive.copies import TaskCopies, ThreadCopies
from resilmesh.drive.forms import kind_of
from resilmesh.errors import Forbidden
from resilmesh.http import replies
from resilmesh.http.errors import in_dialect
from resilmesh.http.exchange import CodeFallback, Exchange
from resilmesh.http.lanes import Lanes
from resilmesh.http.library import library_of
from resilmesh.mesh import Mesh

_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}

#: What a client first asks of its transport, and which one has it.
_NEEDED = {
    **dict.fromkeys(("handle_request", "__enter__"), "a Client needs resilmesh.http.Transport"),
    **dict.fromkeys(("handle_async_request", "__aenter__"), "an AsyncClient needs resilmesh.http.AsyncTransport"),
}


class PolicyTransport:
    """Finds the plan of a request, and the lanes to send it on."""

    #: Name of the library's own transport, and the exchange that speaks to it.
    _kind: ClassVar[str]
    #: The method that an inner transport must have.
    _handle: ClassVar[str]
    _exchange: ClassVar[type[Exchange]]

    #: What sends mirrored copies.
    _copies: ClassVar[type[ThreadCopies | TaskCopies]]

    def __init__(self, mesh: Mesh, inner: Any = None, *, fallback: CodeFallback | None = None, **options: Any) -> None:
        if not isinstance(mesh, Mesh):
            raise TypeError(f"the first argument is the Mesh, such as Mesh.from_file('policy.yaml'), not {mesh!r}")
        if inner is not None and not hasattr(inner, self._handle):
            raise TypeError(f"inner= is {inner!r}, which has no {self._handle}: it is no transport for {type(self).__name__}")
        if fallback is not None and not callable(fallback):
            raise TypeError(f"fallback= is called with the request and its outcome, and {fallback!r} cannot be called")
        if fallback is not None and self._handle == "handle_request" and kind_of(fallback) == "COROUTINE":
            raise TypeError("the fallback of a client that awaits nothing cannot be awaited either: pass a plain function")
        self._mesh = mesh
        mesh.telemetry.attach()
        self._fallback = fallback
        self._clock = mesh.clock
        self._lanes = Lanes(mesh, self._kind, inner, options, self._copies())
        #: The policy that the lanes were last compared with.
        self._table = mesh.table

    @property
    def mesh(self) -> Mesh:
        """The mesh whose policy applies."""
        return self._mesh

    if not TYPE_CHECKING:  # to a type checker it would make every name one that we have

        def __getattr__(self, name: str) -> Any:
            """A client of the other kind asks for what we do not have: say which transport has it."""
            said = f"{type(self).__name__!r} object has no attribute {name!r}"
            if name in _NEEDED:
                said += f": {_NEEDED[name]}"
            raise AttributeError(said, name=name, obj=self)

    def _begin(self, request: Any) -> Any:
        """The exchange that a request begins; ``None`` when no policy applies. Raises ``Forbidden``."""
        library = library_of(request)
        url = request.url
        port = url.port
        plan = self._mesh.route_http(
            request.method, url.host, _PORTS.get(url.scheme, 0) if port is None else port, url.raw_path.decode("ascii"), request.headers
        )
        if plan is None:
            return None
        self._lanes.warm(library)
        return self._exchange(self._lanes, library, request, plan, self._clock, self._fallback)

    def _forbidden(self, error: Forbidden, request: Any) -> Any:
        """What a request to a host of no service ends in, under ``outbound: REGISTRY_ONLY``."""
        library = library_of(request)
        if self._mesh.respond:
            facts = {"service": None, "route": None, "attempts": 0, "endpoint": None}
            return replies.response(library, request.method, error.reply, facts)
        raise in_dialect(error, library, request) from None

    def _compare(self) -> None:
        """The policy was reloaded: lanes to endpoints that it has no more go out of use."""
        self._table = table = self._mesh.table
        self._lanes.retire(table.addresses())
