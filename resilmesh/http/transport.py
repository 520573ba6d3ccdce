"""``Transport``: a policy in an ``httpx.Client`` or ``httpx2.Client``.

    client = httpx.Client(transport=resilmesh.http.Transport(mesh))

A total deadline is exact, body included: see ``backend``. With a foreign ``inner=`` a server that drips its headers can
exceed it, because only the time-outs of that transport bound it; its body is looked at between two parts. A Python
thread cannot be interrupted: code of the user that runs inside a call (a generator body, a trace callback) is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilmesh.drive.copies import ThreadCopies
from resilmesh.drive.sync import run
from resilmesh.engine.verdict import Verdict
from resilmesh.errors import Forbidden
from resilmesh.http import pool
from resilmesh.http.backend import CURRENT, INFINITY, LimitPassed
from resilmesh.http.base import PolicyTransport
from resilmesh.http.exchange import KEPT_BYTES, Exchange
from resilmesh.http.library import library_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    import httpx
    import httpx2

    from resilmesh.engine.call import Call, Step
    from resilmesh.engine.plan import Plan
    from resilmesh.engine.verdict import Answer

    class _ClientTransport(httpx.BaseTransport, httpx2.BaseTransport):  # type: ignore[misc]  # one signature serves both
        pass
else:
    _ClientTransport = object


class SyncExchange(Exchange):
    """An exchange on this thread."""

    __slots__ = ()

    def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call.injected)
        sent = self.prepare(call)
        lane, outer = self.lane, CURRENT.get()
        CURRENT.set(self)
        try:
            response = lane.inner.handle_request(sent)
        except LimitPassed as limit:
            if lane.multiplexed:
                self.heal()
            return self.limited(limit)
        except Exception as error:
            if isinstance(error, self.library.client.PoolTimeout):
                # httpcore may have given a connection to the request in the moment that it stopped waiting.
                self.heal()
            return self.failed(error)
        except BaseException:
            self.heal(interrupted=True)
            raise
        finally:
            CURRENT.set(outer)
            if self.inside is not None:
                self.sent()
            if lane.foreign:
                self.adopt_read_body(sent)
        return self.responded(response)

    def set_aside(self) -> None:
        response = self.response
        if response is None or self.answer.complete:
            return
        content, whole, broken_off, outer = bytearray(), False, True, CURRENT.get()
        self.until = self.keep_until()
        CURRENT.set(self)
        try:
            for chunk in response.stream:
                content += chunk
                if len(content) > KEPT_BYTES:
                    break
            else:
                whole = True
            broken_off = False
        except (Exception, LimitPassed):
            broken_off = False  # the rest is lost, and it was only being kept
        finally:
            CURRENT.set(outer)
            self.free(response.stream, whole=whole, broken_off=broken_off)
        self.keep(bytes(content[:KEPT_BYTES]), whole=whole)

    def free(self, stream: Any, *, whole: bool = False, broken_off: bool = False) -> None:
        """Close a response stream. ``whole``: it was read to its end. ``broken_off``: by what is no Exception."""
        try:
            stream.close()
        except BaseException:
            self.heal(stream)
            raise
        if broken_off or (not whole and self.lane.multiplexed):
            self.heal(stream)

    def heal(self, stream: Any = None, *, interrupted: bool = False) -> None:
        """Repair httpcore's pool after a call was broken off (KeyboardInterrupt, gevent), or left an HTTP/2 stream behind."""
        if self.lane.multiplexed:
            for connection in pool.heal(self.lane.inner._pool, stream, interrupted=interrupted):
                connection.close()

    def result(self, step: Step) -> Any:
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
            wanted = given is None or given is outcome
            if not wanted:
                return self.stood_in(reason, given)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        finally:
            if not wanted and not isinstance(outcome, Exception):
                outcome.close()
            del outcome  # an exception's traceback holds this frame: no cycle

    def outcome(self, step: Step) -> Any:
        """What the call came to; a body that is still to come is ours."""
        response = self.conclude(step)
        if not self.answer.complete:
            response.stream = self.library.stream(Body, "SyncByteStream")(self, response.stream)
        return response

    def send_copy(self, request: Any, plan: Plan) -> None:
        copy = SyncExchange(self.lanes, self.library, request, plan, self._clock)
        try:
            response = copy.outcome(run(copy.call, copy, self._clock))
            for _ in response.stream:
                pass  # to its end, so that the connection can be used again
            response.close()
        except Exception:
            copy.abandon()  # which does nothing to a call that is over


