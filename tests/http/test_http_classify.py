"""The one table of HTTP: statuses, exceptions, Retry-After, idempotency."""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from resilmesh.engine.verdict import WORDS, Answer, Verdict, mask
from resilmesh.http import classify
from resilmesh.http.backend import LimitPassed

FAILED = mask("5xx", "gateway-error", "reset")
NOT_CONNECTED = FAILED | mask("reset-before-request", "connect-failure")


class FixedClock:
    """Only the wall clock is read here."""

    def wall(self) -> float:
        return 1_000_000.0


CLOCK: Any = FixedClock()


def words(answer: Answer) -> set[str]:
    return {word for word, bit in WORDS.items() if answer.words & bit}


def response(library: ModuleType, status: int, headers: dict[str, str] | None = None) -> Any:
    return library.Response(status, headers=headers)


@pytest.mark.parametrize(
    ("status", "verdict", "expected"),
    [
        (101, Verdict.SUCCESS, set()), (200, Verdict.SUCCESS, set()), (304, Verdict.SUCCESS, set()), (404, Verdict.SUCCESS, set()),
        (408, Verdict.SUCCESS, set()), (409, Verdict.SUCCESS, {"retriable-4xx"}), (425, Verdict.SUCCESS, set()),
        (429, Verdict.THROTTLED, set()), (500, Verdict.FAILURE, {"5xx"}), (501, Verdict.FAILURE, {"5xx"}),
        (502, Verdict.FAILURE, {"5xx", "gateway-error"}), (503, Verdict.FAILURE, {"5xx", "gateway-error"}),
        (504, Verdict.FAILURE, {"5xx", "gateway-error"}), (505, Verdict.FAILURE, {"5xx"}), (599, Verdict.FAILURE, {"5xx"}),
        (600, Verdict.SUCCESS, set()), (999, Verdict.SUCCESS, set()),
    ],
)
def test_statuses(library: ModuleType, status: int, verdict: Verdict, expected: set[str]) -> None:
    answer = classify.of_response(response(library, status), CLOCK)
    assert (answer.verdict, words(answer), answer.status) == (verdict, expected, status)
    injected = classify.of_injected(status)
    assert (injected.verdict, words(injected), injected.injected) == (verdict, expected, True)


@pytest.mark.parametrize("status", [429, 503])
def test_x_envoy_ratelimited_comes_before_the_status(library: ModuleType, status: int) -> None:
    answer = classify.of_response(response(library, status, {"x-envoy-ratelimited": "true"}), CLOCK)
    assert words(answer) == {"envoy-ratelimited"}


#: Every exception of the clients, by name: verdict and words where a byte of the request had been written.
ERRORS: dict[str, tuple[Verdict, int]] = {
    "ConnectError": (Verdict.UNSENT, NOT_CONNECTED),
    "ConnectTimeout": (Verdict.UNSENT, NOT_CONNECTED),
    "ProxyError": (Verdict.UNSENT, NOT_CONNECTED),
    "ReadTimeout": (Verdict.FAILURE, FAILED),
    "WriteTimeout": (Verdict.FAILURE, FAILED),
    "TimeoutException": (Verdict.FAILURE, FAILED),
    "ReadError": (Verdict.FAILURE, FAILED),
    "WriteError": (Verdict.FAILURE, FAILED),
    "CloseError": (Verdict.FAILURE, FAILED),
    "NetworkError": (Verdict.FAILURE, FAILED),
    "RemoteProtocolError": (Verdict.FAILURE, FAILED),
    **dict.fromkeys(
        (
            "PoolTimeout", "LocalProtocolError", "ProtocolError", "UnsupportedProtocol", "TransportError", "DecodingError",
            "TooManyRedirects", "RequestError", "HTTPError", "HTTPStatusError", "InvalidURL", "CookieConflict", "StreamError",
            "StreamConsumed", "StreamClosed", "ResponseNotRead", "RequestNotRead", "SSEError",
        ),
        (Verdict.IGNORED, 0),
    ),
}


def _instance(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "text")
    return error


def test_every_exception_of_the_client_is_in_the_table(library: ModuleType) -> None:
    classes = [each for _, each in inspect.getmembers(library, inspect.isclass)]
    kinds = [each for each in classes if issubclass(each, Exception) and not issubclass(each, Warning)]
    assert len(kinds) > 20
    for kind in kinds:
        verdict, expected = ERRORS[kind.__name__]
        answer = classify.of_error(_instance(kind), written=True)
        assert (answer.verdict, answer.words) == (verdict, expected), kind
        assert answer.timed_out == (kind.__name__ in ("ReadTimeout", "WriteTimeout", "TimeoutException")), kind


