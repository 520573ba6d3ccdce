"""What becomes of a path: refused, or of one form that stays as it is."""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilmesh.identity.paths import HostilePath, normalise

FORMS = {
    "/": "/", "/a": "/a", "/a/": "/a/", "/a/b.c": "/a/b.c", "/a?x=/../b": "/a", "/A/b": "/A/b", "//": "/", "//a": "/a", "/a//b": "/a/b",
    "/a///b//": "/a/b/", "/./a": "/a", "/a/.": "/a/", "/a/./b": "/a/b", "/a/..": "/", "/a/../b": "/b", "/a/b/../..": "/",
    "/a/b/../../c": "/c",
    "/%61": "/a", "/a%2Db": "/a-b", "/a%2eb": "/a.b", "/a%7Eb": "/a~b", "/a/%2e%2e/b": "/b", "/a/%2E/b": "/a/b", "/a/.%2e/b": "/b",
    "/a%20b": "/a%20b", "/a%c3%a9": "/a%C3%A9", "/a%3Bb": "/a%3Bb", "/a%3fb": "/a%3Fb", "/a%23": "/a%23",
    "/a%25": "/a%25", "/100%25-x": "/100%25-x",
    "/a;v=1/b": "/a;v=1/b", "/a:b@c": "/a:b@c", "/...": "/...", "/.a": "/.a", "/a..": "/a..", "/..a": "/..a", "*": "*",
    "http://host/a/../b": "/b", "http://host": "/", "https://u@host:1//a?b": "/a", "/a/b/..//../c": "/a/c",
}

REFUSED = {
    "": "does not begin", "a": "does not begin", "host:443": "does not begin", "?a": "does not begin", "..": "does not begin",
    "/..": "climbs", "/../a": "climbs", "/a/../..": "climbs", "/%2e%2e/": "climbs", "/%2e./": "climbs", "/a/../%2E%2E": "climbs",
    "/a%2fb": "a slash in it is escaped", "/a%2Fb": "a slash", "/%2f": "a slash", "/a%5cb": "a backslash", "/a%5Cb": "a backslash",
    "/a\\b": "the character '\\\\\\\\'", "/..\\a": "the character", "/a%252fb": "escaped again", "/%252e%252e/": "escaped again",
    "/a%00": "control character", "/a%00.html": "control", "/%0a": "control", "/a%0d%0a": "control", "/a%7f": "control",
    "/a\0": "the character", "/a\n": "the character", "/a b": "the character", "/a\t": "the character", "/a\x7f": "the character",
    "/caf\xe9": "the character", "/a%": "begins no escape", "/a%2": "begins no escape", "/a%zz": "begins no escape",
    "/a%u002f": "no escape",
    "/%c0%af": "no UTF-8", "/%c0%ae%c0%ae/": "no UTF-8", "/%e0%80%af": "no UTF-8", "/%ff": "no UTF-8", "/%ed%a0%80": "no UTF-8",
    "/a#b": "the character '#'", "/a/..;/b": "with a parameter", "/a/..;x=1/b": "with a parameter", "/a/.;/b": "with a parameter",
    "/a/;/b": "with a parameter", "/a/%2e%2e;/b": "with a parameter", "/;x": "with a parameter", "http://host/..": "climbs",
}


@pytest.mark.parametrize("path", FORMS)
def test_one_form(path: str) -> None:
    assert normalise(path) == FORMS[path]


@pytest.mark.parametrize("path", REFUSED)
def test_refused(path: str) -> None:
    with pytest.raises(HostilePath, match=REFUSED[path]):
        normalise(path)


PARTS = ["/", "a", "B", ".", "..", "%2e", "%2f", "%5c", "%61", "%25", "%00", "%c3%a9", ";", "\\", "?", "#", "é", " "]


@given(st.lists(st.sampled_from(PARTS)))
def test_what_is_let_through_is_of_one_form(parts: list[str]) -> None:
    path = "/" + "".join(parts)
    try:
        form = normalise(path)
    except HostilePath:
        return
    assert normalise(form) == form
    decoded = unquote_to_bytes(form).decode()
    assert form.startswith("/")
    assert "//" not in form
    # What an application sees that decodes once has the same segments, and one that decodes twice climbs nowhere.
    assert decoded.count("/") == form.count("/")
    assert not {".", ".."} & set(decoded.split("/"))
    assert not re.search(r"[\x00-\x1f\\]", decoded)
