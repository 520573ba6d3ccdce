"""``ScriptedTransport``: a service that answers by a script. One class for httpx and httpx2, for sync and async clients.

    an outcome                      is
    503                             a response of that status, without a body
    Reply(200, json={"left": 3})    a response with headers, a body, a delay, or a body that comes in parts
    "connect-refused", "reset" ...  the exception that the client library raises for it: see ``FAILURES``
    "hang"                          no answer, until a time-out of the client or of the policy ends it
    after(2, outcome)               that outcome, two seconds later
    an exception, or its class      that exception
    a function of the request       whatever outcome it gives; it may be a coroutine function in an async client

A script is one outcome, which answers every request; a list or iterator of outcomes, one for each request in turn; or a
dict of scripts by rule: ``{"POST inventory/v1/*": [503, 201], "inventory": 200}``, of which the first that applies answers.

It stands where the network would, and does what our network backend does: it says whether a byte of the request was
written (``Wire.written``), and connects within connectTimeout. So a scripted outcome is classified, retried and counted as a
real one. What has no counterpart here: the wait for a connection of a pool, and neighbours on an HTTP/2 connection.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping
from dataclasses import KW_ONLY, dataclass, field
from fnmatch import fnmatchcase
from itertools import repeat
from typing import TYPE_CHECKING, Any, Self, cast

from resilmesh.drive.system import SYSTEM
from resilmesh.http.backend import CURRENT, LimitPassed, Wire
from resilmesh.http.library import library_of

if TYPE_CHECKING:
    from resilmesh.clock import Clock
    from resilmesh.http.exchange import Exchange
    from resilmesh.http.library import Library

_INFINITY = float("inf")

#: Seconds to pass, or something to await, one after the other; in the end the result.
Steps = Generator[Any, Any, Any]

#: By name: the exception of the client library, what it says, and whether the request may have been written by then.
FAILURES: dict[str, tuple[str, str, bool]] = {
    "connect-refused": ("ConnectError", "[Errno 111] Connection refused", False),
    "connect-timeout": ("ConnectTimeout", "timed out while connecting", False),
    "reset-before-request": ("WriteError", "[Errno 32] Broken pipe", False),
    "refused-stream": ("RemoteProtocolError", "<StreamReset stream_id:1, error_code:7, remote_reset:True>", True),
    "reset": ("ReadError", "[Errno 104] Connection reset by peer", True),
    "closed": ("RemoteProtocolError", "Server disconnected without sending a response.", True),
    "write-error": ("WriteError", "[Errno 32] Broken pipe", True),
    "timeout": ("ReadTimeout", "timed out", True),
    "write-timeout": ("WriteTimeout", "timed out while sending", True),
    "pool-timeout": ("PoolTimeout", "no connection became free", True),
}
_BEFORE_REQUEST = tuple(name for name, (_, _, written) in FAILURES.items() if not written)


@dataclass(frozen=True)
class Reply:
    """A response. ``delay``: seconds before its headers. ``parts``: its body as it comes: bytes, seconds to wait, or a failure's name."""

    status: int = 200
    _: KW_ONLY
    headers: Mapping[str, str] | None = None
    content: bytes | str | None = None
    json: Any = None
    delay: float = 0.0
    parts: Iterable[bytes | float | str] | None = None


@dataclass(frozen=True)
class _After:
    seconds: float
    outcome: Any


def after(seconds: float, outcome: Any) -> Any:
    """An outcome, ``seconds`` later by the clock."""
    return _After(seconds, outcome)


@dataclass(frozen=True)
class Sent:
    """A request that arrived. ``url`` names the endpoint where the policy has endpoints; ``host`` is what the application asked for."""

    method: str
    url: str
    host: str
    path: str
    headers: Mapping[str, str]
    content: bytes
    #: Seconds of the clock.
    at: float
    #: The client library's own object.
    request: Any = field(repr=False)


