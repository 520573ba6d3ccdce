"""Interleaved measurement: in every round each candidate gives one sample, in random order.

On a shared machine an absolute figure of one run says little. What is claimed is a ratio of two candidates
within the same rounds, with its spread: the median over rounds and the quartiles around it.
"""

from __future__ import annotations

import gc
import os
import platform
import random
import statistics
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

#: One figure of one candidate; whatever it counts, less is better.
Sampler = Callable[[], float]
Samples = dict[str, list[float]]


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(statistics.median(values), low, high)

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}-{self.high:.2f}]"

    def as_json(self) -> dict[str, float]:
        return {"median": round(self.median, 4), "q1": round(self.low, 4), "q3": round(self.high, 4)}


def interleave(samplers: Mapping[str, Sampler], rounds: int, rng: random.Random) -> Samples:
    """``rounds`` samples of each, every round in an order of its own. One round before them warms up."""
    samples: Samples = {name: [] for name in samplers}
    order = list(samplers)
    for number in range(rounds + 1):
        rng.shuffle(order)
        gc.collect()
        for name in order:
            value = samplers[name]()
            if number:
                samples[name].append(value)
    return samples


def over(samples: Samples, name: str, base: str) -> list[float]:
    """What ``name`` costs above ``base``, round by round."""
    return [value - bare for value, bare in zip(samples[name], samples[base], strict=True)]


def ratio(above: list[float], below: list[float]) -> Spread:
    """How many times ``below``, round by round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True) if b > 0] or [float("nan")])


@dataclass(slots=True)
class Table:
    """Columns as wide as their widest cell; the first is left-aligned, the rest are right-aligned."""

    title: str
    head: list[str]
    rows: list[list[str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.head))]
        shown = ["  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
                 for line in lines]
        return "\n".join([self.title, "", shown[0].rstrip(), "  ".join("-" * w for w in widths), *(line.rstrip() for line in shown[1:])])


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    model = next((line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return {"python": sys.version.split()[0], "cpu": model, "cores": os.cpu_count(), "system": platform.system()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
