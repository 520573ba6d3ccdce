"""TLS in front of a service that speaks plain text."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def relay(context: ssl.SSLContext, address: str) -> Iterator[str]:
    """The address of a server that takes TLS off and passes everything on to ``address``."""
    host, _, port = address.rpartition(":")
    ends: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def serve(accepted: socket.socket) -> None:
        try:
            accepted.settimeout(10)
            secured = context.wrap_socket(accepted, server_side=True)
            secured.settimeout(None)
            behind = socket.create_connection((host, int(port)))
        except OSError:
            accepted.close()
            return
        ends.extend((secured, behind))
        for pair in ((secured, behind), (behind, secured)):
            threading.Thread(target=pump, args=pair, daemon=True).start()

    def listen() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, daemon=True).start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for each in ends:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
