"""What the admin server answers, page by page (``admin_server`` listens). Modelled on Envoy's admin interface.

    GET /                      this list
    GET /stats                 every metric, a line each; ?format=json the stats document, ?format=prometheus as below; ?filter=REGEX
    GET /stats/prometheus      for Prometheus, OpenMetrics where it asks for that
    GET /config_dump           what applies to each route, and the line that each value came from; ?service=NAME
    GET /clusters              every endpoint: traffic, health; ?format=json
    GET /circuits              every circuit; ?format=json
    GET /healthz               200 while the process answers, with the revision in force
    GET /logging               the level of the library's log
    GET /hystrix.stream        events for a Hystrix dashboard

and with ``write=True``

    POST /circuits?service=NAME&to=OPEN        &route=NAME; CLOSED, METRICS_ONLY; AUTO gives it back to its calls
    POST /faults?enabled=false                 no fault of the policy or of ``mesh.inject`` acts, until true
    POST /logging?level=debug
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from resilmesh.errors import UnknownService
from resilmesh.telemetry.collect import Durations
from resilmesh.telemetry.hystrix import quantile

if TYPE_CHECKING:
    from resilmesh.clock import Clock
    from resilmesh.engine.compile import Table
    from resilmesh.state.breaker import Force
    from resilmesh.telemetry.exposition import Exposition
    from resilmesh.telemetry.telemetry import Telemetry

log = logging.getLogger("resilmesh")

#: Services whose plans are told where nobody names one: each is compiled for it.
_MOST_SERVICES = 1000
_LEVELS = ("debug", "info", "warning", "error", "critical")


class Administered(Protocol):
    """What of a mesh is needed here."""

    @property
    def telemetry(self) -> Telemetry: ...

    @property
    def table(self) -> Table: ...

    @property
    def clock(self) -> Clock: ...

    def prometheus(self) -> Exposition: ...

    def describe(self, service: str, *, route: str | None = None) -> Any: ...

    def force_circuit(self, service: str, to: Force, *, route: str | None = None) -> None: ...

    def enable_faults(self, enabled: bool) -> None: ...


class Page(NamedTuple):
    """An answer."""

    body: str
    kind: str = "text/plain; charset=utf-8"
    status: int = 200


class Wrong(Exception):
    """A request that cannot be answered: its status and why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def as_json(found: Any, status: int = 200) -> Page:
    """A page of plain data."""
    return Page(json.dumps(found, indent=2) + "\n", "application/json", status)


