"""`%25%32%66` became `%252f`, which an application that decodes twice reads as a slash: it was looked for before it was there."""

from __future__ import annotations

import pytest

from resilmesh.identity.paths import HostilePath, normalise


@pytest.mark.parametrize("path", ["/a%25%32%66b", "/%25a%61", "/%25%32e%25%32e/secret", "/%25%35%63", "/%252f", "/%25%30%30"])
def test_an_escape_that_comes_of_unescaping_is_refused(path: str) -> None:
    with pytest.raises(HostilePath, match="an escape in it is escaped again"):
        normalise(path)


def test_a_percent_sign_of_its_own_is_none() -> None:
    assert normalise("/100%25") == "/100%25"
    assert normalise("/%25%7Ax") == "/%25zx"
