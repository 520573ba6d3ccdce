"""A guarded coroutine that the garbage collector closed, in a context not its own, complained of its deadline's token."""

from __future__ import annotations

import asyncio
import contextvars
import gc

import pytest

from tests.drive.guarding import idle, mesh_of


@pytest.mark.parametrize("retries", ["null", "{maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}, idempotent: true}"])
def test_it_goes_quietly(retries: str) -> None:
    mesh = mesh_of(timeout="10s", retries=retries)
    tries = 0

    @mesh.guard("svc")
    async def hang() -> None:
        nonlocal tries
        tries += 1
        if tries == 1 and retries != "null":
            raise LookupError
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    coroutine = hang()
    task = loop.create_task(coroutine, context=contextvars.copy_context())
    loop.run_until_complete(asyncio.sleep(0.02))
    assert tries == (1 if retries == "null" else 2)
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's way to say that this is on purpose
    loop.close()
    coroutine.close()
    del task, coroutine
    gc.collect()
    assert idle(mesh)
