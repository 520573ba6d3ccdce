"""The ways for the same calls to reach the same services.

    bare         the client as it is, in turn to the endpoints: no policy at all
    library-off  the client with the library's transport, mode OFF: what wrapping itself costs
    library      the policy, decided inside the client's process; local outcomes are answers, as from Envoy
    sidecar      the policy, decided by a real Envoy on the way; the client is bare
    sidecar-defaults  the same, but whatever the policy leaves open is as Envoy has it by default (``defaults``)
    grpc-native  of gRPC alone: the policy as far as grpcio's own service config can say it (``native``)
    sidecar-pair and others  of the scenarios of mutual TLS: both sides of the wire (``pair``)

Client, transport settings, limits of the pools, calls and their times are equal everywhere; the pool itself is the client's,
but for ``library``, whose HTTP/1.1 pool is its own. ``library`` and ``sidecar`` are what is compared; the others are there
for orientation.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import resilmesh
from resilmesh.compare import pair, says, traffic
from resilmesh.compare.children import Child
from resilmesh.compare.machine import Disturbance, interference
from resilmesh.compare.polling import Look, watched
from resilmesh.compare.says import Says
from resilmesh.compare.scenarios import Closed, Scenario
from resilmesh.compare.sides import Side, side_of
from resilmesh.compare.testbed import Seen, TestBed
from resilmesh.compare.traffic import Happened, Job, Note, Told
from resilmesh.compare.trust import Trust, trusted
from resilmesh.envoy import process
from resilmesh.envoy.process import Envoy

BARE, OFF, LIBRARY, SIDECAR, DEFAULTS = PLANES = ("bare", "library-off", "library", "sidecar", "sidecar-defaults")
NATIVE = "grpc-native"
GRPC_PLANES = (*PLANES, NATIVE)
#: Of every kind of scenario.
ALL_PLANES = (*GRPC_PLANES, *(plane for plane in pair.IDENTITY_PLANES if plane not in PLANES))
CLIENTS = ("httpx", "httpx-async", "httpx2", "httpx2-async")
GRPC_CLIENTS = ("grpcio", "grpcio-async")

_START_WITHIN = 30.0
#: From the word to begin until the first call: enough to tell services and client.
_HEAD_START = 0.1
_A_CALL_OR_SO = 4


@dataclass(frozen=True, slots=True)
class Use:
    """What a process used. CPU in seconds over the run; memory in bytes, resident at its end; start-up in seconds."""

    cpu: float
    memory: int | None
    startup: float


_QUIET = Disturbance()

#: The side of a plane, for services at some addresses.
Sides = Callable[[str, Scenario, list[str]], contextlib.AbstractContextManager[Side]]


@dataclass(frozen=True, slots=True)
class Decisions:
    """What the plane itself says it did; None where it has no such thing."""

    #: Endpoints taken out by outlier detection. Of several processes each counts its own.
    ejections: int | None = None
    retries: int | None = None
    #: Injected ones. Aborts are answers, which the client sees.
    delays: int | None = None
    #: Of the callers' certificates and bundles, as they were taken up; Envoy counts each file.
    renewals: int | None = None


@dataclass(frozen=True, slots=True)
class Observation:
    """One run of one plane: what the client noted, what the services saw, what it took."""

    plane: str
    #: In the order of the calls' numbers, which begin at 0.
    notes: list[Note]
    seen: Seen
    #: Of all processes of the client together; the start of the slowest.
    client: Use
    proxy: Use | None
    decisions: Decisions = Decisions()
    #: The library's events, of each process of the client.
    events: list[list[Happened]] = field(default_factory=list)
    #: What was seen of the sidecar meanwhile.
    looks: list[Look] = field(default_factory=list)
    #: Names of the endpoints by address.
    names: dict[str, str] = field(default_factory=dict)
    #: The seconds of the run at which the policy was edited.
    edited: list[float] = field(default_factory=list)
    #: And at which certificates were renewed.
    rotated: list[float] = field(default_factory=list)
    disturbance: Disturbance = _QUIET
    #: CPU seconds of all services together; None without psutil.
    services_cpu: float | None = None
    #: What the plane's own telemetry says; None where it has none.
    says: Says | None = None

    def cpu(self) -> dict[str, float | None]:
        """CPU seconds of the run, by who used them; None: there is no such process, or no psutil to ask."""
        return {"client": self.client.cpu, "proxy": None if self.proxy is None else self.proxy.cpu, "services": self.services_cpu}


def missing() -> dict[str, str]:
    """Planes that cannot run here, and how to get them."""
    of_envoy = SIDECAR, DEFAULTS, pair.PAIR_PLAIN, pair.SIDECAR_PAIR
    try:
        process.find_binary()
    except process.EnvoyError as error:
        return dict.fromkeys(of_envoy, str(error))
    if importlib.util.find_spec("psutil") is None:
        return dict.fromkeys(of_envoy, "there is no psutil to read Envoy's costs with: pip install 'resilmesh[mesh]'")
    return {}


def missing_for_identities() -> str | None:
    """Why the scenarios of mutual TLS cannot run here, and the remedy; None when they can."""
    lacking = [name for name in ("cryptography", "uvicorn") if importlib.util.find_spec(name) is None]
    return f"there is no {' and no '.join(lacking)}: pip install 'resilmesh[serve]'" if lacking else None


def sidecar_of(planes: Collection[str]) -> str:
    """Of some planes, the one that the library is compared with: for mutual TLS it has a sidecar on both sides."""
    return pair.SIDECAR_PAIR if pair.SIDECAR_PAIR in planes else SIDECAR


def envoy_version() -> str:
    """Version of the Envoy that the sidecar plane runs."""
    return process.version()


def client_version(client: str) -> str | None:
    """Version of the client library behind one of ``CLIENTS`` or ``GRPC_CLIENTS``; None when it is not installed."""
    try:
        return importlib.metadata.version(client.partition("-")[0])
    except importlib.metadata.PackageNotFoundError:
        return None


def observe(
    plane: str, scenario: Scenario, *, client: str, seed: int, tick: Callable[[], None] | None = None, sides: Sides = side_of,
) -> Observation:
    """Run ``scenario`` on ``plane`` from a fresh start. ``tick`` is called about four times a second."""
    with (
        trusted(scenario) as trust,
        TestBed(scenario.services, seed, None if trust is None else pair.hosting(plane, scenario, trust)) as bed,
        (sides(plane, scenario, bed.addresses) if trust is None else pair.side_of(plane, scenario, bed.addresses, trust)) as side,
        _clients(plane, scenario.processes) as children,
    ):
        for child, job in zip(children, _jobs(side, scenario, client, seed), strict=True):
            child.tell(asdict(job(child.spawned)))
        startup = max(child.hear(_START_WITHIN, tick)["startup"] for child in children)
        with interference() as disturbance:
            proxy_cpu = sum(envoy.cpu_seconds() for envoy in side.envoys)
            services_cpu = _cpu(bed.pids)
            counted = says.counters(side.envoys)
            epoch = time.monotonic() + _HEAD_START
            bed.start_at(epoch)
            for child in children:
                child.tell(epoch)
            with (
                watched(side.envoy if scenario.watched else None, epoch) as looks,
                _edited(side, scenario, bed, epoch) as edited, _rotated(trust, scenario, epoch) as rotated,
            ):
                told = [Told(**child.hear(_patience(scenario), tick)) for child in children]
            proxy = None
            if side.envoy:
                used = sum(envoy.cpu_seconds() for envoy in side.envoys) - proxy_cpu
                proxy = Use(used, sum(envoy.rss_bytes() for envoy in side.envoys), side.envoy_startup)
        return Observation(
            plane=plane, notes=sorted((Note(*each) for one in told for each in one.notes), key=lambda note: note.number),
            seen=bed.seen(), client=Use(sum(one.cpu for one in told), _memory(children), startup), proxy=proxy,
            decisions=_decisions(side.envoy, [each for one in told for each in one.snapshots]),
            events=[[Happened(*each) for each in one.events] for one in told], looks=looks, names={**bed.names(), **side.names},
            edited=edited, rotated=rotated,
            disturbance=disturbance.of([late for one in told for late in one.overslept]),
            services_cpu=None if services_cpu is None else (_cpu(bed.pids) or 0.0) - services_cpu,
            says=says.of_envoy(side.envoys, counted, grpc=scenario.protocol == "GRPC") or says.of_library(
                [each for one in told for each in one.before], [each for one in told for each in one.snapshots],
            ),
        )


@contextlib.contextmanager
def _clients(plane: str, count: int) -> Iterator[list[Child]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Child(Path(traffic.__file__), f"client of {plane}")) for _ in range(count)]


def _jobs(side: Side, scenario: Scenario, client: str, seed: int) -> list[Callable[[float], Job]]:
    """What each process of the client has to do: every n-th call."""
    numbered = [(number, *call) for number, call in enumerate(scenario.traffic.schedule(seed, scenario.calls))]

    def job(place: int) -> Callable[[float], Job]:
        return lambda spawned: Job(
            client=client, targets=side.targets, host=side.host, signed=side.signed, schedule=numbered[place::scenario.processes],
            workers=scenario.workers, warm_up=scenario.warm_up, first=scenario.calls[0], service_config=side.service_config,
            spawned=spawned, policy=side.policy, policy_file=side.policy_file, mode=side.mode,
            library_path=str(Path(resilmesh.__file__).parent.parent), seed=seed + place, watched=scenario.watched,
            http2=scenario.protocol == "HTTP2", identities=list(side.identities),
        )

    return [job(place) for place in range(scenario.processes)]


@contextlib.contextmanager
def _edited(side: Side, scenario: Scenario, bed: TestBed, epoch: float) -> Iterator[list[float]]:
    """Edit the policy when the scenario says so; the list then holds the seconds of the run at which it was done."""
    done: list[float] = []
    if side.edit is None or not scenario.edits:
        yield done
        return
    ended = threading.Event()
    editor = threading.Thread(target=_edit, args=(side.edit, scenario, bed.addresses, epoch, ended, done), name="resilmesh-compare-edits")
    editor.start()
    try:
        yield done
    finally:
        ended.set()
        editor.join()


def _rotated(trust: Trust | None, scenario: Scenario, epoch: float) -> contextlib.AbstractContextManager[list[float]]:
    return contextlib.nullcontext([]) if trust is None else trust.rotating(scenario, epoch)


def _edit(
    edit: Callable[[str], None], scenario: Scenario, addresses: list[str], epoch: float, ended: threading.Event, done: list[float],
) -> None:
    for each in scenario.edits:
        text = scenario.policy(addresses, each.policy_file)
        if ended.wait(epoch + each.at - time.monotonic()):
            return
        edit(text)
        done.append(time.monotonic() - epoch)


def _patience(scenario: Scenario) -> float:
    """Seconds after which a client that has not reported is given up: every call may run into the client's own limit once."""
    length = scenario.traffic.calls * 0.05 if isinstance(scenario.traffic, Closed) else scenario.traffic.duration
    return length + _A_CALL_OR_SO * traffic.CLIENT_TIMEOUT


