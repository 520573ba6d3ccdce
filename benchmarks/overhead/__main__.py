"""What a guarded call costs over a bare one, in CPU time, on the path of success; and what importing the library costs.

    python -m benchmarks.overhead [--rounds N] [--seed N] [--case CASE]... [--json FILE]

Every candidate of a case gives one sample a round, in random order. The columns: the floor (``floor.py``), resilmesh, the fastest
other library, and ratios of the same rounds as median [quartiles]. Targets are nanoseconds over a bare call.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measure import Sampler, Samples, Spread, Table, interleave, machine, over, ratio
from benchmarks.overhead import floor, ours, peers, startup

Function = Callable[..., Any]

#: Nanoseconds over a bare call: sync, async.
TARGETS: dict[str, tuple[int | None, int | None]] = {
    "breaker": (450, 500),
    "consecutive": (None, None),
    "rate": (300, 350),
    "concurrency": (300, 350),
    "retry": (200, 250),
    "deadline": (None, 700),
    "stack": (1200, 1400),
    "stack+deadline": (1300, 1900),
    "rejected": (1000, 1200),
}
THREADS, THREADS_TARGET = 8, 0.9

FLOOR_SYNC: dict[str, Callable[[Function], Function]] = {
    "breaker": floor.breaker, "consecutive": floor.consecutive, "rate": floor.rate, "concurrency": floor.concurrency,
    "retry": floor.retry, "stack": floor.stack, "stack+deadline": floor.stack, "rejected": floor.consecutive,
}
FLOOR_ASYNC: dict[str, Callable[[Function], Function]] = {
    "breaker": floor.breaker_async, "consecutive": floor.consecutive_async, "rate": floor.rate_async,
    "concurrency": floor.concurrency_async, "retry": floor.retry_async, "deadline": floor.deadline_async, "stack": floor.stack_async,
    "stack+deadline": floor.stack_deadline_async, "rejected": floor.consecutive_async,
}

#: A sample is as many calls as take about this long.
SAMPLE_NS = 12_000_000
#: An async sample lets the event loop turn after this many calls, so that what calls leave in it is paid for.
TURN = 200
#: Calls of a sample with threads, all threads together.
THREAD_CALLS = 24_000


class Down(Exception):
    """What a guarded function raises until its circuit is open."""


def echo(value: int) -> int:
    """The function that is guarded."""
    return value


async def echo_async(value: int) -> int:
    """The coroutine function that is guarded."""
    return value


def fail(value: int) -> int:
    """Guarded where rejections are measured: called until the circuit is open, then never."""
    raise Down


async def fail_async(value: int) -> int:
    """The same as a coroutine function."""
    raise Down


# -------------------------------------------------------------------------------------------- one sample


def sync_sampler(function: Function, rejected: bool) -> Sampler:
    """Nanoseconds of CPU a call."""

    def spend(calls: int) -> int:
        start = time.process_time_ns()
        for _ in itertools.repeat(None, calls):
            function(1)
        return time.process_time_ns() - start

    def spend_rejected(calls: int) -> int:
        start = time.process_time_ns()
        for _ in itertools.repeat(None, calls):
            try:  # noqa: SIM105  # contextlib.suppress would be timed too
                function(1)
            except Exception:
                pass
        return time.process_time_ns() - start

    timed = spend_rejected if rejected else spend
    calls = _calls(timed)
    return lambda: timed(calls) / calls


def async_sampler(function: Function, rejected: bool, loop: asyncio.AbstractEventLoop) -> Sampler:
    """Nanoseconds of CPU an awaited call."""

    async def spend(calls: int) -> int:
        start = time.process_time_ns()
        for _ in itertools.repeat(None, calls // TURN):
            for _ in itertools.repeat(None, TURN):
                await function(1)
            await asyncio.sleep(0)
        return time.process_time_ns() - start

    async def spend_rejected(calls: int) -> int:
        start = time.process_time_ns()
        for _ in itertools.repeat(None, calls // TURN):
            for _ in itertools.repeat(None, TURN):
                try:  # noqa: SIM105  # contextlib.suppress would be timed too
                    await function(1)
                except Exception:
                    pass
            await asyncio.sleep(0)
        return time.process_time_ns() - start

    timed = spend_rejected if rejected else spend
    calls = _calls(lambda calls: loop.run_until_complete(timed(calls)))
    return lambda: loop.run_until_complete(timed(calls)) / calls


def _calls(spend: Callable[[int], int]) -> int:
    """How many calls make a sample of the wanted length."""
    spend(TURN)
    return max(1, SAMPLE_NS // max(1, spend(5 * TURN) // 5)) * TURN


def thread_sampler(function: Function, threads: int) -> Sampler:
    """Nanoseconds of time a call, all threads together: the inverse of throughput."""

    def work(begin: threading.Barrier) -> None:
        begin.wait()
        for _ in itertools.repeat(None, THREAD_CALLS // threads):
            function(1)

    def sample() -> float:
        begin = threading.Barrier(threads + 1)
        crew = [threading.Thread(target=work, args=(begin,)) for _ in range(threads)]
        for each in crew:
            each.start()
        begin.wait()
        start = time.perf_counter_ns()
        for each in crew:
            each.join()
        return (time.perf_counter_ns() - start) / THREAD_CALLS

    return sample


# --------------------------------------------------------------------------------------------- the cases


def measure_sync(case: str, rounds: int, rng: random.Random) -> Samples:
    """Each guard around a function."""
    rejected = case == "rejected"
    samplers = {"bare": sync_sampler(echo, rejected=False)}
    for name, guard in {"floor": FLOOR_SYNC[case], "resilmesh": ours.guard(case), **peers.guards(case, "sync")}.items():
        guarded = guard(fail if rejected else echo)
        if rejected:
            open_circuit(name, lambda guarded=guarded: guarded(1))
        samplers[name] = sync_sampler(guarded, rejected)
    return interleave(samplers, rounds, rng)


def measure_async(case: str, rounds: int, rng: random.Random, loop: asyncio.AbstractEventLoop) -> Samples:
    """Each guard around a coroutine function, all on one event loop."""

    rejected = case == "rejected"
    function = fail_async if rejected else echo_async

    async def guard() -> dict[str, Function]:
        # Some libraries ask for the running loop when they guard a function.
        guards = {"floor": FLOOR_ASYNC[case], "resilmesh": ours.guard(case), **peers.guards(case, "async")}
        return {name: each(function) for name, each in guards.items()}

    samplers = {"bare": async_sampler(echo_async, False, loop)}
    for name, guarded in loop.run_until_complete(guard()).items():
        if rejected:
            open_circuit(name, lambda guarded=guarded: loop.run_until_complete(guarded(1)))
        samplers[name] = async_sampler(guarded, rejected, loop)
    return interleave(samplers, rounds, rng)


def open_circuit(name: str, call: Callable[[], object]) -> None:
    """Fail until the guard refuses by itself."""
    for _ in range(10 * floor.MINIMUM):
        try:
            call()
        except Down:  # the function was called: not open yet
            continue
        except Exception:
            return
    raise RuntimeError(f"{name} never opened its circuit")


def measure_threads(rounds: int, rng: random.Random) -> Samples:
    """One guarded function called by one thread and by several, which make as many calls together."""
    samplers = {}
    for name, guard in {"floor": floor.stack, "resilmesh": ours.guard("stack"), **peers.threads()}.items():
        guarded = guard(echo)
        for threads in (1, THREADS):
            samplers[f"{name} x{threads}"] = thread_sampler(guarded, threads)
    return interleave(samplers, rounds, rng)


# -------------------------------------------------------------------------------------------- the report


def summarise(case: str, mode: str, samples: Samples) -> dict[str, Any]:
    """One case as plain data."""
    costs = {name: over(samples, name, "bare") for name in samples if name != "bare"}
    spent = {name: Spread.of(values) for name, values in costs.items()}
    others = {name: spread for name, spread in spent.items() if name not in ("floor", "resilmesh")}
    fastest = min(others, key=lambda name: others[name].median)
    target = TARGETS[case][mode == "async"]
    return {
        "case": case, "mode": mode, "bare_ns": statistics.median(samples["bare"]),
        "over_bare_ns": {name: spread.as_json() for name, spread in spent.items()},
        "ratio_to_floor": ratio(costs["resilmesh"], costs["floor"]).as_json(),
        "fastest_peer": fastest,
        "ratio_to_fastest_peer": ratio(costs["resilmesh"], costs[fastest]).as_json(),
        "target_ns": target,
        "reached": None if target is None else spent["resilmesh"].median <= target,
    }


def summarise_threads(samples: Samples) -> dict[str, Any]:
    """Throughput of several threads as a ratio to that of one."""
    names = dict.fromkeys(name.split()[0] for name in samples)
    ratios = {name: ratio(samples[f"{name} x1"], samples[f"{name} x{THREADS}"]) for name in names}
    return {
        "threads": THREADS, "throughput_ratio": {name: spread.as_json() for name, spread in ratios.items()},
        "target": THREADS_TARGET, "reached": ratios["resilmesh"].median >= THREADS_TARGET,
    }


def _spread(data: dict[str, float]) -> str:
    return f"{data['median']:.2f} [{data['q1']:.2f}-{data['q3']:.2f}]"


def _verdict(reached: bool | None, value: float, target: float | None) -> str:
    if target is None or reached is None:
        return "-"
    return "reached" if reached else f"missed by {abs(value - target) / target:.0%}"


def show(results: list[dict[str, Any]]) -> str:
    """A table of ours beside the floor and the fastest other library, and one line a case with every library."""
    table = Table("Nanoseconds of CPU over a bare call, medians; ratios as median [quartiles]",
                  ["case", "mode", "bare", "floor", "resilmesh", "fastest other", "ours / floor", "ours / fastest", "target", "verdict"])
    everyone = ["", "Every library, nanoseconds over a bare call:", ""]
    for each in results:
        spent = {name: spread["median"] for name, spread in each["over_bare_ns"].items()}
        fastest, target = each["fastest_peer"], each["target_ns"]
        table.rows.append([
            each["case"], each["mode"], f"{each['bare_ns']:.0f}", f"{spent['floor']:.0f}", f"{spent['resilmesh']:.0f}",
            f"{fastest} {spent[fastest]:.0f}", _spread(each["ratio_to_floor"]), _spread(each["ratio_to_fastest_peer"]),
            "-" if target is None else f"{target}", _verdict(each["reached"], spent["resilmesh"], target),
        ])
        ranking = ", ".join(f"{name} {value:,.0f}" for name, value in sorted(spent.items(), key=lambda pair: pair[1]))
        everyone.append(f"  {each['case']} {each['mode']}: {ranking}")
    return "\n".join([str(table), *everyone])


def show_threads(result: dict[str, Any]) -> str:
    """One line a library."""
    table = Table(f"Throughput of {THREADS} threads on one guarded function (stack), as a ratio to one thread's", ["library", "ratio"])
    table.rows = [[name, _spread(spread)] for name, spread in result["throughput_ratio"].items()]
    ours_now = result["throughput_ratio"]["resilmesh"]["median"]
    return f"{table}\n\ntarget {THREADS_TARGET}: {_verdict(result['reached'], ours_now, THREADS_TARGET)}"


def main() -> int:
    """Measure, print, and write the JSON file if one is wanted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=21, help="samples of each candidate (default: 21)")
    parser.add_argument("--seed", type=int, default=1, help="of the order within a round (default: 1)")
    parser.add_argument("--case", action="append", choices=[*TARGETS, "threads", "import"], help="measure only this; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    wanted = options.case or [*TARGETS, "threads", "import"]
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "seed": options.seed, "cases": []}

    loop = asyncio.new_event_loop()
    for case in (case for case in TARGETS if case in wanted):
        print(f"measuring {case} ...", file=sys.stderr)
        if case in FLOOR_SYNC:
            report["cases"].append(summarise(case, "sync", measure_sync(case, options.rounds, rng)))
        report["cases"].append(summarise(case, "async", measure_async(case, options.rounds, rng, loop)))
    loop.close()
    if report["cases"]:
        print(show(report["cases"]), end="\n\n")
    if "threads" in wanted:
        report["threads"] = summarise_threads(measure_threads(options.rounds, rng))
        print(show_threads(report["threads"]), end="\n\n")
    if "import" in wanted:
        report["import"] = startup.measure(options.rounds, rng)
        print(startup.show(report["import"]), end="\n\n")
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
