"""gRPC's drivers: the channels of ``resilmesh_grpc`` over channels of grpc's shape that answer by the script.

gRPC has statuses of its own, so a scenario is put into its words (``WORDS``, ``STATUSES``); the story that it tells is the same.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio

import resilmesh_grpc
from resilmesh import ResilmeshError
from tests.conformance.scenarios import Scenario
from tests.conformance.world import Driver, Gone, World, plainly

#: What a policy for HTTP says, and what says the same for gRPC: a status by its number or class has a word of its own, or none.
#: ``cancelled`` is the one word for a status that counts as a success, as 404 and 409 do.
WORDS = {"5xx": "5xx, unavailable", "429": "resource-exhausted", "404": "cancelled", "retriable-4xx": "cancelled"}
#: A service's answers. What the policy repeats by its number or class is what gRPC has a word for; else it is a status without one.
STATUSES = {"fail": "UNAVAILABLE", "throttled": "RESOURCE_EXHAUSTED", "404": "NOT_FOUND", "409": "ABORTED"}
#: What grpc itself makes of what happens to a connection.
LOCAL = {
    "refused": "failed to connect to all addresses; last error: connection refused", "reset": "Socket closed",
    "hang": "Deadline Exceeded",
}
#: More than every limit of the scenarios, which passes in real time too where a timer watches over it.
BEYOND_LIMITS = 0.031
#: For what only a limit of ours would end. Seconds.
PATIENCE = 10.0


def in_words_of_grpc(policy: str, scenario: Scenario) -> str:
    """A policy of the scenarios, for a service that speaks gRPC. Of HTTP the method says whether a call may be repeated; here the route."""
    for found in re.findall(r"retryOn: \[.*?\]", policy):
        words = re.sub(r"[\w-]+(?=[,\]])", lambda word: WORDS.get(word[0], word[0]), found)
        policy = policy.replace(found, f"idempotent: {str(scenario.idempotent).lower()}, {words}")
    return policy.replace("  hosts:", "  protocol: GRPC\n  hosts:")


class Ended(grpc.RpcError, grpc.Call):  # type: ignore[misc]  # generic in its stubs only
    """A blocking call that is over, with whatever status; an error, where that is not OK."""

    def __init__(self, code: str, details: str = "", trailing: tuple[tuple[str, str], ...] = ()) -> None:
        self._code, self._details, self._trailing = grpc.StatusCode[code], details, trailing

    def code(self) -> Any:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailing

    def initial_metadata(self) -> Any:
        return ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> Any:
        return None

    def cancel(self) -> Any:
        return False

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        callback(self)

    def result(self, timeout: float | None = None) -> str:
        if self._code is not grpc.StatusCode.OK:
            raise self
        return "body"


def ended(world: World, outcome: str) -> Ended:
    """What an outcome is in gRPC."""
    word, _, seconds = outcome.partition(" ")
    if word == "ok":
        return Ended("OK")
    if word in LOCAL:
        return Ended("DEADLINE_EXCEEDED" if word == "hang" else "UNAVAILABLE", LOCAL[word])
    retries = world.scenario.blocks.get("retries", "")
    repeated = (word == "404" and "404" in retries) or (word == "409" and "retriable-4xx" in retries)
    asked = (("retry-after", seconds),) if seconds else ()
    return Ended("CANCELLED" if repeated else STATUSES[word], "the service says so", asked)


CANCELLED = Ended("CANCELLED", "Locally cancelled by application!")


class Scripts:
    """What the calls that are being made turn out to be; a call may be made while another is."""

    def __init__(self) -> None:
        self.world: World
        self.outcomes: list[list[str]] = []
        #: Has the caller of the call cancelled, by whoever the service of the call is.
        self.gone: list[Callable[[], object]] = []

    async def happen(self) -> str:
        return await self.world.happen(self.outcomes[-1])


class Channel:
    """grpc's channel, as far as ours asks: it has nothing but what is called."""

    def __init__(self, scripts: Scripts, callable_: Callable[..., Any]) -> None:
        self._scripts, self._callable = scripts, callable_

    def unary_unary(self, *_: Any, **__: Any) -> Any:
        return self._callable(self._scripts)

    unary_stream = unary_unary

    def get_state(self) -> grpc.ChannelConnectivity:
        return grpc.ChannelConnectivity.TRANSIENT_FAILURE

    def close(self, grace: float | None = None) -> Any:
        """Nothing is open. Awaited by grpc.aio's callers alone, for whom this is a coroutine function in ``AioChannel``."""


class AioChannel(Channel):
    async def close(self, grace: float | None = None) -> None:
        """Nothing is open."""


