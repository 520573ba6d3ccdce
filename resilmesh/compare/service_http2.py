"""The test bed's endpoint over HTTP/2 with prior knowledge: plain requests and gRPC calls, side by side on a connection.

``service`` loads it when a connection begins in HTTP/2; it needs ``h2``. No code is generated for gRPC: a message is the
same JSON that plain requests get, and a method whose name begins with ``Watch`` answers with a stream of them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.exceptions import ProtocolError

if TYPE_CHECKING:
    from resilmesh.compare.service import Answer, Endpoint, Headers, Request

_INTERNAL_ERROR = 2
_GRPC = "application/grpc"
_GRPC_HEADERS = ((":status", "200"), ("content-type", _GRPC))
_STREAMING = "/Watch"
#: Of the words that scripts use.
_CODES = {"OK": 0, "INTERNAL": 13, "UNAVAILABLE": 14}


class Streams(asyncio.Protocol):
    """One connection. ``new_request`` makes a request of its method, path, headers and body."""

    def __init__(
        self, endpoint: Endpoint, transport: asyncio.Transport, new_request: Callable[[str, str, dict[str, str], bytes], Request],
    ) -> None:
        self._endpoint = endpoint
        self._transport = transport
        self._new_request = new_request
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding="latin-1"))
        self._h2.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            match event:
                case events.RequestReceived():
                    self._requests[event.stream_id] = {str(name): str(value) for name, value in event.headers}, bytearray()
                case events.DataReceived():
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    self._requests[event.stream_id][1].extend(event.data)
                case events.StreamEnded():
                    self._serve(event.stream_id, *self._requests.pop(event.stream_id))
                case events.StreamReset():
                    self._requests.pop(event.stream_id, None)
        self._flush()

    def _serve(self, stream: int, headers: dict[str, str], body: bytearray) -> None:
        request = self._new_request(headers[":method"], headers[":path"], headers, bytes(body))
        if headers.get("content-type", "").startswith(_GRPC):
            self._endpoint.handle(GrpcCall(self, stream, _STREAMING in request.path), request)
        else:
            self._endpoint.handle(Stream(self, stream), request)

    def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._h2.data_to_send())

    def send(self, stream: int, head: Headers, body: bytes = b"", trailers: Headers = ()) -> None:
        """An answer, or what comes of it: the caller may have reset the stream, or left, since it asked."""
        with contextlib.suppress(ProtocolError):
            self._h2.send_headers(stream, head, end_stream=not body and not trailers)
            if body:
                self._h2.send_data(stream, body, end_stream=not trailers)
            if trailers:
                self._h2.send_headers(stream, trailers, end_stream=True)
            self._flush()

    def reset(self, stream: int) -> None:
        with contextlib.suppress(ProtocolError):
            self._h2.reset_stream(stream, _INTERNAL_ERROR)
            self._flush()


class Stream:
    """The answer to a plain request."""

    good, overloaded = "200", "503"

    def __init__(self, streams: Streams, number: int) -> None:
        self._streams = streams
        self._number = number

    def answer(self, what: Answer) -> None:
        if what.outcome in ("reset", "close"):
            self._streams.reset(self._number)
        elif what.outcome != "hang":
            fixed = (":status", what.outcome), ("content-type", "application/json"), ("content-length", str(len(what.body)))
            self._streams.send(self._number, (*fixed, *what.signature), what.body)


class GrpcCall:
    """The answer to a gRPC call: one message or several, then the status; or the status alone."""

    good, overloaded = "OK", "UNAVAILABLE"

    def __init__(self, streams: Streams, number: int, streaming: bool) -> None:
        self._streams = streams
        self._number = number
        self._streaming = streaming

    def answer(self, what: Answer) -> None:
        message = b"\0" + len(what.body).to_bytes(4, "big") + what.body
        messages = what.messages if self._streaming else 1
        match what.outcome:
            case "reset" | "close":
                self._streams.reset(self._number)
            case "hang":
                pass
            case "OK":
                self._streams.send(self._number, (*_GRPC_HEADERS, *what.signature), message * messages, _status("OK"))
            case "cut":
                # Committed: whoever has seen a message cannot ask again without seeing it twice.
                self._streams.send(
                    self._number, (*_GRPC_HEADERS, *what.signature), message * (messages // 2), _status("UNAVAILABLE"))
            case code:
                pushback = () if what.pushback is None else (("grpc-retry-pushback-ms", str(what.pushback)),)
                self._streams.send(self._number, (*_GRPC_HEADERS, *what.signature, *_status(code), *pushback))


def _status(code: str) -> Headers:
    return (("grpc-status", str(_CODES[code])), *(() if code == "OK" else (("grpc-message", "by script"),)))
