"""gRPC's one table: what each status is, as a verdict and Envoy's retry words.

    a status that the service gave       counts as   verdict     words (ENVOY.md 2l)
    OK                                   200         SUCCESS
    CANCELLED                            499         SUCCESS     cancelled
    UNKNOWN                              500         FAILURE
    INVALID_ARGUMENT                     400         SUCCESS
    DEADLINE_EXCEEDED                    504         FAILURE     deadline-exceeded
    NOT_FOUND                            404         SUCCESS
    ALREADY_EXISTS                       409         SUCCESS
    PERMISSION_DENIED                    403         SUCCESS
    RESOURCE_EXHAUSTED                   429         THROTTLED   resource-exhausted
    FAILED_PRECONDITION                  400         SUCCESS
    ABORTED                              409         SUCCESS
    OUT_OF_RANGE                         400         SUCCESS
    UNIMPLEMENTED                        501         FAILURE
    INTERNAL                             500         FAILURE     internal
    UNAVAILABLE                          503         FAILURE     unavailable
    DATA_LOSS                            500         FAILURE
    UNAUTHENTICATED                      401         SUCCESS
    any, with x-envoy-ratelimited        as above    as above    envoy-ratelimited alone

    what became of it here                           verdict     words
    no connection, no address                        UNSENT      5xx gateway-error reset connect-failure reset-before-request
    REFUSED_STREAM, or beyond the last of a GOAWAY   UNSENT      5xx gateway-error reset refused-stream; is sent again once anyway
    reset, closed, keepalive, no status              FAILURE     5xx gateway-error reset
    an answer that is HTTP and not gRPC              by status   by status, as for HTTP
    a limit of ours                                  FAILURE     5xx gateway-error reset
    cancelled, channel closed, a message that        IGNORED
      cannot be serialized or is too large for us

grpcio gives no other sign of a status that it made itself than its text, so the texts are looked at: a service that passes
on such a text of its own is taken at its word, but for a connection that was never there, which the channel is asked about.
``grpc-retry-pushback-ms`` in the metadata is the wait before the next attempt; negative, or no number: no more. ``retry-after`` and
``x-ratelimit-reset`` are asked where it is not there, as for HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import grpc

from resilmesh.engine.backoff import retry_after
from resilmesh.engine.verdict import NO_VERDICT, Answer, Verdict, mask, of_grpc, of_status
from resilmesh_grpc.metadata import Headers

if TYPE_CHECKING:
    from resilmesh.clock import Clock
    from resilmesh.engine.verdict import Classes

_FAILED: Final = mask("5xx", "gateway-error", "reset")
_NOT_CONNECTED: Final = _FAILED | mask("connect-failure", "reset-before-request")
_REFUSED: Final = _FAILED | mask("refused-stream")
_RATE_LIMITED: Final = mask("envoy-ratelimited")

#: A stream whose first message is there.
COMMITTED: Final = Answer(Verdict.SUCCESS, complete=False)
#: A limit of ours ended the attempt.
TIMED_OUT: Final = Answer(Verdict.FAILURE, _FAILED, 504, timed_out=True, grpc="DEADLINE_EXCEEDED")

_UNCONNECTED_TEXTS: Final = (
    "failed to connect to all addresses", "connections to all backends failing", "DNS resolution failed", "Domain name not found",
    "empty address list", "name resolver error",
)
_UNSEEN_TEXTS: Final = ("RST_STREAM with error code 7", "GOAWAY received")
_LOST_TEXTS: Final = (
    "Stream removed", "RST_STREAM", "Socket closed", "Connection reset", "Connection closed", "recvmsg", "sendmsg", "Broken pipe",
    "keepalive watchdog timeout", "ping timeout", "No status received", "Transport closed", "Endpoint closing",
    "Internal error from Core",  # what grpc.aio makes of any status that comes while it is still writing
)
_OWN_TEXTS: Final = (
    "Exception serializing request!", "Exception iterating requests!", "Locally cancelled by application!", "Channel closed", "CLIENT: ",
    "Received message larger than max", "Sent message larger than max",
)
_HTTP_TEXT: Final = re.compile(r"Received http2 header with status: (\d+)")


def of_ok(initial: Any, trailing: Any, classes: Classes | None) -> Answer:
    """The answer that a call is which ended with OK, where the policy's ``classify`` reads its metadata."""
    if classes is not None and classes.fails(_both(initial, trailing).get_list):
        return Answer(Verdict.FAILURE, 0, 200, grpc="OK")
    return Answer(Verdict.SUCCESS, 0, 200, grpc="OK")


