"""An attempt that the caller's own caller cut short was told to observers as a failure of the service."""

from __future__ import annotations

import pytest

import resilmesh
from resilmesh.testing import ManualClock
from tests.drive.guarding import listen, mesh_of


@pytest.mark.anyio
async def test_it_is_told_as_what_it_counts_for() -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, timeout="9s")
    events = listen(mesh)

    @mesh.guard("svc")
    async def hang() -> None:
        import anyio

        await anyio.sleep_forever()

    with resilmesh.deadline(0.01, clock), pytest.raises(resilmesh.DeadlineExceeded, match="inherited"):
        await hang()
    assert [event.detail["verdict"] for event in events if "verdict" in event.detail] == ["IGNORED", "IGNORED"]
