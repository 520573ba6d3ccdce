"""One line of ``logging`` for each change of state: a circuit, an endpoint. Policies and identities say theirs where they change.

Rate-limited: of one kind about one service ``BURST`` lines at once and then one every ``EVERY`` seconds; a line that comes after some were
left out says how many. ``record.resilmesh`` has the event as a dict, for handlers that write JSON.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from resilmesh.engine.events import Event

log = logging.getLogger("resilmesh")

BURST = 10
EVERY = 1.0


class StateLog:
    """Writes the lines; called with every event that is not of a single call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: By kind and service: lines that may still be written, when that was, and how many were left out.
        self._allowed: dict[tuple[str, str], tuple[float, float, int]] = {}

    def __call__(self, event: Event) -> None:
        said = told(event)
        if said is None:
            return
        level, line = said
        left_out = self.admits(event.name, event.service, event.at)
        if left_out is None:
            return
        if left_out:
            line += f" ({left_out} more such lines were left out)"
        log.log(level, "%s", line, extra={"resilmesh": {
            "event": event.name, "service": event.service, "route": event.route, **event.detail,
        }})

    def admits(self, name: str, service: str, at: float) -> int | None:
        """Whether a line may be written (``None``: it may not), and how many were not since the last."""
        with self._lock:
            allowed, when, left_out = self._allowed.get((name, service), (float(BURST), at, 0))
            allowed = min(float(BURST), allowed + (at - when) / EVERY)
            if allowed < 1:
                self._allowed[name, service] = allowed, at, left_out + 1
                return None
            self._allowed[name, service] = allowed - 1, at, 0
            return left_out

    def after_fork(self) -> None:
        """No lock is held in a child."""
        self._lock = threading.Lock()


def told(event: Event) -> tuple[int, str] | None:
    """The level and the line of an event; ``None``: it has none."""
    where, detail = event.service if event.route is None else f"{event.service}/{event.route}", event.detail
    match event.name:
        case "circuit_changed":
            level = logging.WARNING if detail["new"] == "OPEN" else logging.INFO
            return level, f"circuit of {where}: {detail['old']} -> {detail['new']}, {detail['reason']}"
        case "circuit_would_open":
            return logging.WARNING, f"circuit of {where} would have opened, but is set to METRICS_ONLY: {detail['reason']}"
        case "endpoint_ejected":
            return logging.WARNING, f"{where}: {detail['endpoint']} is ejected for {detail['seconds']:g} s at least, {detail['reason']}"
        case "endpoint_returned":
            return logging.INFO, f"{where}: {detail['endpoint']} is back"
        case "injection_began":
            return logging.WARNING, f"{where}: a program injects faults from now on"
        case "injection_ended":
            return logging.INFO, f"{where}: it injects no more"
    return None
