"""How long to wait before the next attempt.

Full jitter, as Envoy: before retry n a random time in [0, min(base * (2^n - 1), max)). Where the service itself
said when to come back, that long and up to half as long again, so that not all callers come back at once
(Envoy's rate_limited_retry_back_off: 1.0-1.5 s were seen for ``Retry-After: 1``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resilmesh.clock import Clock


def backoff(retry: int, base: float, longest: float, draw: float) -> float:
    """Seconds before retry number ``retry`` (from 1). ``draw`` is a random number in [0, 1)."""
    # 2**62 seconds are more than any maximum; without the cap the power itself would grow without bound.
    return draw * min(base * (2.0 ** min(retry, 62) - 1), longest)


def come_back(retry_after: float, draw: float) -> float:
    """Seconds to wait when the service asked for ``retry_after``."""
    return retry_after * (1 + draw / 2)


def retry_after(headers: Any, clock: Clock) -> float | None:
    """Seconds that the service asks to wait: Retry-After (seconds, or an HTTP-date), else X-RateLimit-Reset (Unix time).

    ``headers`` has ``get``: a response's, or a call's metadata.
    """
    value = headers.get("retry-after")
    if value is not None and (seconds := _seconds(value.strip(), clock)) is not None:
        return seconds
    value = headers.get("x-ratelimit-reset")
    if value is not None and value.isascii() and value.isdigit() and len(value) < 16:
        # Some services send seconds here; read as a time that is long past, they are ignored.
        ahead = int(value) - clock.wall()
        return ahead if ahead > 0 else None
    return None


def _seconds(value: str, clock: Clock) -> float | None:
    first = value.partition(",")[0]  # of several headers, which httpx joins; a date has a comma too
    if first.isascii() and first.isdigit():
        return float(first) if len(first) < 16 else None
    from email.utils import parsedate_to_datetime

    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if date.tzinfo is None:  # "-0000": a time in UTC of unknown origin
        from datetime import UTC

        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - clock.wall())
