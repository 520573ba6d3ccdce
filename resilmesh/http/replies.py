"""``localReplies: RESPOND``: outcomes that are made here, answered as a sidecar Envoy would (ENVOY.md, section 2).

    outcome                                   status  body
    an error of ours                          see ``reply`` of its class in resilmesh/errors.py
    could not connect                         503     upstream connect error ... reset reason: remote connection failure
    connect time-out                          503     ... connection timeout
    connection closed or reset                503     ... connection termination
    HTTP/2 stream reset / refused             503     ... remote reset / remote refused stream reset
    malformed answer                          502     ... protocol error
    perTryTimeout, idleTimeout                504     upstream request timeout
    injected abort (in both modes)            its own fault filter abort

The client's own read, write and pool time-outs stay what they are: behind a sidecar, too, the client raises them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resilmesh.errors import InjectedFault
from resilmesh.http.classify import is_refused_stream, stream_reset

if TYPE_CHECKING:
    from resilmesh.engine.plan import Fallback
    from resilmesh.errors import CallError
    from resilmesh.http.library import Library

#: Statuses whose answers have no body, whatever their headers say (RFC 9110).
BODILESS = (204, 304)

#: status, body, Envoy's response flag, Envoy's response code details
Reply = tuple[int, str, str, str]

_RETRIED = "retried and the latest reset reason: "
_FIRST = "reset reason: "


def of_call_error(error: CallError) -> Reply:
    """What Envoy answers where the engine raises ``error``."""
    return of_fault(error.status) if isinstance(error, InjectedFault) else error.reply


def of_fault(status: int) -> Reply:
    """What an injected abort answers."""
    return (status, *InjectedFault.reply[1:])


def of_client_error(error: Exception, attempts: int) -> Reply | None:
    """What Envoy answers where the client raises ``error`` at attempt number ``attempts``; ``None``: nothing, it is the client's."""
    found = _reset_reason(error)
    if found is None:
        return None
    status, reason, flag = found
    body = f"upstream connect error or disconnect/reset before headers. {_RETRIED if attempts > 1 else _FIRST}{reason}"
    flags = f"URX,{flag}" if attempts > 1 else flag
    return status, body, flags, f"upstream_reset_before_response_started{{{reason.replace(' ', '_')}}}"


def _reset_reason(error: Exception) -> tuple[int, str, str] | None:
    names = {kind.__name__ for kind in type(error).__mro__}
    if "ConnectTimeout" in names:
        return 503, "connection timeout", "UF"
    if names & {"ConnectError", "ProxyError", "ConnectionRefusedError"}:
        return 503, "remote connection failure", "UF"
    if stream_reset(error) is not None:
        return 503, "remote refused stream reset" if is_refused_stream(error) else "remote reset", "UR"
    if "RemoteProtocolError" in names:
        # httpcore gives what h11 found wrong with the bytes as the argument; without it, the connection just ended.
        found = error.__cause__.args[0] if error.__cause__ is not None and error.__cause__.args else None
        return (502, "protocol error", "UPE") if isinstance(found, Exception) else (503, "connection termination", "UC")
    if names & {"ReadError", "WriteError", "CloseError", "NetworkError"}:
        return 503, "connection termination", "UC"
    return None


def static(library: Library, method: str, fallback: Fallback, facts: dict[str, Any]) -> Any:
    """The policy's static answer."""
    bodiless = method == "HEAD" or fallback.status in BODILESS
    headers = [*fallback.headers, *([] if fallback.status in BODILESS else [("content-length", str(len(fallback.body)))])]
    content = b"" if bodiless else fallback.body
    extensions = {"http_version": b"HTTP/1.1", "resilmesh": facts}
    return library.response(fallback.status, headers=headers, stream=library.byte_stream(content), extensions=extensions)


def response(library: Library, method: str, reply: Reply, facts: dict[str, Any]) -> Any:
    """The response that ``reply`` is; ``facts`` are what ``response.extensions["resilmesh"]`` says besides."""
    status, body, flag, detail = reply
    headers = {} if method == "HEAD" and not body else {"content-length": str(len(body))}
    if body:
        headers["content-type"] = "text/plain"
    if "overflow" in detail:
        headers["x-envoy-overloaded"] = "true"
    extensions = {"http_version": b"HTTP/1.1", "resilmesh": {**facts, "flag": flag, "detail": detail}}
    content = b"" if method == "HEAD" or status in BODILESS else body.encode()
    # A stream, not content: a client that streams a response may call `iter_raw()`, which refuses one that is already read.
    return library.response(status, headers=headers, stream=library.byte_stream(content), extensions=extensions)
