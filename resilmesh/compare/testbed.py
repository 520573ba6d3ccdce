"""The services that every plane calls: one process an endpoint, started fresh for each run."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from resilmesh.compare import service, service_asgi
from resilmesh.compare.children import Child
from resilmesh.compare.service import Arrival, Script
from resilmesh.compare.service_asgi import Hosting

_START_WITHIN = 20.0


@dataclass(slots=True)
class Seen:
    """What all endpoints together saw of the calls (warm-up excluded)."""

    requests: int = 0
    #: Requests by call, over all endpoints: the attempts that reached a service.
    calls: Counter[str] = field(default_factory=Counter)
    paths: Counter[str] = field(default_factory=Counter)
    #: Requests by the value of ``x-envoy-attempt-count``; ``none`` where it was missing.
    attempt_headers: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    #: Requests that arrived while the endpoint was failing by script.
    in_outage: int = 0
    #: Most requests that any one endpoint worked on at once.
    most_at_once: int = 0
    connections: int = 0
    #: By endpoint, every request in the order of its coming.
    arrivals: dict[str, list[Arrival]] = field(default_factory=dict)

    def add(self, name: str, counts: dict[str, Any]) -> None:
        self.requests += counts["requests"]
        self.calls.update(counts["calls"])
        self.paths.update(counts["paths"])
        self.attempt_headers.update(counts["attempt_headers"])
        self.outcomes.update(counts["outcomes"])
        self.in_outage += counts["in_outage"]
        self.most_at_once = max(self.most_at_once, counts["most_at_once"])
        self.connections += counts["connections"]
        self.arrivals[name] = [Arrival(*each) for each in counts["arrivals"]]


class TestBed:
    """Starts one process per script; ``addresses`` are theirs, in order. A context manager."""

    __test__ = False  # pytest: the name is the domain's, this is no test

    def __init__(self, scripts: Sequence[Script], seed: int = 0, hosting: Mapping[str, Hosting] | None = None) -> None:
        """``hosting``: what stands before each service in its process, by name; then it is an ASGI application under uvicorn."""
        self._scripts = [replace(script, seed=seed) for script in scripts]
        self._hosting = hosting
        self.addresses: list[str] = []
        #: Where each answers the test bed itself.
        self._control: list[str] = []
        self.pids: list[int] = []
        self._children = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as children:
            code = Path(service.__file__ if self._hosting is None else service_asgi.__file__)
            started = [children.enter_context(Child(code, f"service {script.name}")) for script in self._scripts]
            for child, script in zip(started, self._scripts, strict=True):
                job = asdict(script)
                child.tell(job if self._hosting is None else {"script": job, "hosting": asdict(self._hosting[script.name])})
            told = [child.hear(_START_WITHIN) for child in started]
            self.addresses = [f"127.0.0.1:{each['port']}" for each in told]
            self._control = [f"127.0.0.1:{each.get('control', each['port'])}" for each in told]
            self.pids = [child.pid for child in started]
            self._children = children.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._children.__exit__(kind, error, trace)

    def start_at(self, epoch: float) -> None:
        """Set the monotonic second from which the scripts' outages are reckoned."""
        for _, address in self._listening():
            _ask(address, "PUT", "epoch", repr(epoch))

    def seen(self) -> Seen:
        total = Seen()
        for name, address in self._listening():
            total.add(name, _ask(address, "GET", "counts"))
        return total

    def names(self) -> dict[str, str]:
        """The endpoints' names by their addresses."""
        return {address: script.name for script, address in zip(self._scripts, self.addresses, strict=True)}

    def _listening(self) -> list[tuple[str, str]]:
        return [(script.name, address) for script, address in zip(self._scripts, self._control, strict=True) if not script.refuses]


def _ask(address: str, method: str, what: str, body: str | None = None) -> dict[str, Any]:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request(method, service.CONTROL + what, body)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()
