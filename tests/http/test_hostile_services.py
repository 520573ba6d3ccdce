"""Services that lie, flood, drip and break off: a clear error in bounded time, the right verdict, and nothing lost.

The first connection of each case is hostile and the second one behaves, so every case ends with a call that must succeed on the
same client, whose pool, slots and circuit must not have suffered.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from hostile_service import OK, Act, HostileService, answering, asked, early, for_ever, resetting, saying, unread, waiting
from http_driver import Driver, mesh_of, nothing_in_flight

from resilmesh import DeadlineExceeded, Mesh
from resilmesh.engine.events import Event
from tests.timing import lasts

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"
BROKEN, READ, LATE = "RemoteProtocolError", "ReadError", "DeadlineExceeded"


RUNTIMES = ["httpx-sync", "httpx-asyncio", "httpx-trio"]
#: httpx2 has the same code, so a part is enough.
ALSO_ON_HTTPX2 = {"100 for ever", "a length too long, then the end", "a dribbled body", "two answers to one question", "a reset at once"}


#: httpx leaves the generator of a request's body to the collector when its sending is cut short.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")


@pytest.fixture(scope="module")
def runtime(request: pytest.FixtureRequest) -> Iterator[Driver]:
    name, _, kind = request.param.partition("-")
    library: ModuleType = importlib.import_module(name)
    if kind == "sync":
        yield Driver(library, "sync", lambda function, *args, **options: function(*args, **options))
        return
    with start_blocking_portal(kind) as portal:
        yield Driver(library, kind, portal.call)


def late_by_one(connection: Any) -> None:
    """The first question has had its answer."""
    asked(connection)
    answering(OK)(connection)


@dataclass(frozen=True)
class Case:
    """``outcome``: the client's exception, or the status. ``body``: it comes while the body is read, when nothing is retried any more."""

    act: Act
    outcome: str | int
    body: bool = False
    method: str = "GET"
    content: bytes = b""
    blocks: tuple[tuple[str, str], ...] = ()

    @property
    def verdict(self) -> str:
        return "SUCCESS" if isinstance(self.outcome, int) else "FAILURE"


SOON = (("timeout", "150ms"),)

