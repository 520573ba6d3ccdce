"""``make soak [ARGS="--protocol grpc --calls 1000000 --seed 1 --json"]``: ends with 0 only if nothing is left.

The calls are made in rounds, each by fresh threads and event loops. After each round everything must be as it was after the first, which
has filled the caches: threads, descriptors, children, objects of calls and connections, what the mesh counts as in use; the number of
allocated blocks and the memory must have stopped growing. A run that hangs is ended with the stacks of all threads.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import resilmesh
from benchmarks.soak.books import Count, held, look, totals, unbalanced
from benchmarks.soak.callers import CALLERS
from benchmarks.soak.chaos import Chaos
from benchmarks.soak.policy import policies

#: Allocated blocks that a round may add at the end: lists and dictionaries of the interpreter's own round their sizes up.
BLOCKS_A_ROUND = 400
#: Bytes that the process may grow by over the last half of the rounds.
RESIDENT = 4 * 1024 * 1024
#: Seconds that a round of 100,000 calls may take before it is called hanging.
PATIENCE = 900


class Leaks(Exception):
    """What was left."""


def run(calls: int, rounds: int, seed: int, tell: Any, protocol: str = "http") -> dict[str, Any]:
    """The whole run. Raises ``Leaks`` with everything that is left."""
    module = "benchmarks.soak.grpc_service" if protocol == "grpc" else "benchmarks.soak.service"
    services = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(seed + number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(2)
    ]
    try:
        ports = [int(_line(service)) for service in services]
        texts = policies((f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}"), _unused_port(), protocol)
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "policy.yaml"
            file.write_text(texts[0])
            with resilmesh.Mesh.from_file(file, reload_interval=0.2, seed=seed) as mesh:
                return _rounds(mesh, file, texts, calls, rounds, seed, tell, protocol)
    finally:
        for service in services:
            assert service.stdin is not None
            assert service.stdout is not None
            service.stdin.close()
            service.wait(10)
            service.stdout.close()


def _rounds(
    mesh: resilmesh.Mesh, file: Path, texts: tuple[str, str], calls: int, rounds: int, seed: int, tell: Any, protocol: str,
) -> dict[str, Any]:
    looks: list[Count] = []
    disturbances: dict[str, int] = {}
    began = time.monotonic()
    for number in range(rounds):
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        chaos = Chaos(mesh, file, texts, random.Random(f"{seed}/chaos/{number}"), forks=protocol != "grpc")
        chaos.start()
        _round(mesh, callers(protocol), calls // rounds, f"{seed}/{number}")
        chaos.stop()
        for kind, count in chaos.done.items():
            disturbances[kind] = disturbances.get(kind, 0) + count
        _settle(mesh)
        looks.append(look())
        faulthandler.cancel_dump_traceback_later()
        made = totals(mesh)["calls"]
        tell(f"round {number + 1}/{rounds}: {made:,} calls, {looks[-1].resident / 2**20:.1f} MiB, {looks[-1].blocks:,} blocks, "
             f"{len(looks[-1].threads)} threads, {len(looks[-1].descriptors)} descriptors, {time.monotonic() - began:.0f} s")
    left = held(mesh) + unbalanced(mesh) + _left(looks[0], looks[-1]) + _growth(looks)
    if left:
        raise Leaks("\n".join(left))
    first, last, half = looks[0], looks[-1], looks[len(looks) // 2]
    return {
        "calls": totals(mesh)["calls"], "rounds": rounds, "seed": seed, "seconds": round(time.monotonic() - began, 1),
        "disturbances": dict(sorted(disturbances.items())), "counts": totals(mesh),
        "threads": [len(first.threads), len(last.threads)], "descriptors": [len(first.descriptors), len(last.descriptors)],
        "children": [first.children, last.children], "objects": [first.objects, last.objects],
        "blocks": [each.blocks for each in looks], "residentMiB": [round(each.resident / 2**20, 1) for each in looks],
        "residentGrowthOfLastHalfMiB": round((last.resident - half.resident) / 2**20, 2),
    }


def callers(protocol: str) -> dict[str, Any]:
    """Who calls. grpc is imported only where it is called."""
    if protocol != "grpc":
        return CALLERS
    from benchmarks.soak.grpc_callers import GRPC_CALLERS

    return GRPC_CALLERS


def _round(mesh: resilmesh.Mesh, callers: dict[str, Any], calls: int, seed: str) -> None:
    failures: list[BaseException] = []

    def guarded(name: str) -> None:
        caller, share = callers[name]
        try:
            caller(mesh, random.Random(f"{seed}/{name}"), max(20, calls * share // 1000))
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=(name,), name=name) for name in callers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _settle(mesh: resilmesh.Mesh) -> None:
    """Copies fly a little longer than their callers, and the poller may be at work."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        names = {thread.name for thread in threading.enumerate()}
        if not held(mesh) and not names.intersection(("resilmesh-mirror", "resilmesh-grpc-timers")):
            break
        time.sleep(0.05)
    time.sleep(1.5)  # the poller loads a changed file in a child process


def _left(first: Count, last: Count) -> list[str]:
    found = []
    for what in ("threads", "descriptors", "objects"):
        before, after = Counter(getattr(first, what)), Counter(getattr(last, what))
        found += [f"{what}: {count} {name} more than after the first round" for name, count in sorted((after - before).items())]
    if last.children > first.children:
        found.append(f"children: {last.children} at the end, {first.children} after the first round")
    return found


def _growth(looks: list[Count]) -> list[str]:
    later = looks[len(looks) // 2:]
    found = []
    if len(later) > 1:
        blocks = (later[-1].blocks - later[0].blocks) / (len(later) - 1)
        if blocks > BLOCKS_A_ROUND:
            found.append(f"{blocks:.0f} allocated blocks more each round")
        if later[-1].resident - later[0].resident > RESIDENT:
            found.append(f"{(later[-1].resident - later[0].resident) / 2**20:.1f} MiB more over the last half")
    return found


def _line(service: subprocess.Popen[str]) -> str:
    assert service.stdout is not None
    return service.stdout.readline()


def _unused_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description="Endurance: after it, nothing may be left.")
    parser.add_argument("--calls", type=int, default=1_000_000, help="at least so many (default: 1,000,000)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument(
        "--protocol", choices=("http", "grpc"), default="http", help="http: functions and HTTP clients (default); grpc: its stubs",
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    import logging

    logging.getLogger("resilmesh").setLevel(logging.CRITICAL)  # refused policies are part of it
    try:
        result = run(
            options.calls, options.rounds, options.seed, lambda text: print(text, file=sys.stderr, flush=True), options.protocol,
        )
    except Leaks as leaks:
        print(f"left over, with seed {options.seed}:\n{leaks}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for key, value in result.items():
            print(f"{key:28} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
