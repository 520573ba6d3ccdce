"""An identity from a SPIFFE Workload API, such as that of a SPIRE agent, by the ``spiffe`` package (``resilmesh[spire]``).

The agent pushes a new certificate and new bundles when it has them. A stream that breaks is begun anew; what it brings and cannot be
used is refused, and the old identity stays. gRPC does not survive a fork: the child begins with a connection of its own.
"""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resilmesh.identity.source import Source
from resilmesh.identity.spiffe import IdentityError
from resilmesh.ticker import Ticker

if TYPE_CHECKING:
    from resilmesh.identity.svid import Identity

log = logging.getLogger("resilmesh.identity")

#: Seconds between two looks at whether the stream flows and the certificate lasts.
_LOOK = 1.0


class WorkloadApiSource(Source):
    """Listens to the Workload API at ``address``, a socket: ``unix:///run/spire/agent.sock``. Of several SVIDs the first is taken.

    ``timeout``: seconds that the first identity may take, 10 by default. Raises ``IdentityError`` when there is none by then, and
    ``ImportError`` without the ``spiffe`` package.
    """

    def __init__(self, address: str, *, timeout: float = 10.0, look: float = _LOOK, now: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._address = address
        self._now = now
        self._arrived = threading.Event()
        self._ticker = Ticker(self.look_after, look, thread="resilmesh-identity", task="listening to the Workload API", log=log)
        #: The client and what ends its stream; ``None``: the stream has ended, and is begun anew at the next look.
        self._stream: tuple[Any, Any] | None = None
        self._begin()
        self._ticker.start()
        if not self._arrived.wait(timeout):
            self.close()
            why = self._problem or "it says nothing: is the agent running, and is this workload registered with it?"
            raise IdentityError(f"the Workload API at {address} has given no identity within {timeout:g} s: {why}")

    def close(self) -> None:
        """Listen no more."""
        self._ticker.stop()
        self._end()

    def after_fork(self) -> None:
        """The stream and the threads stayed with the parent."""
        super().after_fork()
        self._stream = None
        if not self._ticker.stopped:
            self._begin()
        self._ticker.after_fork()

    # ------------------------------------------------------------------------------------------ the stream

    def _begin(self) -> None:
        try:
            from spiffe import WorkloadApiClient
        except ImportError:
            raise ImportError("a Workload API needs the spiffe package: pip install 'resilmesh[spire]'") from None
        received, failed = weakref.WeakMethod(self._received), weakref.WeakMethod(self._failed)
        try:
            client = WorkloadApiClient(self._address)
        except Exception as error:  # the socket is not there (yet)
            self._note(error)
            return
        # Its own retries would be silent.
        handle = client.stream_x509_contexts(
            lambda context: _tell(received, context), lambda error: _tell(failed, error), retry_connect=False,
        )
        self._stream = client, handle
        self._finalizer = weakref.finalize(self, _close, client, handle)

    def _end(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            self._finalizer.detach()
            _close(*stream)

    def _received(self, context: Any) -> None:
        now = self._now()
        try:
            self.put(_identity(context).proven(now), now)
        except IdentityError as error:
            self._note(error)
        else:
            self._arrived.set()

    def _failed(self, error: Exception) -> None:
        self._note(error)
        self._end()

    def _note(self, error: Exception) -> None:
        """There is nothing to refuse before there was something."""
        if self._identity is None:
            self._problem = str(error)
        else:
            self.refuse(error)

    def look_after(self) -> None:
        """Begin anew what has ended, and warn of what will."""
        if self._stream is None:
            self._begin()
        self.look(self._now())


def _identity(context: Any) -> Identity:
    from resilmesh.identity.svid import Identity, Svid, TrustBundle

    shown = context.default_svid
    bundles = [TrustBundle.of(each.trust_domain.name, each.x509_authorities) for each in context.x509_bundle_set.bundles]
    return Identity.of(Svid.of(shown.cert_chain, shown.private_key), bundles)


def _tell(method: weakref.WeakMethod[Any], what: Any) -> None:
    alive = method()
    if alive is not None:
        alive(what)


def _close(client: Any, handle: Any) -> None:
    handle.cancel()
    client.close()
