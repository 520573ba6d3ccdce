"""For tests of programs that use resilmesh.

    ManualClock          a clock that moves when it is told to, or when everybody waits for it
    ScriptedTransport    a service that answers by a script, for httpx and httpx2, sync and async
    Trace, assert_trace  what happened to the calls of a block, as text to compare

Forced faults are ``mesh.inject``, the effective plan of a route is ``mesh.describe``. In pytest there are the fixtures
``mesh_clock`` and ``make_mesh``, and a test that leaves a call in flight fails (``resilmesh.testing.plugin``).
"""

from __future__ import annotations

from resilmesh.testing.clock import ManualClock
from resilmesh.testing.script import Reply, ScriptedTransport, Sent, after
from resilmesh.testing.trace import Trace, assert_trace

__all__ = ["ManualClock", "Reply", "ScriptedTransport", "Sent", "Trace", "after", "assert_trace"]
