"""Under trio, a group of tasks that failed while our limit ended it kept its slot for ever."""

from __future__ import annotations

import pytest
import trio

from tests.drive.guarding import idle, mesh_of


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_its_failure_is_the_outcome() -> None:
    mesh = mesh_of(timeout="10ms", concurrency="{maxRequests: 1}")

    async def fail_in_cleanup() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise LookupError

    @mesh.guard("svc")
    async def group() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_in_cleanup)
            nursery.start_soon(trio.sleep_forever)

    with pytest.raises(ExceptionGroup) as caught:
        await group()
    assert [type(each) for each in caught.value.exceptions] == [LookupError]
    assert idle(mesh)
