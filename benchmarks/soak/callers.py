"""Those who call: each a function of a seeded stream of chances, on a thread of its own, until its share of the calls is made.

Whatever a call raises is expected, as long as it is ours, the client's, or what the caller itself raised. A caller that meets
anything else ends the run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import httpx
import httpx2
import trio

import resilmesh

URL = "http://web.test"
_PATHS = ("/", "/", "/", "/copied/1", "/saved", "/drilled", "/stream")
#: Everything a call over HTTP may end in.
EXPECTED = (resilmesh.ResilmeshError, httpx.TransportError, httpx2.TransportError)


class Gone(BaseException):
    """What a function raises that no policy may swallow."""


class Failed(Exception):
    """What a function raises when it fails."""


def _outcome(rng: random.Random) -> None:
    draw = rng.random()
    if draw < 0.05:
        raise Failed
    if draw < 0.051:
        raise Gone


def functions(mesh: resilmesh.Mesh, rng: random.Random, calls: int) -> None:
    """Guarded functions, ``mesh.call`` and ``mesh.attempts``."""

    @mesh.guard("work", ignore=KeyError)
    def work() -> int:
        _outcome(rng)
        return 1

    @mesh.guard("plain", fallback=lambda error: 0)
    def plain() -> int:
        _outcome(rng)
        return 1

    def block() -> None:
        for attempt in mesh.attempts("work"):
            with attempt:
                _outcome(rng)
            if rng.random() < 0.02:
                return  # left early

    kinds: tuple[Callable[[], object], ...] = (work, work, plain, plain, plain, lambda: mesh.call("plain", _outcome, rng), block)
    for _ in range(calls):
        with suppress(Failed, Gone, resilmesh.ResilmeshError):
            rng.choice(kinds)()


def streams(mesh: resilmesh.Mesh, rng: random.Random, calls: int) -> None:
    """Guarded generators: read to the end, closed, thrown into, or forgotten."""

    @mesh.guard("plain")
    def items() -> Iterator[int]:
        _outcome(rng)
        for number in range(5):
            yield number
            _outcome(rng)

    for _ in range(calls):
        try:
            stream = items()
            draw = rng.random()
            if draw < 0.6:
                sum(stream)
                continue
            next(stream)
            if draw < 0.75:
                stream.close()  # type: ignore[attr-defined]  # a guarded generator is one
            elif draw < 0.85:
                stream.throw(Failed)  # type: ignore[attr-defined]  # likewise
            # and the rest is forgotten
        except (Failed, Gone, resilmesh.ResilmeshError):
            pass


def http(library: Any) -> Callable[[resilmesh.Mesh, random.Random, int], None]:
    """Blocking clients: bodies read, streamed, closed early; clients that are dropped with everything they hold."""

    def caller(mesh: resilmesh.Mesh, rng: random.Random, calls: int) -> None:
        made = 0
        while made < calls:
            with library.Client(transport=resilmesh.http.Transport(mesh, limits=library.Limits(max_connections=8))) as client:
                for _ in range(min(200, calls - made)):
                    made += 1
                    with suppress(*EXPECTED):
                        _one(client, rng)
                forgotten = client.send(client.build_request("GET", URL + "/stream"), stream=True) if rng.random() < 0.2 else None
                del forgotten
                made += 1

    def guarded(mesh: resilmesh.Mesh, rng: random.Random, calls: int) -> None:
        left = calls
        while left > 0:
            try:
                caller(mesh, rng, left)
                return
            except EXPECTED:  # of the one that was to be forgotten
                left -= 200

    return guarded


def _one(client: Any, rng: random.Random) -> None:
    path, draw = rng.choice(_PATHS), rng.random()
    headers = {"x-user": str(rng.randrange(40))} if draw < 0.5 else {}
    if draw < 0.7:
        client.get(URL + path, headers=headers)
    elif draw < 0.85:
        client.post(URL + path, content=b"payload", headers=headers)
    else:
        with client.stream("GET", URL + path, headers=headers) as response:
            if draw < 0.95:
                response.read()


async def _coroutines(mesh: resilmesh.Mesh, rng: random.Random, sleep: Callable[[float], Any]) -> Callable[[], Any]:
    @mesh.guard("work")
    async def work() -> None:
        _outcome(rng)
        if rng.random() < 0.2:
            await sleep(rng.random() * 0.002)

    @mesh.guard("plain")
    async def items() -> AsyncIterator[int]:
        _outcome(rng)
        for number in range(4):
            yield number
            await sleep(0)

    async def stream() -> None:
        found = items()
        async for number in found:
            if number == 2 and rng.random() < 0.3:
                await found.aclose()  # type: ignore[attr-defined]  # a guarded generator is one
                return

    async def block() -> None:
        async for attempt in mesh.attempts("work"):
            async with attempt:
                _outcome(rng)
                await sleep(0)

    kinds = (work, work, work, stream, block)

    async def one() -> None:
        with suppress(Failed, Gone, resilmesh.ResilmeshError):
            await rng.choice(kinds)()

    return one


async def _request(client: Any, rng: random.Random) -> None:
    path, draw = rng.choice(_PATHS), rng.random()
    headers = {"x-user": str(rng.randrange(40))} if draw < 0.5 else {}
    try:
        if draw < 0.8:
            await client.get(URL + path, headers=headers)
        else:
            async with client.stream("GET", URL + path, headers=headers) as response:
                if draw < 0.95:
                    await response.aread()
    except EXPECTED:
        pass


def on_asyncio(mesh: resilmesh.Mesh, rng: random.Random, calls: int) -> None:
    """Coroutines and requests as tasks, some of which are cancelled at a random moment."""

    async def main() -> None:
        one = await _coroutines(mesh, rng, asyncio.sleep)
        loop = asyncio.get_running_loop()
        limits = httpx.Limits(max_connections=10)
        async with httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(mesh, limits=limits)) as client:
            for _ in range(calls // 20):
                tasks = [loop.create_task(_request(client, rng) if rng.random() < 0.3 else one()) for _ in range(20)]
                for task in tasks:
                    if rng.random() < 0.1:
                        loop.call_later(rng.random() * 0.02, task.cancel)
                for result in await asyncio.gather(*tasks, return_exceptions=True):
                    if isinstance(result, Exception):
                        raise result

    asyncio.run(main())


def on_trio(mesh: resilmesh.Mesh, rng: random.Random, calls: int) -> None:
    """The same under trio, cancelled by scopes."""

    async def within(seconds: float, work: Callable[[], Any]) -> None:
        with trio.move_on_after(seconds):
            await work()

    async def main() -> None:
        one = await _coroutines(mesh, rng, trio.sleep)
        limits = httpx2.Limits(max_connections=10)
        async with httpx2.AsyncClient(transport=resilmesh.http.AsyncTransport(mesh, limits=limits)) as client:
            for _ in range(calls // 20):
                async with trio.open_nursery() as nursery:
                    for _ in range(20):
                        seconds = rng.random() * 0.02 if rng.random() < 0.1 else float("inf")
                        nursery.start_soon(within, seconds, (lambda: _request(client, rng)) if rng.random() < 0.3 else one)

    trio.run(main)


#: By name: who calls, and its share of the calls in thousandths.
CALLERS: dict[str, tuple[Callable[[resilmesh.Mesh, random.Random, int], None], int]] = {
    "functions 1": (functions, 250), "functions 2": (functions, 250), "functions 3": (functions, 200), "streams": (streams, 80),
    "asyncio": (on_asyncio, 90), "trio": (on_trio, 70), "httpx": (http(httpx), 30), "httpx2": (http(httpx2), 30),
}
