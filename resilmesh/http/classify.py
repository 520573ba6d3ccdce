"""HTTP's one table: what each status and each exception of the client is, as a verdict and Envoy's retry words.

    outcome                                           verdict    words (ENVOY.md 2a)
    2xx, 3xx, 4xx, 600-999                            SUCCESS    409: retriable-4xx
    429                                               THROTTLED
    500, 501, 505-599                                 FAILURE    5xx
    502, 503, 504                                     FAILURE    5xx gateway-error
    any, with x-envoy-ratelimited                     as above   envoy-ratelimited alone: Envoy looks at it first
    could not connect (refused, time-out, TLS, proxy) UNSENT     5xx gateway-error reset connect-failure reset-before-request
    HTTP/2 REFUSED_STREAM                             UNSENT     5xx gateway-error reset refused-stream
    reset, closed, malformed answer                   FAILURE    5xx gateway-error reset
      and HTTP/2 that a service breaks, whatever the client calls it
      and no byte of the request was written          UNSENT     ... and reset-before-request
    a limit of ours, or the client's read time-out    FAILURE    5xx gateway-error reset
      and there was no connection yet                 UNSENT     as: could not connect
    no connection free in the client's pool           IGNORED
    anything else (bad URL, the caller's own bug)     IGNORED

An injected fault is what the status that it imitates is. A policy's ``classify`` has the last word on verdicts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from resilmesh.engine.backoff import retry_after
from resilmesh.engine.verdict import NO_VERDICT, Answer, Verdict, mask, of_status

if TYPE_CHECKING:
    from resilmesh.clock import Clock
    from resilmesh.engine.plan import Plan, RetryPlan
    from resilmesh.engine.verdict import Classes
    from resilmesh.http.backend import LimitPassed

_FAILED: Final = mask("5xx", "gateway-error", "reset")
_NOTHING_WRITTEN: Final = _FAILED | mask("reset-before-request")
_NOT_CONNECTED: Final = _NOTHING_WRITTEN | mask("connect-failure")
_REFUSED: Final = _FAILED | mask("refused-stream")
_RATE_LIMITED: Final = mask("envoy-ratelimited")

#: HTTP/2's error code for a stream that the service did not look at (RFC 9113, section 8.7).
_REFUSED_STREAM: Final = 7


_OPEN: Final = {status: Answer(*of_status(status), status, complete=False) for status in range(100, 600)}
_COMPLETE: Final = {status: Answer(*of_status(status), status) for status in range(100, 600)}


def of_response(response: Any, clock: Clock, retries: RetryPlan | None = None, classes: Classes | None = None) -> Answer:
    """The answer that a response's status and headers are. Shared objects wherever the headers say nothing.

    Of a response below 400 the headers matter only where ``retries`` may repeat it. ``classes``: the policy's ``classify``.
    """
    status = response.status_code
    complete = response.is_closed
    answer = (_COMPLETE if complete else _OPEN).get(status)
    if answer is None:  # a status that no standard knows
        answer = Answer(*of_status(status), status, complete=complete)
    if classes is not None:
        answer = _of_class(response, answer, classes)
    if status < 400 and (retries is None or not (retries.words & _RATE_LIMITED or status in retries.statuses)):
        return answer
    headers = response.headers
    words = _RATE_LIMITED if "x-envoy-ratelimited" in headers else answer.words
    wait = retry_after(headers, clock)
    if wait is None and words == answer.words:
        return answer
    return Answer(answer.verdict, words, status, retry_after=wait, complete=complete)


def _of_class(response: Any, answer: Answer, classes: Classes) -> Answer:
    """The answer as the policy would have it judged."""
    verdict, words = classes.of_status(answer.status)
    if classes.reads_headers and classes.fails(response.headers.get_list):
        verdict = Verdict.FAILURE
    if verdict is answer.verdict and words == answer.words:
        return answer
    return Answer(verdict, words, answer.status, complete=answer.complete)


def of_injected(status: int, classes: Classes | None = None) -> Answer:
    """The answer of an attempt that a fault of the policy answered with ``status``."""
    return Answer(*(of_status(status) if classes is None else classes.of_status(status)), status, injected=True)


def of_limit(limit: LimitPassed) -> Answer:
    """The answer of an attempt that a limit of ours ended: perTryTimeout, timeout or idleTimeout."""
    verdict, words = (Verdict.UNSENT, _NOT_CONNECTED) if limit.connecting else (Verdict.FAILURE, _FAILED)
    return Answer(verdict, words, timed_out=True, local_origin=limit.connecting)


#: Names, because both libraries have them and neither is imported here. Looked up along the class's bases.
_BY_NAME: Final[dict[str, Answer]] = {
    "ConnectError": Answer(Verdict.UNSENT, _NOT_CONNECTED, local_origin=True),
    "ConnectTimeout": Answer(Verdict.UNSENT, _NOT_CONNECTED, local_origin=True),
    "ProxyError": Answer(Verdict.UNSENT, _NOT_CONNECTED, local_origin=True),
    "ReadTimeout": Answer(Verdict.FAILURE, _FAILED, timed_out=True),
    "WriteTimeout": Answer(Verdict.FAILURE, _FAILED, timed_out=True),
    "PoolTimeout": NO_VERDICT,
    "ReadError": Answer(Verdict.FAILURE, _FAILED),
    "WriteError": Answer(Verdict.FAILURE, _FAILED),
    "CloseError": Answer(Verdict.FAILURE, _FAILED),
    "NetworkError": Answer(Verdict.FAILURE, _FAILED),
    "RemoteProtocolError": Answer(Verdict.FAILURE, _FAILED),
    "TimeoutException": Answer(Verdict.FAILURE, _FAILED, timed_out=True),
    "LocalProtocolError": NO_VERDICT,
    "UnsupportedProtocol": NO_VERDICT,
    "ProtocolError": NO_VERDICT,
    "TransportError": NO_VERDICT,
    "DecodingError": NO_VERDICT,
    "TooManyRedirects": NO_VERDICT,
    "RequestError": NO_VERDICT,
    "InvalidURL": NO_VERDICT,
    "CookieConflict": NO_VERDICT,
    "StreamError": NO_VERDICT,
    "HTTPStatusError": NO_VERDICT,
    "HTTPError": NO_VERDICT,
    # What other transports let through instead.
    "ConnectionRefusedError": Answer(Verdict.UNSENT, _NOT_CONNECTED, local_origin=True),
    "ConnectionError": Answer(Verdict.FAILURE, _FAILED),
    "TimeoutError": Answer(Verdict.FAILURE, _FAILED, timed_out=True),
}
_REFUSED_ANSWER: Final = Answer(Verdict.UNSENT, _REFUSED)
_UNWRITTEN_ANSWER: Final = Answer(Verdict.UNSENT, _NOTHING_WRITTEN)


def of_error(error: Exception, written: bool, heard: bool = False) -> Answer:
    """The answer that an exception of the client is. ``written``: a byte of the request may have left. ``heard``: one came back."""
    answer = NO_VERDICT
    for kind in type(error).__mro__:
        found = _BY_NAME.get(kind.__name__)
        if found is not None:
            answer = found
            break
    if heard and answer is NO_VERDICT and _broke_http2(error):
        return _BY_NAME["RemoteProtocolError"]
    if answer.verdict is not Verdict.FAILURE:
        return answer
    if is_refused_stream(error):
        return _REFUSED_ANSWER
    if not written and not answer.timed_out:
        return _UNWRITTEN_ANSWER
    return answer


def is_refused_stream(error: BaseException) -> bool:
    """Whether HTTP/2 said REFUSED_STREAM: the service promises that it did not look at the request."""
    return stream_reset(error) == _REFUSED_STREAM


def _broke_http2(error: BaseException) -> bool:
    """Whether h2 saw a breach of HTTP/2. httpcore calls every one LocalProtocolError, also what a service sent."""
    cause: BaseException | None = error
    while cause is not None:
        if cause.args and isinstance(cause.args[0], Exception) and type(cause.args[0]).__module__.partition(".")[0] == "h2":
            return True
        cause = cause.__cause__
    return False


def stream_reset(error: BaseException) -> int | None:
    """The HTTP/2 error code that a service reset the stream with; ``None`` when that is not what happened."""
    cause: BaseException | None = error
    while cause is not None:
        event: Any = cause.args[0] if cause.args else None
        if type(event).__name__ == "StreamReset":
            return int(event.error_code)
        cause = cause.__cause__
    return None


def is_idempotent(request: Any, plan: Plan) -> bool:
    """Whether the request may be sent again after it may have reached the service.

    The request's own word (``extensions={"resilmesh": {"idempotent": True}}``) wins over the route's
    (``retries.idempotent``), that over the ``Idempotency-Key`` header, that over the method: POST and PATCH are not.
    """
    own = request.extensions.get("resilmesh")
    if own is not None and own.get("idempotent") is not None:
        return bool(own["idempotent"])
    if plan.retry_idempotent is not None:
        return plan.retry_idempotent
    return request.method not in ("POST", "PATCH") or "idempotency-key" in request.headers