class Pages:
    """The pages of one mesh. ``write``: it may be changed through them."""

    def __init__(self, mesh: Administered, *, write: bool) -> None:
        self._mesh = mesh
        self._write = write
        self._get: dict[str, Callable[[Mapping[str, str], str], Page]] = {
            "/": self._index, "/help": self._index, "/stats": self._stats, "/stats/prometheus": self._prometheus,
            "/config_dump": self._config_dump, "/clusters": self._clusters, "/circuits": self._circuits, "/healthz": self._healthz,
            "/ready": self._healthz, "/logging": self._logging,
        }
        self._post: dict[str, Callable[[Mapping[str, str]], Page]] = {
            "/circuits": self._force, "/faults": self._faults, "/logging": self._set_level,
        }

    def answer(self, method: str, path: str, query: Mapping[str, str], accept: str = "") -> Page:
        """The page at a path. Raises ``Wrong``."""
        if method in ("GET", "HEAD"):
            get = self._get.get(path)
            if get is not None:
                return get(query, accept)
        elif method == "POST" and path in self._post:
            if not self._write:
                raise Wrong(403, "this admin server is read-only: start it with write=True to change anything through it")
            return self._post[path](query)
        elif path in self._get or path in self._post:
            raise Wrong(405, f"{path} is read with GET" + (" and changed with POST" if path in self._post else ""))
        raise Wrong(404, f"there is no {path}: GET / lists what there is")

    # --------------------------------------------------------------------------------------------- reading

    def _index(self, query: Mapping[str, str], accept: str) -> Page:
        assert __doc__ is not None
        head, _, changing = __doc__.partition("and with ``write=True``")
        pages = head.partition("\n\n")[2]
        return Page(pages + (changing.lstrip("\n") if self._write else ""))

    def _stats(self, query: Mapping[str, str], accept: str) -> Page:
        form = query.get("format", "text")
        if form == "json":
            return as_json(self._mesh.telemetry.document())
        if form == "prometheus":
            return self._prometheus(query, accept)
        if form != "text":
            raise Wrong(400, f"format is text, json or prometheus, not {form!r}")
        try:
            wanted = re.compile(query.get("filter", ""))
        except re.error as error:
            raise Wrong(400, f"filter is a regular expression, and {query['filter']!r} is none: {error}") from None
        return Page("".join(f"{line}\n" for line in self._lines() if wanted.search(line)))

    def _lines(self) -> Iterator[str]:
        for name, points in self._mesh.telemetry.points().items():
            for point in points:
                attributes = ",".join(f"{key}={value}" for key, value in point.attributes)
                where = f"{name}{{{attributes}}}" if attributes else name
                if isinstance(point, Durations):
                    counts = list(point.counts)
                    shown = " ".join(f"p{share * 100:g}={quantile(counts, share):.6f}" for share in (0.5, 0.9, 0.99))
                    yield f"{where}: count={sum(counts)} sum={point.seconds:.6f} {shown}"
                else:
                    yield f"{where}: {point.value:g}"

    def _prometheus(self, query: Mapping[str, str], accept: str) -> Page:
        status, kind, body = self._mesh.prometheus().answer("GET", accept)
        return Page(body.decode(), kind, status)

    def _config_dump(self, query: Mapping[str, str], accept: str) -> Page:
        table, chosen = self._mesh.table, query.get("service")
        if chosen is not None and chosen not in table.by_name:
            raise Wrong(404, f"the policy has no service {chosen!r}")
        names = list(table.by_name) if chosen is None else [chosen]
        plans = []
        for name in names[:_MOST_SERVICES]:
            for route in (*table.served(table.by_name[name]).route_names, None):
                described = self._mesh.describe(name, route=route)
                sources = described.sources
                plans.append({
                    "service": name, "route": route,
                    "values": [{"name": key, "value": value, "source": sources[key]} for key, value in described.values.items()],
                })
        document = self._mesh.telemetry.document()["snapshot"]
        told = {key: document[key] for key in ("workload", "mode", "outbound", "localReplies", "revision", "refused", "lastRefusal")}
        left_out = max(0, len(names) - _MOST_SERVICES)
        return as_json({**told, "injections": document["injections"], "servicesLeftOut": left_out, "plans": plans})

    def _clusters(self, query: Mapping[str, str], accept: str) -> Page:
        services = self._mesh.telemetry.document()["snapshot"]["services"]
        found = {name: sections["endpoints"] for name, sections in services.items()}
        if query.get("format") == "json":
            return as_json(found)
        lines = []
        for name, endpoints in found.items():
            for address, its in endpoints.items():
                told = {
                    "rq_total": its["requests"], "rq_active": its["inFlight"],
                    "health_flags": "/failed_outlier_check" if its["ejected"] else "healthy", "ejections": its["ejections"],
                    "consecutive_5xx": its["consecutive5xx"],
                    "success_rate": -1 if its["successRate"] is None else its["successRate"],
                }
                lines += [f"{name}::{address}::{key}::{value}\n" for key, value in told.items()]
        return Page("".join(lines))

    def _circuits(self, query: Mapping[str, str], accept: str) -> Page:
        services = self._mesh.telemetry.document()["snapshot"]["services"]
        found = [
            {"service": name, "route": None if route == "*" else route, **its}
            for name, sections in services.items() for route, its in sections["circuitBreakers"].items()
        ]
        if query.get("format") == "json":
            return as_json(found)
        lines = []
        for each in found:
            where = each["service"] if each["route"] is None else f"{each['service']}/{each['route']}"
            rate = "-" if each["failureRate"] is None else f"{each['failureRate']:g}%"
            again = "" if each["opensFor"] is None else f", for {each['opensFor']:g}s"
            lines.append(f"{where:<40} {each['state']}{again}  failures {each['failures']} of {each['calls']} ({rate})\n")
        return Page("".join(lines) or "the policy has no circuitBreaker, or its services were not called yet\n")

    def _healthz(self, query: Mapping[str, str], accept: str) -> Page:
        snapshot = self._mesh.telemetry.document()["snapshot"]
        return as_json({"status": "ok", "revision": snapshot["revision"], "refused": snapshot["refused"]})

    def _logging(self, query: Mapping[str, str], accept: str) -> Page:
        return as_json({"logger": "resilmesh", "level": logging.getLevelName(log.getEffectiveLevel()).lower()})

    # -------------------------------------------------------------------------------------------- changing

    def _force(self, query: Mapping[str, str]) -> Page:
        service, to = query.get("service"), query.get("to")
        if service is None or to is None:
            raise Wrong(400, "which circuit, and to what? POST /circuits?service=NAME&to=OPEN")
        try:
            self._mesh.force_circuit(service, to, route=query.get("route"))  # type: ignore[arg-type]  # it says itself what it takes
        except UnknownService as error:
            raise Wrong(404, str(error)) from None
        except ValueError as error:
            raise Wrong(400, str(error)) from None
        log.warning("admin: the circuit of %s was set to %s", service, to)
        return self._circuits({"format": "json"}, "")

    def _faults(self, query: Mapping[str, str]) -> Page:
        enabled = {"true": True, "false": False}.get(query.get("enabled", ""))
        if enabled is None:
            raise Wrong(400, "POST /faults?enabled=false, or true")
        self._mesh.enable_faults(enabled)
        log.warning("admin: faults are %s", "on" if enabled else "off")
        return as_json({"enabled": enabled})

    def _set_level(self, query: Mapping[str, str]) -> Page:
        level = query.get("level", "")
        if level not in _LEVELS:
            raise Wrong(400, f"level is one of {', '.join(_LEVELS)}, not {level!r}")
        log.setLevel(level.upper())
        return self._logging({}, "")
