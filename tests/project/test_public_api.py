"""The public names and their signatures change on purpose only."""

from __future__ import annotations

from tests.project.public_api import SNAPSHOT, describe


def test_public_api_is_as_written_down() -> None:
    assert describe() == SNAPSHOT.read_text(), "meant? then: python -m tests.project.public_api"
