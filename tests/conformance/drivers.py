"""The drivers that every scenario is played through, from the engine alone to the clients. Those of gRPC: ``grpc_drivers``."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio

from resilmesh import InjectedFault, ResilmeshError
from resilmesh.drive.context import DEADLINE
from resilmesh.engine.call import RAISE, RETURN, SEND, SLEEP, WAIT, Call
from resilmesh.engine.verdict import Answer, Verdict, mask, of_status
from resilmesh.http import AsyncTransport, Transport
from tests.conformance.grpc_drivers import GRPC_DRIVERS
from tests.conformance.world import Driver, Gone, World, plainly

STATUSES = {"ok": 200, "fail": 503, "throttled": 429, "404": 404, "409": 409}
_LOST = mask("5xx", "gateway-error", "reset")


class EngineAlone(Driver):
    """A loop over the steps of a call, without any of the library's own."""

    can = frozenset({"status", "cut", "pushback"})
    runtime = "plain"

    def __init__(self, late: float = 0) -> None:
        self.late = late

    async def call(self, world: World, outcomes: list[str]) -> str:
        plan = world.mesh.table.named("svc", None)[1]
        if plan is None:
            return await world.happen(outcomes)
        clock, result = world.clock, ""
        call = Call(plan, world.scenario.idempotent, True, DEADLINE.get())
        step = call.start(clock.monotonic())
        while True:
            if step is SEND and call.injected is not None:
                result = InjectedFault.__name__
                step = call.answered(clock.monotonic(), call.number, Answer(*of_status(call.injected), call.injected, injected=True))
            elif step is SEND:
                result = await world.happen(outcomes)
                if result == "gone":
                    call.abandon(clock.monotonic())
                    return result
                answer = self._answer(world, call, result)
                step = call.answered(clock.monotonic(), call.number, answer)
            elif step is SLEEP or step is WAIT:
                clock.advance(max(0.0, call.wake_at - clock.monotonic()))
                step = call.woke(clock.monotonic())
            elif step is RAISE:
                return type(call.error).__name__
            elif step is RETURN:
                return {"404": "ok", "409": "ok"}.get(result, result.split()[0])

    def _answer(self, world: World, call: Call, outcome: str) -> Answer:
        word, _, seconds = outcome.partition(" ")
        if word == "hang":
            world.clock.advance(call.headers_by - world.clock.monotonic() + self.late)
            return Answer(Verdict.FAILURE, _LOST, timed_out=True)
        if word == "reset":
            return Answer(Verdict.FAILURE, _LOST)
        if word == "refused":
            return Answer(Verdict.UNSENT, _LOST | mask("connect-failure"), local_origin=True)
        verdict, words = of_status(STATUSES[word])
        wait = float(seconds) if seconds else None
        if "pushback" in world.scenario.needs:
            never = wait is not None and wait < 0
            return Answer(verdict, words, STATUSES[word], again=False if never else None, backoff=None if never else wait)
        return Answer(verdict, words, STATUSES[word], retry_after=wait)

    async def close(self) -> None:
        """Nothing is open."""


class Trouble(Exception):
    """What a function raises when it fails."""


def _act(word: str) -> str:
    if word == "gone":
        raise Gone
    if word != "ok":
        raise {"fail": Trouble, "refused": ConnectionRefusedError, "reset": ConnectionResetError}[word]
    return word


class Function(Driver):
    """What the drivers of functions share: what their caller gets."""

    runtime: str
    can: frozenset[str] = frozenset()

    async def call(self, world: World, outcomes: list[str]) -> str:
        try:
            return await self.run(world, outcomes)
        except Gone:
            return "gone"
        except ResilmeshError as error:
            return type(error).__name__
        except (Trouble, ConnectionError):
            return "fail"

    async def run(self, world: World, outcomes: list[str]) -> str:
        raise NotImplementedError

    async def close(self) -> None:
        """Nothing is open."""


class GuardBlocking(Function):
    runtime = "plain"

    async def run(self, world: World, outcomes: list[str]) -> str:
        guarded = world.mesh.guard("svc", idempotent=world.scenario.idempotent)(lambda: _act(plainly(world.happen(outcomes))))
        return guarded()


class StreamBlocking(Function):
    """A generator function that gives one item, and ends."""

    runtime = "plain"

    async def run(self, world: World, outcomes: list[str]) -> str:
        def stream() -> Iterator[str]:
            yield _act(plainly(world.happen(outcomes)))

        [item] = world.mesh.guard("svc", idempotent=world.scenario.idempotent)(stream)()
        return item


class AttemptsBlocking(Function):
    runtime = "plain"

    async def run(self, world: World, outcomes: list[str]) -> str:
        result = ""
        for attempt in world.mesh.attempts("svc", idempotent=world.scenario.idempotent):
            with attempt:
                result = _act(plainly(world.happen(outcomes)))
        return result


