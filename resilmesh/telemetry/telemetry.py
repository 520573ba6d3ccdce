"""``mesh.telemetry``: what a mesh tells of itself, and to whom."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from resilmesh.telemetry.collect import Points, Row, collect
from resilmesh.telemetry.log import StateLog
from resilmesh.telemetry.merge import merged
from resilmesh.ticker import Ticker

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from resilmesh.clock import Clock
    from resilmesh.engine.compile import Table
    from resilmesh.engine.events import Hub
    from resilmesh.state.ledger import Ledger
    from resilmesh.telemetry.access import AccessLog
    from resilmesh.telemetry.tracing import Tracing
    from resilmesh.telemetry.workers import Worker

log = logging.getLogger("resilmesh")

#: The form of ``document``; another number means that readers of this one would misread it.
FORMAT = "resilmesh/stats/v1"
#: Seconds between two times that a worker tells the others its gauges.
_PUBLISH = 1.0


class Observed(Protocol):
    """What of a mesh is needed here."""

    @property
    def table(self) -> Table: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def ledger(self) -> Ledger: ...

    @property
    def hub(self) -> Hub: ...

    def snapshot(self) -> dict[str, Any]: ...


class Telemetry:
    """One mesh's figures, for whoever wants to read them. The arguments are those of ``share``, ``access_log`` and ``keep_profile``."""

    def __init__(
        self, mesh: Observed, *, directory: str | os.PathLike[str] | None = None, access_log: str | os.PathLike[str] | None = None,
        profile: str | os.PathLike[str] | None = None,
    ) -> None:
        self._held = weakref.ref(mesh)
        self._began = mesh.clock.monotonic()
        self._worker: Worker | None = None
        self._ticker: Ticker | None = None
        self._unexport: Callable[[], None] | None = None
        #: What makes spans; ``None``: nobody wants any.
        self.tracing: Tracing | None = None
        self._access: AccessLog | None = None
        self._profile: str | None = None
        self._lines = StateLog()
        mesh.hub.watch(self._lines)
        #: Has forked and does nothing else: its gauges are nobody's.
        self._supervises = False
        if directory:
            self.share(directory)
        if access_log:
            self.access_log(access_log)
        if profile:
            self.keep_profile(profile)

    @property
    def _mesh(self) -> Observed:
        mesh = self._held()
        if mesh is None:
            raise ReferenceError("the mesh is gone that this told of")
        return mesh

    # -------------------------------------------------------------------------------------------- reading

    def points(self) -> Points:
        """The points of every metric of the catalogue that has any; of all workers, where they share a directory."""
        rows, snapshots, _ = self._read()
        return collect(rows, snapshots, self.address)

    def document(self) -> dict[str, Any]:
        """All that is known of the mesh, as plain data: what ``/stats?format=json`` gives, and ``RESILMESH_PROFILE`` keeps.

        ``at``: Unix seconds; ``seconds``: since when was counted; ``workers``: the processes whose snapshots are in it, as one.
        """
        mesh = self._mesh
        snapshots, pids = [mesh.snapshot()], [os.getpid()]
        if self._worker is not None:
            _, snapshots, pids = self._worker.read(mesh.ledger, snapshots[0])
        return {
            "format": FORMAT, "at": round(time.time(), 3), "seconds": round(mesh.clock.monotonic() - self._began, 3),
            "pid": os.getpid(), "workers": pids, "snapshot": merged(snapshots),
        }

    def text(self, *, openmetrics: bool = False) -> str:
        """All points as text for Prometheus."""
        from resilmesh.telemetry.prometheus import text

        return text(self.points(), openmetrics=openmetrics)

    def address(self, service: str) -> tuple[str, int | None]:
        """``server.address`` and ``server.port`` of a service: its first host that is no pattern, or else its name."""
        table = self._mesh.table
        index = table.by_name.get(service)
        hosts: Sequence[str] = () if index is None else table.policy.services[index].hosts or ()
        for host in hosts:
            if "*" not in host:
                name, _, port = host.rpartition(":")
                return (name, int(port)) if name and port.isdigit() else (host, None)
        return service, None

    def _read(self) -> tuple[list[Row], list[dict[str, Any]], list[int]]:
        mesh = self._mesh
        if self._worker is not None:
            return self._worker.read(mesh.ledger, mesh.snapshot())
        return self._rows(), [mesh.snapshot()], [os.getpid()]

    def _rows(self) -> list[Row]:
        return [Row(block.key, block.counts, block.sums, getattr(block, "exemplars", {})) for block in self._mesh.ledger]

    # --------------------------------------------------------------------------------------- OpenTelemetry

    def attach(self) -> None:
        """Tell whatever OpenTelemetry SDK the program has set up by now, once. The mesh looks as it is made, and each client does."""
        if self.tracing is None and "opentelemetry.trace" in sys.modules:
            from resilmesh.telemetry.tracing import tracer_provider as traces_to

            self.use(tracer_provider=traces_to())
        if self._unexport is None and "opentelemetry.sdk.metrics" in sys.modules:
            from resilmesh.telemetry.otel import meter_provider as meters_to

            self.use(meter_provider=meters_to())

    def use(self, *, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None) -> None:
        """Tell these providers, which need not be the program's global ones. Each stays once it is chosen."""
        if tracer_provider is not None and self.tracing is None:
            from resilmesh.telemetry.tracing import Tracing

            self.tracing = Tracing(tracer_provider)
            self._listen()
        if meter_provider is not None and self._unexport is None:
            from resilmesh.telemetry.otel import export

            self._unexport = export(self._own_points, meter_provider)

    def _listen(self) -> None:
        """Have calls told to whoever wants to know."""
        if self._access is not None:
            self._access.inner = self.tracing
        self._mesh.hub.tracing = self._access or self.tracing

    def access_log(self, path: str | os.PathLike[str] | None) -> None:
        """Write a line for each outbound call to a file, in Envoy's default format; ``None``: no more. Raises ``OSError``.

        The environment variable ``RESILMESH_ACCESS_LOG`` does it for every mesh of a process; ``/dev/stdout`` is a file too.
        """
        from resilmesh.telemetry.access import AccessLog

        before, self._access = self._access, None if path is None else AccessLog(path, self.tracing)
        self._listen()
        if before is not None:
            before.close()

    def setup(self) -> None:
        """Export traces and metrics by OpenTelemetry: to the SDK that is set up, or to one that is made by the ``OTEL_*`` variables.

        Without any of them OTLP goes to ``localhost:4317``. ``service.name`` is the policy's ``workload`` where they do not say.
        Raises ``RuntimeError`` without the SDK (``pip install 'resilmesh[otel]'``).
        """
        from resilmesh.telemetry.otel import set_up

        set_up(self._mesh.table.policy.mesh.workload)
        self.attach()

    def _own_points(self) -> Points:
        """Of this process alone: each tells OpenTelemetry of itself. Of a mesh that is gone nothing."""
        if self._held() is None:
            return {}
        return collect(self._rows(), [self._mesh.snapshot()], self.address)

    # ---------------------------------------------------------------------------------------- several workers

    def share(self, directory: str | os.PathLike[str]) -> None:
        """Count in a directory that all workers of a service share, so that each can tell for all. Raises ``ValueError``.

        The environment variable ``RESILMESH_STATS_DIR`` does it for every mesh of a process.
        """
        from resilmesh.telemetry.workers import Worker

        self._worker = Worker(directory)
        self._mesh.ledger.move(self._worker.memory)
        self._ticker = Ticker(self._publish, _PUBLISH, thread="resilmesh-workers", task="telling the other workers", log=log)
        self._ticker.start()
        self._publish()

    @property
    def shared(self) -> bool:
        """Whether its figures are those of several workers."""
        return self._worker is not None

    def _publish(self) -> None:
        worker = self._worker
        if worker is None:
            return
        snapshot = self._mesh.snapshot()
        if not (self._supervises and not snapshot["inFlight"]):
            worker.publish(snapshot)

    # ------------------------------------------------------------------------------------------ the profile

    def keep_profile(self, path: str | os.PathLike[str]) -> None:
        """Write ``document()`` to a file when the program ends, or the mesh is closed: what ``resilmesh suggest`` reads.

        The environment variable ``RESILMESH_PROFILE`` does it for the mesh of a process. ``%p`` in it stands for the process id.
        """
        self._profile = os.fspath(path)
        atexit.register(self._write_profile)

    def _write_profile(self) -> None:
        path, self._profile = self._profile, None
        if path is None or self._held() is None:
            return
        atexit.unregister(self._write_profile)
        path = path.replace("%p", str(os.getpid()))
        try:
            with open(f"{path}.new", "w") as file:
                json.dump(self.document(), file, indent=2)
            os.replace(f"{path}.new", path)
        except OSError as error:
            log.error("the profile cannot be written: %s", error)

    def close(self) -> None:
        """Tell nobody any more. What was counted stays where it is."""
        self._write_profile()
        if self._ticker is not None:
            self._ticker.stop()
        if self._unexport is not None:
            self._unexport()
        if self._access is not None:
            self.access_log(None)

    def after_fork(self) -> None:
        """In a child: it counts for itself."""
        self._supervises = False
        self._lines.after_fork()
        if self._worker is not None and self._ticker is not None:
            self._worker.after_fork()
            self._mesh.ledger.after_fork(self._worker.memory)
            self._ticker.after_fork()
        else:
            self._mesh.ledger.after_fork()

    def forked(self) -> None:
        """In a parent."""
        self._supervises = True
