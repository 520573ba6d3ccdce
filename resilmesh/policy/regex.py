"""Regular expressions as Envoy understands them: RE2, linear in time whatever the expression. Imported when one is used."""

from __future__ import annotations

from functools import lru_cache
from typing import Any


@lru_cache(maxsize=1024)
def compile_regex(expression: str) -> Any:
    """The compiled expression. Raises ``ValueError`` with RE2's reason."""
    import re2

    options = re2.Options()
    options.log_errors = False  # or RE2 writes to standard error by itself
    try:
        return re2.compile(expression, options)
    except re2.error as error:
        reason = error.args[0] if error.args else "refused"
        raise ValueError(reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)) from None
