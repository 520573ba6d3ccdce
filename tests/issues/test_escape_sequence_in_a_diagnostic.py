"""A hint repeated what the file said, escape sequences for the terminal and all, and called it right."""

from __future__ import annotations

import pytest

from resilmesh.errors import PolicyError
from resilmesh.policy.load import load_text

HEAD = "apiVersion: resilmesh/v1\nservices: [{name: a, hosts: [a], routes: [{name: r, match: "


@pytest.mark.parametrize("character", ["\\x1b", "\\u202e", "\\u200b", "\\x85", "\\ufeff"])
@pytest.mark.parametrize("match", ['{{headers: {{"A{0}": b}}}}', '{{method: "get{0}"}}', '{{"{0}": b}}', '{{path: {{"{0}": b}}}}'])
def test_every_character_is_printable(match: str, character: str) -> None:
    with pytest.raises(PolicyError) as caught:
        load_text(f"{HEAD}{match.format(character)}}}]}}]")
    assert str(caught.value).replace("\n", "").isprintable()
    assert all(each.message.isprintable() and each.hint.isprintable() for each in caught.value.diagnostics)
    assert "write" not in str(caught.value)
