"""The HTTP/1.1 connections of a lane: which is free, which may be opened, and who is next when all are in use.

httpcore's own pool looks at every connection and every request whenever a request comes or goes, and asks the
operating system about each idle socket: 32 calls at a time cost 3 ms each, most of it in the pool. Here

* the newest idle connection goes first, so those that are warm stay warm and no more are open than calls are at work;
* one that cannot be lent to a request of another origin gives way when ``max_connections`` are open;
* who finds all in use waits in line, and a connection that comes back goes to the first in line;
* at most ``max_keepalive_connections`` stay idle, the newest, until the server closes them or they expire.

The connections themselves are httpcore's, asked only what its ``ConnectionInterface`` promises. A connection
carries one call at a time, so a call that is cut short takes its own connection with it and nothing else: there is
nothing to repair. HTTP/2, where calls share a connection, stays with httpcore's pool.

Threads: taking the newest and giving it back hold no lock, because a deque's ``pop`` and ``append`` are atomic. Who
waits gets in line first and looks then; who gives back lets go first and looks then: so one of them sees the other.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from time import monotonic
from typing import Any

from resilmesh.http.backend import CURRENT, INFINITY

#: Seconds between two looks at every idle connection. The one that is about to be lent is always looked at.
_SWEEP = 1.0
#: What httpcore's connections speak.
_SCHEMES = (b"http", b"https", b"ws", b"wss")


class Waiter:
    """A request in line. ``connection`` is set before ``wake`` is called."""

    __slots__ = ("connection", "origin", "wake")

    def __init__(self, origin: Any, wake: Callable[[], object]) -> None:
        self.connection: Any = None
        self.origin = origin
        self.wake = wake


class Connections:
    """Who has which connection; no I/O but looking whether an idle socket was closed by the server.

    ``create`` makes a connection, not dialled yet, for an origin. ``core`` is httpcore or httpcore2. ``unread`` says of a
    connection whose response has ended whether more was received: the next request would take it for its answer.
    """

    def __init__(
        self, create: Callable[[Any], Any], core: Any, *, max_connections: int, max_keepalive_connections: int,
        unread: Callable[[Any], bool] = lambda connection: False,
    ) -> None:
        self.max_connections = max_connections
        self.max_keepalive_connections = max_keepalive_connections
        #: Connections that nobody may have any more, for the next who may do I/O to close.
        self.doomed: deque[Any] = deque()
        self._create = create
        self._core = core
        self._unread = unread
        #: Idle, lent, or being opened.
        self._open: set[Any] = set()
        self._idle: deque[Any] = deque()
        self._waiting: deque[Waiter] = deque()
        self._sweep_at = 0.0
        self._lock = threading.Lock()

    def is_unused(self) -> bool:
        """Whether no request has or awaits a connection."""
        return len(self._open) == len(self._idle) and not self._waiting

    def origin_of(self, request: Any) -> Any:
        """Where a request goes. Raises ``UnsupportedProtocol``, as httpcore's pool does."""
        url = request.url
        if url.scheme not in _SCHEMES:
            raise self._core.UnsupportedProtocol(f"Request URL has an unsupported protocol '{url.scheme.decode()}://'.")
        return url.origin

    def take(self, origin: Any) -> Any:
        """A connection to ``origin``, for one request; ``None`` when all are in use."""
        if not self._waiting:
            try:
                connection = self._idle.pop()
            except IndexError:
                pass
            else:
                if connection.can_handle_request(origin) and not connection.has_expired():
                    return connection
                self._idle.append(connection)
            with self._lock:
                return self._find(origin)
        return None

    def give_back(self, connection: Any) -> None:
        """The request has ended, well or not. What cannot be used again is doomed."""
        if connection in self._open and connection.is_idle() and not connection.is_closed() and not self._unread(connection):
            self._idle.append(connection)
            if len(self._idle) > self.max_keepalive_connections:
                with suppress(IndexError):  # another thread took it
                    self.doom(self._idle.popleft())
        else:
            self.doom(connection)
        if self._waiting:
            self._serve()
        if monotonic() >= self._sweep_at:
            self._sweep()

    def doom(self, connection: Any) -> None:
        """Never lend ``connection`` again. Takes no lock, because a finalizer may call it."""
        self._open.discard(connection)
        if not connection.is_closed():
            self.doomed.append(connection)

    def doom_all(self) -> None:
        """The client is closed, and with it what is in use."""
        with self._lock:
            # A call that chose this pool before another thread closed it, after a reload, leaves nothing open either.
            self.max_keepalive_connections = 0
            self._idle.clear()
            for connection in list(self._open):
                self.doom(connection)

    def get_in_line(self, origin: Any, wake: Callable[[], object]) -> Waiter:
        """Wait for a connection; ``wake`` is called when the waiter has it."""
        waiter = Waiter(origin, wake)
        with self._lock:
            self._waiting.append(waiter)
        self._serve()
        return waiter

    def leave_line(self, waiter: Waiter) -> Any:
        """Wait no more: the connection that came, or ``None``."""
        with self._lock:
            if waiter.connection is None:
                self._waiting.remove(waiter)
        return waiter.connection

    def patience(self, request: Any) -> float | None:
        """Seconds that a request may wait: its own pool time-out, or what is left of the attempt if that is less."""
        timeout: float | None = request.extensions.get("timeout", {}).get("pool")
        wire = CURRENT.get()
        if wire is None or wire.until == INFINITY:
            return timeout
        left = max(0.0, wire.until - wire.monotonic())
        return left if timeout is None or left < timeout else timeout

    def timed_out(self) -> Exception:
        """The client's own exception for a wait that was too long."""
        error: Exception = self._core.PoolTimeout(f"all {self.max_connections} connections are in use")
        return error

    # ------------------------------------------------------------------------------------------ locked

    def _serve(self) -> None:
        """Give what is free to those who wait, the first in line first."""
        served = []
        with self._lock:
            while self._waiting:
                connection = self._find(self._waiting[0].origin)
                if connection is None:
                    break
                waiter = self._waiting.popleft()
                waiter.connection = connection
                served.append(waiter)
        for waiter in served:
            waiter.wake()

    def _find(self, origin: Any) -> Any:
        """The newest idle connection to ``origin``, or a new one. Other threads may take idle ones meanwhile."""
        found, others = None, []
        while found is None:
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            if not connection.can_handle_request(origin):
                others.append(connection)
            elif connection.has_expired():
                self.doom(connection)
            else:
                found = connection
        if found is None and len(self._open) >= self.max_connections and others:
            self.doom(others.pop())
        self._idle.extend(reversed(others))
        if found is None and len(self._open) < self.max_connections:
            found = self._create(origin)
            self._open.add(found)
        return found

    def _sweep(self) -> None:
        """Doom the idle connections that have expired or that the server has closed."""
        with self._lock:
            self._sweep_at = monotonic() + _SWEEP
            for _ in range(len(self._idle)):
                try:
                    connection = self._idle.popleft()
                except IndexError:
                    return
                if connection.has_expired():
                    self.doom(connection)
                else:
                    self._idle.append(connection)


