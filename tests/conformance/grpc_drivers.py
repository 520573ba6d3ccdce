"""The drivers of gRPC: channels of ours over channels of grpc's shape, which answer by the script and let the manual clock's time pass.

What differs by gRPC's nature is in the tables below, and nothing else is let pass: the story is the same, to the time of each event.
A time-out of ours that ends a stream's attempt strikes in real time: the stream waits until it is cancelled.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import grpc
import grpc.aio

import resilmesh_grpc
from resilmesh import ResilmeshError
from tests.conformance.scenarios import CUT, PUSHBACK, Scenario
from tests.conformance.world import Driver, Gone, World, plainly

#: Words of retryOn: a status that the service gave is repeated by gRPC's own alone. Of the statuses that count as a success, as 404
#: and 409 do, CANCELLED is the one that has a word.
WORDS = {"5xx": "5xx, unavailable", "429": "resource-exhausted", "404": "cancelled", "retriable-4xx": "cancelled"}
#: What the service answers; CANCELLED, where the policy repeats a 404 or 409 by the word of HTTP's that is here.
STATUSES = {"ok": "OK", "fail": "UNAVAILABLE", "throttled": "RESOURCE_EXHAUSTED", "404": "NOT_FOUND", "409": "ABORTED"}
REPEATED = {"404": "404", "409": "retriable-4xx"}
#: What grpc itself makes of an attempt that was lost: a status with a text of its own.
LOST = {
    "refused": ("UNAVAILABLE", "failed to connect to all addresses; last error: connection refused"),
    "reset": ("UNAVAILABLE", "Socket closed"),
    "hang": ("DEADLINE_EXCEEDED", "Deadline Exceeded"),
}
#: What the caller got, by the status of an error that is not ours: HTTP's callers get a response with 404 or 409.
RESULTS = {"UNAVAILABLE": "fail", "RESOURCE_EXHAUSTED": "throttled", "NOT_FOUND": "ok", "ABORTED": "ok", "CANCELLED": "ok"}
#: Seconds from a limit to the end of an attempt that hangs: by so much is the deadline that grpc is given later, on purpose.
LATE = 0.001
#: Seconds that such an attempt takes: the limit of every scenario that has one, and that.
HANGS = 0.03 + LATE
#: Real seconds for which a test waits for what must come.
PATIENCE = 10.0


class Status(NamedTuple):
    """How a call of grpc's ends."""

    code: grpc.StatusCode
    details: str = ""
    trailing: tuple[tuple[str, str], ...] = ()


