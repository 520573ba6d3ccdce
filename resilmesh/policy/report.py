"""Collects the diagnostics of one policy, each at its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resilmesh.policy.codes import Code, Diagnostic

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
        return sorted(self._found.values(), key=lambda each: (each.line, each.column, each.code))
