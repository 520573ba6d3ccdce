"""For tests of programs that use resilmesh: a clock that moves when it is told to, or when everybody waits for it."""

from __future__ import annotations

from resilmesh.testing.clock import ManualClock

__all__ = ["ManualClock"]
