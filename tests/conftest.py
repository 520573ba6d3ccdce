"""What every test of the suite begins with: no mesh of the process, whatever an earlier test configured."""

from __future__ import annotations

import pytest

from resilmesh import mesh


def pytest_runtest_setup(item: pytest.Item) -> None:
    mesh.default.mesh = None
    mesh.default._guarded.clear()
