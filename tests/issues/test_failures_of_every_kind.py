"""With ``failures=BaseException`` a cancellation was a failure of the service, and was retried: the task could not be cancelled."""

from __future__ import annotations

import asyncio

import pytest

from tests.drive.guarding import RETRY, mesh_of, stats


@pytest.mark.parametrize("failures", [BaseException, (KeyError, BaseException)])
def test_a_cancellation_goes_through(failures: type[BaseException] | tuple[type[BaseException], ...]) -> None:
    mesh = mesh_of(retries=RETRY)
    began = 0

    @mesh.guard("svc", failures=failures)
    async def hang() -> None:
        nonlocal began
        began += 1
        await asyncio.sleep(0.2)

    async def cancel_it() -> None:
        task = asyncio.create_task(hang())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_it())
    assert (began, stats(mesh)["abandoned"], stats(mesh)["failed"]) == (1, 1, 0)
