"""Collects the diagnostics of one policy, each at its place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from resilmesh.policy import codes
from resilmesh.policy.codes import Code, Diagnostic
from resilmesh.policy.document import MAX_MISTAKES

if TYPE_CHECKING:
    from resilmesh.policy.document import Path
    from resilmesh.policy.load import Loaded


class Report:
    """What was found so far. Of several findings with one code at one path the first stays."""

    def __init__(self, loaded: Loaded) -> None:
        self._source = loaded.source
        self._places = loaded.places
        self._found: dict[tuple[str, Path], Diagnostic] = {}

    def add(self, code: Code, path: Path, message: str, hint: str | None = None, *, at_key: bool = False) -> None:
        """``hint`` is the code's own remedy unless given. ``at_key``: the place is the key, also of a plain value."""
        line, column = (self._places.key_line_column if at_key else self._places.line_column)(path)
        if hint is None:
            hint = code.remedy.rstrip(".").replace("`", "'")
        found = Diagnostic(self._source, line, column, code.code, message, hint, code.severity)
        self._found.setdefault((code.code, path), found)

    def line(self, path: Path) -> str:
        """`` (line 5)``, or nothing where no line is known: what refers to another place."""
        line = self._places.line_column(path)[0]
        return f" (line {line})" if line else ""

    def sorted(self) -> list[Diagnostic]:
        """Everything that was found, in the order of the text."""
        found = in_order(self._found.values())
        errors = [each for each in found if each.severity == "error"]
        if len(errors) <= MAX_MISTAKES:
            return found
        return in_order([*first_of(errors), *(each for each in found if each.severity == "warning")])


def in_order(found: Iterable[Diagnostic]) -> list[Diagnostic]:
    """In the order of the text."""
    return sorted(found, key=lambda each: (each.line, each.column, each.code))


def first_of(mistakes: list[Diagnostic]) -> list[Diagnostic]:
    """``mistakes``, or when they are too many to be read the first of them and how many there are more."""
    if len(mistakes) <= MAX_MISTAKES:
        return mistakes
    more, last = len(mistakes) - MAX_MISTAKES, mistakes[MAX_MISTAKES]
    return [*mistakes[:MAX_MISTAKES], Diagnostic(last.file, last.line, last.column, codes.MORE.code, f"and {more} more mistakes")]