OK = Status(grpc.StatusCode.OK)
#: The end of an attempt whose time-out has not struck: of no scenario.
UNSTRUCK = Status(grpc.StatusCode.UNKNOWN, "its time is over, and nobody has cancelled it")
CANCELLED = Status(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")  # grpc's own words


class Script:
    """A call's request: what its attempts turn out to be. ``go`` is how its caller goes away, where that does not wait itself."""

    def __init__(self, world: World, outcomes: list[str], go: Callable[[], object]) -> None:
        self._world, self._scenario, self._outcomes, self.go = world, world.scenario, outcomes, go

    async def happen(self) -> str:
        return await self._world.happen(self._outcomes)

    def status(self, outcome: str) -> Status:
        """How an attempt with this outcome ends."""
        word, _, seconds = outcome.partition(" ")
        if word in LOST:
            name, details = LOST[word]
            return Status(grpc.StatusCode[name], details)
        if word == "ok":
            return OK
        by_word = word in REPEATED and REPEATED[word] in self._scenario.blocks.get("retries", "")
        asked = ("grpc-retry-pushback-ms", f"{seconds}000") if "pushback" in self._scenario.needs else ("retry-after", seconds)
        code = grpc.StatusCode["CANCELLED" if by_word else STATUSES[word]]
        return Status(code, "the service says so", (asked,) if seconds else ())

    def hang(self, timeout: float | None) -> bool:
        """Let its time pass. True: grpc's own deadline has ended the attempt; False: we shall have to cancel it."""
        expires = timeout is not None and timeout < 2 * HANGS
        self._world.clock.advance(timeout if timeout is not None and expires else HANGS)
        return expires


# ------------------------------------------------------------------------------------------------ blocking


class Ended(grpc.RpcError):
    """A call that is over, as grpc's errors are."""

    def __init__(self, status: Status = OK) -> None:
        super().__init__()
        self.status = status

    def code(self) -> grpc.StatusCode:
        return self.status.code

    def details(self) -> str:
        return self.status.details

    def initial_metadata(self) -> Any:
        return ()

    def trailing_metadata(self) -> Any:
        return self.status.trailing


class Unary:
    """A callable for one message each way."""

    def __call__(self, request: Script, *, timeout: float | None, **_: Any) -> str:
        future = Future(request, timeout)
        if not future.done():
            raise Gone
        return future.result()

    def future(self, request: Script, *, timeout: float | None, **_: Any) -> Future:
        return Future(request, timeout)


class Future(Ended):
    """Such a call: over when it has begun, unless its caller is to go away meanwhile."""

    def __init__(self, script: Script, timeout: float | None) -> None:
        super().__init__()
        self._callbacks: list[Callable[[Future], object]] = []
        outcome = plainly(script.happen())
        self._over = outcome != "gone"
        if not self._over:
            script.go()
            return
        if outcome == "hang":
            assert script.hang(timeout), "the whole of a unary attempt is within the deadline that grpc is given"
        self.status = script.status(outcome)

    def done(self) -> bool:
        return self._over

    def cancel(self) -> None:
        if self._over:
            return
        self._over, self.status = True, CANCELLED
        for callback in self._callbacks:
            callback(self)

    def add_done_callback(self, callback: Callable[[Future], object]) -> None:
        if self._over:
            callback(self)
        else:
            self._callbacks.append(callback)

    def result(self, timeout: float | None = None) -> str:
        if self.status is not OK:
            raise self
        return "body"


class Stream(Ended):
    """A call that gives one message and ends, or fails. Its end is told on another thread, as grpc does."""

    def __init__(self, request: Script, *, timeout: float | None, **_: Any) -> None:
        super().__init__()
        self._script, self._timeout = request, timeout
        self._callbacks: list[Callable[[], object]] = []
        self._cancelled = threading.Event()
        self._given = self._over = False

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        if self._given:
            self._end(OK)
            raise StopIteration
        outcome = plainly(self._script.happen())
        if outcome == "gone":
            raise Gone
        status = self._script.status(outcome)
        if outcome == "hang" and not self._script.hang(self._timeout):
            status = CANCELLED if self._cancelled.wait(PATIENCE) else UNSTRUCK
        if status is OK:
            self._given = True
            return "body"
        self._end(status)
        raise self

    def _end(self, status: Status) -> None:
        self._over, self.status = True, status
        for callback in self._callbacks:
            told = threading.Thread(target=callback)
            told.start()
            told.join(PATIENCE)

    def is_active(self) -> bool:
        return not self._over

    def cancel(self) -> None:
        self._cancelled.set()

    def add_callback(self, callback: Callable[[], object]) -> bool:
        self._callbacks.append(callback)
        return True


# -------------------------------------------------------------------------------------------- asynchronous


class AioCall:
    """A call of grpc.aio, which begins by itself."""

    def __init__(self, request: Script, *, timeout: float | None, **_: Any) -> None:
        self._script, self._timeout = request, timeout
        self._callbacks: list[Callable[[AioCall], object]] = []
        self._status: Status | None = None
        self._answered = asyncio.Event()
        self._playing = asyncio.create_task(self._play())

    async def _play(self) -> None:
        script = self._script
        outcome = await script.happen()
        if outcome == "gone":
            script.go()
            return
        if outcome == "hang" and not script.hang(self._timeout):
            await asyncio.sleep(PATIENCE)
            self._end(UNSTRUCK)
            return
        self._answer(script.status(outcome))

    def _answer(self, status: Status) -> None:
        """The service has answered: with all that there is."""
        self._end(status)

    def _end(self, status: Status) -> None:
        if self._status is None:
            self._status = status
            self._answered.set()
            for callback in self._callbacks:
                callback(self)

    def cancel(self) -> bool:
        self._playing.cancel()
        self._end(CANCELLED)
        return self.cancelled()

    def cancelled(self) -> bool:
        return self._status is CANCELLED

    def done(self) -> bool:
        return self._status is not None

    def add_done_callback(self, callback: Callable[[AioCall], object]) -> None:
        self._callbacks.append(callback)

    async def _ended(self) -> Status:
        await self._answered.wait()
        assert self._status is not None
        return self._status

    async def code(self) -> grpc.StatusCode:
        return (await self._ended()).code

    async def details(self) -> str:
        return (await self._ended()).details

    async def initial_metadata(self) -> Any:
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> Any:
        return grpc.aio.Metadata(*(await self._ended()).trailing)

    async def _body(self) -> str:
        await self._answered.wait()
        status = self._status or OK
        if status is CANCELLED:
            raise asyncio.CancelledError
        if status is not OK:
            raise grpc.aio.AioRpcError(status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing), status.details)
        return "body"


class AioUnary(AioCall):
    def __await__(self) -> Any:
        return self._body().__await__()


class AioStream(AioCall):
    """One message, and the end when that is asked for."""

    _given = False

    def _answer(self, status: Status) -> None:
        if status is OK:
            self._answered.set()
        else:
            self._end(status)

    async def read(self) -> Any:
        if self._given:
            self._end(OK)
            return grpc.aio.EOF
        body = await self._body()
        self._given = True
        return body

    async def __aiter__(self) -> Any:
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message


