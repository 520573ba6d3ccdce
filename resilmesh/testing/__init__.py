"""For tests of programs that use resilmesh.

    ManualClock          a clock that moves when it is told to, or when everybody waits for it
    ScriptedTransport    a service that answers by a script, for httpx and httpx2, sync and async
    Trace, assert_trace  what happened to the calls of a block, as text to compare

Forced faults are ``mesh.inject``, the effective plan of a route is ``mesh.describe``. In pytest there are the fixtures
``mesh_clock`` and ``make_mesh``, and a test that leaves a call in flight fails (``resilmesh.testing.plugin``).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resilmesh.testing.clock import ManualClock
    from resilmesh.testing.script import Reply, ScriptedTransport, Sent, after
    from resilmesh.testing.trace import Trace, assert_trace

__all__ = ["ManualClock", "Reply", "ScriptedTransport", "Sent", "Trace", "after", "assert_trace"]

#: Imported when first asked for, because pytest imports this package for its plugin in every run.
_LAZY = {
    "ManualClock": "clock", "Reply": "script", "ScriptedTransport": "script", "Sent": "script", "after": "script",
    "Trace": "trace", "assert_trace": "trace",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
