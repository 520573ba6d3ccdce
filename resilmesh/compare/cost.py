"""What each plane costs: from interleaved rounds of the steady scenario, as ratios to ``bare`` of the same round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resilmesh.compare.pair import PLAIN_OF
from resilmesh.compare.planes import BARE, Observation, Use
from resilmesh.compare.stats import Spread, quantile

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Figure:
    """One cost: how it is read from a round, in which unit. None where the plane has no such cost."""

    name: str
    title: str
    unit: str
    read: Callable[[Observation], float | None]


def _latency(share: float) -> Callable[[Observation], float | None]:
    return lambda round_: quantile([note.latency for note in round_.notes], share) * 1000


def _per_thousand(of: Callable[[Observation], Use | None]) -> Callable[[Observation], float | None]:
    def read(round_: Observation) -> float | None:
        use = of(round_)
        return None if use is None else use.cpu * 1000 / len(round_.notes)

    return read


def _memory(of: Callable[[Observation], Use | None]) -> Callable[[Observation], float | None]:
    def read(round_: Observation) -> float | None:
        use = of(round_)
        return None if use is None or use.memory is None else use.memory / _MIB

    return read


def _startup(of: Callable[[Observation], Use | None]) -> Callable[[Observation], float | None]:
    def read(round_: Observation) -> float | None:
        use = of(round_)
        return None if use is None else use.startup * 1000

    return read


def _client(round_: Observation) -> Use:
    return round_.client


def _proxy(round_: Observation) -> Use | None:
    return round_.proxy


def _pod(round_: Observation) -> Use:
    """Client and proxy together; the proxy starts first, as a native Kubernetes sidecar does."""
    client, proxy = round_.client, round_.proxy
    if proxy is None:
        return client
    memory = None if client.memory is None or proxy.memory is None else client.memory + proxy.memory
    return Use(client.cpu + proxy.cpu, memory, client.startup + proxy.startup)


def _services(round_: Observation) -> float | None:
    used = round_.services_cpu
    return None if used is None else used * 1000 / len(round_.notes)


def _all(round_: Observation) -> float | None:
    """Where the service decides, too, it must be counted, and so must the proxy before it."""
    services = _services(round_)
    return None if services is None else services + _pod(round_).cpu * 1000 / len(round_.notes)


FIGURES: tuple[Figure, ...] = (
    Figure("latency_p50", "latency p50", "ms", _latency(0.50)),
    Figure("latency_p99", "latency p99", "ms", _latency(0.99)),
    Figure("cpu_client", "CPU of the client, per 1,000 calls", "s", _per_thousand(_client)),
    Figure("cpu_proxy", "CPU of the proxy, per 1,000 calls", "s", _per_thousand(_proxy)),
    Figure("cpu_pod", "CPU of both, per 1,000 calls", "s", _per_thousand(_pod)),
    Figure("cpu_services", "CPU of the services, per 1,000 calls", "s", _services),
    Figure("cpu_all", "CPU of all processes, per 1,000 calls", "s", _all),
    Figure("memory_client", "memory of the client's process", "MiB", _memory(_client)),
    Figure("memory_proxy", "memory of the proxy", "MiB", _memory(_proxy)),
    Figure("memory_pod", "memory of both", "MiB", _memory(_pod)),
    Figure("startup_client", "start of the client to its first answer", "ms", _startup(_client)),
    Figure("startup_proxy", "start of the proxy until ready", "ms", _startup(_proxy)),
    Figure("startup_pod", "start of both, one after the other", "ms", _startup(_pod)),
)


@dataclass(frozen=True, slots=True)
class Cost:
    """One figure of one plane over the rounds: the value, its ratio to bare (or to what it is compared with) and what it adds to that."""

    value: Spread
    ratio: Spread | None
    added: Spread | None


def costs(rounds: Mapping[str, Sequence[Observation]]) -> dict[str, dict[str, Cost]]:
    """By plane, by ``Figure.name``. ``rounds`` holds each plane's observations, in the order of the rounds."""
    return {
        plane: {figure.name: cost for figure in FIGURES if (cost := _cost(figure, observations, rounds[BARE])) is not None}
        for plane, observations in rounds.items()
    }


def costs_of_tls(rounds: Mapping[str, Sequence[Observation]]) -> dict[str, dict[str, Cost]]:
    """By plane with mutual TLS, by ``Figure.name``: against the same plane without, of the same round."""
    return {
        secured: {figure.name: cost for figure in FIGURES if (cost := _cost(figure, rounds[secured], rounds[plain])) is not None}
        for secured, plain in PLAIN_OF.items() if secured in rounds and plain in rounds
    }


def _cost(figure: Figure, observations: Sequence[Observation], base: Sequence[Observation]) -> Cost | None:
    values = [value for each in observations if (value := figure.read(each)) is not None]
    floor = [value for each in base if (value := figure.read(each)) is not None]
    if not values:
        return None
    pairs = list(zip(values, floor, strict=True)) if floor else []
    return Cost(
        Spread.of(values),
        # CPU is read in ticks, of which a short run may use none.
        Spread.of([value / of_base for value, of_base in pairs]) if pairs and all(floor) else None,
        Spread.of([value - of_base for value, of_base in pairs]) if pairs else None,
    )


def disturbance(found: Mapping[str, Mapping[str, Cost]]) -> float:
    """How much bare's own median latency varied over the rounds: greatest by least, 1 on a quiet machine."""
    own = found[BARE]["latency_p50"].value
    return own.greatest / own.least


def as_json(found: Mapping[str, Mapping[str, Cost]], rounds: int, calls: int) -> dict[str, Any]:
    units = {figure.name: figure.unit for figure in FIGURES}
    return {
        "rounds": rounds,
        "calls_per_round": calls,
        "disturbance": disturbance(found),
        "units": units,
        "planes": {plane: {name: asdict(cost) for name, cost in by_name.items()} for plane, by_name in found.items()},
    }
