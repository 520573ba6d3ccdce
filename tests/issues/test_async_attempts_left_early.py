"""``return`` out of ``async for attempt`` left an asynchronous generator behind, which trio warns of, and a call that was not over."""

from __future__ import annotations

import gc

import pytest

from tests.drive.guarding import idle, mesh_of


@pytest.mark.anyio
async def test_nothing_is_left_behind() -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")

    async def first() -> int:
        async for attempt in mesh.attempts("svc"):
            async with attempt:
                return attempt.number
        raise AssertionError

    async def nothing() -> None:
        async for _ in mesh.attempts("svc"):
            break

    assert await first() == 1
    await nothing()
    gc.collect()
    assert idle(mesh)
