"""The machine: what it is, and whether somebody else used it during a run.

A comparison on a shared machine measures the neighbours too. Nothing is corrected for them; a run that they may have
moved is marked ``DISTURBED``, for one of three signs: others used more than a tenth of the machine, its host took more
than a fiftieth of it away (steal), or sleeping callers were woken more than 10 ms late once in a hundred times.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resilmesh.compare.stats import quantile

_OTHERS = 0.10
_STEAL = 0.02
_LATE = 0.010
_STAT = Path("/proc/stat")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """Where the figures come from, as far as they depend on it. ``load`` is the average of the last minute, before the runs."""
    return {
        "platform": f"{platform.system()} {platform.machine()}", "kernel": platform.release(), "cpu": _cpu_model(), "cpus": cpus(),
        "memory_mib": _memory_mib(), "python": f"{platform.python_implementation()} {platform.python_version()}", "load": load(),
    }


def load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or "unknown"


def _memory_mib() -> int | None:
    with contextlib.suppress(ValueError, OSError, AttributeError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    return None


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Signs of a machine that was not ours alone during one run. Shares of the whole machine, 0 to 1; None: cannot be known here."""

    others: float | None = None
    steal: float | None = None
    #: How late a caller that slept until its call was due was woken, at the 99th percentile, in seconds.
    overslept: float = 0.0

    @property
    def reasons(self) -> list[str]:
        """Why the run counts as disturbed, in words; empty when it does not."""
        found = []
        if self.others is not None and self.others > _OTHERS:
            found.append(f"other processes used {self.others:.0%} of the machine")
        if self.steal is not None and self.steal > _STEAL:
            found.append(f"the host took {self.steal:.0%} of the machine away")
        if self.overslept > _LATE:
            found.append(f"callers were woken {self.overslept * 1000:.0f} ms late (p99)")
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "disturbed": bool(self.reasons), "reasons": self.reasons,
            "others_share": _rounded(self.others), "steal_share": _rounded(self.steal), "overslept_ms_p99": round(self.overslept * 1000, 3),
        }


@dataclass(slots=True)
class Interference:
    """Filled in when the block of ``interference`` ends."""

    others: float | None = None
    steal: float | None = None

    def of(self, overslept: Sequence[float]) -> Disturbance:
        return Disturbance(self.others, self.steal, quantile(overslept, 0.99) if overslept else 0.0)


@dataclass(frozen=True, slots=True)
class Reading:
    """CPU seconds so far: of everybody, ours, and stolen."""

    busy: float
    stolen: float
    ours: float
    at: float = field(default_factory=time.monotonic)


@contextlib.contextmanager
def interference() -> Iterator[Interference]:
    """Measure what others use from the beginning to the end of the block. Our own is this process and what it started."""
    found = Interference()
    before = read()
    yield found
    after = read()
    if before is not None and after is not None:
        whole = (after.at - before.at) * (os.cpu_count() or 1)
        foreign = (after.busy - before.busy) - (after.ours - before.ours)
        found.others = max(0.0, foreign / whole)
        found.steal = (after.stolen - before.stolen) / whole


def read() -> Reading | None:
    """Now; None where there is no /proc or no psutil."""
    try:
        import psutil

        first = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except (ImportError, OSError):
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (int(each) / _TICKS for each in first)
    ours = 0.0
    this = psutil.Process()
    for each in (this, *this.children(recursive=True)):
        # A process may end between the list and the look.
        with contextlib.suppress(psutil.NoSuchProcess):
            times = each.cpu_times()
            ours += times.user + times.system
    return Reading(user + nice + system + irq + softirq, steal, ours)


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)
