"""The service that is called: a process of its own that answers well, badly, late, piece by piece, or by a reset, as its seed draws.

``python -m benchmarks.soak.service SEED`` prints its port and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import random
import sys

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_ANSWERS = {status: b"HTTP/1.1 %d Scripted\r\nContent-Length: 4\r\nX-Kind: bad\r\n\r\noops" % status for status in (404, 429, 500, 503)}
_PIECES = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"5\r\nfirst\r\n", b"6\r\nsecond\r\n", b"0\r\n\r\n")
_BREAKS = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nno more than this"


class Service(asyncio.Protocol):
    """One connection. Requests have a Content-Length or no body."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while True:
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line[15:])
            if len(rest) < length:
                return
            self._received = rest[length:]
            self._answer(self._rng.random())

    def _answer(self, draw: float) -> None:
        loop, transport = asyncio.get_running_loop(), self._transport
        if draw < 0.90:
            transport.write(_OK)
        elif draw < 0.94:
            transport.write(_ANSWERS[self._rng.choice((404, 429, 500, 503))])
        elif draw < 0.96:
            for number, piece in enumerate(_PIECES):
                loop.call_later(0.002 * number, transport.write, piece)
        elif draw < 0.97:
            transport.write(_BREAKS)
            transport.close()
        elif draw < 0.98:
            transport.abort()
        elif draw < 0.99:
            loop.call_later(0.05, transport.write, _OK)
        else:
            loop.call_later(0.5, transport.close)  # never answers


async def serve(seed: int) -> None:
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Service(rng), "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
