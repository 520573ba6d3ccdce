"""Three scripted services for every case, and a check that a case uses what it says it covers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scripted import Service
from sidebyside import WRITTEN


@pytest.fixture(scope="session")
def services() -> Iterator[dict[str, Service]]:
    with Service() as a, Service() as b, Service() as c:
        yield {"a": a, "b": b, "c": c}


@pytest.fixture(autouse=True)
def _covers_what_it_says(request: pytest.FixtureRequest) -> Iterator[None]:
    WRITTEN.clear()
    yield
    claimed = getattr(request.function, "covers", frozenset())
    assert claimed <= WRITTEN, f"no policy of this test writes {sorted(claimed - WRITTEN)}"
