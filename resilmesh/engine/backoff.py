"""How long to wait before the next attempt.

Full jitter, as Envoy: before retry n a random time in [0, min(base * (2^n - 1), max)). Where the service itself
said when to come back, that long and up to half as long again, so that not all callers come back at once
(Envoy's rate_limited_retry_back_off: 1.0-1.5 s were seen for ``Retry-After: 1``).
"""

from __future__ import annotations


def backoff(retry: int, base: float, longest: float, draw: float) -> float:
    """Seconds before retry number ``retry`` (from 1). ``draw`` is a random number in [0, 1)."""
    # 2**62 seconds are more than any maximum; without the cap the power itself would grow without bound.
    return draw * min(base * (2.0 ** min(retry, 62) - 1), longest)


def come_back(retry_after: float, draw: float) -> float:
    """Seconds to wait when the service asked for ``retry_after``."""
    return retry_after * (1 + draw / 2)
