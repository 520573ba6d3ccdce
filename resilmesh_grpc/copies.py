"""Copies of calls for ``mirror``: sent once per call, beside it, by ``resilmesh.drive.copies`` (ENVOY.md 2g).

    what goes out   the request as the policy shaped it; its authority with ``-shadow`` behind the name. A stream of requests
                    is not copied (``mirrorsDropped``: streamed), nor are calls on a channel that is not of our making (intercepted)
    in a copy       no retry, no deadline of the caller's, no fault; the other service's endpoints and concurrency limit. Its
                    responses are read to their end
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resilmesh.drive import sync
from resilmesh.drive.copies import TaskCopies, ThreadCopies
from resilmesh.engine.shape import shadow
from resilmesh_grpc.aio_calls import AioPending, AioReader, UnaryStreamCall, UnaryUnaryCall
from resilmesh_grpc.calls import Blocking, StreamCall, StreamReader

if TYPE_CHECKING:
    from resilmesh.engine.plan import Plan
    from resilmesh_grpc.exchange import Caller, Exchange


class Copies:
    """Sends the copies of the calls of one channel, over the channel's own sub-channels."""

    def __init__(self, caller: Caller, *, awaits: bool) -> None:
        # What stands in for a failure is for a call that somebody waits for.
        self._caller = quiet = copy.copy(caller)
        quiet.fallback = None
        self._sender: Any = TaskCopies() if awaits else ThreadCopies()
        self._play: Callable[[Exchange], Any] = _play_awaiting if awaits else _play_blocking
        self._kinds: tuple[type[Exchange], type[Exchange]] = (AioPending, AioReader) if awaits else (Blocking, StreamReader)

    def send(self, call: Exchange, plan: Plan) -> bool:
        """Have a copy of ``call`` sent soon; False when there is too much to do already."""
        options = {name: call.options[name] for name in ("credentials", "wait_for_ready", "compression")}
        kind = self._kinds[call.method.streams_responses]
        authority = shadow(call.authority or self._caller.target.authority)
        method, request, metadata = call.method, call.requests, call.metadata

        def job() -> Any:
            made = kind(self._caller, method, plan, request, None, metadata, options)
            made.authority = authority
            return self._play(made)

        return bool(self._sender.send(job))

    def close(self) -> None:
        """Forget what waits; what flies ends with its sub-channel."""
        self._sender.close()


def _play_blocking(made: Any) -> None:
    try:
        if isinstance(made, Blocking):
            sync.run(made.call, made, made.caller.clock)
            return
        made.begin()
        for _ in StreamCall(made):
            pass  # to its end, as a caller would
    except Exception:  # nobody is there to see it
        made.abandon()  # which does nothing to a call that is over


async def _play_awaiting(made: Any) -> None:
    try:
        made.begin()
        if isinstance(made, AioPending):
            await UnaryUnaryCall(made)
            return
        async for _ in UnaryStreamCall(made):
            pass
    except Exception:
        made.abandon()
