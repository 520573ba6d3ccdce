"""A KeyboardInterrupt in the midst of a call's end kept its slot, and counted it as in flight, for ever."""

from __future__ import annotations

from typing import NoReturn

import pytest

from resilmesh.engine.call import Call
from tests.drive.guarding import idle, mesh_of


def test_the_call_is_given_back_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")

    def interrupted(call: Call) -> NoReturn:
        patched.undo()
        raise KeyboardInterrupt

    @mesh.guard("svc")
    def fail() -> None:
        patched.setattr(Call, "_release", interrupted)
        raise LookupError

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        fail()
    assert idle(mesh)
