"""The pictures are what the code's own tables say now: ``make pictures``."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import get_args

import pytest

from resilmesh.state.breaker import CircuitState
from tests.docs import pictures

ROOT = Path(__file__).resolve().parents[2]
#: The widest that a letter of small and of other text comes, in pixels; measured generously.
SMALL, OTHER = 6.6, 8.2


@pytest.mark.parametrize("name", pictures.ALL)
def test_a_picture_is_current(name: str) -> None:
    assert (pictures.PICTURES / name).read_text() == pictures.ALL[name](), "make pictures"


@pytest.mark.parametrize("name", pictures.ALL)
def test_nothing_is_written_beyond_the_edge(name: str) -> None:
    root = ET.fromstring(pictures.ALL[name]())
    for each in root.iter("{http://www.w3.org/2000/svg}text"):
        length = len(each.text or "") * (SMALL if each.get("class") == "small" else OTHER)
        share = {"start": 0.0, "middle": 0.5, "end": 1.0}[each.get("text-anchor", "start")]
        if "rotate" not in "".join(parent.get("transform", "") for parent in root.iter() if each in list(parent)):
            left = float(each.get("x", 0)) - share * length
            assert left >= 0, each.text
            assert left + length <= float(root.get("width", 0)), each.text


@pytest.mark.parametrize("name", pictures.ALL)
def test_a_picture_is_shown_with_words_for_who_does_not_see_it(name: str) -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    assert re.search(rf"!\[[^\]]{{20,}}\]\([./]*pictures/{re.escape(name)}\)", pages)


def test_the_table_of_the_circuit_is_read_whole() -> None:
    table = pictures.transitions()
    assert {each.old for each in table} == {each.new for each in table} == set(get_args(CircuitState))
    assert all(each.event for each in table)


def test_the_table_of_the_order_is_read_whole() -> None:
    table = pictures.decisions()
    assert [each.level for each in table if each.name in ("mode", "circuit breaker", "retry?")] == ["call level", "attempt level", "after"]
    block = (ROOT / "docs" / "explanation" / "order.md").read_text().split("```text\n")[1].split("```")[0]
    assert len(table) == len(block.splitlines())
