"""A service broke HTTP/2 in the body, and what tidied up after the call raised h2's own exception. Found by `make fuzz`."""

from __future__ import annotations

from tests.fuzz import wire

#: SETTINGS, the head of a 200, and then frames that make no sense; the call is left in its body.
SAID = bytes.fromhex("00000004000000000000000101040000000188000100017427") + b"a" * 259


def test_it_ends_in_order() -> None:
    wire.http2(b"\0\0\xc7" + SAID)