class Body:
    """The body of a committed response: the call ends when it ends, is closed, or is forgotten."""

    def __init__(self, exchange: SyncExchange, stream: Any) -> None:
        self._ended = False
        self._exchange: Any = exchange
        self._stream = stream
        exchange.body_begins()

    def __iter__(self) -> Iterator[bytes]:
        exchange, chunks = self._exchange, iter(self._stream)
        foreign = exchange.lane.foreign
        while True:
            outer = CURRENT.get()
            CURRENT.set(exchange)
            try:
                if foreign and exchange.until != INFINITY:
                    exchange.left()  # no backend of ours looks at the time before each read
                chunk = next(chunks)
            except StopIteration:
                break
            except LimitPassed as limit:
                self._ended = True
                passed = exchange.body_limited(limit)
                try:
                    exchange.free(self._stream)
                    raise passed from None
                finally:
                    del passed  # no cycle through the traceback
            except Exception as error:
                self._ended = True
                exchange.body_failed(error)
                exchange.free(self._stream)
                raise
            except BaseException:
                self._ended = True
                exchange.abandon()
                exchange.free(self._stream, broken_off=True)
                raise
            finally:
                CURRENT.set(outer)
            exchange.body_bytes += len(chunk)
            yield chunk
        if not self._ended:
            self._ended = True
            exchange.body_ended(Verdict.SUCCESS)

    def close(self) -> None:
        early = not self._ended
        self._ended = True
        if self._stream is None:
            return
        try:
            self._exchange.free(self._stream, whole=not early)
        finally:
            if early:
                self._exchange.body_ended(Verdict.SUCCESS)  # of what it did not want to read, nobody knows better
        # The clients' responses are cycles: what they need no more need not wait for the garbage collector.
        self._stream = self._exchange = None

    def __del__(self) -> None:
        if not self._ended:
            self._exchange.call.orphan()


class Transport(PolicyTransport, _ClientTransport):
    """A transport for ``httpx.Client`` and ``httpx2.Client`` that applies a mesh's policy to each request.

    ``inner``: the transport to send with. Absent: the client library's own ``HTTPTransport``, made with ``options``
    (``verify``, ``cert``, ``trust_env``, ``http1``, ``http2``, ``limits``, ``proxy``, ``uds``, ``local_address``,
    ``retries``, ``socket_options``), one for each endpoint. ``limits`` hold for each endpoint. With ``http2=True`` each
    connection carries one call at a time, because a blocking call cannot be ended while it waits for a neighbour's.

    ``fallback(request, outcome)`` is called when a call was rejected, ran out of time, or failed; ``outcome`` is the exception
    that the caller would get, or the response. It gives another response, or ``None`` to let the outcome pass. A request's own, in
    ``extensions={"resilmesh": {"fallback": ...}}``, comes before it, the policy's ``fallback`` block after it.
    """

    _kind = "HTTPTransport"
    _handle = "handle_request"
    _exchange = SyncExchange
    _copies = ThreadCopies

    def handle_request(self, request: Any) -> Any:
        """Send one request. Raises the client's own exceptions, and ours in the client's dialect (``http.errors``)."""
        try:
            exchange = self._begin(request)
        except Forbidden as error:
            return self._forbidden(error, request)
        if self._mesh.table is not self._table or self._lanes.retired:
            self._sweep()
        if exchange is None:
            return self._lanes.passing(library_of(request)).handle_request(request)
        step = run(exchange.call, exchange, self._clock)
        return exchange.outcome(step) if exchange.fallback is None else exchange.result(step)

    def _sweep(self) -> None:
        self._compare()
        for inner in self._lanes.drained():
            inner.close()

    def __enter__(self) -> Self:
        if self._lanes.given is not None:
            self._lanes.given.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None = None, error: BaseException | None = None, traceback: TracebackType | None = None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection, and the inner transport."""
        for inner in self._lanes.clear():
            inner.close()
