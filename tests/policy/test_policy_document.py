"""Reading text: YAML 1.2's words and numbers, the place of everything, and texts that are no policy."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest

from resilmesh.errors import PolicyError
from resilmesh.policy import document
from resilmesh.policy.codes import Diagnostic
from resilmesh.policy.document import Places
from resilmesh.policy.load import load_file, load_text


def mistakes(text: str | bytes) -> list[str]:
    """``line:column CODE`` of each mistake."""
    with pytest.raises(PolicyError) as caught:
        load_text(text, "f")
    return [f"{each.line}:{each.column} {each.code}" for each in caught.value.diagnostics]


@pytest.mark.parametrize(("scalar", "value"), [
    ("", None), ("~", None), ("null", None), ("Null", None), ("NULL", None), ("nULL", "nULL"),
    ("true", True), ("True", True), ("FALSE", False), ("yes", "yes"), ("No", "No"), ("on", "on"), ("off", "off"), ("y", "y"),
    ("0", 0), ("-7", -7), ("+7", 7), ("010", 10), ("0o17", 15), ("0x1F", 31), ("-0o7", "-0o7"), ("0b11", "0b11"), ("1_000", "1_000"),
    ("1.5", 1.5), (".5", 0.5), ("5.", 5.0), ("1e3", 1000.0), ("-1.5E-3", -0.0015), ("1e", "1e"), (".", "."), ("e5", "e5"),
    ("1:30", "1:30"), ("190:20:30", "190:20:30"), ("2024-01-01", "2024-01-01"),
    ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
    ("'5'", "5"), ('"true"', "true"), ("'~'", "~"), ("=", "="), ("\u0665", "\u0665"), ("5xx", "5xx"), ('"\\u00e9"', "\u00e9"),
])
def test_plain_scalars_are_those_of_yaml_1_2(scalar: str, value: Any) -> None:
    read = document.read(f"key: {scalar}", "f").data["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("scalar", [".nan", ".NaN", ".inf", "-.Inf", "+.INF", "1e999", "9" * 65, "0x" + "f" * 100])
def test_numbers_that_are_not_finite(scalar: str) -> None:
    assert [each.code for each in document.read(f"key: {scalar}", "f").mistakes] == ["RM011"]


def test_places() -> None:
    text = """\
first: 1
block:
  inner: {a: x, b: [p, {q: r}]}
