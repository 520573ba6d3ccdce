"""What a gRPC call costs the client in CPU time, and how many it makes a second, against a local service in a process of its own.

    python -m benchmarks.grpc [--rounds N] [--seed N] [--mode MODE]... [--json FILE]

``sync``, ``aio`` and ``aio-32`` make unary calls, of which the last has 32 in flight on one channel; ``stream`` and ``aio-stream`` read a
stream of messages. What is put around grpcio is in ``clients.py``.

CPU time is the whole process's, the threads of grpcio's core included. Every candidate gives one sample a round, in random order, with a
channel and a connection of its own. All of them are in one process: grpcio's core polls all connections there together, so each is
disturbed by the same idle ones; in processes of their own each would have another layout of memory, other threads and other cores, which
is more than a policy costs. ``grpcio, again`` is a second bare channel: its ratio shows what is noise.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks import load
from benchmarks.grpc import clients, server
from benchmarks.load import Measured, Work
from benchmarks.measure import machine
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

BARE, OURS = "grpcio", "resilmesh"
#: The full policy may cost so many times what bare grpcio does.
TARGET = 1.06


@dataclass(frozen=True, slots=True)
class Mode:
    """``pieces``: how many calls, or messages of one stream, are a sample; ``at_once`` are in flight, 0: no event loop."""

    piece: str
    pieces: int
    at_once: int


MODES = {
    "sync": Mode("call", 200, 0),
    "aio": Mode("call", 200, 1),
    "aio-32": Mode("call", 320, 32),
    "stream": Mode("message", 3000, 0),
    "aio-stream": Mode("message", 2000, 1),
}


def measure(mode: Mode, port: int, rounds: int, rng: random.Random) -> Measured:
    """One mode."""
    if not mode.at_once:
        channels = clients.channels(port)
        works = {name: _blocking(ShopStub(channel), mode) for name, channel in channels.items()}
        measured = load.measure(works, mode.pieces, rounds, rng)
        for channel in channels.values():
            channel.close()
        return measured
    with asyncio.Runner() as runner:

        async def make() -> Any:
            return clients.aio_channels(port)

        made = runner.run(make())
        awaiting = {name: _awaiting(ShopStub(channel), mode, runner) for name, channel in made.items()}
        measured = load.measure(awaiting, mode.pieces, rounds, rng)
        for channel in made.values():
            runner.run(channel.close())
    return measured


def _blocking(stub: Any, mode: Mode) -> Work:
    if mode.piece == "call":
        order = Order(text="tea")
        return load.one_by_one(lambda: stub.Buy(order), mode.pieces)

    def read() -> None:
        assert sum(1 for _ in stub.Watch(Order(number=mode.pieces))) == mode.pieces

    return load.one_by_one(read, 1)


def _awaiting(stub: Any, mode: Mode, runner: asyncio.Runner) -> Work:
    if mode.piece == "call":
        order = Order(text="tea")

        async def call() -> None:
            await stub.Buy(order)

        return load.on_loop(call, mode.pieces, mode.at_once, runner)

    async def read() -> None:
        count = 0
        async for _ in stub.Watch(Order(number=mode.pieces)):
            count += 1
        assert count == mode.pieces

    return load.on_loop(read, 1, 1, runner)


def summarise(name: str, mode: Mode, measured: Measured) -> dict[str, Any]:
    """One mode as plain data; a ratio is to bare grpcio."""
    found = load.figures(measured, mode.piece, lambda _: BARE)
    return {"mode": name, **found, "target": TARGET, "reached": found["ratio_to_bare"][OURS]["median"] <= TARGET}


def show(result: dict[str, Any], mode: Mode) -> str:
    """A line a candidate, the dearest last; and what is not there."""
    missed = (result["ratio_to_bare"][OURS]["median"] - TARGET) * 100
    verdict = "reached" if result["reached"] else f"missed by {missed:.1f} points"
    lines = [str(load.table(result, f"{result['mode']}: a {mode.piece}", mode.piece)), ""]
    if mode.at_once and clients.kit is None:
        lines.append("grpc-client-kit is for Python 3.12 and newer: not measured")
    return "\n".join([*lines, f"target: a full policy at {TARGET:g} of bare grpcio's CPU: {verdict}", ""])


def main() -> int:
    """Measure, print, and write the JSON file if one is wanted."""
    options = load.arguments("benchmarks.grpc", __doc__, list(MODES), rounds=31)
    rng = random.Random(options.seed)
    report: dict[str, Any] = {"machine": machine(), "rounds": options.rounds, "seed": options.seed, "modes": []}
    with server.running() as port:
        for name in options.mode or MODES:
            print(f"measuring {name} ...", file=sys.stderr)
            mode: Mode = MODES[name]
            report["modes"].append(summarise(name, mode, measure(mode, port, options.rounds, rng)))
            print(show(report["modes"][-1], mode), flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