class Awaiting(Function):
    can = frozenset({"cut"})

    def __init__(self, runtime: str) -> None:
        self.runtime = runtime

    async def work(self, world: World, outcomes: list[str]) -> str:
        word = await world.happen(outcomes)
        if word == "hang":
            world.clock.advance(0.03)  # what every limit of the scenarios is, which passes in real time too
            await anyio.sleep_forever()
        return _act(word)


class GuardAwaiting(Awaiting):
    async def run(self, world: World, outcomes: list[str]) -> str:
        return await world.mesh.guard("svc", idempotent=world.scenario.idempotent)(self.work)(world, outcomes)


class StreamAwaiting(Awaiting):
    async def run(self, world: World, outcomes: list[str]) -> str:
        async def stream() -> AsyncIterator[str]:
            yield await self.work(world, outcomes)

        [item] = [item async for item in world.mesh.guard("svc", idempotent=world.scenario.idempotent)(stream)()]
        return item


class AttemptsAwaiting(Awaiting):
    async def run(self, world: World, outcomes: list[str]) -> str:
        result = ""
        async for attempt in world.mesh.attempts("svc", idempotent=world.scenario.idempotent):
            async with attempt:
                result = await self.work(world, outcomes)
        return result


class Http(Driver):
    """A client of httpx or httpx2 over a transport that answers by the script."""

    can = frozenset({"status", "cut"})

    def __init__(self, library: str, runtime: str) -> None:
        self.library = importlib.import_module(library)
        self.runtime = runtime
        self._client: Any = None
        self._scripts: list[list[str]] = []

    async def call(self, world: World, outcomes: list[str]) -> str:
        if self._client is None:
            self._open(world)
        method = "GET" if world.scenario.idempotent else "POST"
        self._scripts.append(outcomes)
        try:
            response = self._client.request(method, "http://svc.test/")
            return self._result(response if self.runtime == "plain" else await response)
        except Gone:
            return "gone"
        except ResilmeshError as error:
            spoken = isinstance(error, self.library.TransportError)
            return type(error).__name__ if spoken else f"{type(error).__name__}, which a client's handlers do not know"
        except self.library.TransportError:
            return "fail"
        finally:
            self._scripts.pop()

    def _open(self, world: World) -> None:
        library, driver = self.library, self

        if self.runtime == "plain":
            class Blocking(library.BaseTransport):  # type: ignore[name-defined, misc]  # known at run time
                def handle_request(self, request: Any) -> Any:
                    return driver._answer(world, request, plainly(world.happen(driver._scripts[-1])))

            self._client = library.Client(transport=Transport(world.mesh, inner=Blocking()), trust_env=False)
        else:
            class Awaiting(library.AsyncBaseTransport):  # type: ignore[name-defined, misc]  # known at run time
                async def handle_async_request(self, request: Any) -> Any:
                    return driver._answer(world, request, await world.happen(driver._scripts[-1]))

            self._client = library.AsyncClient(transport=AsyncTransport(world.mesh, inner=Awaiting()), trust_env=False)

    def _answer(self, world: World, request: Any, outcome: str) -> Any:
        library = self.library
        word, _, seconds = outcome.partition(" ")
        if word == "gone":
            raise Gone
        if word == "refused":
            raise library.ConnectError("refused", request=request)
        if word == "reset":
            raise library.ReadError("reset", request=request)
        if word == "hang":
            world.clock.advance(request.extensions["timeout"]["read"])
            raise library.ReadTimeout("the time-out that the request carries", request=request)
        headers = {"retry-after": seconds} if seconds else {}
        return library.Response(STATUSES[word], headers=headers, stream=library.ByteStream(b"body"))

    @staticmethod
    def _result(response: Any) -> str:
        facts = response.extensions.get("resilmesh", {})
        if facts.get("flag") == "FI":
            return InjectedFault.__name__
        return {429: "throttled", 503: "fail"}.get(response.status_code, "ok")

    async def close(self) -> None:
        if self._client is None:
            return
        if self.runtime == "plain":
            self._client.close()
        else:
            await self._client.aclose()


DRIVERS: dict[str, Callable[[], Driver]] = {
    "engine": EngineAlone,
    "guard": GuardBlocking,
    "guard-asyncio": lambda: GuardAwaiting("asyncio"),
    "guard-trio": lambda: GuardAwaiting("trio"),
    "stream": StreamBlocking,
    "stream-asyncio": lambda: StreamAwaiting("asyncio"),
    "stream-trio": lambda: StreamAwaiting("trio"),
    "attempts": AttemptsBlocking,
    "attempts-asyncio": lambda: AttemptsAwaiting("asyncio"),
    "attempts-trio": lambda: AttemptsAwaiting("trio"),
    "httpx": lambda: Http("httpx", "plain"),
    "httpx-asyncio": lambda: Http("httpx", "asyncio"),
    "httpx-trio": lambda: Http("httpx", "trio"),
    "httpx2": lambda: Http("httpx2", "plain"),
    "httpx2-asyncio": lambda: Http("httpx2", "asyncio"),
    "httpx2-trio": lambda: Http("httpx2", "trio"),
    **GRPC_DRIVERS,
}
