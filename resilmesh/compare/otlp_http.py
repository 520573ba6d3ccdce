"""OTLP over HTTP: ``POST /v1/traces``, ``/v1/metrics``, ``/v1/logs``, as protobuf or as JSON, plain or compressed.

Whatever cannot be used is answered with a status and words: 404 another path, 405 another method, 400 a body that is not what it
says to be, 411 and 413 one without or with too great a length, 415 another type or encoding.
"""

from __future__ import annotations

import base64
import json
import socket
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from resilmesh.compare.otlp import Malformed

if TYPE_CHECKING:
    from google.protobuf.message import Message

#: The longest message that is taken, in bytes, after decompression.
LONGEST = 64 * 1024 * 1024

_PROTOBUF = "application/x-protobuf"
_JSON = "application/json"
#: In JSON these are hex text, other than protobuf's own JSON has bytes.
_IDS = frozenset(("traceId", "spanId", "parentSpanId"))
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_SILENCE = 30.0  # seconds after which a connection that says nothing is closed


@dataclass(frozen=True, slots=True)
class Signal:
    """One kind of telemetry: the messages that carry it, and who takes it (which may raise ``Malformed``)."""

    request: type[Message]
    response: type[Message]
    take: Callable[[Any], None]

    def take_protobuf(self, body: bytes) -> bytes:
        """Take a message; what to answer."""
        from google.protobuf.message import DecodeError

        message = self.request()
        try:
            message.ParseFromString(body)
        except DecodeError as error:
            raise Malformed(f"the body is no protobuf message {self.request.DESCRIPTOR.full_name}: {error}") from None
        self.take(message)
        return self.response().SerializeToString()

    def take_json(self, body: bytes) -> bytes:
        """The same in JSON. Fields that are not known are ignored, as the protocol wants it."""
        from google.protobuf import json_format

        message = self.request()
        try:
            data = json.loads(body)
            if not isinstance(data, dict):  # an empty list would pass for an empty message
                raise TypeError("it is no object")
            json_format.ParseDict(_ids_as_protobuf_has_them(data), message, ignore_unknown_fields=True)
        except (ValueError, TypeError, AttributeError, RecursionError, json_format.ParseError) as error:
            raise Malformed(f"the body is not {self.request.DESCRIPTOR.full_name} in JSON: {error}") from None
        self.take(message)
        return b"{}"


class HttpReceiver:
    """Listens on 127.0.0.1 from the moment it is made until ``close``. ``signals``: by path. Raises ``OSError`` if the port is taken."""

    def __init__(self, port: int, signals: Mapping[str, Signal]) -> None:
        self._server = _Server(port, signals)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, name="resilmesh-collector-http", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End every connection, and the threads."""
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them

    def __init__(self, port: int, signals: Mapping[str, Signal]) -> None:
        self.signals = signals
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        with self._lock:
            self._open.add(connection)
        return connection, address

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away in the middle is no news."""

    def hang_up(self) -> None:
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # gone meanwhile


class _Refused(Exception):
    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "resilmesh-collector"
    sys_version = ""
    timeout = _SILENCE
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        try:
            # Read first: an answer to a body that nobody reads may be lost with the connection.
            body = self._body()
            kind, answer = self._taken(body)
            self._answer(200, kind, answer)
        except _Refused as refused:
            self._answer(refused.status, "text/plain; charset=utf-8", f"{refused}\n".encode())
        except Malformed as malformed:
            self._answer(400, "text/plain; charset=utf-8", f"{malformed}\n".encode())

    def do_GET(self) -> None:
        known = self.path in self.server.signals
        words = f"POST it, as {_PROTOBUF} or {_JSON}\n" if known else f"{self._where()}\n"
        self._answer(405 if known else 404, "text/plain; charset=utf-8", words.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: who sends hears what is wrong."""

    def _body(self) -> bytes:
        length = self.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()):
            self.close_connection = True
            raise _Refused(411, "say in Content-Length how long the body is")
        if int(length) > LONGEST:
            self.close_connection = True
            raise _Refused(413, f"a body of {length} bytes is more than the {LONGEST} that are taken: send smaller batches")
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            self.close_connection = True
            raise Malformed(f"the body ended after {len(body)} of {length} bytes")
        return body

    def _taken(self, body: bytes) -> tuple[str, bytes]:
        signal = self.server.signals.get(self.path)
        if signal is None:
            raise _Refused(404, self._where())
        kind = self.headers.get_content_type()
        if kind not in (_PROTOBUF, _JSON):
            raise _Refused(415, f"{kind} is not understood: send {_PROTOBUF} or {_JSON}")
        plain = _decompressed(body, self.headers.get("content-encoding", "identity").lower())
        return kind, signal.take_json(plain) if kind == _JSON else signal.take_protobuf(plain)

    def _where(self) -> str:
        return f"nothing is at {self.path}: POST to {', '.join(self.server.signals)}"

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)


def _decompressed(body: bytes, encoding: str) -> bytes:
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise _Refused(415, f"Content-Encoding {encoding} is not understood: send gzip, deflate or plain bodies")
    unpacking = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        plain = unpacking.decompress(body, LONGEST + 1)
    except zlib.error as error:
        raise Malformed(f"the body is not {encoding}: {error}") from None
    if len(plain) > LONGEST:
        raise _Refused(413, f"the body is more than the {LONGEST} bytes that are taken: send smaller batches")
    if not unpacking.eof:
        raise Malformed(f"the {encoding} body is cut off")
    return plain


def _ids_as_protobuf_has_them(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: base64.b64encode(bytes.fromhex(each)).decode() if key in _IDS else _ids_as_protobuf_has_them(each)
            for key, each in value.items()
        }
    return [_ids_as_protobuf_has_them(each) for each in value] if isinstance(value, list) else value
