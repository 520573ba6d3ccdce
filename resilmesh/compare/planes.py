"""The ways for the same calls to reach the same services.

    bare         the client as it is, in turn to the endpoints: no policy at all
    library-off  the client with the library's transport, mode OFF: what wrapping itself costs
    library      the policy, decided inside the client's process; local outcomes are answers, as from Envoy
    sidecar      the policy, decided by a real Envoy on the way; the client is bare

Client, transport settings, pools, calls and their times are equal everywhere. ``bare`` and ``library-off`` are there
for orientation; ``library`` and ``sidecar`` are what is compared.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import resilmesh
from resilmesh.compare import traffic
from resilmesh.compare.children import Child
from resilmesh.compare.scenarios import HOST, Closed, Scenario
from resilmesh.compare.testbed import Seen, TestBed
from resilmesh.compare.traffic import Job, Note
from resilmesh.envoy import process
from resilmesh.envoy.process import Envoy
from resilmesh.envoy.translate import translate
from resilmesh.policy.load import load_text

BARE, OFF, LIBRARY, SIDECAR = PLANES = ("bare", "library-off", "library", "sidecar")
CLIENTS = ("httpx", "httpx-async", "httpx2", "httpx2-async")

_START_WITHIN = 30.0
#: From the word to begin until the first call: enough to tell services and client.
_HEAD_START = 0.05
_A_CALL_OR_SO = 4


@dataclass(frozen=True, slots=True)
class Use:
    """What a process used. CPU in seconds over the run; memory in bytes, resident at its end; start-up in seconds."""

    cpu: float
    memory: int | None
    startup: float


@dataclass(frozen=True, slots=True)
class Observation:
    """One run of one plane: what the client noted, what the services saw, what it took."""

    plane: str
    notes: list[Note]
    seen: Seen
    client: Use
    proxy: Use | None
    #: Endpoints taken out by outlier detection; None where the plane has none.
    ejections: int | None = None
    #: Calls that an open circuit refused: the library answers these as it does a reached limit, having no other word of Envoy's.
    circuit_open: int = 0


@dataclass(frozen=True, slots=True)
class _Side:
    """What tells one plane's client from another's."""

    targets: list[str]
    policy: str | None = None
    mode: Literal["ENFORCE", "OFF"] = "ENFORCE"
    envoy: Envoy | None = None
    envoy_startup: float = 0.0


def missing() -> dict[str, str]:
    """Planes that cannot run here, and how to get them."""
    try:
        process.find_binary()
    except process.EnvoyError as error:
        return {SIDECAR: str(error)}
    if importlib.util.find_spec("psutil") is None:
        return {SIDECAR: "there is no psutil to read Envoy's costs with: pip install 'resilmesh[mesh]'"}
    return {}


def envoy_version() -> str:
    """Version of the Envoy that the sidecar plane runs."""
    return process.version()


def client_version(client: str) -> str | None:
    """Version of the client library behind one of ``CLIENTS``; None when it is not installed."""
    try:
        return importlib.metadata.version(client.partition("-")[0])
    except importlib.metadata.PackageNotFoundError:
        return None


def observe(plane: str, scenario: Scenario, *, client: str, seed: int, tick: Callable[[], None] | None = None) -> Observation:
    """Run ``scenario`` on ``plane`` from a fresh start. ``tick`` is called about four times a second."""
    with (
        TestBed(scenario.services, seed) as bed,
        _side(plane, scenario, bed.addresses) as side,
        Child(Path(traffic.__file__), f"client of {plane}") as child,
    ):
        child.tell(asdict(_job(side, scenario, client, seed, child.spawned)))
        startup = child.hear(_START_WITHIN, tick)["startup"]
        proxy_cpu = side.envoy.cpu_seconds() if side.envoy else 0.0
        epoch = time.monotonic() + _HEAD_START
        bed.start_at(epoch)
        child.tell(epoch)
        told = child.hear(_patience(scenario), tick)
        proxy = None
        if side.envoy:
            proxy = Use(side.envoy.cpu_seconds() - proxy_cpu, side.envoy.rss_bytes(), side.envoy_startup)
        return Observation(
            plane=plane, notes=[Note(*each) for each in told["notes"]], seen=bed.seen(),
            client=Use(told["cpu"], _memory(child.pid), startup), proxy=proxy,
            **_decisions(side.envoy, told["snapshot"]),
        )


def _job(side: _Side, scenario: Scenario, client: str, seed: int, spawned: float) -> Job:
    return Job(
        client=client, targets=side.targets, host=HOST, schedule=scenario.traffic.schedule(seed), workers=scenario.workers,
        warm_up=scenario.warm_up, spawned=spawned, policy=side.policy, mode=side.mode,
        library_path=str(Path(resilmesh.__file__).parent.parent), seed=seed,
    )


def _patience(scenario: Scenario) -> float:
    """Seconds after which a client that has not reported is given up: every call may run into the client's own limit once."""
    length = scenario.traffic.calls * 0.05 if isinstance(scenario.traffic, Closed) else scenario.traffic.duration
    return length + _A_CALL_OR_SO * traffic.CLIENT_TIMEOUT


@contextlib.contextmanager
def _side(plane: str, scenario: Scenario, addresses: list[str]) -> Iterator[_Side]:
    endpoints = [f"http://{address}" for address in addresses]
    match plane:
        case "bare":
            yield _Side(endpoints)
        case "library-off":
            # Calls go to the endpoints themselves, as bare's do; the policy must still recognise them as its service's.
            policy = scenario.policy(addresses).replace(f"hosts: [{HOST}]", f"hosts: [{HOST}, 127.0.0.1]")
            yield _Side(endpoints, policy=policy, mode="OFF")
        case "library":
            yield _Side([f"http://{HOST}"], policy=scenario.policy(addresses))
        case "sidecar":
            with _envoy(scenario.policy(addresses)) as side:
                yield side
        case _:
            raise ValueError(f"there is no plane {plane!r}")


@contextlib.contextmanager
def _envoy(policy: str) -> Iterator[_Side]:
    bootstrap = translate(load_text(policy).policy).bootstrap
    began = time.monotonic()
    with Envoy(bootstrap, drain=0.0) as envoy:
        yield _Side([envoy.url], envoy=envoy, envoy_startup=time.monotonic() - began)


def _memory(pid: int) -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return int(psutil.Process(pid).memory_info().rss)


def _decisions(envoy: Envoy | None, snapshot: dict[str, Any] | None) -> dict[str, Any]:
    """What the plane itself says it did: Envoy's stats, or the mesh's snapshot."""
    if envoy is not None:
        return {"ejections": sum(envoy.stats(r"outlier_detection\.ejections_enforced_total$").values())}
    if snapshot is None or snapshot["mode"] == "OFF":
        return {}
    services = snapshot["services"].values()
    return {
        "ejections": sum(endpoint["ejections"] for service in services for endpoint in service["endpoints"].values()),
        "circuit_open": sum(route["rejected"].get("CircuitOpen", 0) for service in services for route in service["routes"].values()),
    }
