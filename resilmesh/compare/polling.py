"""What a sidecar says of itself while a run lasts: which endpoints it holds ejected, asked of its admin interface.

The interface is served by Envoy's main thread, the calls by its worker: a look takes about a millisecond of the former
ten times a second. Where costs are measured nobody looks.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from resilmesh.envoy.process import Envoy, EnvoyError

#: Seconds between two looks.
EVERY = 0.1


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen: ``at`` seconds of the run, the addresses of ejected endpoints."""

    at: float
    ejected: frozenset[str]


@contextlib.contextmanager
def watched(envoy: Envoy | None, epoch: float) -> Iterator[list[Look]]:
    """Look at ``envoy`` from now to the end of the block; the list grows meanwhile. Without an Envoy it stays empty."""
    looks: list[Look] = []
    if envoy is None:
        yield looks
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(envoy, epoch, looks, ended), name="resilmesh-compare-polling")
    watcher.start()
    try:
        yield looks
    finally:
        ended.set()
        watcher.join()


def _watch(envoy: Envoy, epoch: float, looks: list[Look], ended: threading.Event) -> None:
    while not ended.is_set():
        # An Envoy that dies is noticed by its calls; here there is just nothing to see.
        with contextlib.suppress(OSError, EnvoyError):
            hosts = [host for hosts in envoy.clusters().values() for host in hosts]
            looks.append(Look(time.monotonic() - epoch, frozenset(host.address for host in hosts if host.ejected)))
        ended.wait(EVERY)