def _memory(children: list[Child]) -> int | None:
    try:
        import psutil
    except ImportError:
        return None
    return sum(int(psutil.Process(child.pid).memory_info().rss) for child in children)


def _cpu(pids: list[int]) -> float | None:
    try:
        import psutil
    except ImportError:
        return None
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return float(sum(each.user + each.system for each in times))


def _decisions(envoy: Envoy | None, snapshots: list[dict[str, Any]]) -> Decisions:
    """Envoy's stats, or the snapshots of every process's mesh."""
    if envoy is not None:
        of_clusters = "ejections_enforced_total", "upstream_rq_retry", "ssl_context_update_by_sds"
        stats = envoy.stats(rf"^cluster\..*\.({'|'.join(of_clusters)})$|fault\.delays_injected$")

        def total(name: str) -> int:
            return sum(value for each, value in stats.items() if each.endswith(name))

        return Decisions(
            total("ejections_enforced_total"), total("upstream_rq_retry"), total("delays_injected"), total("ssl_context_update_by_sds"))
    services = [
        service for snapshot in snapshots if snapshot["mode"] != "OFF" for service in snapshot["services"].values()
    ]
    if not services:
        return Decisions()
    routes = [route for service in services for route in service["routes"].values()]
    return Decisions(
        sum(endpoint["ejections"] for service in services for endpoint in service["endpoints"].values()),
        sum(route["retries"] for route in routes),
        sum(route["faults"].get("delay", 0) for route in routes),
        sum(snapshot["identity"]["rotations"] for snapshot in snapshots if snapshot["identity"] is not None),
    )
