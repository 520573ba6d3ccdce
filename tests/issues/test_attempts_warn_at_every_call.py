"""``mesh.attempts`` said at every call, and not once, that nobody had said whether the block may be repeated."""

from __future__ import annotations

import pytest

from tests.drive.guarding import mesh_of


def test_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    mesh = mesh_of(retries="{retryOn: [5xx]}")
    for _ in range(3):
        for attempt in mesh.attempts("svc"):
            with attempt:
                pass
    assert len(caplog.records) == 1
