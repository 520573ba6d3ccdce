"""The same over HTTP/2 (prior knowledge): frames that are garbage, floods, resets, windows that never open."""

from __future__ import annotations

import importlib
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from anyio.from_thread import start_blocking_portal
from hostile_service import Act, HostileService, resetting, waiting
from http2_service import Http2Service
from http_driver import Driver, mesh_of, nothing_in_flight

from resilmesh.engine.events import Event
from tests.timing import in_time

PREFACE = 24
SETTINGS, ACK = b"\0\0\0\4\0\0\0\0\0", b"\0\0\0\4\1\0\0\0\0"
OK_HEADERS = b"\x88"  # :status 200, indexed
LATE = "DeadlineExceeded"
#: httpcore says Local of most of what a service does wrong; the verdict must not believe it.
BROKEN = "ProtocolError"

pytestmark = pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def data(payload: bytes, *, end: bool = False) -> bytes:
    return frame(0, payload, flags=int(end), stream=1)


def headers(block: bytes = OK_HEADERS, *, end: bool = False, flags: int = 4, stream: int = 1) -> bytes:
    return frame(1, block, flags=flags | int(end), stream=stream)


def reset(code: int) -> bytes:
    return frame(3, struct.pack(">I", code), stream=1)


def goaway(last: int, code: int = 0) -> bytes:
    return frame(7, struct.pack(">II", last, code))


def after_request(*parts: bytes, first: bytes = SETTINGS, again: bytes = b"", every: float = 0.0, then: Act | None = None) -> Act:
    """Greets, reads what the client sends first, says ``parts``, then ``again`` and again; waits, or does ``then``."""
    def act(connection: socket.socket) -> None:
        said = connection.recv(65536)
        connection.sendall(first)
        while len(said) < PREFACE + 40:
            said += connection.recv(65536)
        time.sleep(0.02)  # the request comes with the settings or right behind them
        for part in parts:
            connection.sendall(part)
        while again:
            connection.sendall(again)
            time.sleep(every)
        (then or waiting)(connection)

    return act


def closing(connection: socket.socket) -> None:
    pass


@dataclass(frozen=True)
class Case:
    act: Act
    outcome: str | int
    verdict: str = "FAILURE"
    content: bytes = b""


