"""A ``failures=`` predicate that raised over a result was asked about its own exception, and its answer was retried."""

from __future__ import annotations

import pytest

from resilmesh.testing import ManualClock
from tests.drive.guarding import RETRY, idle, mesh_of


@pytest.mark.anyio
async def test_its_exception_is_the_callers() -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY)
    asked: list[object] = []

    def predicate(outcome: object) -> bool:
        asked.append(outcome)
        if isinstance(outcome, Exception):
            return True
        raise LookupError

    @mesh.guard("svc", failures=predicate)
    async def later() -> str:
        return "result"

    with pytest.raises(LookupError):
        mesh.guard("svc", failures=predicate)(lambda: "result")()
    with pytest.raises(LookupError):
        await later()
    assert (asked, idle(mesh)) == (["result", "result"], True)
