"""A gRPC service that does next to nothing, in a process of its own: a receipt for an order, or as many as the order says.

    python -m benchmarks.grpc.server       prints its port; ends when its standard input does
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio

from tests.grpc.protos.shop_pb2 import Order, Receipt
from tests.grpc.protos.shop_pb2_grpc import ShopServicer, add_ShopServicer_to_server

RECEIPT = Receipt(text="tea", number=7, payload=b"x" * 200)


class Shop(ShopServicer):  # type: ignore[misc]  # generated code has no types
    """Its two methods that are measured."""

    async def Buy(self, request: Order, context: Any) -> Receipt:
        return RECEIPT

    async def Watch(self, request: Order, context: Any) -> AsyncIterator[Receipt]:
        for _ in range(request.number):
            yield RECEIPT


async def serve() -> None:
    """Until standard input ends."""
    server = grpc.aio.server()
    add_ShopServicer_to_server(Shop(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await server.stop(None)


@contextlib.contextmanager
def running() -> Iterator[int]:
    """The service in a process of its own; gives its port."""
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.grpc.server"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


if __name__ == "__main__":
    asyncio.run(serve())
