"""Who is who in a scenario of mutual TLS: an authority for one run, and a directory with an identity for each caller and service.

Library and Envoy read the same directories, which are swapped as Kubernetes swaps a secret's volume.
"""

from __future__ import annotations

import contextlib
import datetime
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from resilmesh.compare.scenarios import Identities, Scenario
from resilmesh.identity.ca import CertificateAuthority, system_clock
from resilmesh.identity.volume import publish

TRUST_DOMAIN = "shop.example"
SERVICE = "/ns/shop/sa/inventory"
#: How long ago the certificates ended that have run out, in seconds: they had an hour.
EXPIRED = 3600.0
_OLD = datetime.timedelta(seconds=3 * EXPIRED)


class Trust:
    """Made by ``trusted``. ``callers`` are directories, in the order of ``Identities.callers``; ``services`` by the script's name."""

    def __init__(self, folder: Path, identities: Identities, services: Sequence[str]) -> None:
        # Older than the certificates that have run out, which it has issued in their time.
        CertificateAuthority.create(folder / "authority", TRUST_DOMAIN, clock=lambda: system_clock() - _OLD)
        self._authority = CertificateAuthority.open(folder / "authority")
        self._owners: dict[Path, str] = {}
        self.callers = [self._place(folder / f"caller-{number}", path) for number, path in enumerate(identities.callers)]
        self.services = {name: self._place(folder / f"service-{name}", SERVICE) for name in services}
        expired = [self.services[name] for name in identities.expired]
        for directory in self._owners:
            if directory not in expired:
                self.renew(directory)
        in_the_past = datetime.timedelta(seconds=2 * EXPIRED)
        self._authority = CertificateAuthority.open(folder / "authority", clock=lambda: system_clock() - in_the_past)
        for directory in expired:
            self.renew(directory)
        self._authority = CertificateAuthority.open(folder / "authority")
        self._expired = frozenset(expired)

    def _place(self, directory: Path, path: str) -> Path:
        self._owners[directory] = f"spiffe://{TRUST_DOMAIN}{path}"
        return directory

    def renew(self, directory: Path) -> None:
        """A new certificate, with a new key, and the bundle as it is now."""
        identity = self._authority.issue(self._owners[directory])
        publish(directory, {
            "tls.crt": (identity.svid.chain_pem(), 0o644), "tls.key": (identity.svid.key_pem(), 0o600),
            "ca.crt": (identity.bundles[TRUST_DOMAIN].pem(), 0o644),
        }, stamp=f"{time.time_ns()}")

    def expires_late(self, name: str) -> float:
        """Seconds by which the clock of a service is slow that serves with a certificate that has run out."""
        return 2 * EXPIRED if self.services[name] in self._expired else 0.0

    def steps_of_the_root(self) -> tuple[Callable[[], None], ...]:
        """A new root is trusted beside the old one; signs; is trusted alone. After each everybody gets a new certificate."""
        authority = self._authority

        def then_renew(step: Callable[[], object]) -> Callable[[], None]:
            def do() -> None:
                step()
                for directory in self._owners:
                    self.renew(directory)

            return do

        return (
            then_renew(authority.announce_root), then_renew(lambda: authority.activate_root(force=True)),
            then_renew(lambda: authority.retire_root(force=True)),
        )

    @contextlib.contextmanager
    def rotating(self, scenario: Scenario, epoch: float) -> Iterator[list[float]]:
        """Renew as the scenario says while the block runs; the list then holds the seconds of the run at which it was done."""
        done: list[float] = []
        steps = self._steps(scenario)
        ended = threading.Event()

        def rotate() -> None:
            for at, step in steps:
                if ended.wait(epoch + at - time.monotonic()):
                    return
                step()
                done.append(time.monotonic() - epoch)

        rotator = threading.Thread(target=rotate, name="resilmesh-compare-rotations")
        rotator.start()
        try:
            yield done
        finally:
            ended.set()
            rotator.join()

    def _steps(self, scenario: Scenario) -> list[tuple[float, Callable[[], None]]]:
        assert scenario.identities is not None
        directories = [*self.callers, *self.services.values()]

        def renewal(number: int) -> Callable[[], None]:
            return lambda: self.renew(directories[number % len(directories)])

        leaves = [(at, renewal(number)) for number, at in enumerate(scenario.identities.renewals)]
        root = zip(scenario.identities.root_steps, self.steps_of_the_root(), strict=False)
        return sorted([*leaves, *root], key=lambda step: step[0])


@contextlib.contextmanager
def trusted(scenario: Scenario) -> Iterator[Trust | None]:
    """The identities of a scenario for one run; None where it has none."""
    if scenario.identities is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="resilmesh-compare-") as folder:
        yield Trust(Path(folder), scenario.identities, [script.name for script in scenario.services])