class Lent:
    """The body of a response; when it is closed its connection is free. One that is forgotten loses its connection."""

    __slots__ = ("_connection", "_pool", "_stream")

    def __init__(self, pool: Any, connection: Any, stream: Any) -> None:
        self._pool = pool
        self._connection = connection
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._stream)

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            self._stream.close()
        finally:
            pool.give_back(self._connection)
            if pool.doomed:
                pool.bury()

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.doom(self._connection)


class AsyncLent:
    """The same under asyncio and trio."""

    __slots__ = ("_connection", "_pool", "_stream")

    def __init__(self, pool: Any, connection: Any, stream: Any) -> None:
        self._pool = pool
        self._connection = connection
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)

    async def aclose(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await self._stream.aclose()
        finally:
            pool.give_back(self._connection)
            if pool.doomed:
                await pool.bury()

    def __del__(self) -> None:
        if self._pool is not None:
            self._pool.doom(self._connection)


class Pool(Connections):
    """In place of httpcore's ``ConnectionPool``, below a blocking ``HTTPTransport``."""

    def handle_request(self, request: Any) -> Any:
        """Send one request. Raises httpcore's exceptions, ``PoolTimeout`` after too long a wait in line."""
        origin = self.origin_of(request)
        connection = self.take(origin) or self._wait(request, origin)
        try:
            if self.doomed:
                self.bury()
            response = connection.handle_request(request)
        except BaseException:
            self.give_back(connection)
            self.bury()
            raise
        response.stream = Lent(self, connection, response.stream)
        return response

    def _wait(self, request: Any, origin: Any) -> Any:
        patience = self.patience(request)
        come = threading.Event()
        waiter = self.get_in_line(origin, come.set)
        try:
            come.wait(patience)
        except BaseException:
            if self.leave_line(waiter) is not None:
                self.give_back(waiter.connection)
            raise
        connection = self.leave_line(waiter)
        if connection is None:
            raise self.timed_out()
        return connection

    def bury(self) -> None:
        """Close what is doomed. That it cannot be closed in order concerns nobody."""
        while self.doomed:
            with suppress(Exception):
                self.doomed.popleft().close()

    def close(self) -> None:
        """Close every connection, also those in use."""
        self.doom_all()
        self.bury()


class AsyncPool(Connections):
    """In place of httpcore's ``AsyncConnectionPool``, below an ``AsyncHTTPTransport``."""

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request. Raises httpcore's exceptions, ``PoolTimeout`` after too long a wait in line."""
        origin = self.origin_of(request)
        connection = self.take(origin) or await self._wait(request, origin)
        try:
            if self.doomed:
                await self.bury()
            response = await connection.handle_async_request(request)
        except BaseException:
            self.give_back(connection)
            await self.bury()
            raise
        response.stream = AsyncLent(self, connection, response.stream)
        return response

    async def _wait(self, request: Any, origin: Any) -> Any:
        from anyio import Event, move_on_after

        patience = self.patience(request)
        come = Event()
        waiter = self.get_in_line(origin, come.set)
        try:
            with move_on_after(patience):
                await come.wait()
        except BaseException:
            if self.leave_line(waiter) is not None:
                self.give_back(waiter.connection)
                await self.bury()
            raise
        connection = self.leave_line(waiter)
        if connection is None:
            raise self.timed_out()
        return connection

    async def bury(self) -> None:
        """Close what is doomed, whatever is cancelled. That it cannot be closed in order concerns nobody."""
        if not self.doomed:
            return
        from anyio import CancelScope

        with CancelScope(shield=True):
            while self.doomed:
                with suppress(Exception):
                    await self.doomed.popleft().aclose()

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        self.doom_all()
        await self.bury()
