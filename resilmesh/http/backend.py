"""The network underneath the client: where an endpoint is dialled, and every socket operation has an end.

httpcore dials the host of the URL and gives each operation the client's time-out anew, so that a server which
sends a byte now and then holds a call for ever (0.3 s became 1.96 s). These backends wrap httpcore's own: they dial
the endpoint while URL, Host and SNI stay as the application wrote them; they bound connect, TLS handshake, read and
write by what is left of the attempt; and they know whether a byte of the request was written.

**Why ``LimitPassed`` is no Exception.** httpcore treats a BaseException as it treats cancellation: an HTTP/1.1
connection is closed, and on HTTP/2, where any Exception from a read marks the whole connection broken, the neighbours
of the call are left alone. It never leaves this package: the transports turn it into an answer.

Nothing here imports a client library: the wrapped backend is the one that the pool came with.
"""

# ruff: noqa: ASYNC109  # httpcore's interface has time-outs as arguments

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from resilmesh.state.stats import BYTES_RECEIVED, BYTES_SENT

if TYPE_CHECKING:
    import ssl

    from resilmesh.state.stats import Stats

INFINITY = float("inf")

#: A blocking send of httpcore's waits anew for each part; a part of this size is taken whole once the socket is writable.
_SLICE = 16 * 1024
#: The least that is left to a TLS handshake: 0 would make a socket non-blocking, which is not a time-out.
_INSTANT = 0.001

#: The most that is read for one head, informational (1xx) answers included. httpcore bounds each of them, at 100 KB, and not
#: their number. Envoy's bound for a head is 60 KiB.
MAX_HEAD_BYTES = 1024 * 1024

_TORN = "an earlier request was cut short in the middle of a frame"


class LimitPassed(BaseException):
    """A limit of ours ended an operation. ``connecting``: before there was a connection. ``idle``: by idleTimeout."""

    def __init__(self, *, connecting: bool = False, idle: bool = False) -> None:
        super().__init__()
        self.connecting = connecting
        self.idle = idle


class Wire:
    """What a transport tells the backend about the attempt at hand, and what the backend tells it back.

    The base of the exchange, which fills it in: an object less for each call.
    """

    __slots__ = ("alone", "connect_timeout", "head_left", "heard", "idle_timeout", "monotonic", "stats", "until", "written")

    monotonic: Callable[[], float]
    #: Seconds to connect, TLS included; ``inf`` when the policy does not say.
    connect_timeout: float
    #: Seconds without a byte of the response; likewise.
    idle_timeout: float
    #: Absolute end of the attempt, and once there are headers of the call.
    until: float
    #: Whether a byte of the request may have left: taken for granted until the backend begins a connection for it, because
    #: a mock or a foreign transport in place of the backend does not tell.
    written: bool
    #: No neighbour can have written our frames: the connection is not shared (HTTP/1.1).
    alone: bool
    #: Whether a byte came back since the attempt began.
    heard: bool
    #: Bytes that may still be read for the head; ``inf`` once it is there, and where neighbours read theirs too (HTTP/2).
    head_left: float
    #: Where the bytes are counted, heads included, TLS not.
    stats: Stats

    def left(self) -> float:
        """Seconds that remain, more than none. Raises ``LimitPassed``."""
        left = self.until - self.monotonic()
        if left <= 0:
            raise LimitPassed
        return left

    def bound(self, timeout: float | None) -> tuple[float | None, bool]:
        """Time-out of an operation to which the client gives ``timeout``, and whether it is ours. Raises ``LimitPassed``."""
        left = self.left()
        if left == INFINITY or (timeout is not None and timeout <= left):
            return timeout, False
        return left, True

    def begin_connect(self) -> float:
        """A connection is begun, so nothing has been written. Absolute end of the connect, by connectTimeout."""
        if self.alone:
            self.written = False
        return self.monotonic() + self.connect_timeout

    def connect_bound(self, timeout: float | None, connect_by: float) -> tuple[float | None, bool]:
        """Like ``bound``. A connectTimeout that passes is no limit of ours but the client's own ConnectTimeout."""
        now = self.monotonic()
        left = self.until - now
        if left <= 0:
            raise LimitPassed(connecting=True)
        for_connect = max(connect_by - now, _INSTANT)
        if timeout is None or for_connect < timeout:
            timeout = None if for_connect == INFINITY else for_connect
        if timeout is not None and timeout <= left:
            return timeout, False
        return (None, False) if left == INFINITY else (left, True)