CASES = {
    # h2 reads these as the beginning of a long frame, and waits for the rest.
    "garbage": Case(after_request(b"\xff" * 200, first=b""), LATE),
    "HTTP/1.1": Case(after_request(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", first=b""), LATE),
    "a frame of 16 MB": Case(after_request(frame(0, b"", stream=1, length=2**24 - 1) + b"x" * 1000), LATE),
    "frames of a kind that nobody knows": Case(after_request(again=frame(99, b"x" * 100), every=0.005), LATE),
    "silence": Case(after_request(), LATE),
    "a close when asked": Case(after_request(then=closing), "any"),
    "a reset of the connection": Case(after_request(then=resetting), "any"),
    "GOAWAY, nothing was looked at": Case(after_request(goaway(0), then=closing), BROKEN),
    "GOAWAY in the body": Case(after_request(headers() + data(b"o") + goaway(0, 2), then=closing), BROKEN),
    "GOAWAY for ever": Case(after_request(again=goaway(2**31 - 1), every=0.005), "any"),
    "RST_STREAM before the head": Case(after_request(reset(2)), BROKEN),
    "RST_STREAM, refused": Case(after_request(reset(7)), BROKEN, verdict="UNSENT"),
    "RST_STREAM after the head": Case(after_request(headers() + reset(2)), BROKEN),
    "RST_STREAM in the body": Case(after_request(headers() + data(b"o") + reset(2)), BROKEN),
    "a code that nobody knows": Case(after_request(reset(2**32 - 1)), BROKEN),
    "SETTINGS for ever": Case(after_request(again=SETTINGS * 20, every=0.005), LATE),
    "PING for ever": Case(after_request(again=frame(6, bytes(8)) * 20, every=0.005), LATE),
    "WINDOW_UPDATE of nothing": Case(after_request(frame(8, bytes(4))), BROKEN),
    "WINDOW_UPDATE beyond the limit": Case(after_request(frame(8, b"\x7f\xff\xff\xff") * 3), BROKEN),
    "a window of 0": Case(after_request(first=frame(4, struct.pack(">HI", 4, 0))), LATE, content=b"x" * 100_000),
    "a frame size that is not allowed": Case(after_request(first=frame(4, struct.pack(">HI", 5, 1))), BROKEN),
    "CONTINUATION for ever": Case(after_request(headers(b"", flags=0), again=frame(9, b"\x00\x01a\x01b" * 100, stream=1)), BROKEN),
    "HEADERS without an end": Case(after_request(headers(flags=0)), LATE),
    "a head of 10 MB": Case(
        after_request(headers(b"\x88", flags=0), again=frame(9, b"\x00\x01a\x7f\x80\x7e" + b"b" * 16255, stream=1)), BROKEN),
    "HPACK that is none": Case(after_request(headers(b"\xff" * 50)), BROKEN),
    "HPACK of an index that is not there": Case(after_request(headers(b"\xfe")), BROKEN),
    "an answer on a stream that nobody opened": Case(after_request(headers(stream=3)), BROKEN),
    "a body before its head": Case(after_request(data(b"ok", end=True)), BROKEN),
    "a head without a status, which httpcore takes for 200": Case(
        after_request(headers(b"\x00\x01a\x01b", end=True)), 200, verdict="SUCCESS"),
    "a promise": Case(after_request(frame(5, struct.pack(">I", 2) + b"\x82\x86\x84\x41\x01a", flags=4, stream=1)), BROKEN),
    "a length too long": Case(after_request(headers(b"\x88\x0f\x0d\x019") + data(b"ok", end=True)), BROKEN),
    "100 for ever": Case(after_request(again=headers(b"\x08\x03100"), every=0.005), LATE),
    "a dribbled body": Case(after_request(headers(), again=data(b"x"), every=0.01), LATE),
    "empty frames for ever": Case(after_request(headers(), again=data(b"") * 20, every=0.005), LATE),
    "more after the end": Case(after_request(headers() + data(b"ok", end=True) + data(b"more")), "any"),
    "an answer": Case(after_request(headers() + data(b"ok", end=True)), 200, verdict="SUCCESS"),
}


@pytest.fixture(params=["sync", "asyncio", "trio"], scope="module")
def runtime(request: pytest.FixtureRequest) -> Iterator[Driver]:
    library = importlib.import_module("httpx")
    if request.param == "sync":
        yield Driver(library, "sync", lambda function, *args, **options: function(*args, **options))
        return
    with start_blocking_portal(request.param) as portal:
        yield Driver(library, request.param, portal.call)


@pytest.fixture(scope="module")
def good() -> Iterator[Http2Service]:
    service = Http2Service()
    yield service
    service.stop()


@pytest.mark.parametrize("name", CASES)
def test_a_clear_error_in_time_and_nothing_lost(runtime: Driver, good: Http2Service, name: str) -> None:
    case = CASES[name]
    service = HostileService(case.act)
    try:
        mesh = mesh_of(service.address, concurrency="{maxRequests: 1}", protocol="HTTP2", timeout="150ms")
        events: list[Event] = []
        mesh.subscribe(events.append)
        with runtime.client(transport=runtime.transport(mesh)) as client:
            began = time.monotonic()
            outcome: str | int
            try:
                outcome = client.post("http://svc.test/ok", content=case.content, timeout=5).status_code
            except runtime.library.TransportError as error:
                broken = isinstance(error, runtime.library.ProtocolError)
                outcome = BROKEN if broken else type(error).__name__
            in_time(time.monotonic() - began, 2)
            if case.outcome != "any":
                assert (outcome, [each.detail["verdict"] for each in events if each.name == "call_ended"]) == (case.outcome, [case.verdict])
            assert nothing_in_flight(mesh)
            # The next one goes to a service that behaves, from the same client.
            mesh.apply_policy(mesh_of(good.address, concurrency="{maxRequests: 1}", protocol="HTTP2").table.policy)
            assert client.get("http://svc.test/ok", timeout=5).status_code == 200
            assert nothing_in_flight(mesh)
        assert service.gone()
    finally:
        service.stop()
