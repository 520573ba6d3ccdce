"""A proxy on 127.0.0.1: forwards plain requests, tunnels CONNECT. Resolves every name to where ``to`` says."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    def __init__(self, to: dict[str, str]) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        #: First lines of the requests that it got.
        self.asked: list[str] = []
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                part = client.recv(65536)
                if not part:
                    return
                head += part
            first, _, rest = head.partition(b"\r\n")
            self.asked.append(first.decode())
            method, target, _ = first.decode().split(" ")
            if method == "CONNECT":
                with self._dial(target) as server:
                    client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                    _shovel(client, server)
                return
            authority, _, path = target.removeprefix("http://").partition("/")
            with self._dial(authority) as server:
                server.sendall(f"{method} /{path} HTTP/1.1\r\n".encode() + rest)
                _shovel(client, server)

    def _dial(self, authority: str) -> socket.socket:
        host, _, port = self._to.get(authority, authority).partition(":")
        server = socket.create_connection((host, int(port or 80)))
        self._open.append(server)
        return server

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)


def _shovel(one: socket.socket, two: socket.socket) -> None:
    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                target.sendall(part)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    back = threading.Thread(target=copy, args=(two, one), daemon=True)
    back.start()
    copy(one, two)
    back.join()
