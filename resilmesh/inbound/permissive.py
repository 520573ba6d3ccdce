"""TLS and plain text on one port, for asyncio: ``mtls: PERMISSIVE``, as a sidecar has it.

The first byte tells: a TLS handshake begins with 22, and no request of HTTP does.
"""

from __future__ import annotations

import asyncio
from asyncio import sslproto
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl

_HANDSHAKE = 0x16
#: Seconds for the first byte: asyncio's own limit for a handshake.
_PATIENCE = 60.0


class FirstByte(asyncio.Protocol):
    """Stands in for a connection's protocol until there is a byte; ``make`` makes that, and ``context`` the TLS below it."""

    def __init__(self, make: Callable[[], asyncio.Protocol], context: ssl.SSLContext, connections: set[Any] | None = None) -> None:
        self._make = make
        self._context = context
        #: Those that the server shuts down when it ends.
        self._connections = set() if connections is None else connections

    def connection_made(self, transport: Any) -> None:
        """As of any protocol."""
        self._transport = transport
        self._connections.add(self)
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE, transport.abort)

    def data_received(self, data: bytes) -> None:
        """Hand the connection over to whom it is for."""
        self._over()
        protocol, transport = self._make(), self._transport
        if data[0] != _HANDSHAKE:
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
            protocol.data_received(data)
            return
        # As `loop.start_tls` does it, which would lose the bytes that have come.
        make: Any = sslproto.SSLProtocol
        secured = make(asyncio.get_running_loop(), protocol, self._context, None, server_side=True)
        transport.set_protocol(secured)
        secured.connection_made(transport)
        while data:
            buffer = secured.get_buffer(len(data))
            taken = min(len(buffer), len(data))
            buffer[:taken] = data[:taken]
            secured.buffer_updated(taken)
            data = data[taken:]

    def connection_lost(self, exc: Exception | None) -> None:
        """Gone without a byte."""
        self._over()

    def shutdown(self) -> None:
        """The server ends."""
        self._transport.close()

    def _over(self) -> None:
        self._timer.cancel()
        self._connections.discard(self)
