"""The generated parts of docs/reference are current: ``make reference``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from resilmesh.engine.events import EVENTS
from tests.docs import reference

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(page for page in reference.PAGES.glob("*.md") if reference.PART.search(page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_current(page: Path) -> None:
    assert page.read_text() == reference.filled(page.read_text()), "make reference"


def test_every_part_is_on_a_page() -> None:
    assert {part[2] for page in PAGES for part in reference.PART.finditer(page.read_text())} == set(reference.PARTS)


def test_every_event_that_is_told_is_in_the_table() -> None:
    told = set()
    for source in (ROOT / "resilmesh").rglob("*.py"):
        told |= set(re.findall(r'(?:emit|tell|report)\(\s*(?:self\.)?[\w.()]*?(?:now|at|monotonic\(\)),\s*"(\w+)"', source.read_text()))
    assert len(told) > 15
    assert told <= {each.name for each in EVENTS}


def test_every_event_in_the_table_is_told() -> None:
    code = "".join(path.read_text() for path in (ROOT / "resilmesh").rglob("*.py") if path.name not in ("events.py", "trace.py"))
    assert {each.name for each in EVENTS if f'"{each.name}"' not in code} == set()
