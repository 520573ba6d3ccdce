"""Large policies: ``make bench BENCH=scale [ARGS="--services 10000 --routes 10"]``.

    load      seconds from the file to a mesh that serves
    match     one ``mesh.route_http``, the first and the last route of the last service; median of rounds, us
    calls     a guarded function that is called every half millisecond: how long a call takes, and how late its thread wakes up,
              before, during and after a reload of the whole file. The first and the last are the floor: a shared machine has one
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import resilmesh

_PAUSE = 0.0005


def policy(services: int, routes: int, timeout: str) -> str:
    """Each service with a host, an endpoint and its routes."""
    of_service = "".join(
        f"  - {{name: r{number}, match: {{method: GET, path: {{prefix: /v{number}}}}}, timeout: 2s}}\n" for number in range(routes)
    )
    return f"apiVersion: resilmesh/v1\ndefaults: {{timeout: {timeout}}}\nservices:\n" + "".join(
        f"- name: s{number}\n  hosts: [s{number}.svc]\n  endpoints: [{{address: '127.0.0.1:9'}}]\n  routes:\n{of_service}"
        for number in range(services)
    )


def match(mesh: resilmesh.Mesh, host: str, target: str) -> float:
    """Microseconds of one match."""
    rounds = []
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(5000):
            mesh.route_http("GET", host, 80, target, {})
        rounds.append((time.perf_counter() - began) / 5000 * 1e6)
    return round(statistics.median(rounds), 2)


def calls(call: Callable[[], object], until: Callable[[], bool]) -> dict[str, Any]:
    """Milliseconds: median, 99.9th percentile and maximum of the calls and of the lateness of their thread."""
    took, late = [], []
    while not until():
        began = time.perf_counter()
        call()
        ended = time.perf_counter()
        time.sleep(_PAUSE)
        took.append((ended - began) * 1e3)
        late.append((time.perf_counter() - ended - _PAUSE) * 1e3)
    return {"calls": len(took), "call": _spread(took), "late": _spread(late)}


def _spread(values: list[float]) -> list[float]:
    values.sort()
    return [round(values[min(len(values) - 1, int(len(values) * share))], 3) for share in (0.5, 0.999, 1.0)]


def run(services: int, routes: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "policy.yaml"
        path.write_text(policy(services, routes, "1s"))
        began = time.perf_counter()
        with resilmesh.Mesh.from_file(path, reload_interval=0.2) as mesh:
            result: dict[str, Any] = {
                "services": services, "routes": routes, "bytes": path.stat().st_size, "loadSeconds": round(time.perf_counter() - began, 2),
                "matchFirst": match(mesh, f"s{services - 1}.svc", "/v0/x"),
                "matchLast": match(mesh, f"s{services - 1}.svc", f"/v{routes - 1}/x"),
            }
            call = mesh.guard(f"s{services // 2}")(lambda: None)
            end = time.monotonic() + 3
            result["before"] = calls(call, lambda: time.monotonic() > end)
            revision = mesh.snapshot()["revision"]
            other = path.with_suffix(".new")
            other.write_text(policy(services, routes, "1500ms"))
            applied: list[object] = []
            mesh.subscribe(lambda event: applied.append(event) if event.name == "policy_applied" else None)
            os.replace(other, path)
            began = time.perf_counter()
            result["during"] = calls(call, lambda: bool(applied))
            result["reloadSeconds"] = round(time.perf_counter() - began, 2)
            end = time.monotonic() + 3
            result["after"] = calls(call, lambda: time.monotonic() > end)
            if mesh.snapshot()["revision"] != revision + 1:
                raise RuntimeError("the reload was not applied once")
            return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description="Large policies.")
    parser.add_argument("--services", type=int, nargs="*", default=[100, 1000, 10000])
    parser.add_argument("--routes", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = []
    for services in options.services:
        result = run(services, options.routes)
        found.append(result)
        if options.json:
            continue
        print(f"{services:,} services x {options.routes} routes, {result['bytes'] / 1e6:.1f} MB: load {result['loadSeconds']} s, "
              f"match {result['matchFirst']} / {result['matchLast']} us, reload {result['reloadSeconds']} s", flush=True)
        for phase in ("before", "during", "after"):
            each = result[phase]
            print(f"  {phase:7} {each['calls']:6} calls   took p50 p99.9 max {each['call']} ms   woke late {each['late']} ms", flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