@pytest.mark.parametrize("name", ["ReadError", "WriteError", "RemoteProtocolError"])
def test_a_reset_with_nothing_written_was_not_sent(library: ModuleType, name: str) -> None:
    answer = classify.of_error(_instance(getattr(library, name)), written=False)
    assert (answer.verdict, answer.words) == (Verdict.UNSENT, FAILED | mask("reset-before-request"))


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(ConnectionRefusedError(), Verdict.UNSENT), (ConnectionResetError(), Verdict.FAILURE), (TimeoutError(), Verdict.FAILURE),
     (ValueError(), Verdict.IGNORED), (KeyError("x"), Verdict.IGNORED)],
)
def test_what_other_transports_raise(error: Exception, verdict: Verdict) -> None:
    assert classify.of_error(error, written=True).verdict is verdict


def test_a_refused_stream_is_found_beneath_the_clients_exception(library: ModuleType) -> None:
    class StreamReset:
        error_code = 7

    try:
        raise library.RemoteProtocolError("reset") from ValueError(StreamReset())
    except library.RemoteProtocolError as error:
        answer = classify.of_error(error, written=True)
    assert (answer.verdict, answer.words) == (Verdict.UNSENT, FAILED | mask("refused-stream"))


def test_limits_of_ours() -> None:
    sent, unsent = classify.of_limit(LimitPassed()), classify.of_limit(LimitPassed(connecting=True))
    assert (sent.verdict, sent.timed_out, sent.local_origin) == (Verdict.FAILURE, True, False)
    assert (unsent.verdict, unsent.timed_out, unsent.local_origin) == (Verdict.UNSENT, True, True)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": " 120 "}, 120.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "Mon, 12 Jan 1970 13:47:10 GMT"}, 30.0),
        ({"retry-after": "Mon, 12 Jan 1970 13:47:10 -0000"}, 30.0),
        ({"retry-after": "Sun, 11 Jan 1970 00:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "9" * 400}, None),
        ({"retry-after": "٣"}, None),
        ({"retry-after": "Mon, 99 Jan 99999 13:47:10 GMT"}, None),
        ({"x-ratelimit-reset": "1000010"}, 10.0),
        ({"x-ratelimit-reset": "30"}, None),
        ({"x-ratelimit-reset": "soon"}, None),
        ({"retry-after": "2", "x-ratelimit-reset": "1000010"}, 2.0),
        ({"retry-after": "soon", "x-ratelimit-reset": "1000010"}, 10.0),
        ({"retry-after": "3, 4"}, 3.0),
        ({}, None),
    ],
)
def test_retry_after(library: ModuleType, headers: dict[str, str], seconds: float | None) -> None:
    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    for status in (429, 503):
        answer = classify.of_response(library.Response(status, headers=encoded), CLOCK)
        assert answer.retry_after == seconds


@pytest.mark.parametrize(
    ("method", "headers", "own", "route", "expected"),
    [
        ("GET", {}, None, None, True), ("PUT", {}, None, None, True), ("DELETE", {}, None, None, True),
        ("POST", {}, None, None, False), ("PATCH", {}, None, None, False),
        ("POST", {"Idempotency-Key": "k"}, None, None, True), ("POST", {"Idempotency-Key": "k"}, None, False, False),
        ("POST", {}, None, True, True), ("GET", {}, None, False, False),
        ("POST", {}, True, False, True), ("GET", {}, False, True, False),
    ],
)
def test_idempotency(
    library: ModuleType, method: str, headers: dict[str, str], own: bool | None, route: bool | None, expected: bool
) -> None:
    extensions = {} if own is None else {"resilmesh": {"idempotent": own}}
    request = library.Request(method, "http://svc.test/", headers=headers, extensions=extensions)
    plan: Any = SimpleNamespace(retry_idempotent=route)
    assert classify.is_idempotent(request, plan) is expected


def test_http2_that_a_service_breaks_is_its_failure_whatever_httpcore_calls_it(library: ModuleType) -> None:
    """As httpcore raises it: LocalProtocolError around h2's own. Of a request that h2 refuses to send nothing was heard."""
    from h2.exceptions import ProtocolError

    core = importlib.import_module({"httpx": "httpcore", "httpx2": "httpcore2"}[library.__name__])
    error = library.LocalProtocolError("broken")
    error.__cause__ = core.LocalProtocolError(ProtocolError("broken"))
    assert classify.of_error(error, written=True, heard=True).verdict is Verdict.FAILURE
    assert classify.of_error(error, written=True).verdict is Verdict.IGNORED
    assert classify.of_error(library.LocalProtocolError("an illegal header"), written=True, heard=True).verdict is Verdict.IGNORED