# ------------------------------------------------------------------------------------------------ blocking


class Unary:
    """A callable for a message each way, in its three styles."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    def __call__(self, request: Any, timeout: float | None = None, **_: Any) -> str:
        over = self._play(timeout)
        if over.code() is not grpc.StatusCode.OK:
            raise over
        return "body"

    def _play(self, timeout: float | None) -> Ended:
        outcome = plainly(self._scripts.happen())
        if outcome == "gone":
            raise Gone
        if outcome == "hang":
            assert timeout is not None, "nothing would end it"
            self._scripts.world.clock.advance(timeout)
        return ended(self._scripts.world, outcome)

    def future(self, request: Any, timeout: float | None = None, **_: Any) -> Any:
        gone = self._scripts.gone[-1]
        try:
            return self._play(timeout)
        except Gone:
            gone()
            return Pending()


class Pending(Ended):
    """A call that nobody answers: over when it is cancelled."""

    def __init__(self) -> None:
        super().__init__("CANCELLED", "Locally cancelled by application!")
        self._callbacks: list[Callable[[Any], object]] = []

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callbacks.append(callback)

    def cancel(self) -> Any:
        for callback in self._callbacks:
            callback(self)
        return True


class Stream:
    """A callable that gives a stream of one message."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    def __call__(self, request: Any, timeout: float | None = None, **_: Any) -> Any:
        return Streamed(self._scripts, timeout)


class Streamed(Ended):
    """The stream. Its end is told to whoever asks for it, as grpc's is, by a callback."""

    def __init__(self, scripts: Scripts, timeout: float | None) -> None:
        super().__init__("OK")
        self._scripts, self._timeout = scripts, timeout
        self._callbacks: list[Callable[[], None]] = []
        self._cancelled = threading.Event()
        self._begun = self._ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._begun:
            self._end(Ended("OK"))
            raise StopIteration
        self._begun = True
        outcome = plainly(self._scripts.happen())
        if outcome == "gone":
            raise Gone
        if outcome == "hang":
            self._scripts.world.clock.advance(BEYOND_LIMITS)
            if not self._cancelled.wait(self._timeout or PATIENCE) and self._timeout is None:
                outcome = "ok"  # and so the wrong story
        over = CANCELLED if self._cancelled.is_set() else ended(self._scripts.world, outcome)
        if over.code() is grpc.StatusCode.OK:
            return "body"
        self._end(over)
        raise self

    def _end(self, over: Ended) -> None:
        if not self._ended:
            self._ended = True
            self._code, self._details, self._trailing = over.code(), over.details(), over.trailing_metadata()
            for callback in self._callbacks:  # on a thread of grpc's own
                thread = threading.Thread(target=callback)
                thread.start()
                thread.join()

    def is_active(self) -> bool:
        return not self._ended

    def cancel(self) -> Any:
        self._cancelled.set()
        return True

    def add_callback(self, callback: Callable[[], None]) -> bool:
        self._callbacks.append(callback)
        return True


class Grpc(Driver):
    """What the drivers share: a channel of ours over one of theirs, and what its caller got."""

    can = frozenset({"status", "cut"})
    runtime = "plain"
    def __init__(self, style: str) -> None:
        self._style = style
        self._scripts = Scripts()
        self._channel: Any = None

    def policy(self, text: str, scenario: Scenario) -> str:
        return in_words_of_grpc(text, scenario)

    async def call(self, world: World, outcomes: list[str]) -> str:
        if self._channel is None:
            self._scripts.world = world
            self._channel = self._open(world)
        self._scripts.outcomes.append(outcomes)
        kind = "unary_stream" if self._style == "stream" else "unary_unary"
        try:
            return await self._make(getattr(self._channel, kind)("/conformance.Service/Act"))
        except Gone:
            return "gone"
        except ResilmeshError as error:
            name = type(error).__name__
            return name if isinstance(error, grpc.RpcError) else f"{name}, which handlers of gRPC's errors do not know"
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]  # every one has it
            words = {grpc.StatusCode.RESOURCE_EXHAUSTED: "throttled", grpc.StatusCode.UNAVAILABLE: "fail"}
            return words.get(code, "ok")
        finally:
            self._scripts.outcomes.pop()

    def _open(self, world: World) -> Any:
        channel = resilmesh_grpc.channel(world.mesh, "svc.test")
        subchannels: Any = channel._caller.subchannels  # type: ignore[attr-defined]  # below this is what the script stands for
        subchannels._open = lambda *_: Channel(self._scripts, Stream if self._style == "stream" else Unary)
        return channel

    async def _make(self, callable_: Any) -> str:
        if self._style == "stream":
            return str(list(callable_("request")) and "ok")
        if self._style == "call":
            return str(callable_("request") and "ok")
        moved = threading.Event()
        gone: list[bool] = []
        self._scripts.gone.append(lambda: (gone.append(True), moved.set()))
        try:
            future = callable_.future("request")
            future.add_done_callback(lambda _: moved.set())
            assert moved.wait(10)
            if gone:
                future.cancel()
                return "gone"
            return str(future.result(10) and "ok")
        finally:
            self._scripts.gone.pop()

    async def close(self) -> None:
        if self._channel is not None:
            self._channel.close()