#: The attempt that the code below a transport is working for.
CURRENT: ContextVar[Wire | None] = ContextVar("resilmesh.http.wire", default=None)


class _Stream:
    """What both kinds of stream share. ``core`` is httpcore or httpcore2."""

    __slots__ = ("_connect_by", "_core", "_inner", "_proof", "secured", "torn")

    def __init__(self, inner: Any, core: Any, connect_by: float, proof: tuple[str, str] | None) -> None:
        self._proof = proof
        self._inner = inner
        self._core = core
        self._connect_by = connect_by
        #: A write was cut short, so what follows on the connection would be misread. Matters to HTTP/2 alone:
        #: an HTTP/1.1 connection is closed by whatever cut it short.
        self.torn = False
        #: By TLS of the policy's, whatever the URL says.
        self.secured = False

    def _read(self, wire: Wire, data: bytes) -> bytes:
        wire.heard = True
        size = len(data)
        wire.stats.counts[BYTES_RECEIVED] += size
        wire.head_left -= size
        if wire.head_left < 0:
            raise self._core.RemoteProtocolError(f"no end of the response's head within {MAX_HEAD_BYTES} bytes")
        return data

    def _name_to_prove(self, server_hostname: str | None) -> str | None:
        """Through a proxy the URL names the endpoint, but TLS is to prove the host that the application wrote."""
        if self._proof is not None and server_hostname == self._proof[0]:
            return self._proof[1]
        return server_hostname


class Stream(_Stream):
    """A blocking connection."""

    __slots__ = ("close", "get_extra_info")

    def __init__(self, inner: Any, core: Any, connect_by: float, proof: tuple[str, str] | None) -> None:
        super().__init__(inner, core, connect_by, proof)
        self.close: Callable[[], None] = inner.close
        self.get_extra_info: Callable[[str], Any] = inner.get_extra_info

    def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        wire = CURRENT.get()
        if wire is None:
            return self._inner.read(max_bytes, timeout)
        idle = wire.idle_timeout
        while True:
            left = wire.left()
            if idle < left:
                left = idle
            if left == INFINITY or (timeout is not None and timeout <= left):
                return self._read(wire, self._inner.read(max_bytes, timeout))
            try:
                return self._read(wire, self._inner.read(max_bytes, left))
            except self._core.TimeoutException:
                if left == idle:
                    raise LimitPassed(idle=True) from None
            # Usually the limit has passed and `left` says so; a timer that was a hair early leaves a rest to wait.

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        wire = CURRENT.get()
        if wire is None or not buffer:
            self._inner.write(buffer, timeout)
            return
        if self.torn:
            raise self._core.WriteError(_TORN)
        wire.written = True
        wire.stats.counts[BYTES_SENT] += len(buffer)
        ours = False
        try:
            if wire.until == INFINITY:
                self._inner.write(buffer, timeout)
                return
            # httpcore waits anew for each part that the socket takes, so a part must be one that it takes whole.
            for start in range(0, len(buffer), _SLICE):
                bound, ours = wire.bound(timeout)
                self._inner.write(buffer if len(buffer) <= _SLICE else memoryview(buffer)[start : start + _SLICE], bound)
        except BaseException as error:
            self.torn = True
            if ours and isinstance(error, self._core.TimeoutException):
                raise LimitPassed from None
            raise

    def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> Stream:
        if self.secured:
            return self
        wire = CURRENT.get()
        ours = False
        if wire is not None:
            timeout, ours = wire.connect_bound(timeout, self._connect_by)
        try:
            stream = self._inner.start_tls(ssl_context, self._name_to_prove(server_hostname), timeout)
        except self._core.TimeoutException:
            if ours:
                raise LimitPassed(connecting=True) from None
            raise
        return Stream(stream, self._core, self._connect_by, self._proof)


