"""With ``failures=BaseException`` a cancellation was a failure of the service, and was retried: the task could not be cancelled."""

from __future__ import annotations

import anyio
import pytest

from tests.drive.guarding import RETRY, mesh_of, stats


@pytest.mark.anyio
@pytest.mark.parametrize("failures", [BaseException, (KeyError, BaseException)])
async def test_a_cancellation_goes_through(failures: type[BaseException] | tuple[type[BaseException], ...]) -> None:
    mesh = mesh_of(retries=RETRY)
    began = 0

    @mesh.guard("svc", failures=failures)
    async def hang() -> None:
        nonlocal began
        began += 1
        await anyio.sleep_forever()

    with anyio.move_on_after(0.01):
        await hang()
    assert (began, stats(mesh)["abandoned"], stats(mesh)["failed"]) == (1, 1, 0)
