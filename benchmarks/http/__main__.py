"""What a request costs the client in CPU time, over bare httpx, against a local service in a process of its own.

    python -m benchmarks.http [--rounds N] [--seed N] [--mode MODE]... [--json FILE]

Every candidate gives one sample a round, in random order, with a client and connections of its own. ``httpx, again`` is a second bare
client: its ratio shows what is noise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.http import clients, server
from benchmarks.measure import Samples, Spread, Table, interleave, machine, ratio

#: Requests of a sample, and how many are in flight at once; 0: no event loop.
MODES: dict[str, tuple[int, int]] = {"sync": (60, 0), "async": (60, 1), "async-32": (160, 32)}
#: A full policy may cost this much of a bare request.
TARGET = 1.03
OURS = "resilmesh"


def measure_sync(port: int, url: str, requests: int, rounds: int, rng: random.Random) -> Samples:
    """Microseconds of CPU a request, one after the other."""
    made = clients.sync_clients(port, url)

    def sampler(get: clients.Get) -> Any:
        def sample() -> float:
            start = time.process_time_ns()
            for _ in range(requests):
                get()
            return (time.process_time_ns() - start) / requests / 1e3

        return sample

    samples = interleave({name: sampler(get) for name, (get, _) in made.items()}, rounds, rng)
    for _, client in made.values():
        client.close()
    return samples


def measure_async(port: int, url: str, requests: int, at_once: int, rounds: int, rng: random.Random) -> Samples:
    """Microseconds of CPU a request, ``at_once`` in flight, all on one event loop."""
    loop = asyncio.new_event_loop()

    async def make() -> dict[str, tuple[clients.GetAsync, Any]]:
        return clients.async_clients(port, url)

    made = loop.run_until_complete(make())

    def sampler(get: clients.GetAsync) -> Any:
        async def some() -> None:
            for _ in range(requests // at_once):
                await get()

        async def spend() -> float:
            start = time.process_time_ns()
            if at_once == 1:
                await some()
            else:
                await asyncio.gather(*(some() for _ in range(at_once)))
            return (time.process_time_ns() - start) / requests / 1e3

        return lambda: loop.run_until_complete(spend())

    samples = interleave({name: sampler(get) for name, (get, _) in made.items()}, rounds, rng)
    for _, client in made.values():
        loop.run_until_complete(client.aclose())
    loop.close()
    return samples


def summarise(mode: str, samples: Samples) -> dict[str, Any]:
    """One mode as plain data. A ratio is to the same library without anything around it."""
    ratios = {name: ratio(samples[name], samples["httpx2" if name.startswith("httpx2") else "httpx"]) for name in samples}
    return {
        "mode": mode,
        "cpu_us_per_request": {name: Spread.of(values).as_json() for name, values in samples.items()},
        "ratio_to_bare": {name: spread.as_json() for name, spread in ratios.items()},
        "target": TARGET,
        "reached": ratios[OURS].median <= TARGET,
    }


def show(result: dict[str, Any]) -> str:
    """A line a candidate, the dearest last."""
    table = Table(f"{result['mode']}: client CPU a request, median [quartiles]", ["", "microseconds", "ratio to bare"])
    ratios = result["ratio_to_bare"]
    for name in sorted(ratios, key=lambda name: ratios[name]["median"]):
        spent, times = result["cpu_us_per_request"][name], ratios[name]
        table.rows.append([name, f"{spent['median']:.0f} [{spent['q1']:.0f}-{spent['q3']:.0f}]",
                           f"{times['median']:.3f} [{times['q1']:.3f}-{times['q3']:.3f}]"])
    missed = (ratios[OURS]["median"] - TARGET) * 100
    verdict = "reached" if result["reached"] else f"missed by {missed:.1f} points"
    return f"{table}\n\ntarget: a full policy at {TARGET:g} of bare: {verdict}\n"


def main() -> int:
    """Measure, print, and write the JSON file if one is wanted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31, help="samples of each candidate (default: 31)")
    parser.add_argument("--seed", type=int, default=1, help="of the order within a round (default: 1)")
    parser.add_argument("--mode", action="append", choices=list(MODES), help="measure only this; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "seed": options.seed, "modes": []}
    with server.running() as port:
        url = f"http://127.0.0.1:{port}/items/7?colour=blue"
        for mode in options.mode or MODES:
            print(f"measuring {mode} ...", file=sys.stderr)
            requests, at_once = MODES[mode]
            if at_once:
                samples = measure_async(port, url, requests, at_once, options.rounds, rng)
            else:
                samples = measure_sync(port, url, requests, options.rounds, rng)
            report["modes"].append(summarise(mode, samples))
            print(show(report["modes"][-1]))
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
