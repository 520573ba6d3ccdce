"""Where counters are kept: in lists of this process, or in memory that it shares with other workers (``telemetry.workers``).

A ``Block`` is a row of counts and a row of sums under one key. Whoever counts does so in place:

    block.counts[RETRIES] += 1
    block.sums[0] += seconds

which loses nothing between threads, because no call stands between the load and the store (tests/engine/test_threads.py).
A child of a fork begins at nothing: what its parent has counted, the parent tells.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, MutableSequence

#: What a block is about: its kind, and what tells it from others of the kind.
BlockKey = tuple[str, ...]
#: Gives the memory of a block, by its key and the lengths of its two rows.
Memory = Callable[[BlockKey, int, int], tuple[MutableSequence[int], MutableSequence[float]]]


class Block:
    """A row of counts and a row of sums. Both may move to other memory: read the attribute each time."""

    __slots__ = ("__weakref__", "counts", "key", "sums")

    def __init__(self, ledger: Ledger, key: BlockKey, counts: int, sums: int) -> None:
        self.key = key
        self.counts: MutableSequence[int] = [0] * counts
        self.sums: MutableSequence[float] = [0.0] * sums
        ledger.add(self)


def in_lists(key: BlockKey, counts: int, sums: int) -> tuple[MutableSequence[int], MutableSequence[float]]:
    """Memory of this process alone."""
    return [0] * counts, [0.0] * sums


class Ledger:
    """All blocks of one mesh. A block that nobody holds any more is forgotten."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: weakref.WeakSet[Block] = weakref.WeakSet()
        self._memory: Memory = in_lists

    def add(self, block: Block) -> None:
        """Keep an empty block."""
        with self._lock:
            if self._memory is not in_lists:
                block.counts, block.sums = self._memory(block.key, len(block.counts), len(block.sums))
            self._blocks.add(block)

    def move(self, memory: Memory) -> None:
        """Keep everything there from now on, with what was counted so far. A count of this very moment may be lost."""
        with self._lock:
            self._memory = memory
            for block in self._blocks:
                counts, sums = memory(block.key, len(block.counts), len(block.sums))
                for at, count in enumerate(block.counts):
                    if count:
                        counts[at] += count
                for at, total in enumerate(block.sums):
                    sums[at] += total
                block.counts, block.sums = counts, sums

    def after_fork(self, memory: Memory | None = None) -> None:
        """In a child: nothing was counted yet. ``memory``: its own, where its parent's is shared."""
        self._lock = threading.Lock()
        self._memory = memory or in_lists
        # A copy: the parent's other threads may have been in the middle of a change.
        for block in list(self._blocks):
            block.counts, block.sums = self._memory(block.key, len(block.counts), len(block.sums))

    def __iter__(self) -> Iterator[Block]:
        with self._lock:
            return iter(list(self._blocks))
