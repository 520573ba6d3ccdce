"""What the cases of this directory are written with: a policy over gRPC services, and the question whether anything is left of a case."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from resilmesh import Mesh
from tests.grpc.grpc_service import OK, GrpcService
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

#: The host of the one service.
HOST = "shop.test"
#: Every block that a call goes through, none of which has reason to say anything.
FULL = {
    "timeout": "20s",
    "retries": "{maxRetries: 2, perTryTimeout: 10s, retryOn: [unavailable, connect-failure, refused-stream, reset], backoff: {base: 1ms}}",
    "circuitBreaker": "{failureRateThreshold: 100}",
    "concurrency": "{maxRequests: 100}",
    "rateLimit": "{requests: 100000, per: 1s}",
    "outlierDetection": "{consecutive5xxErrors: 100000}",
}
#: What stays in the process whatever a case does: timers of ours, and the poller of grpc.aio.
_PROCESS_WIDE = ("resilmesh-grpc-timers",)

_meshes: list[Mesh] = []


def policy(*services: Any, mesh: str = "", **blocks: str) -> str:
    """A policy with one service, ``shop``, at the addresses of ``services``; ``blocks`` are written in YAML."""
    addresses = [each if isinstance(each, str) else each.address for each in services]
    lines = ["apiVersion: resilmesh/v1"]
    if mesh:
        lines.append(f"mesh: {mesh}")
    lines += ["services:", "- name: shop", f"  hosts: [{HOST}]", "  protocol: GRPC"]
    if addresses:
        lines.append("  endpoints: [" + ", ".join(f'{{address: "{each}"}}' for each in addresses) + "]")
    lines += [f"  {name}: {value}" for name, value in blocks.items()]
    return "\n".join(lines) + "\n"


def mesh_of(*services: Any, seed: int = 7, **blocks: str) -> Mesh:
    """A mesh of which ``nothing_left`` will ask whether it still holds anything."""
    mesh = Mesh.from_text(policy(*services, **blocks), seed=seed)
    _meshes.append(mesh)
    return mesh


def until(true: Callable[[], Any], seconds: float = 10.0) -> bool:
    """Whether it came true in that time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


async def until_async(true: Callable[[], Any], seconds: float = 10.0) -> bool:
    """The same, on an event loop."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.005)
    return True


def held(mesh: Mesh) -> int:
    """Calls, slots, places in a queue and probes that something still holds."""
    return _gauges(mesh.snapshot())


def _gauges(shown: Any) -> int:
    if isinstance(shown, dict):
        own = sum(abs(value) for key, value in shown.items() if key in ("inFlight", "pending", "probesOut") and isinstance(value, int))
        return own + sum(_gauges(value) for value in shown.values())
    if isinstance(shown, list):
        return sum(map(_gauges, shown))
    return 0


@contextmanager
def nothing_left() -> Iterator[None]:
    """After the block everything is as before: no call held by a mesh that was made in it, no thread, no connection more."""
    _warm()
    _meshes.clear()
    threads, sockets = _threads(), _sockets()
    yield
    for mesh in _meshes:
        assert until(lambda: held(mesh) == 0), mesh.snapshot()  # noqa: B023  # asked at once
    _meshes.clear()
    gc.collect()
    assert until(lambda: not _threads() - threads), _threads() - threads
    assert until(lambda: _sockets() <= sockets), f"{sockets} sockets before, {_sockets()} after"


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name not in _PROCESS_WIDE}


def _sockets() -> int:
    """Sockets of the process. grpc's own pollers are none."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
        except OSError:  # closed meanwhile
            continue
    return count


_warmed: list[bool] = []


def _warm() -> None:
    """What grpc makes once in a process is there."""
    if not _warmed:
        _warmed.append(True)
        with GrpcService(OK) as service, grpc.insecure_channel(service.address) as channel:
            ShopStub(channel).Buy(Order())
