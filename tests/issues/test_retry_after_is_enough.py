"""Who waited for exactly retry_after was refused again, by a rounding."""

from __future__ import annotations

import pytest

from resilmesh.state.ratelimit import RateLimit


@pytest.mark.parametrize("now", [1000.0, 12345.678, 1e6 / 3])
def test_there_is_a_token_after_retry_after(now):
    limit = RateLimit(3, 0.7, 1)
    limit.take(now)
    assert limit.take(now + limit.retry_after(now))
