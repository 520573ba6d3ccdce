"""Words for quantities: durations, percents and byte sizes, as a policy writes them.

A duration in a policy is a string with a unit (``"1500ms"``, ``"1m30s"``); in the library it is a
``float`` of seconds. A bare number is refused, because nobody can tell 5 seconds from 5 milliseconds.
"""

from __future__ import annotations

import re

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m|h|d)", re.ASCII)
_WHOLE = re.compile(r"(?:\d+(?:\.\d+)?(?:us|ms|s|m|h|d))+", re.ASCII)

#: Longest duration a policy may name. Above it, a sum of durations could leave the range that
#: protobuf's Duration and the operating system's timers accept.
MAX_SECONDS = 365 * 86400.0


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``"250ms"``, ``"3s"``, ``"1m30s"`` or ``"1.5h"``.

    Units: us, ms, s, m, h, d. Raises ``ValueError`` with a remedy when there is no unit, an unknown
    one, a sign, or more than 365 days.
    """
    if len(text) > 64 or _WHOLE.fullmatch(text) is None:
        raise ValueError(_complaint(text))
    seconds = 0.0
    for amount, unit in _PART.findall(text):
        seconds += float(amount) * _SECONDS[unit]
    if seconds > MAX_SECONDS:
        raise ValueError(f"{text!r} is longer than 365 days")
    return round(seconds, 9)


def _complaint(text: str) -> str:
    shown = text if len(text) <= 64 else text[:61] + "..."
    if len(text) <= 64 and re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        return f"{shown!r} has no unit: write '{text}s' or '{text}ms'"
    return f"{shown!r} is not a duration: write a number and a unit (us, ms, s, m, h, d), such as '250ms' or '1m30s'"


def format_duration(seconds: float) -> str:
    """The shortest exact way to write ``seconds`` in a policy: ``0.25`` is ``"250ms"``."""
    if seconds < 0.001 and seconds:
        return _exactly(seconds, "us")
    if seconds < 1 and seconds:
        return _exactly(seconds, "ms")
    for unit in ("d", "h", "m"):
        size = _SECONDS[unit]
        if seconds >= size and seconds % size == 0:
            return _exactly(seconds, unit)
    return _exactly(seconds, "s")


def _exactly(seconds: float, unit: str) -> str:
    """As few digits as give the same duration again."""
    size = _SECONDS[unit]
    texts = (f"{seconds / size:.{digits}g}" for digits in (9, 12, 15, 17))
    return next((text for text in texts if round(float(text) * size, 9) == seconds), f"{seconds / size:.9g}") + unit