class _Backend:
    """Dials ``address`` (host, port), or where the URL says, by the backend ``inner``.

    ``proof`` (a host that TLS would be asked to prove, the host to prove in its place) is for proxies. ``secure``: the context of
    the policy's TLS, for ``http://`` as for ``https://``; the client's own is not asked then.
    """

    def __init__(
        self, inner: Any, core: Any, address: tuple[str, int] | None, proof: tuple[str, str] | None = None,
        secure: ssl.SSLContext | None = None,
    ) -> None:
        self._inner = inner
        self._core = core
        self._address = address
        self._proof = proof
        self._secure = secure


class Backend(_Backend):
    """For blocking connections."""

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Stream:
        return self._secured(self._dial(host, port, timeout, local_address, socket_options), host, timeout)

    def _secured(self, stream: Stream, host: str | None, timeout: float | None) -> Stream:
        if self._secure is None:
            return stream
        secured = stream.start_tls(self._secure, host, timeout)
        secured.secured = True
        return secured

    def _dial(
        self, host: str, port: int, timeout: float | None, local_address: str | None, socket_options: Iterable[Any] | None,
    ) -> Stream:
        if self._address is not None:
            host, port = self._address
        wire = CURRENT.get()
        if wire is None:
            return Stream(self._inner.connect_tcp(host, port, timeout, local_address, socket_options), self._core, INFINITY, self._proof)
        by = wire.begin_connect()
        # One at a time, because `socket.create_connection` gives each address of a name the whole time-out anew.
        addresses = _addresses(host, port)
        for address in addresses:
            bound, ours = wire.connect_bound(timeout, by)
            try:
                stream = self._inner.connect_tcp(address, port, bound, local_address, socket_options)
            except self._core.TimeoutException:
                if ours:
                    raise LimitPassed(connecting=True) from None
                raise
            except self._core.ConnectError:
                if address == addresses[-1]:
                    raise
            else:
                break
        return Stream(stream, self._core, by, self._proof)

    def connect_unix_socket(self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None) -> Stream:
        wire = CURRENT.get()
        by, ours = INFINITY, False
        if wire is not None:
            by = wire.begin_connect()
            timeout, ours = wire.connect_bound(timeout, by)
        try:
            stream = Stream(self._inner.connect_unix_socket(path, timeout, socket_options), self._core, by, self._proof)
        except self._core.TimeoutException:
            if ours:
                raise LimitPassed(connecting=True) from None
            raise
        return self._secured(stream, None, timeout)

    def sleep(self, seconds: float) -> None:
        wire = CURRENT.get()
        left = INFINITY if wire is None else wire.left()
        self._inner.sleep(min(seconds, left))
        if left <= seconds:
            raise LimitPassed(connecting=True)