class ScriptedTransport:
    """A transport that answers by ``script`` and records what it was sent in ``requests``. For any number of threads and loops.

    Pass it as ``inner=`` of our transports, or to a client. ``clock`` passes the delays; by default that of the mesh whose
    call is sent, and real time without one.

    A request that the script has no answer for raises ``AssertionError``, which names what was expected; it reaches the caller
    as it is, since no policy retries it.
    """

    def __init__(self, script: Any, *, clock: Clock | None = None) -> None:
        rules = script if isinstance(script, Mapping) else {"*": script}
        self._rules = [_Rule(text, outcomes) for text, outcomes in rules.items()]
        self._clock = clock
        self._lock = threading.Lock()
        self._unexpected: list[str] = []
        #: Everything that was sent, in the order it came.
        self.requests: list[Sent] = []

    def check(self) -> None:
        """Raises ``AssertionError`` if a request came that the script had no answer for, or an outcome of a list was not asked for."""
        said = list(self._unexpected)
        said += [f"the script of {rule.text!r} goes on, and nobody asked: {_shown(rule.left())}" for rule in self._rules if rule.left()]
        if said:
            raise AssertionError("\n".join(said))

    # ---------------------------------------------------------------------------------------- the transport

    def handle_request(self, request: Any) -> Any:
        request.read()
        return _run(self._serve(request), self._clock_of(CURRENT.get()))

    async def handle_async_request(self, request: Any) -> Any:
        await request.aread()
        return await _run_async(self._serve(request), self._clock_of(CURRENT.get()))

    def close(self) -> None:
        """Nothing is open."""

    async def aclose(self) -> None:
        """Nothing is open."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    # -------------------------------------------------------------------------------------------- answering

    def _clock_of(self, wire: Wire | None) -> Clock:
        if self._clock is not None:
            return self._clock
        return SYSTEM if wire is None else cast("Exchange", wire).clock

    def _serve(self, request: Any) -> Steps:
        """One request, from the connection to the headers of its response."""
        wire = CURRENT.get()
        clock = self._clock_of(wire)
        outcome, seconds = self._outcome(request, clock), 0.0
        while isinstance(outcome, _After) or (callable(outcome) and not isinstance(outcome, type)):
            if isinstance(outcome, _After):
                seconds, outcome = seconds + outcome.seconds, outcome.outcome
            else:
                outcome = outcome(request)
                if inspect.isawaitable(outcome):
                    outcome = yield outcome
        attempt = _Attempt(library_of(request), wire, clock, request.extensions.get("timeout") or {})
        if isinstance(outcome, str) and outcome in _BEFORE_REQUEST:
            yield from attempt.connect(seconds, outcome)
        if wire is not None:
            wire.begin_connect()
            wire.written = True
        if isinstance(outcome, Reply):
            yield from attempt.read(seconds + outcome.delay)
        else:
            yield from attempt.read(_INFINITY if isinstance(outcome, str) and outcome in ("hang", "timeout") else seconds, outcome)
        return attempt.response(outcome)

    def _outcome(self, request: Any, clock: Clock) -> Any:
        """Record a request, and take what the script has for it."""
        url = request.url
        host = request.headers.get("host") or url.netloc.decode("ascii")
        sent = Sent(request.method, str(url), host, url.path, request.headers, request.content, clock.monotonic(), request)
        with self._lock:
            self.requests.append(sent)
            rule = next((rule for rule in self._rules if rule.applies_to(sent)), None)
            if rule is not None:
                outcome = rule.next()
                if outcome is not _USED_UP:
                    return outcome
            said = self._surprise(sent, rule)
            self._unexpected.append(said)
        raise AssertionError(said)

    def _surprise(self, sent: Sent, rule: _Rule | None) -> str:
        what = f"unexpected request {sent.method} {sent.url} (number {len(self.requests)})"
        if rule is None:
            return f"{what}: expected was one of {', '.join(repr(each.text) for each in self._rules)}"
        return f"{what}: the script of {rule.text!r} is used up; it was {_shown(rule.given)}"


# ------------------------------------------------------------------------------------------------ the script

_USED_UP: Any = object()


class _Rule:
    """One script, and which requests it answers."""

    def __init__(self, text: str, script: Any) -> None:
        self.text = text
        method, space, where = text.rpartition(" ")
        self._method = method if space else None
        host, slash, path = where.partition("/")
        self._host = host or "*"
        self._path = slash + path if slash else "*"
        several = isinstance(script, Iterable) and not isinstance(script, str | bytes)
        #: What was given, one by one.
        self.given: list[Any] = list(script) if isinstance(script, list | tuple) else []
        self._outcomes = iter(self.given if isinstance(script, list | tuple) else script) if several else repeat(script)
        self._taken = 0
        for each in self.given if several else [script]:
            _known(each)

    def applies_to(self, sent: Sent) -> bool:
        if self._method not in (None, sent.method) or not fnmatchcase(sent.path, self._path):
            return False
        url = sent.request.url
        names = (sent.host, sent.host.rpartition(":")[0], url.host, url.netloc.decode("ascii"))
        return any(fnmatchcase(name, self._host) for name in names)

    def next(self) -> Any:
        outcome = next(self._outcomes, _USED_UP)
        if outcome is not _USED_UP:
            self._taken += 1
            _known(outcome)
        else:
            self.given = self.given or [f"{self._taken} outcomes"]
        return outcome

    def left(self) -> list[Any]:
        return self.given[self._taken:]


def _known(outcome: Any) -> None:
    """Raises ``TypeError`` or ``ValueError`` for what is no outcome, when the script is made as far as that is possible."""
    if isinstance(outcome, str) and outcome not in FAILURES and outcome != "hang":
        raise ValueError(f"{outcome!r} is no outcome; there are {', '.join([*FAILURES, 'hang'])}, a status, Reply(...), after(...)")
    if isinstance(outcome, int) and not 100 <= outcome <= 999:
        raise ValueError(f"{outcome} is no HTTP status")
    if isinstance(outcome, _After):
        _known(outcome.outcome)
    elif not isinstance(outcome, str | int | Reply | BaseException) and not callable(outcome) and not hasattr(outcome, "status_code"):
        raise TypeError(f"{outcome!r} is no outcome: a status, a Reply, the name of a failure, an exception, or a function of the request")


def _shown(outcomes: list[Any]) -> str:
    return "[" + ", ".join(map(repr, outcomes)) + "]"


# ------------------------------------------------------------------------------------------------ one attempt


class _Attempt:
    """One request on a wire that is not there. What takes time is a generator of the seconds to pass."""

    def __init__(self, library: Library, wire: Wire | None, clock: Clock, timeouts: Mapping[str, float | None]) -> None:
        self._clock = clock
        self._library = library
        self._wire = wire
        self._timeouts = timeouts

    def connect(self, seconds: float, outcome: str) -> Steps:
        """Fail before a byte of the request is written."""
        wire, timeout, ours = self._wire, self._timeouts.get("connect"), False
        if wire is not None:
            timeout, ours = wire.connect_bound(timeout, wire.begin_connect())
        timed_out = outcome == "connect-timeout" or (timeout is not None and seconds >= timeout)
        yield seconds if not timed_out else 0.0 if timeout is None else timeout
        if timed_out and ours:
            raise LimitPassed(connecting=True)
        raise self._error("connect-timeout" if timed_out else outcome)

    def read(self, seconds: float, outcome: Any = None) -> Steps:
        """Wait for something to read, as long as the time-outs of the client and of the policy allow."""
        wire, timeout = self._wire, self._timeouts.get("read")
        timeout = _INFINITY if timeout is None else timeout
        left = min(wire.left(), wire.idle_timeout) if wire is not None else _INFINITY
        if seconds < min(timeout, left):
            yield seconds
            return
        if min(timeout, left) != _INFINITY:
            yield min(timeout, left)
            if wire is not None and left <= timeout:
                raise LimitPassed(idle=wire.idle_timeout == left)
        elif outcome != "timeout":
            yield _INFINITY
        raise self._error("timeout")

    def response(self, outcome: Any) -> Any:
        """The response that an outcome is, which is not read yet; raises the exception that it is."""
        response = self._library.response
        if isinstance(outcome, str):
            raise self._error(outcome)
        if isinstance(outcome, BaseException | type):
            raise outcome
        if isinstance(outcome, Reply) and outcome.parts is not None:
            return response(outcome.status, headers=outcome.headers, stream=self._stream(outcome.parts))
        if isinstance(outcome, Reply):
            outcome = response(outcome.status, headers=outcome.headers, content=outcome.content, json=outcome.json)
        elif isinstance(outcome, int):
            outcome = response(outcome)
        # Of a response that is made with its content the body has been read; one off the wire has its body still to come.
        stream = self._library.byte_stream(outcome.content)
        return response(outcome.status_code, headers=outcome.headers.raw, stream=stream, extensions=dict(outcome.extensions))

    def _stream(self, parts: Iterable[bytes | float | str]) -> Any:
        client = self._library.client
        return type("Parts", (_Parts, client.SyncByteStream, client.AsyncByteStream), {})(self, self._clock, parts)

    def part(self, part: bytes | float | str) -> Steps:
        """What a part of a body gives: bytes, or nothing after a while; raises the failure that it is."""
        if isinstance(part, str):
            raise self._error(part)
        if isinstance(part, bytes):
            return part
        self._wire = CURRENT.get()
        yield from self.read(part)
        return b""

    def _error(self, name: str) -> Exception:
        kind, message, _ = FAILURES[name]
        error: Exception = getattr(self._library.client, kind)(message)
        if name == "refused-stream":
            error.__cause__ = RuntimeError(StreamReset(error_code=7))
        return error


class StreamReset:
    """h2's event of the same name, by which a stream that was refused is known."""

    def __init__(self, error_code: int) -> None:
        self.error_code = error_code