# ------------------------------------------------------------------------------------------------- drivers


class Channel:
    """What grpc's functions give that open a channel, as far as ours ask for it."""

    #: Where a channel of grpc.aio keeps its interceptors.
    _unary_unary_interceptors = _unary_stream_interceptors = _stream_unary_interceptors = _stream_stream_interceptors = ()

    def __init__(self, unary: Any, stream: Any) -> None:
        self._unary, self._stream = unary, stream

    def unary_unary(self, path: str, **_: Any) -> Any:
        return self._unary

    def unary_stream(self, path: str, **_: Any) -> Any:
        return self._stream

    def get_state(self) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def close(self) -> None:
        """Nothing is open."""


class AioChannel(Channel):
    async def close(self, grace: float | None) -> None:  # type: ignore[override]  # that of grpc.aio
        """Nothing is open."""


class Grpc(Driver):
    """A stub's method of a channel of ours. ``style``: unary, stream or future."""

    can = PUSHBACK | CUT
    runtime = "plain"
    late = LATE
    _grpc: Any = grpc

    def __init__(self, style: str) -> None:
        self._style = style
        self._channel: Any = None
        self._callable: Any = None

    def blocks(self, scenario: Scenario) -> dict[str, str]:
        """With gRPC's words; and with ``idempotent``, because a call has no method of HTTP's that says so."""
        blocks = scenario.blocks | {"protocol": "GRPC"}
        if "retries" in blocks:
            listed = re.search(r"retryOn: \[(.*?)\]", blocks["retries"])
            assert listed is not None
            words = ", ".join(WORDS.get(word, word) for word in listed[1].split(", "))
            harmless = str(scenario.idempotent).lower()
            blocks["retries"] = blocks["retries"].replace(listed[0], f"retryOn: [{words}], idempotent: {harmless}")
        return blocks

    async def call(self, world: World, outcomes: list[str]) -> str:
        if self._callable is None:
            self._open(world)
        try:
            with patch.object(self._grpc, "insecure_channel", lambda *_, **__: self._fake()):
                return await self._make(world, outcomes)
        except Gone:
            return "gone"
        except grpc.RpcError as error:
            return type(error).__name__ if isinstance(error, ResilmeshError) else RESULTS[error.code().name]

    def _open(self, world: World) -> None:
        self._channel = self._connect(world)
        self._callable = (self._channel.unary_stream if self._style == "stream" else self._channel.unary_unary)("/scenarios.Service/Act")

    def _connect(self, world: World) -> Any:
        return resilmesh_grpc.channel(world.mesh, "svc.test")

    def _fake(self) -> Channel:
        return Channel(Unary(), Stream)

    async def _make(self, world: World, outcomes: list[str]) -> str:
        moved = threading.Event()
        script = Script(world, outcomes, moved.set)
        if self._style == "unary":
            assert self._callable(script) == "body"
            return "ok"
        if self._style == "stream":
            assert list(self._callable(script)) == ["body"]
            return "ok"
        future = self._callable.future(script)
        future.add_done_callback(lambda _: moved.set())
        assert moved.wait(PATIENCE)
        if not future.done():
            future.cancel()
            raise Gone
        assert future.result(0) == "body"
        return "ok"

    async def close(self) -> None:
        self._channel.close()


class GrpcAio(Grpc):
    """With grpc.aio. A caller goes away as asyncio's do: its task is cancelled."""

    runtime = "asyncio"
    _grpc = grpc.aio

    def _connect(self, world: World) -> Any:
        return resilmesh_grpc.aio_channel(world.mesh, "svc.test")

    def _fake(self) -> Channel:
        return AioChannel(AioUnary, AioStream)

    async def _make(self, world: World, outcomes: list[str]) -> str:
        caller = asyncio.create_task(self._use(world, outcomes))
        try:
            assert await caller == ["body"]
        except asyncio.CancelledError:
            raise Gone from None
        return "ok"

    async def _use(self, world: World, outcomes: list[str]) -> list[str]:
        task = asyncio.current_task()
        assert task is not None
        script = Script(world, outcomes, task.cancel)
        if self._style == "stream":
            return [message async for message in self._callable(script)]
        return [await self._callable(script)]

    async def close(self) -> None:
        await self._channel.close()


GRPC_DRIVERS: dict[str, Callable[[], Driver]] = {
    "grpc": lambda: Grpc("unary"),
    "grpc-future": lambda: Grpc("future"),
    "grpc-stream": lambda: Grpc("stream"),
    "grpc-aio": lambda: GrpcAio("unary"),
    "grpc-aio-stream": lambda: GrpcAio("stream"),
}