list:
- one
-   two: 2
"quoted key" :  late
"""
    places = document.read(text, "f").places
    assert places.line_column(()) == (1, 1)
    assert places.line_column(("first",)) == (1, 8)
    assert places.key_line_column(("first",)) == (1, 1)
    assert places.line_column(("block",)) == (2, 1)  # of a block the key, which is what one looks for
    assert places.line_column(("block", "inner", "a")) == (3, 14)
    assert places.key_line_column(("block", "inner", "b")) == (3, 17)
    assert places.line_column(("block", "inner", "b", 0)) == (3, 21)
    assert places.line_column(("block", "inner", "b", 1, "q")) == (3, 28)
    assert places.line_column(("list", 1)) == (6, 5)
    assert places.line_column(("list", 1, "two")) == (6, 10)
    assert places.line_column(("quoted key",)) == (7, 17)


def test_the_nearest_known_place() -> None:
    places = document.read("services:\n- name: a\n  match: {method: GET}\n", "f").places
    assert places.line_column(("services", 0, "timeout")) == (2, 3)
    assert places.line_column(("services", 7)) == (1, 1)
    assert places.line_column(("nowhere", 1, "x")) == (1, 1)
    # A single value where the model has a list.
    assert places.line_column(("services", 0, "match", 0, "method", 0)) == (3, 19)
    assert places.written(("services", 0, "match", 0, "method", 0, "x")) == ("services", 0, "match", "method")


def test_without_a_text_there_are_no_places() -> None:
    assert Places().line_column(("services", 0)) == (0, 0)
    assert Places().key_line_column(()) == (0, 0)
    assert not Places().broken(("services",))
    assert str(Diagnostic("<policy>", 0, 0, "RM201", "duplicate", "rename")) == "<policy>: RM201 duplicate (rename)"


def test_columns_count_characters() -> None:
    assert mistakes("apiVersion: resilmesh/v1\nx-\u00e9\U0001f600: {\u00e9: 1, \u00e9: 2}\n") == ["2:14 RM007"]
    assert mistakes("apiVersion: resilmesh/v1 # \U0001f600\nx-\u00e9: \x07\n") == ["2:6 RM005"]


def test_bytes_are_utf_8_with_or_without_a_mark() -> None:
    assert load_text(b"\xef\xbb\xbfapiVersion: resilmesh/v1\n").policy.services == []
    assert load_text("\ufeffapiVersion: resilmesh/v1\n").places.line_column(("apiVersion",)) == (1, 13)


@pytest.mark.parametrize(("text", "place"), [
    ("apiVersion: resilmesh/v1".encode("utf-16"), "1:1"),
    ("apiVersion: resilmesh/v1".encode("utf-16-be"), "1:1"),
    ("apiVersion: resilmesh/v1".encode("utf-32-be"), "1:1"),
    ("apiVersion: resilmesh/v1\nx-a: caf\u00e9\n".encode("latin-1"), "2:9"),
    (b"\x7fELF\x02\x01\x01\x00\x00", "1:8"),
    (b"\x1f\x8b\x08\x00", "1:2"),
    (b"apiVersion: resilmesh/v1\n\xc0\xaf", "2:1"),
    (b"apiVersion: \xed\xa0\x80", "1:13"),
    ("apiVersion: resilmesh/v1\nx-a: b\ud800\n", "2:7"),
    ("apiVersion: resilmesh/v1\0", "1:25"),
])
def test_text_that_is_not_utf_8(text: str | bytes, place: str) -> None:
    assert mistakes(text) == [f"{place} RM002"]


@pytest.mark.parametrize("text", ["", " \n", "# nothing", "---", "--- ~", "null", "%YAML 1.2\n---\n"])
def test_an_empty_policy(text: str) -> None:
    assert mistakes(text) == ["1:1 RM004"]


@pytest.mark.parametrize("text", [
    "[" * 200_000, "{a: " * 100_000, "- " * 200_000, "? " * 200_000, "x-a: " + "[" * 65 + "]" * 65,
    "".join(f"{' ' * depth}a:\n" for depth in range(80)),
])
def test_nesting_ends_somewhere(text: str) -> None:
    assert [each.rpartition(" ")[2] for each in mistakes(text)] == ["RM006"]


def test_nesting_of_sixty_four_levels_is_read() -> None:
    assert load_text("apiVersion: resilmesh/v1\nx-a: " + "[" * 63 + "]" * 63).policy.services == []


def test_size_ends_somewhere(tmp_path: Path) -> None:
    large = b"apiVersion: resilmesh/v1 #" + b"#" * document.MAX_BYTES
    assert mistakes(large) == ["1:1 RM003"]
    (tmp_path / "large.yaml").write_bytes(large)
    with pytest.raises(PolicyError, match="RM003 the policy is larger than 8 MiB"):
        load_file(tmp_path / "large.yaml")
    with pytest.raises(PolicyError, match="RM003"):
        load_file("/dev/zero")


def test_the_number_of_values_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_VALUES", 10)
    assert mistakes("apiVersion: resilmesh/v1\nservices: [a, b, c, d, e, f, g]") == ["2:27 RM003"]


def test_the_number_of_mistakes_ends_somewhere() -> None:
    """In the text, in the model, and above what pydantic can list without gigabytes."""
    repeated = mistakes("apiVersion: resilmesh/v1\n" * 3000)
    assert len(repeated) == document.MAX_MISTAKES + 1
    assert repeated[-1] == "1001:1 RM013"
    wrong = mistakes("apiVersion: resilmesh/v1\nservices:\n" + "- a\n" * 3000)
    assert wrong[:2] == ["3:3 RM103", "4:3 RM103"]
    assert wrong[document.MAX_MISTAKES:] == ["1003:3 RM013"]
    assert mistakes("apiVersion: resilmesh/v1\nservices: [" + "a, " * 30_000 + "]") == ["1:1 RM013"]


@pytest.mark.parametrize("text", [
    "\n".join(f"x-{number}: &a{number} [*a{number - 1}, *a{number - 1}]" for number in range(1, 400)),  # a billion laughs
    "apiVersion: " + "9" * 4_000_000,
    "apiVersion: '" + "\\" * 4_000_000,
    "a: " * 1_000_000,
    '"' * 1_000_000,
    "{" + '"a",' * 200_000,
    "&a " * 500_000,
    "\t" * 1_000_000,
    "--- a\n" * 200_000,
    "apiVersion: resilmesh/v1\n" + "".join(f"key{number}: 1\n" for number in range(2_000)),
], ids=lambda text: text[:16].encode("unicode_escape").decode())
def test_hostile_texts_take_bounded_time(text: str) -> None:
    start = time.process_time()
    assert mistakes(text)
    assert time.process_time() - start < 10  # all take less than one second; a machine may be slow


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "missing.yaml", "No such file or directory"), (tmp_path, "Is a directory"), ("a\0b", "embedded null byte"),
    ):
        with pytest.raises(PolicyError) as caught:
            load_file(path)
        assert [str(each) for each in caught.value.diagnostics] == [f"{os.fspath(path)}: RM001 cannot read the policy: {reason}"]


def test_mistakes_of_text_and_model_come_together_in_order() -> None:
    text = "apiVersion: resilmesh/v2\nmesh: {mode: X, mode: OFF}\nservices:\n- timeout: &t 5\n  idleTimeout: *t\n"
    assert mistakes(text) == ["1:13 RM104", "2:14 RM104", "2:17 RM007", "4:3 RM102", "4:12 RM008", "4:12 RM107", "5:16 RM008"]


def test_what_could_not_be_read_is_not_judged() -> None:
    assert mistakes("apiVersion: !v resilmesh/v2\nservices: *all\nmesh: {mode: .nan}\n") == ["1:13 RM009", "2:11 RM008", "3:14 RM011"]


def test_a_finite_number_stays_what_it_is() -> None:
    assert math.isfinite(document.read("a: 1.7976931348623157e308", "f").data["a"])
