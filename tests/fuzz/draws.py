"""A fuzzer's bytes, read as decisions: the same bytes give the same decisions, and when they run out each is the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Draws:
    """Takes decisions from ``data``, front to back."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def below(self, limit: int) -> int:
        """A number from 0 up to ``limit``, which is at most 65,536."""
        taken = self.raw(1 if limit <= 256 else 2)
        return int.from_bytes(taken, "little") % limit

    def pick(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def raw(self, length: int) -> bytes:
        """The next ``length`` bytes, or as many as there are."""
        taken = self._data[self._at : self._at + length]
        self._at += len(taken)
        return taken

    def text(self, length: int = 12) -> str:
        """Up to ``length`` characters; only those of one byte and what UTF-8 makes of the rest."""
        return self.raw(self.below(length + 1)).decode(errors="replace")

    def rest(self) -> bytes:
        return self.raw(len(self._data))