def _addresses(host: str, port: int) -> list[str]:
    """Every address of a name, in the system's order. A name that cannot be resolved is left to httpcore to fail on."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return [host]
    return list(dict.fromkeys(str(each[4][0]) for each in found)) or [host]


class AsyncStream(_Stream):
    """A connection under asyncio or trio."""

    __slots__ = ("_socket", "aclose")

    def __init__(self, inner: Any, core: Any, connect_by: float, proof: tuple[str, str] | None) -> None:
        super().__init__(inner, core, connect_by, proof)
        self.aclose: Callable[[], Any] = inner.aclose
        self._socket = inner.get_extra_info("socket")

    def get_extra_info(self, info: str) -> Any:
        """As the backend says. Whether there is something to read, which is asked before each request, costs anyio 11 us."""
        if info != "is_readable" or self._socket is None or not hasattr(select, "poll"):
            return self._inner.get_extra_info(info)
        number = self._socket.fileno()
        if number < 0:
            return True  # closed: a read would give its end
        poll = select.poll()
        poll.register(number, select.POLLIN)
        return bool(poll.poll(0))

    async def read(self, max_bytes: int, timeout: float | None = None) -> Any:
        wire = CURRENT.get()
        if wire is None:
            return await self._inner.read(max_bytes, timeout)
        idle = wire.idle_timeout
        while True:
            left = wire.left()
            if idle < left:
                left = idle
            if left == INFINITY or (timeout is not None and timeout <= left):
                return self._read(wire, await self._inner.read(max_bytes, timeout))
            try:
                return self._read(wire, await self._inner.read(max_bytes, left))
            except self._core.TimeoutException:
                if left == idle:
                    raise LimitPassed(idle=True) from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        wire = CURRENT.get()
        if wire is None or not buffer:
            await self._inner.write(buffer, timeout)
            return
        if self.torn:
            raise self._core.WriteError(_TORN)
        wire.written = True
        wire.stats.counts[BYTES_SENT] += len(buffer)
        ours = False
        try:
            timeout, ours = wire.bound(timeout)
            await self._inner.write(buffer, timeout)
        except BaseException as error:
            self.torn = True
            if ours and isinstance(error, self._core.TimeoutException):
                raise LimitPassed from None
            raise

    async def start_tls(self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None) -> AsyncStream:
        if self.secured:
            return self
        wire = CURRENT.get()
        ours = False
        try:
            if wire is not None:
                timeout, ours = wire.connect_bound(timeout, self._connect_by)
            stream = await self._inner.start_tls(ssl_context, self._name_to_prove(server_hostname), timeout)
        except self._core.TimeoutException:
            if ours:
                raise LimitPassed(connecting=True) from None
            raise
        except self._core.ConnectError as error:
            why = _reason(error)
            if str(error) or why is None:
                raise
            raise self._core.ConnectError(str(why)) from why  # trio says no word of it
        except Exception:
            raise
        except BaseException:
            # httpcore closes the socket after an error, and forgets it after a cancellation.
            await _close_shielded(self._inner)
            raise
        return AsyncStream(stream, self._core, self._connect_by, self._proof)


def _reason(error: BaseException) -> ssl.SSLError | None:
    """What TLS said, below the errors of a library or two."""
    import ssl  # which a program without TLS does without

    cause = error.__cause__ or error.__context__
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause


async def _close_shielded(stream: Any) -> None:
    from anyio import CancelScope

    with CancelScope(shield=True):
        await stream.aclose()


class AsyncBackend(_Backend):
    """For connections under asyncio or trio."""

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncStream:
        where = (host, port) if self._address is None else self._address
        stream = await self._connect(self._inner.connect_tcp, where, timeout, (local_address, socket_options))
        return await self._secured(stream, host, timeout)

    async def _secured(self, stream: AsyncStream, host: str | None, timeout: float | None) -> AsyncStream:
        if self._secure is None:
            return stream
        secured = await stream.start_tls(self._secure, host, timeout)
        secured.secured = True
        return secured

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> AsyncStream:
        stream = await self._connect(self._inner.connect_unix_socket, (path,), timeout, (socket_options,))
        return await self._secured(stream, None, timeout)

    async def _connect(
        self, connect: Callable[..., Any], where: tuple[Any, ...], timeout: float | None, options: tuple[Any, ...]
    ) -> AsyncStream:
        wire = CURRENT.get()
        by, ours = INFINITY, False
        if wire is not None:
            by = wire.begin_connect()
            timeout, ours = wire.connect_bound(timeout, by)
        try:
            return AsyncStream(await connect(*where, timeout, *options), self._core, by, self._proof)
        except self._core.TimeoutException:
            if ours:
                raise LimitPassed(connecting=True) from None
            raise

    async def sleep(self, seconds: float) -> None:
        wire = CURRENT.get()
        left = INFINITY if wire is None else wire.left()
        await self._inner.sleep(min(seconds, left))
        if left <= seconds:
            raise LimitPassed(connecting=True)
