"""The complaint about a duration without a unit repeated it three times, however long it was."""

from __future__ import annotations

import pytest

from resilmesh.errors import PolicyError
from resilmesh.policy.load import load_text
from resilmesh.units import parse_duration


def test_the_complaint_is_short() -> None:
    with pytest.raises(ValueError, match="is not a duration") as caught:
        parse_duration("9" * 1_000_000)
    assert len(str(caught.value)) < 200
    with pytest.raises(PolicyError) as refused:
        load_text(f"apiVersion: resilmesh/v1\ndefaults: {{timeout: '{'9' * 1_000_000}'}}")
    assert len(str(refused.value)) < 300