CASES: dict[str, Case] = {
    # The head never ends. No time limit in the policy but where one is written.
    "endless headers": Case(for_ever(HEAD, b"x-a: " + b"b" * 1000 + b"\r\n"), BROKEN),
    "one endless header": Case(for_ever(HEAD + b"x-a: ", b"b" * 10_000), BROKEN),
    "an endless status line": Case(for_ever(b"HTTP/1.1 200 ", b"O" * 10_000), BROKEN),
    "an endless version": Case(for_ever(b"", b"H" * 10_000), BROKEN),
    "a million headers": Case(saying(HEAD + b"a: b\r\n" * 1_000_000 + b"\r\n"), BROKEN),
    "100 for ever": Case(for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50), BROKEN),
    "103 for ever": Case(for_ever(b"", b"HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n" * 50), BROKEN),
    "102 now and then": Case(for_ever(b"", b"HTTP/1.1 102 Processing\r\n\r\n", every=0.02), LATE, blocks=SOON),
    "dribbled headers": Case(for_ever(HEAD + b"x-a: ", b"b", every=0.01), LATE, blocks=SOON),
    "dribbled headers, one try": Case(
        for_ever(HEAD + b"x-a: ", b"b", every=0.01), LATE, blocks=(("retries", "{retryOn: [5xx], maxRetries: 0, perTryTimeout: 150ms}"),)),
    "a head that stops": Case(saying(HEAD + b"content-le", then=waiting), LATE, blocks=SOON),
    "a head that stops, idle": Case(saying(HEAD + b"content-le", then=waiting), LATE, blocks=(("idleTimeout", "120ms"),)),
    "silence": Case(waiting, LATE, blocks=SOON),
    # The length lies.
    "a length too long, then the end": Case(saying(HEAD + b"content-length: 9\r\n\r\nok"), BROKEN, body=True),
    "a length too long, then silence": Case(
        saying(HEAD + b"content-length: 9\r\n\r\nok", then=waiting), LATE, body=True, blocks=SOON),
    "a length too short": Case(saying(HEAD + b"content-length: 2\r\n\r\nok and more", then=waiting), 200),
    "a negative length": Case(saying(HEAD + b"content-length: -2\r\n\r\nok", then=waiting), BROKEN),
    "a length of words": Case(saying(HEAD + b"content-length: two\r\n\r\nok", then=waiting), BROKEN),
    "a length of thirty digits": Case(saying(HEAD + b"content-length: " + b"9" * 30 + b"\r\n\r\nok", then=waiting), BROKEN),
    "two lengths": Case(saying(HEAD + b"content-length: 2\r\ncontent-length: 3\r\n\r\nok", then=waiting), BROKEN),
    "two lengths that agree": Case(answering(HEAD + b"content-length: 2\r\ncontent-length: 2\r\n\r\nok"), 200),
    "a length and chunks": Case(
        answering(HEAD + b"content-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), 200),
    "a coding that nobody knows": Case(saying(HEAD + b"transfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"), BROKEN),
    "a body of 204": Case(saying(b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nok", then=waiting), 204),
    # The body never ends, or in no way that is allowed.
    "a dribbled body": Case(for_ever(HEAD + b"content-length: 1000\r\n\r\n", b"x", every=0.01), LATE, body=True, blocks=SOON),
    "a dribbled body without a length": Case(for_ever(HEAD + b"\r\n", b"x", every=0.01), LATE, body=True, blocks=SOON),
    "a body that stops, idle": Case(
        saying(HEAD + b"content-length: 9\r\n\r\nok", then=waiting), LATE, body=True, blocks=(("idleTimeout", "120ms"),)),
    "chunks of one byte for ever": Case(for_ever(CHUNKED, b"1\r\nx\r\n", every=0.01), LATE, body=True, blocks=SOON),
    "a chunk of letters": Case(saying(CHUNKED + b"zz\r\nok\r\n", then=waiting), BROKEN, body=True),
    "a chunk of negative size": Case(saying(CHUNKED + b"-2\r\nok\r\n", then=waiting), BROKEN, body=True),
    "a chunk of 2^120 bytes": Case(saying(CHUNKED + b"F" * 30 + b"\r\nok", then=waiting), BROKEN, body=True),
    "a chunk size that never ends": Case(for_ever(CHUNKED, b"0" * 10_000), BROKEN, body=True),
    "a chunk extension that never ends": Case(for_ever(CHUNKED + b"2;", b"a" * 10_000), BROKEN, body=True),
    "trailers that never end": Case(for_ever(CHUNKED + b"2\r\nok\r\n0\r\n", b"x-a: " + b"b" * 1000 + b"\r\n"), BROKEN, body=True),
    "chunks without a last": Case(saying(CHUNKED + b"2\r\nok\r\n"), BROKEN, body=True),
    "a chunk without its end": Case(saying(CHUNKED + b"2\r\nokokok", then=waiting), BROKEN, body=True),
    # No HTTP, or not of this kind.
    "HTTP/0.9": Case(saying(b"<html>hello</html>\r\n\r\n"), BROKEN),
    "HTTP/3, which h11 takes for 1.0": Case(saying(b"HTTP/3.0 200 OK\r\n\r\nok"), 200),
    "HTTP/2 frames": Case(saying(bytes(9) * 20, then=waiting), BROKEN),
    "a greeting of SSH": Case(saying(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", then=waiting), BROKEN),
    "a TLS alert": Case(saying(b"\x15\x03\x01\x00\x02\x02\x46" * 4), BROKEN),
    "a header without a colon": Case(saying(HEAD + b"nonsense\r\n\r\n", then=waiting), BROKEN),
    "a header with a NUL": Case(saying(HEAD + b"x-a: a\0b\r\n\r\n", then=waiting), BROKEN),
    "a name with a blank": Case(saying(HEAD + b"x a: b\r\n\r\n", then=waiting), BROKEN),
    "a status of four digits": Case(saying(b"HTTP/1.1 2000 OK\r\n\r\n", then=waiting), BROKEN),
    "a status of words": Case(saying(b"HTTP/1.1 two OK\r\n\r\n", then=waiting), BROKEN),
    "a status of 099": Case(saying(b"HTTP/1.1 099 Early\r\n\r\n", then=waiting), BROKEN),
    "only line ends": Case(for_ever(b"", b"\r\n" * 1000), BROKEN),
    # In the wrong order.
    "an answer before the question": Case(early(OK, late_by_one), 200),
    "garbage before the answer": Case(saying(b"\0\1\2\3\r\n\r\n" + OK, then=waiting), BROKEN),
    "two answers to one question": Case(saying(OK + OK, then=waiting), 200),
    "an answer, and garbage for ever": Case(for_ever(OK, b"garbage" * 1000), 200),
    "an answer to nothing, later": Case(saying(OK, OK.replace(b"200 OK", b"500 No"), then=waiting), 200),
    "a close at once": Case(lambda connection: None, "any"),
    "a reset at once": Case(resetting, "any"),
    "a close when asked": Case(saying(), BROKEN),
    "a reset when asked": Case(saying(then=resetting), READ),
    "a request that nobody reads": Case(unread, LATE, method="PUT", content=b"x" * 8_000_000, blocks=SOON),
    "an answer to a request that nobody reads": Case(
        early(OK, unread), "any", method="PUT", content=b"x" * 8_000_000, blocks=(("timeout", "300ms"),)),
}


def watched(service: HostileService, **blocks: str) -> tuple[Mesh, list[Event]]:
    mesh = mesh_of(service.address, concurrency="{maxRequests: 1}", **blocks)
    events: list[Event] = []
    mesh.subscribe(events.append)
    return mesh, events


def call(client: Any, case: Case) -> Any:
    return client.request(case.method, "http://svc.test/", content=case.content, timeout=5)


@pytest.mark.parametrize(("runtime", "name"), [
    *((runtime, name) for runtime in RUNTIMES for name in CASES),
    *((runtime, name) for runtime in ("httpx2-sync", "httpx2-asyncio") for name in CASES if name in ALSO_ON_HTTPX2),
], indirect=["runtime"])
def test_a_clear_error_in_time_and_nothing_lost(runtime: Driver, name: str) -> None:
    case = CASES[name]
    service = HostileService(case.act)
    try:
        mesh, events = watched(service, **dict(case.blocks))
        with runtime.client(transport=runtime.transport(mesh)) as client:
            with lasts(0, 3):
                outcome = outcome_of(runtime, lambda: call(client, case))
            if case.outcome != "any":
                assert outcome == case.outcome
                ended = [each.detail["verdict"] for each in events if each.name == "call_ended"]
                assert ended == [case.verdict]
            assert nothing_in_flight(mesh)
            if name == "an answer, and garbage for ever":
                # The garbage may arrive between the look at the idle connection and the request on it.
                with suppress(runtime.library.RemoteProtocolError):
                    client.get("http://svc.test/", timeout=5)
            assert client.get("http://svc.test/", timeout=5).text == "ok"
            assert nothing_in_flight(mesh)
        assert service.gone()
    finally:
        service.stop()


@pytest.mark.parametrize("runtime", ["httpx-asyncio"], indirect=True)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not isinstance(case.outcome, int)])
def test_what_broke_before_its_head_was_there_is_sent_again(runtime: Driver, name: str) -> None:
    case = CASES[name]
    blocks = dict(case.blocks)
    if "timeout" in blocks:  # a limit of one try, so that there is time for another
        blocks["retries"] = f"{{retryOn: [reset], maxRetries: 1, backoff: {{base: 1ms}}, perTryTimeout: {blocks.pop('timeout')}}}"
    else:
        blocks["retries"] = blocks.get("retries", "{retryOn: [reset], backoff: {base: 1ms}, maxRetries: 1}").replace("[5xx]", "[reset]")
        blocks["retries"] = blocks["retries"].replace("maxRetries: 0", "maxRetries: 1")
    if case.body:
        blocks["timeout"] = "250ms"
    service = HostileService(case.act)
    try:
        mesh, events = watched(service, **blocks)
        with runtime.client(transport=runtime.transport(mesh)) as client:
            outcome = outcome_of(runtime, lambda: call(client, case))
            attempts = [each for each in events if each.name == "attempt_started"]
            if case.body:
                assert (outcome, len(attempts)) == (case.outcome, 1)
            else:
                assert outcome == 200
                assert len(attempts) == (2 if case.outcome != "any" else len(attempts))
            assert nothing_in_flight(mesh)
        assert service.gone()
    finally:
        service.stop()


def outcome_of(runtime: Driver, function: Callable[[], Any]) -> str | int:
    """The status, or the name of the exception, which must be the client's own."""
    try:
        return int(function().status_code)
    except runtime.library.TransportError as error:
        caught = error
    assert str(caught) or not isinstance(caught, DeadlineExceeded)
    assert caught.request.url.host == "svc.test"
    return type(caught).__name__


@pytest.mark.parametrize("runtime", [*RUNTIMES, "httpx2-sync"], indirect=True)
@pytest.mark.parametrize("end", ["close", "reset"])
def test_an_end_at_every_byte_of_an_answer(runtime: Driver, end: str) -> None:
    """Each connection answers a byte more than the one before, and breaks off."""
    then: Act = resetting if end == "reset" else lambda connection: None
    whole = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nx-a: b\r\n\r\n2\r\nok\r\n0\r\n\r\n"
    head = whole.index(b"\r\n\r\n") + 4
    service = HostileService(*(saying(whole[:length], then=then) for length in range(len(whole))), behave=answering(OK))
    try:
        mesh, events = watched(service)
        with runtime.client(transport=runtime.transport(mesh)) as client:
            for length in range(len(whole)):
                assert outcome_of(runtime, lambda: client.get("http://svc.test/", timeout=5)) in (BROKEN, READ), length
                statuses = [each.detail["status"] for each in events if each.name == "attempt_ended"]
                assert len(statuses) == length + 1
                # A reset may overtake the head that was sent before it.
                assert statuses[-1] == (200 if length >= head else 0) or (end, statuses[-1]) == ("reset", 0)
                assert nothing_in_flight(mesh)
            assert [each.detail["verdict"] for each in events if each.name == "call_ended"] == ["FAILURE"] * len(whole)
            assert client.get("http://svc.test/", timeout=5).text == "ok"
        assert service.connections == len(whole) + 1
        assert service.gone()
    finally:
        service.stop()
