"""What happens to the callers meanwhile: new policies, good and bad; circuits set by hand; faults put in; observers; forks."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import resilmesh


class Chaos(threading.Thread):
    """Disturbs until it is stopped. ``file`` is watched by the mesh, and holds one of ``texts``.

    ``forks``: children too, which grpc's core does not allow while calls are made.
    """

    def __init__(self, mesh: resilmesh.Mesh, file: Path, texts: tuple[str, str], rng: random.Random, *, forks: bool) -> None:
        super().__init__(name="chaos", daemon=True)
        self._mesh, self._file, self._texts, self._rng = mesh, file, texts, rng
        self._kinds = [self.reload, self.refused, self.edited, self.forced, self.injected, self.observed]
        if forks:
            self._kinds.append(self.forked)
        self._over = threading.Event()
        self.done: Counter[str] = Counter()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._over.wait(self._rng.random() * 0.05):
                kind = self._rng.choice(self._kinds)
                kind()
                self.done[kind.__name__] += 1
        except BaseException as failure:
            self.failure = failure

    def stop(self) -> None:
        self._over.set()
        self.join(60)
        if self.failure is not None:
            raise self.failure

    def reload(self) -> None:
        self._mesh.apply_text(self._rng.choice(self._texts))

    def refused(self) -> None:
        try:
            self._mesh.apply_text("apiVersion: resilmesh/v1\nservices: [{nmae: web}]")
        except resilmesh.PolicyError:
            return
        raise AssertionError("a bad policy was applied")

    def edited(self) -> None:
        """The poller sees it in its own time."""
        if self._rng.random() < 0.1:
            new = self._file.with_suffix(".new")
            new.write_text(self._rng.choice(self._texts))
            os.replace(new, self._file)

    def forced(self) -> None:
        for to in (self._rng.choice(("OPEN", "CLOSED", "METRICS_ONLY")), "AUTO"):
            self._mesh.force_circuit(self._rng.choice(("work", "web")), to)
            time.sleep(self._rng.random() * 0.005)
        for service in ("work", "web"):
            self._mesh.force_circuit(service, "AUTO")

    def injected(self) -> None:
        with self._mesh.inject(self._rng.choice(("work", "web", "plain")), status=503, percent=30):
            time.sleep(self._rng.random() * 0.01)

    def observed(self) -> None:
        events: list[str] = []
        drop = self._mesh.subscribe(lambda event: events.append(event.name))
        time.sleep(self._rng.random() * 0.005)
        drop()

    def forked(self) -> None:
        """A child makes calls of its own, and ends well only if nothing is left in it."""
        if self._rng.random() > 0.2:
            return
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = _child(self._mesh)
            finally:
                os._exit(status)
        until = time.monotonic() + 30
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > until:
                os.kill(child, 9)
                os.waitpid(child, 0)
                raise AssertionError("a forked child hangs")
            time.sleep(0.005)
        if os.waitstatus_to_exitcode(status) != 0:
            raise AssertionError(f"a forked child ended with {os.waitstatus_to_exitcode(status)}")


def _child(mesh: resilmesh.Mesh) -> int:
    call = mesh.guard("plain")(lambda: 1)
    made = 0
    for _ in range(50):
        with suppress(resilmesh.ResilmeshError):
            made += call()
    if mesh.snapshot()["inFlight"]:
        return 3
    return 0
