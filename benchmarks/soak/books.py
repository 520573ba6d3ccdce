"""What is there: threads, tasks, descriptors, children, objects, memory; and whether the mesh's own counts balance."""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resilmesh

_FATES = ("succeeded", "failed", "abandoned", "ignored")


@dataclass(frozen=True)
class Count:
    """One look at the process, after the garbage was collected."""

    threads: list[str]
    descriptors: list[str]
    children: int
    #: Objects of the library's own types that belong to calls or connections.
    objects: dict[str, int]
    blocks: int
    resident: int


#: A call, and what it takes along. What belongs to a policy stays as long as the policy.
_OF_A_CALL = frozenset({
    "Call", "SyncExchange", "AsyncExchange", "Body", "AsyncBody", "Ticket", "Permit", "Answer", "Limit", "Lane", "Attempt", "Connections",
    "Pool", "AsyncPool", "RequestBody", "Injection", "Blocking", "PendingCall", "FutureCall", "StreamReader", "StreamCall", "AioPending",
    "AioReader", "UnaryUnaryCall", "UnaryStreamCall", "StreamUnaryCall", "StreamStreamCall", "Subchannel", "Subchannels", "Method", "Timer",
})


def look() -> Count:
    for _ in range(3):
        gc.collect()
    _trim()
    found: Counter[str] = Counter()
    for each in gc.get_objects():
        kind = type(each)
        if kind.__name__ in _OF_A_CALL and kind.__module__.startswith("resilmesh"):
            found[kind.__name__] += 1
    return Count(
        # Those of grpc's have the number of all threads so far in their names.
        threads=sorted(re.sub(r"\d+", "N", thread.name) for thread in threading.enumerate()),
        descriptors=sorted(_descriptors()),
        children=_children(),
        objects=dict(sorted(found.items())),
        blocks=sys.getallocatedblocks(),
        resident=int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    )


def _trim() -> None:
    """Have glibc give back what is free, or the memory of threads that have ended would be counted as in use."""
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _descriptors() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}").partition(":")[0])
        except OSError:
            continue  # that of the listing itself
    return found


def _children() -> int:
    return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


def held(mesh: resilmesh.Mesh) -> list[str]:
    """Everything that the mesh still counts as in use: calls, slots, places in queues, probes, endpoints. Empty when all is well."""
    snapshot = mesh.snapshot()
    found = [] if not snapshot["inFlight"] else [f"{snapshot['inFlight']} calls in flight"]
    for name, service in snapshot["services"].items():
        for section, keys in (
            ("routes", ("inFlight",)), ("concurrency", ("inFlight", "pending")), ("endpoints", ("inFlight",)),
            ("circuitBreakers", ("probesOut",)),
        ):
            for which, shown in service[section].items():
                found += [f"{name}/{which}: {key} {shown[key]}" for key in keys if shown.get(key)]
    return found


def unbalanced(mesh: resilmesh.Mesh) -> list[str]:
    """Routes whose calls did not all come to an end that was counted."""
    found = []
    for name, service in mesh.snapshot()["services"].items():
        for route, shown in service["routes"].items():
            ended = sum(shown[fate] for fate in _FATES) + sum(shown["rejected"].values())
            if ended != shown["calls"]:
                found.append(f"{name}/{route}: {shown['calls']} calls, {ended} ended")
    return found


def totals(mesh: resilmesh.Mesh) -> dict[str, Any]:
    """The counts of all routes together."""
    added: Counter[str] = Counter()
    for service in mesh.snapshot()["services"].values():
        for shown in service["routes"].values():
            added.update({key: shown[key] for key in ("calls", *_FATES, "retries", "mirrored")})
            for key in ("rejected", "faults", "fallbacks", "retriesRefused"):
                added.update({f"{key}: {word}": count for word, count in shown[key].items()})
    return dict(sorted(added.items()))
