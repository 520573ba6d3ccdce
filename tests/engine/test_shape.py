"""What a policy changes on the way, as pure functions."""

from __future__ import annotations

import pytest

from resilmesh.engine.shape import HeaderEdit, RegexRewrite, shadow
from resilmesh.policy.model import HeaderOperations, PathRegexRewrite


def test_a_header_is_dropped_whatever_its_case_and_however_often():
    edit = HeaderEdit(HeaderOperations(remove=["x-a"], set={"x-b": "new"}, add={"x-c": "more", "x-b": "beside"}))
    given = [(b"X-A", b"1"), (b"x-a", b"2"), (b"X-B", b"old"), (b"X-C", b"one"), (b"x-d", b"same")]
    assert edit(given) == [
        (b"X-C", b"one"), (b"x-d", b"same"), (b"x-b", b"new"), (b"x-c", b"more"), (b"x-b", b"beside"),
    ]
    assert len(given) == 5, "nothing is changed in place"


def test_values_are_utf_8():
    assert HeaderEdit(HeaderOperations(set={"x-name": "café"}))([]) == [(b"x-name", "café".encode())]


@pytest.mark.parametrize(
    ("match", "rewrite", "path", "becomes"),
    [
        ("^/v1/(.*)$", r"/\1", "/v1/items", "/items"),
        ("/", "", "/a/b", "/ab"),
        ("(a)|(b)", r"[\1\2]", "/ab", "/[a][b]"),
        ("x", r"\\1", "/x", r"/\1"),
        ("(x)", r"\0\1\0", "/x", "/xxx"),
        ("nothing", "else", "/x", "/x"),
        ("x", "é y", "/x", "/%C3%A9%20y"),
        ("x", '"#<>`{}', "/x", "/%22%23%3C%3E%60%7B%7D"),
        # Nothing empty is found right behind another find, as in RE2's GlobalReplace.
        ("x*", "/", "/axxb", "///a/b/"),
        ("[^/]*", "/x", "/foo/boo", "/x//x//x"),
        (r"\b", "/", "/foo", "//foo/"),
    ],
)
def test_every_find_is_replaced(match, rewrite, path, becomes):
    assert RegexRewrite(PathRegexRewrite(match=match, rewrite=rewrite))("GET", path + "?q=" + "x", {}) == becomes + "?q=x"


@pytest.mark.parametrize(
    ("host", "copy"),
    [
        ("svc", "svc-shadow"), ("svc:80", "svc-shadow:80"), ("10.0.0.1:80", "10.0.0.1-shadow:80"), ("[::1]:80", "[::1]-shadow:80"),
        ("[::1]", "[::1]-shadow"),
    ],
)
def test_the_host_of_a_copy_is_told_apart(host, copy):
    assert shadow(host) == copy
