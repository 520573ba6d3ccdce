"""The adapter for httpx and httpx2. ``resilmesh.wrap`` is in ``wrap``; how it works is told in ``backend`` and ``exchange``."""

from resilmesh.http.aio import AsyncTransport
from resilmesh.http.transport import Transport

__all__ = ["AsyncTransport", "Transport"]
