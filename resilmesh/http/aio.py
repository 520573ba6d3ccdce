"""``AsyncTransport``: a policy in an ``httpx.AsyncClient`` or ``httpx2.AsyncClient``, under asyncio or trio.

    client = httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(mesh))

Every limit of time is exact. Mostly the network backend sees to it; where a call may wait for something else than its
own socket (a neighbour's read on a shared HTTP/2 connection, a foreign transport, a generator of the user), a cancel
scope does, which costs more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilmesh.drive.aio import run
from resilmesh.drive.copies import TaskCopies
from resilmesh.engine.verdict import Verdict
from resilmesh.errors import Forbidden
from resilmesh.http import pool
from resilmesh.http.backend import CURRENT, INFINITY, LimitPassed
from resilmesh.http.base import PolicyTransport
from resilmesh.http.exchange import KEPT_BYTES, Exchange
from resilmesh.http.library import library_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType
    from typing import Self

    import httpx
    import httpx2

    from resilmesh.engine.call import Call, Step
    from resilmesh.engine.plan import Plan
    from resilmesh.engine.verdict import Answer

    class _ClientTransport(httpx.AsyncBaseTransport, httpx2.AsyncBaseTransport):  # type: ignore[misc]  # one signature serves both
        pass
else:
    _ClientTransport = object


class AsyncExchange(Exchange):
    """An exchange in this task."""

    __slots__ = ()

    async def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call.injected)
        sent = self.prepare(call)
        lane, outer = self.lane, CURRENT.get()
        CURRENT.set(self)
        try:
            if lane.foreign or lane.multiplexed or (self.body is not None and self.body.runs_code):
                response = await self.within(lane.inner.handle_async_request(sent))
            else:
                response = await lane.inner.handle_async_request(sent)
        except LimitPassed as limit:
            if lane.multiplexed:
                await self.heal(interrupted=True)
            return self.limited(limit)
        except Exception as error:
            if isinstance(error, self.library.client.PoolTimeout):
                # httpcore may have given a connection to the request in the moment that it stopped waiting.
                await self.heal()
            return self.failed(error)
        except BaseException:
            await self.heal(interrupted=True)
            raise
        finally:
            CURRENT.set(outer)
            if self.inside is not None:
                self.sent()
            if lane.foreign:
                self.adopt_read_body(sent)
        return self.responded(response)

    async def within(self, awaitable: Awaitable[Any]) -> Any:
        """Await, up to the limits of the wire. anyio's scope and not a native cancellation, which httpcore's shields do not stop."""
        left = self.until - self.monotonic()
        idle = self.idle_timeout < left
        with self._clock.scope(min(left, self.idle_timeout)):
            return await awaitable
        raise LimitPassed(idle=idle)

    async def set_aside(self) -> None:
        response = self.response
        if response is None or self.answer.complete:
            return
        content, whole, broken_off = bytearray(), False, True
        self.until = self.keep_until()
        parts = aiter(response.stream)
        try:
            while True:
                content += await self.part(parts.__anext__)
                if len(content) <= KEPT_BYTES:
                    continue
                if self.lane.foreign:
                    break
                # To end the clients' nested generators in order, their next read is made to fail.
                self.until = -INFINITY
        except StopAsyncIteration:
            whole, broken_off = len(content) <= KEPT_BYTES, False
        except (Exception, LimitPassed):
            broken_off = False  # the rest is lost, and it was only being kept
        finally:
            if hasattr(parts, "aclose"):
                await parts.aclose()
            await self.free(response.stream, whole=whole, broken_off=broken_off)
        self.keep(bytes(content[:KEPT_BYTES]), whole=whole)

    async def part(self, advance: Callable[[], Awaitable[bytes]]) -> bytes:
        """The next part of a response body, within the limits of the wire."""
        lane, outer = self.lane, CURRENT.get()
        CURRENT.set(self)
        try:
            if (lane.foreign or lane.multiplexed) and (self.until != INFINITY or self.idle_timeout != INFINITY):
                return await self.within(advance())  # type: ignore[no-any-return]  # it gives what it awaits
            return await advance()
        finally:
            CURRENT.set(outer)

    async def free(self, stream: Any, *, whole: bool = False, broken_off: bool = False) -> None:
        """Close a response stream. ``whole``: it was read to its end. ``broken_off``: by what is no Exception."""
        try:
            await stream.aclose()
        except BaseException:
            await self.heal(stream)
            raise
        if broken_off or (not whole and self.lane.multiplexed):
            await self.heal(stream)

    async def heal(self, stream: Any = None, *, interrupted: bool = False) -> None:
        """Repair httpcore's pool after a call was cancelled, or left an HTTP/2 stream behind."""
        if not self.lane.multiplexed:
            return
        broken = pool.heal(self.lane.inner._pool, stream, interrupted=interrupted)
        if broken:
            from anyio import CancelScope

            with CancelScope(shield=True):
                for connection in broken:
                    await connection.aclose()

    async def result(self, step: Step) -> Any:
        """What the user gets where there is a fallback: the outcome, or what stands in for it."""
        reason = self.falls_back(step)
        if reason is None:
            return self.outcome(step)
        outcome: Any
        try:
            outcome = self.outcome(step)
        except Exception as error:
            outcome = error
        wanted = False
        try:
            given = self.stand_in(reason, outcome)
            if hasattr(given, "__await__"):
                given = await given
            wanted = given is None or given is outcome
            if not wanted:
                return self.stood_in(reason, given)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        finally:
            if not wanted and not isinstance(outcome, Exception):
                await outcome.aclose()
            del outcome  # an exception's traceback holds this frame: no cycle

    def outcome(self, step: Step) -> Any:
        """What the call came to; a body that is still to come is ours."""
        response = self.conclude(step)
        if not self.answer.complete:
            response.stream = self.library.stream(AsyncBody, "AsyncByteStream")(self, response.stream)
        return response

    async def send_copy(self, request: Any, plan: Plan) -> None:
        copy = AsyncExchange(self.lanes, self.library, request, plan, self._clock)
        try:
            response = copy.outcome(await run(copy.call, copy, self._clock))
            async for _ in response.stream:
                pass  # to its end, so that the connection can be used again
            await response.aclose()
        except Exception:
            copy.abandon()  # which does nothing to a call that is over


