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


def plain() -> Any:
    guarded = mesh_of().guard("svc", fallback=Failed)(_raise)
    return guarded()


def coroutine() -> Any:
    @mesh_of().guard("svc", fallback=Failed)
    async def guarded() -> Any:
        _raise()

    return asyncio.run(guarded())


def stream() -> Any:
    @mesh_of().guard("svc", fallback=lambda error: [Failed(error)])
    def guarded() -> Iterator[Any]:
        yield _raise()

    return list(guarded()).pop()


def asynchronous_stream() -> Any:
    @mesh_of().guard("svc", fallback=lambda error: [Failed(error)])
    async def guarded() -> AsyncIterator[Any]:
        yield _raise()

    async def first() -> Any:
        items = [item async for item in guarded()]
        return items.pop()

    return asyncio.run(first())


@pytest.mark.parametrize("calls", [plain, coroutine, stream, asynchronous_stream])
def test_nothing_is_left_to_the_collector(calls: Callable[[], Any]) -> None:
    gc.collect()
    gc.disable()
    try:
        failed = weakref.ref(calls())
        assert failed() is None
    finally:
        gc.enable()


def _raise() -> Any:
    raise ValueError("no")
