"""Whatever the text, loading and checking end in a policy or in a PolicyError with readable diagnostics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from resilmesh.errors import PolicyError
from resilmesh.policy import document
from resilmesh.policy.check import check
from resilmesh.policy.codes import CODES
from resilmesh.policy.load import load_text
from resilmesh.policy.schema import json_schema

TESTDATA = Path(__file__).parent / "testdata"
TEXTS = [path.read_text(encoding="utf-8") for path in sorted(TESTDATA.glob("**/*.yaml"))]
FINISHED: dict[str, Any] = yaml.safe_load((TESTDATA / "finished_form.yaml").read_text(encoding="utf-8"))
SCHEMA = jsonschema.Draft202012Validator(json_schema())
BOUNDED = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

#: What breaks parsers: structure, words that YAML knows, hostile characters, numbers at the edge.
TOKENS = st.one_of(
    st.sampled_from([
        ":", ": ", "- ", "? ", "{", "}", "[", "]", ",", "#", "&a ", "*a", "!!str ", "<<: ", "|", ">", "'", '"', "\n", "\n  ", "\t", "---\n",
        "...\n", "%YAML 1.1\n", "null", "true", ".nan", "1e999", "0o9", "\0", "\x85", "\u2028", "\ufeff", "\U0010ffff", "\ud800", "\r",
        "\\x", "x-", "9" * 70, "-1", "0", "1.5", "5", "''", "[]", "{}",
    ]),
    st.text(max_size=5),
)


def judge(text: str | bytes) -> None:
    try:
        diagnostics = check(load_text(text, "f"))
    except PolicyError as error:
        diagnostics = list(error.diagnostics)
        assert diagnostics
        places = [(each.line, each.column) for each in diagnostics]
        assert places == sorted(places)
        assert all(each.line >= 1 and each.column >= 1 for each in diagnostics)
    for each in diagnostics:
        assert each.code in CODES
        assert each.severity == CODES[each.code].severity
        assert "\n" not in str(each)
        assert len(str(each)) < 2000


@BOUNDED
@given(st.one_of(st.text(max_size=200), st.binary(max_size=200), st.lists(TOKENS, max_size=40).map("".join)))
@example("- - - *a")
@example("a: &b\n  - *b")
@example('"\\ud83d\\ude00": 1')
@example("? {[a]: b}: c")
def test_arbitrary_text(text: str | bytes) -> None:
    judge(text)


@BOUNDED
@given(data=st.data())
def test_mutated_text(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.sampled_from([0, 0, 1, 3, 10, 50])))
        text = text[:start] + data.draw(TOKENS) + text[end:]
    judge(text)


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-5, 700), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.sampled_from(["3s", "0s", "1m", "GET", "5xx", "OFF", "ROUTE", "SERVICE", "GRPC", "TIME_BASED", "a", "a:1", "*", "/a", "("]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["name", "method", "exact", "regex", "size", "type", "scope", "requests", "x-a", "zzz"]), inner, max_size=3,
        ),
    ),
    max_leaves=5,
)


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(below for key, item in items for below in paths(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, list):
        return [changed(item, path[1:], new) if index == path[0] else item for index, item in enumerate(value)]
    return {key: changed(item, path[1:], new) if key == path[0] else item for key, item in value.items()}


@BOUNDED
@given(data=st.data())
def test_a_policy_with_other_values(data: st.DataObject) -> None:
    """Well-formed documents that the model or the checks refuse, or do not."""
    policy: Any = FINISHED
    for _ in range(data.draw(st.integers(1, 3))):
        policy = changed(policy, data.draw(st.sampled_from(paths(policy))), data.draw(VALUES))
    text = yaml.safe_dump(policy, allow_unicode=True)
    judge(text)
    try:
        load_text(text)
    except PolicyError:
        return
    assert list(SCHEMA.iter_errors(document.read(text, "f").data)) == []  # which accepts what the loader accepts


@pytest.mark.parametrize("text", TEXTS)
def test_every_prefix_of_every_policy(text: str) -> None:
    for end in range(0, len(text), 7):
        judge(text[:end])
