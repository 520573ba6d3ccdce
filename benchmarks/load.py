"""Clients under load: what each spends of the CPU for a piece of work, and how much work it does a second, set against a bare one."""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Samples, Spread, Table, interleave, ratio

#: Gives what each act of it took, in nanoseconds by the clock.
Work = Callable[[], list[int]]


@dataclass(slots=True)
class Measured:
    """Microseconds a piece of work: of CPU, and by the clock from the first to the last divided by their number.

    ``p50``: what half of them took by the clock, each alone; empty where they are not timed one by one.
    """

    cpu: Samples
    clock: Samples
    p50: Samples


def one_by_one(act: Callable[[], object], times: int) -> Work:
    """``act``, so many times."""
    def work() -> list[int]:
        taken = []
        for _ in range(times):
            began = time.perf_counter_ns()
            act()
            taken.append(time.perf_counter_ns() - began)
        return taken

    return work


def on_loop(act: Callable[[], Awaitable[object]], times: int, at_once: int, runner: asyncio.Runner) -> Work:
    """The same on an event loop, with so many in flight."""
    async def some(taken: list[int]) -> None:
        for _ in range(times // at_once):
            began = time.perf_counter_ns()
            await act()
            taken.append(time.perf_counter_ns() - began)

    async def all_of_them() -> list[int]:
        taken: list[int] = []
        if at_once == 1:
            await some(taken)
        else:
            await asyncio.gather(*(some(taken) for _ in range(at_once)))
        return taken

    return lambda: runner.run(all_of_them())


def measure(works: dict[str, Work], pieces: int, rounds: int, rng: random.Random) -> Measured:
    """Each of ``works`` does ``pieces`` of work in every round."""
    clock: Samples = {name: [] for name in works}
    p50: Samples = {name: [] for name in works}

    def sampler(name: str) -> Callable[[], float]:
        def sample() -> float:
            began, spent = time.perf_counter_ns(), time.process_time_ns()
            taken = works[name]()
            spent = time.process_time_ns() - spent
            clock[name].append((time.perf_counter_ns() - began) / pieces / 1e3)
            if len(taken) == pieces:
                p50[name].append(statistics.median(taken) / 1e3)
            return spent / pieces / 1e3

        return sample

    cpu = interleave({name: sampler(name) for name in works}, rounds, rng)
    for name in works:  # the first round warmed up
        del clock[name][:1], p50[name][:1]
    return Measured(cpu, clock, {name: values for name, values in p50.items() if values})


def figures(measured: Measured, piece: str, base: Callable[[str], str]) -> dict[str, Any]:
    """As plain data. ``base`` says what a candidate is set against; ``piece`` is the word for one of the work."""
    cpu, clock = measured.cpu, measured.clock
    return {
        f"cpu_us_per_{piece}": {each: Spread.of(values).as_json() for each, values in cpu.items()},
        "ratio_to_bare": {each: ratio(cpu[each], cpu[base(each)]).as_json() for each in cpu},
        f"p50_us_per_{piece}": {each: Spread.of(values).as_json() for each, values in measured.p50.items()},
        f"{piece}s_per_second": {each: Spread.of([1e6 / value for value in values]).as_json() for each, values in clock.items()},
        "speed_to_bare": {each: ratio(clock[base(each)], clock[each]).as_json() for each in clock},
    }


def table(result: dict[str, Any], title: str, piece: str) -> Table:
    """``figures``, a line a candidate, the dearest last."""
    ratios, p50 = result["ratio_to_bare"], result[f"p50_us_per_{piece}"]
    shown = Table(f"{title}, medians [quartiles]", ["", "CPU us", "ratio to bare", "p50 us", f"{piece}s/s", "times bare"])
    for name in sorted(ratios, key=lambda name: ratios[name]["median"]):
        spent, times = result[f"cpu_us_per_{piece}"][name], ratios[name]
        shown.rows.append([
            name, f"{spent['median']:.0f} [{spent['q1']:.0f}-{spent['q3']:.0f}]",
            f"{times['median']:.3f} [{times['q1']:.3f}-{times['q3']:.3f}]", f"{p50[name]['median']:.0f}" if name in p50 else "-",
            f"{result[f'{piece}s_per_second'][name]['median']:,.0f}", f"{result['speed_to_bare'][name]['median']:.2f}",
        ])
    return shown


def arguments(program: str, purpose: str | None, modes: list[str], rounds: int) -> argparse.Namespace:
    """What such a benchmark is told; ``rounds`` where it is not."""
    parser = argparse.ArgumentParser(prog=f"python -m {program}", description=(purpose or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=rounds, help=f"samples of each candidate (default: {rounds})")
    parser.add_argument("--seed", type=int, default=1, help="of the order within a round (default: 1)")
    parser.add_argument("--mode", action="append", choices=modes, help="measure only this; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser.parse_args()
