"""The one place that reaches into the pools of the clients. Pinned by tests/http/test_http_pool.py for both libraries.

* ``clone``: another transport of the same settings, with a pool of its own that uses our network backend: for HTTP/1.1
  our pool (``connections``), which has httpcore's make its connections; for HTTP/2 a copy of httpcore's;
* ``heal``: what httpcore's pool leaves behind when a call is cancelled. It then counts connections as active that
  nothing uses, until every later request waits for ever (1,200 random deadlines left "3 active"; encode/httpcore#1099);
* ``one_call_each``: on a blocking HTTP/2 connection a call that reads holds up the others, and no thread can be
  interrupted while it waits for a lock: so there each connection carries one call at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from resilmesh.http.backend import AsyncBackend, Backend
from resilmesh.http.connections import AsyncPool, Connections, Pool

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from resilmesh.state.outlier import Endpoint

    #: Gives a context for the protocols that ALPN is to offer.
    Secure = Callable[[list[str]], ssl.SSLContext | None]

#: HTTP/2's error code for a stream that its client no longer wants (RFC 9113, section 7).
_CANCEL = 8


def is_plain(transport: Any) -> bool:
    """Whether ``transport`` is the client library's own, with a pool that ``clone`` understands."""
    kind = type(transport)
    return (
        kind.__name__ in ("HTTPTransport", "AsyncHTTPTransport")
        and kind.__module__.partition(".")[0] in ("httpx", "httpx2")
        and hasattr(getattr(transport, "_pool", None), "_network_backend")
    )


def is_in_memory(transport: Any) -> bool:
    """Whether ``transport`` makes no connections: a mock, or an application that is called in the process."""
    kinds = {each.__name__ for each in type(transport).__mro__ if each.__module__.partition(".")[0] in ("httpx", "httpx2")}
    return not kinds.isdisjoint(("MockTransport", "ASGITransport", "WSGITransport"))


def clone(
    transport: Any, core: Any, endpoint: Endpoint | None, *, proves: str | None = None, http2: bool = False, secure: Secure | None = None,
) -> Any:
    """A transport like ``transport``, with an empty pool that dials ``endpoint``, or where the URL says.

    ``http2``: it speaks nothing but HTTP/2. ``proves``: the pool's proxy does the dialling, by URLs that name the
    endpoint, and TLS is to prove this host. ``secure``: gives the context of the policy's TLS, or ``None`` for the transport's own.
    """
    pool = copy.copy(transport._pool)
    pool._connections = []
    pool._requests = []
    pool._optional_thread_lock = type(pool._optional_thread_lock)()
    blocking = hasattr(pool, "handle_request")
    if http2:
        _require_h2()
        pool._http1, pool._http2 = False, True
    address = None if endpoint is None or proves is not None else (endpoint.host, endpoint.port)
    proof = None if endpoint is None or proves is None else (endpoint.host, proves)
    context = None
    if secure is not None:
        context = secure([*(("http/1.1",) if pool._http1 else ()), *(("h2",) if pool._http2 else ())]) or pool._ssl_context
    pool._network_backend = (Backend if blocking else AsyncBackend)(pool._network_backend, core, address, proof, context)
    twin = copy.copy(transport)
    if pool._http2:
        twin._pool = pool
        if blocking:
            one_call_each(pool)
    else:
        twin._pool = (Pool if blocking else AsyncPool)(
            pool.create_connection, core,
            max_connections=pool._max_connections, max_keepalive_connections=pool._max_keepalive_connections,
            unread=has_unread,
        )
    return twin


def _require_h2() -> None:
    try:
        import h2  # noqa: F401  # httpcore imports it when a connection is made, and by then the reason is hard to see
    except ImportError:
        raise ImportError("the policy says `protocol: HTTP2`, which needs the h2 package: pip install 'httpx[http2]'") from None


