"""What the cases of functions are written with: a mesh of one service, and the question whether anything is still held."""

from __future__ import annotations

from typing import Any

from resilmesh import Event, Mesh
from resilmesh.clock import Clock


def policy(*, mesh: str = "", **blocks: str) -> str:
    """A policy with one service, ``svc``; ``blocks`` are written in YAML."""
    lines = ["apiVersion: resilmesh/v1"]
    if mesh:
        lines.append(f"mesh: {mesh}")
    lines += ["services:", "- name: svc", *(f"  {name}: {value}" for name, value in blocks.items())]
    return "\n".join(lines) + "\n"


def mesh_of(*, clock: Clock | None = None, seed: int = 7, mesh: str = "", **blocks: str) -> Mesh:
    return Mesh.from_text(policy(mesh=mesh, **blocks), clock=clock, seed=seed)


def stats(mesh: Mesh) -> dict[str, Any]:
    """The counters of the one service."""
    counters: dict[str, Any] = mesh.snapshot()["services"]["svc"]["routes"]["*"]
    return counters


def circuit(mesh: Mesh) -> dict[str, Any]:
    shown: dict[str, Any] = mesh.snapshot()["services"]["svc"]["circuitBreakers"]["*"]
    return shown


def idle(mesh: Mesh) -> bool:
    """No call, slot, place in a queue or probe is held by anything."""
    return _held(mesh.snapshot()) == 0


def _held(shown: Any) -> int:
    if isinstance(shown, dict):
        own = sum(abs(value) for key, value in shown.items() if key in ("inFlight", "pending", "probesOut") and isinstance(value, int))
        return own + sum(_held(value) for value in shown.values())
    return 0


def listen(mesh: Mesh) -> list[Event]:
    """Every event from now on."""
    events: list[Event] = []
    mesh.subscribe(events.append)
    return events


#: A retry of everything, at once.
RETRY = "{maxRetries: 2, retryOn: [5xx], backoff: {base: 1ms}, idempotent: true}"
