"""A fallback that gave the exception back, in a result of its own, left a cycle of it and our frames to the collector."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tests.drive.guarding import mesh_of


class Failed:
    def __init__(self, error: Exception) -> None:
        self.error = error


def plain() -> weakref.ref[Failed]:
    guarded = mesh_of().guard("svc", fallback=Failed)(_raise)
    return weakref.ref(guarded())


def coroutine() -> weakref.ref[Failed]:
    @mesh_of().guard("svc", fallback=Failed)
    async def guarded() -> Any:
        _raise()

    async def call() -> weakref.ref[Failed]:
        return weakref.ref(await guarded())

    return asyncio.run(call())


def stream() -> weakref.ref[Failed]:
    @mesh_of().guard("svc", fallback=lambda error: [Failed(error)])
    def guarded() -> Iterator[Any]:
        yield _raise()

    return weakref.ref(list(guarded()).pop())


def asynchronous_stream() -> weakref.ref[Failed]:
    @mesh_of().guard("svc", fallback=lambda error: [Failed(error)])
    async def guarded() -> AsyncIterator[Any]:
        yield _raise()

    async def first() -> weakref.ref[Failed]:
        items = [item async for item in guarded()]
        return weakref.ref(items.pop())

    return asyncio.run(first())


@pytest.mark.parametrize("calls", [plain, coroutine, stream, asynchronous_stream])
def test_nothing_is_left_to_the_collector(calls: Callable[[], weakref.ref[Failed]]) -> None:
    """A reference leaves the event loop, not the value: since Python 3.12 a task that returns its exception is such a cycle itself."""
    gc.collect()
    gc.disable()
    try:
        failed = calls()
        assert failed() is None
    finally:
        gc.enable()


def _raise() -> Any:
    raise ValueError("no")