# -------------------------------------------------------------------------------------------- asynchronous


class AioCallable:
    """grpc.aio's, of either kind."""

    def __init__(self, scripts: Scripts) -> None:
        self._scripts = scripts

    def __call__(self, request: Any, *, timeout: float | None = None, **_: Any) -> Any:
        return AioPlayed(self._scripts, timeout)


class AioPlayed:
    """A call of grpc.aio, awaited or read: it begins by itself."""

    def __init__(self, scripts: Scripts, timeout: float | None) -> None:
        self._scripts, self._timeout = scripts, timeout
        self._over: Ended | None = None
        self._callbacks: list[Callable[[Any], object]] = []
        self._locally = False
        self._read = False
        self._done = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._play())

    async def _play(self) -> None:
        scripts = self._scripts
        gone = scripts.gone[-1]
        outcome = await scripts.happen()
        if outcome == "gone":
            gone()
            return
        if outcome == "hang":
            scripts.world.clock.advance(BEYOND_LIMITS)
            await asyncio.sleep(self._timeout or PATIENCE)
            if self._timeout is None:
                outcome = "ok"  # and so the wrong story
        self._end(ended(scripts.world, outcome))

    def _end(self, over: Ended) -> None:
        if self._over is None:
            self._over = over
            self._done.set()
            for callback in self._callbacks:
                callback(self)

    def cancel(self) -> bool:
        self._locally = self._over is None
        self._task.cancel()
        self._end(CANCELLED)
        return self._locally

    def cancelled(self) -> bool:
        return self._locally

    def done(self) -> bool:
        return self._over is not None

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        self._callbacks.append(callback)

    async def _ended(self) -> Ended:
        if self._over is None:
            await self._done.wait()
        assert self._over is not None
        return self._over

    async def code(self) -> Any:
        return (await self._ended()).code()

    async def details(self) -> str:
        return (await self._ended()).details()

    async def initial_metadata(self) -> Any:
        return grpc.aio.Metadata()

    async def trailing_metadata(self) -> Any:
        return grpc.aio.Metadata(*(await self._ended()).trailing_metadata())

    def __await__(self) -> Any:
        return self._message().__await__()

    async def _message(self) -> str:
        over = await self._ended()
        if self._locally:
            raise asyncio.CancelledError
        if over.code() is grpc.StatusCode.OK:
            return "body"
        raise grpc.aio.AioRpcError(over.code(), grpc.aio.Metadata(), grpc.aio.Metadata(*over.trailing_metadata()), over.details())

    async def __aiter__(self) -> AsyncIterator[str]:
        yield await self._message()

    async def read(self) -> Any:
        if self._read:
            return grpc.aio.EOF
        message = await self._message()
        self._read = True
        return message


class GrpcAio(Grpc):
    """The same with grpc.aio. Its callers go away as asyncio's do: their task is cancelled."""

    runtime = "asyncio"

    def _open(self, world: World) -> Any:
        channel = resilmesh_grpc.aio_channel(world.mesh, "svc.test")
        subchannels: Any = channel._caller.subchannels  # type: ignore[attr-defined]  # as above
        subchannels._open = lambda *_: AioChannel(self._scripts, AioCallable)
        return channel

    async def _make(self, callable_: Any) -> str:
        async def use() -> bool:
            if self._style == "stream":
                return bool([message async for message in callable_("request")])
            return bool(await callable_("request"))

        task = asyncio.get_running_loop().create_task(use())
        self._scripts.gone.append(task.cancel)
        try:
            return str(await task and "ok")
        except asyncio.CancelledError:
            raise Gone from None
        finally:
            self._scripts.gone.pop()

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()


GRPC_DRIVERS: dict[str, Callable[[], Grpc]] = {
    "grpc": lambda: Grpc("call"),
    "grpc-future": lambda: Grpc("future"),
    "grpc-stream": lambda: Grpc("stream"),
    "grpc-aio": lambda: GrpcAio("call"),
    "grpc-aio-stream": lambda: GrpcAio("stream"),
}