def of_error(
    code: grpc.StatusCode, details: str, initial: Any, trailing: Any, *, connected: Callable[[], bool], clock: Clock,
    classes: Classes | None = None,
) -> tuple[Answer, bool]:
    """What a status is other than OK, and whether the service gave it. ``connected``: the channel has a connection now."""
    local = _made_here(code, details, connected)
    return (of_received(code, initial, trailing, clock, classes), True) if local is None else (local, False)


def of_received(code: grpc.StatusCode, initial: Any, trailing: Any, clock: Clock, classes: Classes | None = None) -> Answer:
    """The answer that a status of the service is."""
    verdict, words, status = of_grpc(code.value[0]) if classes is None else of_grpc(code.value[0], classes.of_status)
    headers = _both(initial, trailing)
    if classes is not None and classes.reads_headers and classes.fails(headers.get_list):
        verdict = Verdict.FAILURE
    if headers.get("x-envoy-ratelimited") is not None:
        words = _RATE_LIMITED
    again, wait = pushback(headers.get("grpc-retry-pushback-ms"))
    return Answer(verdict, words, status, grpc=code.name, again=again, backoff=wait, retry_after=retry_after(headers, clock))


def of_injected(status: int, code: grpc.StatusCode, classes: Classes | None) -> Answer:
    """The answer of an attempt that a fault of the policy answered: what the status that it imitates is."""
    verdict, words, _ = of_grpc(code.value[0]) if classes is None else of_grpc(code.value[0], classes.of_status)
    return Answer(verdict, words, status, injected=True, grpc=code.name)


def pushback(value: str | None) -> tuple[bool | None, float | None]:
    """Whether the service wants to be asked again (``None``: it does not say), and in how many seconds (gRFC A6)."""
    if value is None:
        return None, None
    if not value.isascii() or not value.isdigit() or int(value) >= 2**31:
        return False, None
    return None, int(value) / 1000


def _made_here(code: grpc.StatusCode, details: str, connected: Callable[[], bool]) -> Answer | None:
    """The answer of a status that grpcio made itself; ``None``: the service gave it."""
    if code is grpc.StatusCode.UNAVAILABLE and _begins(details, _UNCONNECTED_TEXTS) and not connected():
        return Answer(Verdict.UNSENT, _NOT_CONNECTED, 503, local_origin=True, grpc=code.name)
    if _has(details, _UNSEEN_TEXTS):
        return Answer(Verdict.UNSENT, _REFUSED, 503, grpc=code.name, refused=True)
    if _begins(details, _OWN_TEXTS):
        return NO_VERDICT
    if found := _HTTP_TEXT.search(details):
        status = int(found[1])
        return Answer(*of_status(status), status, grpc=code.name)
    return Answer(Verdict.FAILURE, _FAILED, 503, grpc=code.name) if _begins(details, _LOST_TEXTS) else None


def _begins(details: str, texts: tuple[str, ...]) -> bool:
    return details.startswith(texts)


def _has(details: str, texts: tuple[str, ...]) -> bool:
    # With the brackets that grpcio puts around the text of its transport, or, in older versions, without.
    return details.startswith(("Stream removed (", *texts)) and any(text in details for text in texts)


def _both(initial: Any, trailing: Any) -> Headers:
    return Headers((*(initial or ()), *(trailing or ())))
