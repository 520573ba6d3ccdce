"""HTTP methods that figures are told apart by: anybody can send any word, and each would be a series more."""

from __future__ import annotations

#: OpenTelemetry's: those of RFC 9110, PATCH and QUERY.
_KNOWN = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"))


def known_method(method: str) -> str:
    """The method, or ``_OTHER``."""
    return method if method in _KNOWN else "_OTHER"
