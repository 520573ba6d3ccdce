"""Whether an earlier route hides a later one. Soundness is judged by the engine's own matcher."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resilmesh.engine.match import Matcher
from resilmesh.policy.covers import Earlier, covers, impossible
from resilmesh.policy.matching import Match
from resilmesh.policy.model import Policy, Route, Service


def match(**keys: Any) -> Match:
    return Match.model_validate(keys, by_alias=True, by_name=False)


@pytest.mark.parametrize(("wider", "narrower"), [
    ({}, {"path": "/a"}),
    ({"path": {"prefix": "/"}}, {}),
    ({"path": {"prefix": "/a"}}, {"path": "/ab"}),
    ({"path": {"prefix": "/a"}}, {"path": {"prefix": "/ab"}}),
    ({"path": {"prefix": "/s.S/"}}, {"grpc": {"service": "s.S"}}),
    ({"path": "/s.S/M"}, {"grpc": {"service": "s.S", "method": "M"}}),
    ({"path": {"regex": "/a.*"}}, {"path": "/abc"}),
    ({"path": {"regex": "/a+"}}, {"path": {"regex": "/a+"}}),
    ({"path": {"regex": ".*"}}, {"path": {"prefix": "/a"}}),
    ({"method": ["GET", "PUT"]}, {"method": "GET"}),
    ({"method": "POST"}, {"grpc": {}}),
    ({"grpc": {}}, {"grpc": {"service": "s.S"}}),
    ({"grpc": {"service": "s.S"}}, {"grpc": {"service": "s.S", "method": "M"}}),
    ({"headers": {"x-a": {"present": True}}}, {"headers": {"x-a": {"suffix": "z"}}}),
    ({"headers": {"x-a": {"present": False}}}, {"headers": {"x-a": {"present": False}}}),
    ({"headers": {"x-a": {"prefix": "a"}}}, {"headers": {"x-a": {"prefix": "ab"}}}),
    ({"headers": {"x-a": {"suffix": "a"}}}, {"headers": {"x-a": "ba"}}),
    ({"headers": {"x-a": {"regex": "a+"}}}, {"headers": {"x-a": "aa"}}),
    ({"query": {"q": "1"}}, {"query": {"q": "1", "r": "2"}}),
])
def test_covered(wider: dict[str, Any], narrower: dict[str, Any]) -> None:
    assert covers(match(**wider), match(**narrower))


@pytest.mark.parametrize(("wider", "narrower"), [
    ({"path": "/a"}, {}),
    ({"path": "/a"}, {"path": {"prefix": "/a"}}),
    ({"path": {"prefix": "/ab"}}, {"path": {"prefix": "/a"}}),
    ({"path": {"regex": "/a+"}}, {"path": "/b"}),
    ({"path": {"regex": "/a+"}}, {"path": {"prefix": "/a"}}),
    ({"path": {"regex": "("}}, {"path": "/a"}),
    ({"method": "GET"}, {}),
    ({"method": "GET"}, {"method": ["GET", "PUT"]}),
    ({"method": "GET"}, {"grpc": {}}),
    ({"grpc": {}}, {"path": "/s.S/M", "method": "POST"}),
    ({"grpc": {"method": "M"}}, {"grpc": {"service": "s.S"}}),
    ({"headers": {"x-a": "a"}}, {}),
    ({"headers": {"x-a": "a"}}, {"headers": {"x-b": "a"}}),
    ({"headers": {"x-a": "a"}}, {"query": {"x-a": "a"}}),
    ({"headers": {"x-a": {"present": True}}}, {"headers": {"x-a": {"present": False}}}),
    ({"headers": {"x-a": {"present": False}}}, {"headers": {"x-a": "a"}}),
    ({"headers": {"x-a": {"prefix": "a"}}}, {"headers": {"x-a": {"suffix": "a"}}}),
    ({"headers": {"x-a": {"exact": "a"}}}, {"headers": {"x-a": {"regex": "a"}}}),
])
def test_not_covered(wider: dict[str, Any], narrower: dict[str, Any]) -> None:
    assert not covers(match(**wider), match(**narrower))


def test_several_routes_may_cover_one_together() -> None:
    earlier = Earlier()
    earlier.add(0, "a", [match(path={"prefix": "/a"})])
    earlier.add(1, "b", [match(path="/b"), match(method="GET")])
    assert earlier.covering([match(path="/ab"), match(path="/b")]) == ["a", "b"]
    assert earlier.covering([match(path="/ab"), match(path="/c")]) == []
    assert earlier.covering([match(path="/c", method="GET")]) == ["b"]
    assert earlier.covering(None) == []
    earlier.add(2, "rest", None)
    assert earlier.covering(None) == ["rest"]
    assert earlier.covering([match(method="GET")]) == ["b"]  # the first that does


WORDS = ["a", "ab", "b", ""]
PATHS = ["/", "/a", "/ab", "/a/b", "/s.S/M", "/s.S/N", "/b"]
STRINGS = st.one_of(
    st.builds(lambda word: {"exact": word}, st.sampled_from(WORDS)),
    st.builds(lambda key, word: {key: word}, st.sampled_from(["prefix", "suffix"]), st.sampled_from(["a", "ab", "b"])),
    st.builds(lambda word: {"regex": word}, st.sampled_from(["a.*", ".*b", "", "ab?"])),
    st.builds(lambda there: {"present": there}, st.booleans()),
)
MATCHES = st.fixed_dictionaries({}, optional={
    "method": st.lists(st.sampled_from(["GET", "POST"]), min_size=1, max_size=2),
    "path": st.one_of(
        st.builds(lambda key, path: {key: path}, st.sampled_from(["exact", "prefix"]), st.sampled_from(PATHS)),
        st.builds(lambda path: {"regex": path}, st.sampled_from(["/a.*", ".*", "/[ab]", "/s.S/M"])),
    ),
    "headers": st.dictionaries(st.sampled_from(["x-a", "x-b"]), STRINGS, min_size=1),
    "query": st.dictionaries(st.sampled_from(["q"]), STRINGS, min_size=1),
    "grpc": st.fixed_dictionaries({}, optional={"service": st.sampled_from(["s.S", "a"]), "method": st.sampled_from(["M", "b"])}),
})
REQUESTS = st.tuples(
    st.sampled_from(["GET", "POST", "PUT"]), st.sampled_from(PATHS), st.sampled_from(["", "?q=a", "?q=ab&q=b", "?q", "?r=a"]),
    st.dictionaries(st.sampled_from(["x-a", "x-b"]), st.sampled_from(WORDS)),
)


def holds(condition: Match, request: tuple[str, str, str, dict[str, str]]) -> bool:
    method, path, query, headers = request
    policy = Policy(api_version="resilmesh/v1", services=[Service(name="a", hosts=["a"], routes=[Route(name="r", match=[condition])])])
    return Matcher(policy).find(method, "a", 80, path + query, headers) == (0, 0)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(wider=MATCHES, narrower=MATCHES, requests=st.lists(REQUESTS, min_size=1, max_size=25))
def test_never_says_covered_of_a_match_that_gets_past(
    wider: dict[str, Any], narrower: dict[str, Any], requests: list[tuple[str, str, str, dict[str, str]]],
) -> None:
    first, second = match(**wider), match(**narrower)
    hidden, never = covers(first, second), impossible(second)
    for request in requests:
        if holds(second, request):
            assert not never, request
            assert not hidden or holds(first, request), request
