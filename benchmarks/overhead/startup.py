"""What ``import resilmesh`` adds to a bare interpreter, in processes of their own."""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.measure import Sampler, Spread, Table, interleave, over

TARGET_MS = 40.0
PROGRAMS = {
    "bare": "pass",
    "resilmesh": "import resilmesh",
    "nopanic": "import nopanic",
    "tenacity": "import tenacity",
    "httpx": "import httpx",
}


def _sampler(program: str, environment: dict[str, str]) -> Sampler:
    def sample() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True, env=environment)
        return (time.perf_counter() - start) * 1e3

    return sample


def measure(rounds: int, rng: random.Random) -> dict[str, Any]:
    """Milliseconds from start to end of a process, with everything compiled, as pip leaves it."""
    with tempfile.TemporaryDirectory() as compiled:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = compiled
        samples = interleave({name: _sampler(program, environment) for name, program in PROGRAMS.items()}, rounds, rng)
    spent = {name: Spread.of(over(samples, name, "bare")) for name in PROGRAMS if name != "bare"}
    return {
        "bare_ms": statistics.median(samples["bare"]),
        "over_bare_ms": {name: spread.as_json() for name, spread in spent.items()},
        "target_ms": TARGET_MS,
        "reached": spent["resilmesh"].median <= TARGET_MS,
    }


def show(result: dict[str, Any]) -> str:
    """One line a library."""
    table = Table(f"Milliseconds that an import adds to a bare interpreter ({result['bare_ms']:.1f} ms)", ["import", "ms [quartiles]"])
    table.rows = [[name, f"{each['median']:.1f} [{each['q1']:.1f}-{each['q3']:.1f}]"] for name, each in result["over_bare_ms"].items()]
    verdict = "reached" if result["reached"] else "missed"
    return f"{table}\n\ntarget {TARGET_MS:g} ms: {verdict}"
