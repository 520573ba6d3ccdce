"""A service mesh's traffic policy inside the Python process.

    mesh = resilmesh.Mesh.from_file("policy.yaml")
    client = httpx.Client(transport=resilmesh.http.Transport(mesh))     # or resilmesh.wrap(client, mesh)

    @mesh.guard("ledger")
    def book(entry): ...

Importing this package imports no client library, no pydantic and no wrapt; each comes when it is first needed.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from resilmesh.drive.context import within as deadline
from resilmesh.engine.events import Event
from resilmesh.errors import (
    CallError,
    CircuitOpen,
    ConcurrencyExceeded,
    DeadlineExceeded,
    Forbidden,
    InjectedFault,
    NoHealthyEndpoint,
    PolicyError,
    RateLimited,
    Rejected,
    ResilmeshError,
    TlsImpossible,
    UnknownService,
)
from resilmesh.mesh import Mesh, attempts, configure, guard

if TYPE_CHECKING:
    from resilmesh import http, identity, inbound, testing
    from resilmesh.wrapping import wrap

    __version__: str

__all__ = [
    "CallError",
    "CircuitOpen",
    "ConcurrencyExceeded",
    "DeadlineExceeded",
    "Event",
    "Forbidden",
    "InjectedFault",
    "Mesh",
    "NoHealthyEndpoint",
    "PolicyError",
    "RateLimited",
    "Rejected",
    "ResilmeshError",
    "TlsImpossible",
    "UnknownService",
    "attempts",
    "configure",
    "deadline",
    "guard",
    "http",
    "identity",
    "inbound",
    "testing",
    "wrap",
]

if not getattr(sys, "_is_gil_enabled", lambda: True)():
    # The counters of a successful call take no lock, because a GIL makes each update one step (tests/engine/test_threads.py).
    warnings.warn(
        "resilmesh counts without locks, which needs the GIL: start Python with PYTHON_GIL=1, or limits and rates will be wrong",
        RuntimeWarning, stacklevel=2,
    )

#: Imported when first asked for: module, attribute (None: the module itself).
_LAZY: dict[str, tuple[str, str | None]] = {
    "http": ("resilmesh.http", None),
    "identity": ("resilmesh.identity", None),
    "inbound": ("resilmesh.inbound", None),
    "testing": ("resilmesh.testing", None),
    "wrap": ("resilmesh.wrapping", "wrap"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # reads a file, and costs tens of milliseconds

        globals()[name] = version("resilmesh")
        return globals()[name]
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    found = import_module(module)
    if attribute is not None:
        found = getattr(found, attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
