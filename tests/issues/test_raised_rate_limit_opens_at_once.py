"""A rate limit that was raised stayed shut for as long as its old figures had it: an hour, for one an hour."""

from __future__ import annotations

from resilmesh.state.ratelimit import RateLimit


def test_a_raised_limit_lets_calls_through():
    limit = RateLimit(1, 3600.0, 1)
    assert limit.take(1000.0)
    limit.retune(100, 1.0, 100)
    assert sum(limit.take(1000.0) for _ in range(200)) == 99


def test_a_narrower_bucket_owes_no_more_than_it_holds():
    limit = RateLimit(100, 1.0, 100)
    for _ in range(100):
        limit.take(1000.0)
    limit.retune(100, 1.0, 1)
    assert not limit.take(1000.0)
    assert limit.take(1000.011)
