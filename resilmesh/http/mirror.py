"""The copy of a call that ``mirror`` sends, once per call (ENVOY.md 2g). ``drive.copies`` sends it.

    what goes out   the request as the policy shaped it; its Host with ``-shadow`` behind the name. A body that can be read only
                    once is not copied (``mirrorsDropped``: streamed)
    in a copy       no retry, no deadline of the caller's, no fault; the other service's endpoints and concurrency limit
"""

from __future__ import annotations

from typing import Any

from resilmesh.engine.shape import shadow


def copy_of(request: Any) -> Any:
    """The request that goes to the other service."""
    copy = object.__new__(type(request))
    copy.__dict__.update(request.__dict__)
    # The caller's time-outs, traces and words about the call are not the copy's.
    copy.extensions = {"timeout": request.extensions["timeout"]} if "timeout" in request.extensions else {}
    copy.headers = request.headers.copy()
    copy.headers["host"] = shadow(request.headers.get("host", request.url.host))
    return copy