class AsyncBody:
    """The body of a committed response: the call ends when it ends, is closed, or is forgotten.

    Its own iterator, and no generator: trio warns of every generator that is not read to its end.
    """

    def __init__(self, exchange: AsyncExchange, stream: Any) -> None:
        self._ended = False
        self._exchange: Any = exchange
        self._stream = stream
        self._advance: Any = None
        exchange.body_begins()

    def __aiter__(self) -> AsyncIterator[bytes]:
        self._advance = aiter(self._stream).__anext__
        return self

    async def __anext__(self) -> bytes:
        exchange: AsyncExchange = self._exchange
        try:
            chunk = await exchange.part(self._advance)
            exchange.body_bytes += len(chunk)
            return chunk
        except StopAsyncIteration:
            if not self._ended:
                self._ended = True
                exchange.body_ended(Verdict.SUCCESS)
            raise
        except LimitPassed as limit:
            self._ended = True
            passed = exchange.body_limited(limit)
            try:
                await exchange.free(self._stream)
                raise passed from None
            finally:
                del passed  # no cycle through the traceback
        except Exception as error:
            self._ended = True
            exchange.body_failed(error)
            await exchange.free(self._stream)
            raise
        except BaseException:
            self._ended = True
            exchange.abandon()
            await exchange.free(self._stream, broken_off=True)
            raise

    async def aclose(self) -> None:
        early = not self._ended
        self._ended = True
        if self._stream is None:
            return
        try:
            await self._exchange.free(self._stream, whole=not early)
        finally:
            if early:
                self._exchange.body_ended(Verdict.SUCCESS)  # of what it did not want to read, nobody knows better
        # The clients' responses are cycles: what they need no more need not wait for the garbage collector.
        self._stream = self._exchange = self._advance = None

    def __del__(self) -> None:
        if not self._ended:
            self._exchange.call.orphan()


class AsyncTransport(PolicyTransport, _ClientTransport):
    """A transport for ``httpx.AsyncClient`` and ``httpx2.AsyncClient`` that applies a mesh's policy to each request.

    ``inner``: the transport to send with. Absent: the client library's own ``AsyncHTTPTransport``, made with
    ``options`` (``verify``, ``cert``, ``trust_env``, ``http1``, ``http2``, ``limits``, ``proxy``, ``uds``,
    ``local_address``, ``retries``, ``socket_options``), one for each endpoint. ``limits`` hold for each endpoint.

    ``fallback(request, outcome)`` is called when a call was rejected, ran out of time, or failed; ``outcome`` is the exception
    that the caller would get, or the response. It gives another response, or ``None`` to let the outcome pass;
    it may be a coroutine function. A request's own, in
    ``extensions={"resilmesh": {"fallback": ...}}``, comes before it, the policy's ``fallback`` block after it.
    """

    _kind = "AsyncHTTPTransport"
    _handle = "handle_async_request"
    _exchange = AsyncExchange
    _copies = TaskCopies

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request. Raises the client's own exceptions, and ours in the client's dialect (``http.errors``)."""
        try:
            exchange = self._begin(request)
        except Forbidden as error:
            return self._forbidden(error, request)
        if self._mesh.table is not self._table or self._lanes.retired:
            await self._sweep()
        if exchange is None:
            return await self._lanes.passing(library_of(request)).handle_async_request(request)
        step = await run(exchange.call, exchange, self._clock)
        return exchange.outcome(step) if exchange.fallback is None else await exchange.result(step)

    async def _sweep(self) -> None:
        self._compare()
        for inner in self._lanes.drained():
            await inner.aclose()

    async def __aenter__(self) -> Self:
        if self._lanes.given is not None:
            await self._lanes.given.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, traceback: TracebackType | None = None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close every connection, and the inner transport."""
        for inner in self._lanes.clear():
            await inner.aclose()
