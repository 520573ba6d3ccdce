"""Loops outside of ours: an SDK that sends a request again is another call to us, and some of them say so in a header.

    openai, anthropic, and other SDKs made by Stainless    x-stainless-retry-count: 0 at first, then 1, 2, ...
    postgrest, and so supabase                             x-retry-count: absent at first, then 1, 2, ...
"""

from __future__ import annotations

from typing import Any, Final

_SAID: Final = frozenset((b"x-stainless-retry-count", b"x-retry-count"))
#: A number that is longer is no count of attempts, and no reason to count on.
_MOST_DIGITS: Final = 6


def repetition(headers: Any) -> int:
    """Which repetition of an outer loop a request says that it is, from 1; 0: none, or it does not say.

    ``headers``: the client's own. Its private list has every name in lower case already: a pass over the five headers that a plain
    request has costs 0.15 us, where ``headers.get`` costs 0.8 (httpx) to 1.7 us (httpx2).
    """
    for _, name, value in headers._list:
        if name in _SAID:
            return int(value) if value.isdigit() and len(value) <= _MOST_DIGITS else 0
    return 0
