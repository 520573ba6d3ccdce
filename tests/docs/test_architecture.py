"""The code map of docs/architecture.md is complete, and names nothing that is not there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NAMED = set(re.findall(r"`(resilmesh/[\w/.]+)`", PAGE))


def test_every_module_is_on_the_map() -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "resilmesh").rglob("*.py")}
    assert modules - NAMED - {each for each in modules if each.endswith(("__init__.py", "__main__.py"))} == set()


def test_the_map_names_only_what_is_there() -> None:
    assert {each for each in NAMED if not (ROOT / each).exists()} == set()
