"""A service that speaks HTTP/2 without TLS, on 127.0.0.1; enough to tell that a plane does."""

from __future__ import annotations

import socket
import threading
from types import TracebackType

import h2.config
import h2.connection
import h2.events


class H2Service:
    """Answers every request with 200 and counts them."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests = 0
        self.connections: list[socket.socket] = []

    def __enter__(self) -> H2Service:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        protocol = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        protocol.initiate_connection()
        try:
            connection.sendall(protocol.data_to_send())
            while data := connection.recv(65536):
                for event in protocol.receive_data(data):
                    if isinstance(event, h2.events.StreamEnded):
                        self.requests += 1
                        protocol.send_headers(event.stream_id, [(":status", "200"), ("content-length", "2")])
                        protocol.send_data(event.stream_id, b"h2", end_stream=True)
                connection.sendall(protocol.data_to_send())
        except (OSError, h2.exceptions.ProtocolError):  # the latter: the client speaks HTTP/1.1
            connection.close()