class _Parts:
    """A body that comes in parts."""

    def __init__(self, attempt: _Attempt, clock: Clock, parts: Iterable[bytes | float | str]) -> None:
        self._attempt = attempt
        self._clock = clock
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        for part in self._parts:
            content = _run(self._attempt.part(part), self._clock)
            if content:
                yield content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _AsyncParts(self._attempt, self._clock, self._parts)

    def close(self) -> None:
        """Nothing is open."""

    async def aclose(self) -> None:
        """Nothing is open."""


class _AsyncParts:
    """No generator, of which trio warns when it is not read to its end."""

    def __init__(self, attempt: _Attempt, clock: Clock, parts: Iterable[bytes | float | str]) -> None:
        self._attempt = attempt
        self._clock = clock
        self._parts = iter(parts)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            content: bytes = await _run_async(self._attempt.part(part), self._clock)
            if content:
                return content
        raise StopAsyncIteration


# ---------------------------------------------------------------------------------------------- passing time


def _run(steps: Steps, clock: Clock) -> Any:
    """Perform steps on this thread."""
    try:
        step = next(steps)
        while True:
            if not isinstance(step, float | int):
                if inspect.iscoroutine(step):
                    step.close()
                raise TypeError("a blocking client cannot await: give the script a plain function")
            if step == _INFINITY:
                raise AssertionError("the script hangs, and neither the client nor the policy has a time-out that would end it")
            if step > 0:
                clock.sleep(step)
            step = steps.send(None)
    except StopIteration as done:
        return done.value


async def _run_async(steps: Steps, clock: Clock) -> Any:
    """Perform steps in this task."""
    from resilmesh.drive import runtime

    try:
        step = next(steps)
        while True:
            result = None
            if not isinstance(step, float | int):
                result = await step
            elif step == _INFINITY:
                await runtime.wait(lambda waker: None, _INFINITY)
            elif step > 0:
                await clock.sleep_async(step)
            step = steps.send(result)
    except StopIteration as done:
        return done.value
