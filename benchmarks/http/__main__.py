"""What a request costs the client in CPU time, and how many it makes a second, against a local service in a process of its own.

    python -m benchmarks.http [--rounds N] [--seed N] [--mode MODE]... [--json FILE]

The modes ``sync``, ``async`` and ``async-32`` put around httpx what programs put around it; ``engines-*`` put our transport with the full
policy over httpx, httpx2, httpx-aiohttp and pyqwest. A number at the end is how many calls are in flight at once, on one shared client.

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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.http import clients, engines, server
from benchmarks.measure import Samples, Spread, Table, interleave, machine, ratio


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


@dataclass(slots=True)
class Measured:
    """Microseconds a request: of CPU, and by the clock from the first to the last divided by their number."""

    cpu: Samples
    clock: Samples = field(default_factory=dict)


def measure(mode: Mode, port: int, url: str, rounds: int, rng: random.Random) -> Measured:
    """One mode: blocking calls one after the other, or ``at_once`` of them in flight on one event loop."""
    if not mode.at_once:
        made = mode.clients(port, url)
        measured = _measure(mode, {name: _blocking(get, mode) for name, (get, _) in made.items()}, rounds, rng)
        for _, client in made.values():
            client.close()
        return measured
    with asyncio.Runner() as runner:

        async def make() -> dict[str, tuple[clients.GetAsync, Any]]:
            return mode.clients(port, url)

        made = runner.run(make())
        works = {name: _awaiting(get, mode, runner) for name, (get, _) in made.items()}
        measured = _measure(mode, works, rounds, rng)
        for _, client in made.values():
            runner.run(client.aclose())
    return measured


def _blocking(get: clients.Get, mode: Mode) -> Callable[[], None]:
    def work() -> None:
        for _ in range(mode.requests):
            get()

    return work


def _awaiting(get: clients.GetAsync, mode: Mode, runner: asyncio.Runner) -> Callable[[], None]:
    async def some() -> None:
        for _ in range(mode.requests // mode.at_once):
            await get()

    async def all_of_them() -> None:
        if mode.at_once == 1:
            await some()
        else:
            await asyncio.gather(*(some() for _ in range(mode.at_once)))

    return lambda: runner.run(all_of_them())


def _measure(mode: Mode, works: dict[str, Callable[[], None]], rounds: int, rng: random.Random) -> Measured:
    clock: Samples = {name: [] for name in works}

    def sampler(name: str) -> Callable[[], float]:
        def sample() -> float:
            began, spent = time.perf_counter_ns(), time.process_time_ns()
            works[name]()
            spent = time.process_time_ns() - spent
            clock[name].append((time.perf_counter_ns() - began) / mode.requests / 1e3)
            return spent / mode.requests / 1e3

        return sample

    cpu = interleave({name: sampler(name) for name in works}, rounds, rng)
    return Measured(cpu, {name: values[1:] for name, values in clock.items()})  # the first round warmed up


def summarise(name: str, mode: Mode, measured: Measured) -> dict[str, Any]:
    """One mode as plain data. A ratio is to bare httpx, for a client of httpx2 in ``sync`` and ``async`` to bare httpx2."""

    def base(candidate: str) -> str:
        return "httpx2" if mode.clients.__module__ == clients.__name__ and candidate.startswith("httpx2") else "httpx"

    cpu, clock = measured.cpu, measured.clock
    ratios = {each: ratio(cpu[each], cpu[base(each)]) for each in cpu}
    return {
        "mode": name,
        "cpu_us_per_request": {each: Spread.of(values).as_json() for each, values in cpu.items()},
        "ratio_to_bare": {each: spread.as_json() for each, spread in ratios.items()},
        "requests_per_second": {each: Spread.of([1e6 / value for value in values]).as_json() for each, values in clock.items()},
        "speed_to_bare": {each: ratio(clock[base(each)], clock[each]).as_json() for each in clock},
        "target": mode.target,
        "reached": ratios[mode.ours].median <= mode.target,
    }


def show(result: dict[str, Any], mode: Mode) -> str:
    """A line a candidate, the dearest last."""
    head = ["", "CPU us", "ratio to bare", "requests/s", "times bare"]
    table = Table(f"{result['mode']}: a request of the client, medians [quartiles]", head)
    ratios = result["ratio_to_bare"]
    for name in sorted(ratios, key=lambda name: ratios[name]["median"]):
        spent, times = result["cpu_us_per_request"][name], ratios[name]
        table.rows.append([
            name, f"{spent['median']:.0f} [{spent['q1']:.0f}-{spent['q3']:.0f}]",
            f"{times['median']:.3f} [{times['q1']:.3f}-{times['q3']:.3f}]",
            f"{result['requests_per_second'][name]['median']:,.0f}", f"{result['speed_to_bare'][name]['median']:.2f}",
        ])
    missed = (ratios[mode.ours]["median"] - mode.target) * 100
    verdict = "reached" if result["reached"] else f"missed by {missed:.1f} points"
    return f"{table}\n\ntarget: a full policy at {mode.target:g} of bare httpx's CPU: {verdict}\n"


def main() -> int:
    """Measure, print, and write the JSON file if one is wanted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=12, help="samples of each candidate (default: 12)")
    parser.add_argument("--seed", type=int, default=1, help="of the order within a round (default: 1)")
    parser.add_argument("--mode", action="append", choices=list(MODES), help="measure only this; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
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
