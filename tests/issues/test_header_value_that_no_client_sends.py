"""A policy could set a header to what the client then refused to send, with every call: LocalProtocolError."""

from __future__ import annotations

import h11
import pytest

from resilmesh.errors import PolicyError
from resilmesh.policy.load import load_text


@pytest.mark.parametrize("block", ["headers: {{request: {{set: {{x-a: {0}}}}}}}", "fallback: {{headers: {{x-a: {0}}}}}"])
@pytest.mark.parametrize("value", [
    "", "a", " a", "a ", "a b", "a\tb", "\t", "a\x0bb", "a\x0cb", "a\rb", "a\nb", "a\0b", "caf\u00e9", "\u00e9",
])
def test_what_is_accepted_can_be_sent(block: str, value: str) -> None:
    written = '"' + "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in value) + '"'
    try:
        load_text(f"apiVersion: resilmesh/v1\ndefaults: {{{block.format(written)}}}")
    except PolicyError:
        with pytest.raises(h11.LocalProtocolError):
            _send(value)
    else:
        _send(value)


def _send(value: str) -> None:
    h11.Connection(h11.CLIENT).send(h11.Request(method="GET", target="/", headers=[("host", "a"), ("x-a", value.encode())]))
