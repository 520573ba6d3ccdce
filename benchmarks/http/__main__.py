"""What a request costs the client in CPU time, and how many it makes a second, against a local service in a process of its own.

    python -m benchmarks.http [--rounds N] [--seed N] [--mode MODE]... [--json FILE]

The modes ``sync``, ``async`` and ``async-32`` put around httpx what programs put around it; ``engines-*`` put our transport with the full
policy over httpx, httpx2, httpx-aiohttp and pyqwest. A number at the end is how many calls are in flight at once, on one shared client.

Every candidate gives one sample a round, in random order, with a client and connections of its own. ``httpx, again`` is a second bare
client: its ratio shows what is noise.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks import load
from benchmarks.http import clients, engines, server
from benchmarks.load import Measured
from benchmarks.measure import machine


@dataclass(frozen=True, slots=True)
class Mode:
    """``clients``: of port and URL. ``requests`` of a sample, ``at_once`` in flight; 0: no event loop.

    ``ours`` may cost ``target`` times what bare httpx does.
    """

    clients: Callable[[int, str], dict[str, tuple[Any, Any]]]
    requests: int
    at_once: int
    ours: str
    target: float


MODES = {
    "sync": Mode(clients.sync_clients, 60, 0, "resilmesh", 1.03),
    "async": Mode(clients.async_clients, 60, 1, "resilmesh", 1.03),
    "async-32": Mode(clients.async_clients, 96, 32, "resilmesh", 1.0),
    "engines-sync": Mode(engines.sync_clients, 60, 0, "httpx + resilmesh", 1.03),
    "engines-async": Mode(engines.async_clients, 60, 1, "httpx + resilmesh", 1.03),
    "engines-async-32": Mode(engines.async_clients, 320, 32, "httpx + resilmesh", 1.0),
    "engines-async-64": Mode(engines.async_clients, 320, 64, "httpx + resilmesh", 1.0),
}


def measure(mode: Mode, port: int, url: str, rounds: int, rng: random.Random) -> Measured:
    """One mode: blocking calls one after the other, or ``at_once`` of them in flight on one event loop."""
    if not mode.at_once:
        made = mode.clients(port, url)
        works = {name: load.one_by_one(get, mode.requests) for name, (get, _) in made.items()}
        measured = load.measure(works, mode.requests, rounds, rng)
        for _, client in made.values():
            client.close()
        return measured
    with asyncio.Runner() as runner:

        async def make() -> dict[str, tuple[clients.GetAsync, Any]]:
            return mode.clients(port, url)

        made = runner.run(make())
        works = {name: load.on_loop(get, mode.requests, mode.at_once, runner) for name, (get, _) in made.items()}
        measured = load.measure(works, mode.requests, rounds, rng)
        for _, client in made.values():
            runner.run(client.aclose())
    return measured


def summarise(name: str, mode: Mode, measured: Measured) -> dict[str, Any]:
    """One mode as plain data. A ratio is to bare httpx, for a client of httpx2 in ``sync`` and ``async`` to bare httpx2."""

    def base(candidate: str) -> str:
        return "httpx2" if mode.clients.__module__ == clients.__name__ and candidate.startswith("httpx2") else "httpx"

    found = load.figures(measured, "request", base)
    return {
        "mode": name, **found, "target": mode.target, "reached": found["ratio_to_bare"][mode.ours]["median"] <= mode.target,
    }


def show(result: dict[str, Any], mode: Mode) -> str:
    """A line a candidate, the dearest last."""
    table = load.table(result, f"{result['mode']}: a request of the client", "request")
    missed = (result["ratio_to_bare"][mode.ours]["median"] - mode.target) * 100
    verdict = "reached" if result["reached"] else f"missed by {missed:.1f} points"
    return f"{table}\n\ntarget: a full policy at {mode.target:g} of bare httpx's CPU: {verdict}\n"


def main() -> int:
    """Measure, print, and write the JSON file if one is wanted."""
    options = load.arguments("benchmarks.http", __doc__, list(MODES), rounds=12)
    rng = random.Random(options.seed)
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "seed": options.seed, "modes": []}
    with server.running() as port:
        url = f"http://127.0.0.1:{port}/items/7?colour=blue"
        for name in options.mode or MODES:
            print(f"measuring {name} ...", file=sys.stderr)
            mode = MODES[name]
            report["modes"].append(summarise(name, mode, measure(mode, port, url, options.rounds, rng)))
            print(show(report["modes"][-1], mode), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
