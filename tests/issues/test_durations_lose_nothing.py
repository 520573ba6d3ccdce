"""A duration of more than nine digits was written with nine: 1h1m1s1001us came back as 1h1m1s1ms."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilmesh.units import MAX_SECONDS, format_duration, parse_duration


@pytest.mark.parametrize("text", ["3661.001001s", "1h1m1s1001us", "31535999.999999s", "0.123456789s", "999999.123456s"])
def test_long_durations(text: str) -> None:
    assert parse_duration(format_duration(parse_duration(text))) == parse_duration(text)


@given(st.floats(0, MAX_SECONDS).map(lambda seconds: round(seconds, 6)))
def test_every_microsecond(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds
