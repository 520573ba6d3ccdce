"""An HTTP/2 service on 127.0.0.1 (prior knowledge, no TLS) that answers by the path:

    /ok               200 at once
    /after/<ms>       200 after a while
    /hang             never
    /drip/<ms>        200, and a byte of the body now and then
    /flood/<bytes>    200, and that much of a body, as fast as flow control allows
    /refuse           RST_STREAM(REFUSED_STREAM); then 200
    /reset            RST_STREAM(INTERNAL_ERROR)
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from functools import partial
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.errors import ErrorCodes


class Http2Service:
    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.seen: list[str] = []
        #: Error codes of the streams that clients reset.
        self.resets: list[int] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=_Connection(self, connection).serve, daemon=True).start()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Connection:
    def __init__(self, service: Http2Service, connection: socket.socket) -> None:
        self._service = service
        self._socket = connection
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        #: (when, what) to do on this connection
        self._later: list[tuple[float, Any]] = []
        self._floods: dict[int, int] = {}
        self._alive: set[int] = set()

    def serve(self) -> None:
        with self._socket, contextlib.suppress(OSError):
            self._h2.initiate_connection()
            self._flush()
            while True:
                due_in = min((when for when, _ in self._later), default=float("inf")) - time.monotonic()
                self._socket.settimeout(min(0.01, max(0.0005, due_in)))
                try:
                    data = self._socket.recv(65536)
                except TimeoutError:
                    data = None
                if data == b"":
                    return
                for event in self._h2.receive_data(data) if data else ():
                    self._on(event)
                now = time.monotonic()
                due = [each for each in self._later if each[0] <= now]
                self._later = [each for each in self._later if each[0] > now]
                for action in [action for _, action in due] + [partial(self._flood, number) for number in self._floods]:
                    # The client may have reset the stream in the moment that it was to be answered.
                    with contextlib.suppress(h2.exceptions.ProtocolError):
                        action()
                self._flush()

    def _flush(self) -> None:
        self._socket.settimeout(5)
        self._socket.sendall(self._h2.data_to_send())

    def _on(self, event: Any) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._alive.add(event.stream_id)
            path = dict(event.headers)[b":path"].decode()
            self._service.seen.append(path)
            self._later.append((0.0, partial(self._play, event.stream_id, path)))
        elif isinstance(event, h2.events.StreamReset):
            self._service.resets.append(int(event.error_code))
            self._alive.discard(event.stream_id)
            self._floods.pop(event.stream_id, None)
        elif isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

    def _play(self, number: int, path: str) -> None:
        if number not in self._alive:
            return
        act, _, argument = path.strip("/").partition("/")
        if act == "ok" or (act == "refuse" and self._service.seen.count(path) > 1):
            self._answer(number)
        elif act == "after":
            self._later.append((time.monotonic() + int(argument) / 1000, lambda: self._answer(number)))
        elif act == "refuse":
            self._h2.reset_stream(number, ErrorCodes.REFUSED_STREAM)
        elif act == "reset":
            self._h2.reset_stream(number, ErrorCodes.INTERNAL_ERROR)
        elif act == "drip":
            self._h2.send_headers(number, [(":status", "200")])
            self._drip(number, int(argument) / 1000)
        elif act == "flood":
            self._h2.send_headers(number, [(":status", "200")])
            self._floods[number] = int(argument)

    def _answer(self, number: int) -> None:
        if number in self._alive:
            self._h2.send_headers(number, [(":status", "200")])
            self._h2.send_data(number, b"ok", end_stream=True)

    def _drip(self, number: int, every: float) -> None:
        if number in self._alive:
            self._h2.send_data(number, b"x")
            self._later.append((time.monotonic() + every, lambda: self._drip(number, every)))

    def _flood(self, number: int) -> None:
        while self._floods.get(number):
            size = min(self._floods[number], self._h2.local_flow_control_window(number), 16384)
            if not size:
                return
            self._h2.send_data(number, b"f" * size)
            self._floods[number] -= size
            self._flush()
        if self._floods.pop(number, None) == 0:
            self._h2.end_stream(number)