def one_call_each(pool: Any) -> None:
    """Have ``pool`` give a connection to one request at a time, HTTP/2 or not."""
    create = pool.create_connection

    def create_connection(origin: Any) -> Any:
        connection = create(origin)
        connection.is_available = lambda: connection.is_idle() and all(each.connection is not connection for each in pool._requests)
        connection.can_multiplex = lambda: False
        return connection

    pool.create_connection = create_connection


def speaks_http2(transport: Any) -> bool:
    """Whether connections of the transport may be shared by calls."""
    return not isinstance(transport._pool, Connections) and bool(transport._pool._http2)


def is_proxied(transport: Any) -> bool:
    """Whether the pool dials a proxy in place of the URL's host."""
    pool = transport._pool
    return getattr(pool, "_proxy_url", None) is not None or getattr(pool, "_proxy", None) is not None


def is_idle(transport: Any) -> bool:
    """Whether no request uses the pool."""
    pool = transport._pool
    return pool.is_unused() if isinstance(pool, Connections) else not pool._requests


def heal(pool: Any, stream: Any = None, *, interrupted: bool = False) -> list[Any]:
    """Forget what a call left behind that did not end in order; gives the connections that the caller must then close.

    ``stream`` is the response stream of the call, where there was one. ``interrupted``: it was cancelled before it
    had headers, so that httpcore may have been stopped anywhere. Runs without a suspension point, so that no second
    cancellation can interrupt it.
    """
    with pool._optional_thread_lock:
        body: Any = getattr(stream, "_httpcore_stream", None)
        # Marked as closed and still in the pool: its closing was interrupted, and nobody will go on with it.
        if getattr(body, "_closed", False) and body._pool_request in pool._requests:
            pool._requests.remove(body._pool_request)
        used = {id(each.connection) for each in pool._requests}
        unused = [each for each in pool._connections if id(each) not in used and not each.is_closed()]
        lost = [each for each in unused if not each.is_idle() or _is_torn(each) or (interrupted and _is_young(each))]
        pool._connections = [each for each in pool._connections if each not in lost]
        for connection in pool._connections:
            _reset_unwanted(connection)
        # Those who wait get what has become free.
        return lost + list(pool._assign_requests_to_connections())


def _is_torn(connection: Any) -> bool:
    """A frame was cut short or lost: what follows would be misread."""
    return bool(getattr(getattr(_protocol(connection), "_network_stream", None), "torn", False))


def _is_young(connection: Any) -> bool:
    """An HTTP/2 connection that may have been stopped while it was being set up: its count of streams is wrong then."""
    protocol = _protocol(connection)
    return hasattr(protocol, "_h2_state") and protocol._request_count <= 1


def _protocol(connection: Any) -> Any:
    """The HTTP/1.1 or HTTP/2 connection inside of httpcore's wrappers (proxies have two)."""
    while hasattr(connection, "_connection"):
        connection = connection._connection
    return connection


def has_unread(connection: Any) -> bool:
    """Whether an HTTP/1.1 connection between two requests has received more than its answer.

    httpcore looks at the socket only, so a service that lied about a length, or answered twice, had the rest taken for the
    answer to the next request: to somebody else's, with a pool.
    """
    state = getattr(_protocol(connection), "_h11_state", None)
    return state is not None and bool(state.trailing_data[0])


def _reset_unwanted(connection: Any) -> None:
    """Reset HTTP/2 streams that no call reads any more.

    httpcore only forgets them: what the service goes on to send would use up the flow-control window that all calls
    on the connection share. The reset leaves with the next frame.
    """
    protocol = _protocol(connection)
    if not hasattr(protocol, "_h2_state"):
        return
    if _is_torn(connection) or protocol._h2_state.state_machine.state.name == "CLOSED":
        # Nothing more can be said on it: a frame was cut short, or the service said GOAWAY or broke the protocol.
        # Neighbours may still read their answers; no new call goes there.
        protocol._connection_error = True
        return
    for number in _unwanted(protocol):
        protocol._h2_state.reset_stream(number, _CANCEL)


def _unwanted(protocol: Any) -> Iterator[int]:
    for number, stream in list(protocol._h2_state.streams.items()):
        if number not in protocol._events and not stream.closed:
            yield number
