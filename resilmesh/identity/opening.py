"""From what the policy, the environment or an argument says to the source of this workload's identity."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from resilmesh.errors import PolicyError
from resilmesh.identity.files import FileSource
from resilmesh.identity.source import Source
from resilmesh.identity.spiffe import IdentityError
from resilmesh.policy import codes
from resilmesh.policy.codes import Code, Diagnostic

if TYPE_CHECKING:
    from resilmesh.engine.plan import Tls
    from resilmesh.identity.tls import LiveContext
    from resilmesh.policy.identity import IdentitySource
    from resilmesh.policy.load import Loaded
    from resilmesh.policy.model import Policy, Service

#: A directory, the address of a Workload API, the policy's block, or what keeps an identity fresh itself.
Where = Source | str | os.PathLike[str]


class Workload:
    """This workload: the source of its identity. ``where`` is what it was opened for; closed with the mesh unless it was given."""

    def __init__(self, source: Source, where: Where | IdentitySource) -> None:
        self.source = source
        self.where = where
        #: For connections to services, by what these must prove and by the protocols that ALPN offers: one is dear to make.
        self.contexts: dict[tuple[Tls, tuple[str, ...]], LiveContext] = {}

    def snapshot(self, now: float) -> dict[str, Any]:
        """Of its source, which is looked at: one that nobody polls would not say that it ends."""
        self.source.look(now)
        return self.source.snapshot(now)

    def close(self) -> None:
        """End what was opened here."""
        if self.source is not self.where:
            self.source.close()


def identify(loaded: Loaded, policy: Policy, given: Where | None, before: Workload | None, now: Callable[[], float]) -> Workload | None:
    """Who this workload is: ``before``, if nothing else is said. ``given`` overrides the policy. ``now``: seconds since the epoch.

    Raises ``PolicyError`` where the identity cannot be used, and where there is none and a service needs one.
    """
    where = given if given is not None else policy.mesh.identity
    if where is None:
        lacking = list(_lacking(loaded, policy))
        if lacking:
            raise PolicyError(lacking)
        return None
    workload = before if before is not None and before.where == where else None
    try:
        workload = workload or Workload(open_source(where, now), where)
        if policy.mesh.trust_domain is not None:
            workload.source.belong(policy.mesh.trust_domain)
    except IdentityError as error:
        if workload is not None and workload is not before:
            workload.close()
        raise PolicyError([_diagnostic(loaded, ("mesh", "identity"), codes.BAD_IDENTITY, str(error))]) from error
    return workload


def _lacking(loaded: Loaded, policy: Policy) -> Iterator[Diagnostic]:
    services: Sequence[Service] = policy.services
    if not isinstance(services, list):
        return  # a policy of thousands of services, each of which is opened when it is called: then it is told
    for number, service in enumerate(services):
        if service.tls is not None and service.tls.mode == "MUTUAL":
            said = f"service {service.name!r} is called over mutual TLS, and nothing says where the certificate of this workload is"
            yield _diagnostic(loaded, ("services", number, "tls"), codes.NO_IDENTITY, said)


def _diagnostic(loaded: Loaded, path: tuple[str | int, ...], code: Code, said: str) -> Diagnostic:
    return Diagnostic(loaded.source, *loaded.places.line_column(path), code.code, said, code.remedy)


def open_source(where: Where | IdentitySource, now: Callable[[], float]) -> Source:
    """The source of an identity. Raises ``IdentityError``."""
    if isinstance(where, Source):
        return where
    if isinstance(where, str | os.PathLike):
        text = os.fspath(where)
        return _workload_api(text, now) if text.startswith("unix:") else FileSource.of_directory(text, now=now)
    if where.workload_api is not None:
        return _workload_api(where.workload_api, now)
    if where.directory is not None:
        return FileSource.of_directory(where.directory, now=now)
    if where.certificate is None or where.key is None or where.bundle is None:
        raise IdentityError("an identity is a directory, or a certificate, a key and a bundle")
    federated = {each.trust_domain: each.bundle for each in where.federated or ()}
    return FileSource(where.certificate, where.key, where.bundle, federated=federated, now=now)


def _workload_api(address: str, now: Callable[[], float]) -> Source:
    from resilmesh.identity.workload_api import WorkloadApiSource

    return WorkloadApiSource(address, now=now)
