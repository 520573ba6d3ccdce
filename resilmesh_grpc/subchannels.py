"""Sub-channels: one grpc channel for each endpoint, made when it is first needed, closed when it has left the policy and its calls ended.

grpcio's own retries are off in them, because nobody would see those; and a connection that failed is dialled again within a
second, because it is the policy that says when an endpoint is left alone, and grpcio's backoff of up to two minutes would hide its return.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from resilmesh_grpc.target import without_port

if TYPE_CHECKING:
    from resilmesh.engine.plan import Plan, Tls
    from resilmesh.identity.svid import Identity
    from resilmesh_grpc.credentials import Secured
    from resilmesh_grpc.target import Target

#: What ours differ in from grpc's own channels. The caller's own options win.
OPTIONS: dict[str, Any] = {
    "grpc.enable_retries": 0,
    "grpc.initial_reconnect_backoff_ms": 100,  # grpc: 1,000
    "grpc.max_reconnect_backoff_ms": 1000,  # grpc: 120,000
}


class Method:
    """One method of a stub, with what is remembered for its next call. Every callable that a stub is made of has its own."""

    __slots__ = (
        "__weakref__", "_idempotent", "_moved", "bound", "deserializer", "kind", "path", "registered", "serializer", "settled",
        "streams_requests", "streams_responses",
    )

    def __init__(self, kind: str, path: str, serializer: Any, deserializer: Any, registered: bool | None) -> None:
        #: unary_unary, unary_stream, stream_unary or stream_stream
        self.kind = kind
        #: /package.Service/Method
        self.path = path
        self.serializer = serializer
        self.deserializer = deserializer
        self.registered = registered
        self.streams_requests = kind.startswith("stream")
        self.streams_responses = kind.endswith("stream")
        #: The plan of its calls, where no metadata has a say in that, and the epoch of its caller in which that is so.
        self.settled: tuple[object, Plan | None] = None, None
        #: grpc's own callables for it, by sub-channel. A stub that is forgotten takes them along.
        self.bound: dict[Subchannel, Any] = {}
        self._moved: dict[str, Method] = {}
        self._idempotent: bool | None = None

    def on(self, sub: Subchannel) -> Any:
        """grpc's own callable for it on a sub-channel."""
        try:
            return self.bound[sub]
        except KeyError:
            return sub.bind(self)

    def bind(self, channel: Any) -> Any:
        """Make grpc's own callable for it."""
        more = {"_registered_method": True} if self.registered else {}
        return getattr(channel, self.kind)(
            self.path, request_serializer=self.serializer, response_deserializer=self.deserializer, **more
        )

    def at(self, path: str) -> Method:
        """The same method under the path that the policy makes of its own."""
        moved = self._moved.get(path)
        if moved is None:
            moved = self._moved[path] = Method(self.kind, path, self.serializer, self.deserializer, registered=False)
        return moved

    @property
    def idempotent(self) -> bool:
        """Whether its .proto says so (``option idempotency_level``). Asked when something was lost, and then remembered."""
        if self._idempotent is None:
            self._idempotent = _declared_idempotent(self.path)
        return self._idempotent


def _declared_idempotent(path: str) -> bool:
    import sys

    if "google.protobuf.descriptor_pool" not in sys.modules:
        return False
    from google.protobuf import descriptor_pool

    try:
        found = descriptor_pool.Default().FindMethodByName(path.strip("/").replace("/", "."))
    except KeyError:
        return False
    return bool(found.GetOptions().idempotency_level)


class Subchannel:
    """A grpc channel to one endpoint, and what is known of it."""

    __slots__ = ("_closing", "_lock", "_methods", "channel", "identity", "in_flight", "on_idle", "parting", "retired")

    def __init__(self, channel: Any, on_idle: Callable[[Subchannel], object]) -> None:
        self.channel = channel
        #: Who this workload is to the service, where the policy says that it proves it.
        self.identity: Identity | None = None
        self.in_flight = 0
        #: Out of use: closed when the last call on it has ended.
        self.retired = False
        #: Made for a call that an earlier policy governs, to an endpoint that the present one does not have.
        self.parting = False
        self.on_idle = on_idle
        #: What is bound to it.
        self._methods: weakref.WeakSet[Method] = weakref.WeakSet()
        self._closing = False
        self._lock = threading.Lock()

    def bind(self, method: Method) -> Any:
        """grpc's own callable for a method. Raises ``ValueError`` when it is being closed: grpc would crash."""
        with self._lock:
            if self._closing:
                raise ValueError("Cannot invoke RPC on closed channel!")  # grpc's own words
            self._methods.add(method)
            return method.bound.setdefault(self, method.bind(self.channel))

    def forget(self) -> None:
        """It is being closed: what is bound to it goes."""
        with self._lock:
            self._closing = True
            bound = list(self._methods)
        for method in bound:
            method.bound.pop(self, None)

    def left(self) -> None:
        """A call on it has ended."""
        self.in_flight -= 1
        if self.retired and self.in_flight <= 0:
            self.on_idle(self)

    def connected(self) -> bool:
        """Whether there is a connection now. Of a channel that is not grpc's own nobody knows: yes, which is the careful answer."""
        ask = getattr(self.channel, "get_state", None)
        if ask is not None:
            return bool(ask() is grpc.ChannelConnectivity.READY)
        own = self.channel
        while isinstance(below := getattr(own, "_channel", None), grpc.Channel):  # interceptors, and what instruments grpc
            own = below
        core: Any = getattr(own, "_channel", None)
        if not hasattr(core, "check_connectivity_state"):
            return True
        try:
            return bool(core.check_connectivity_state(False) == grpc.ChannelConnectivity.READY.value[0])
        except ValueError:  # it was closed in the meantime: nobody knows either
            return True


#: An address, the seconds that a connection may take, an authority, the policy's TLS.
Key = tuple[str | None, float | None, str | None, "Tls | None"]


class Subchannels:
    """The sub-channels of one channel.

    ``open_`` makes a grpc channel of an address and options. ``close`` has one closed soon: it may be called on a thread of
    grpc's, and with our lock held.
    """

    def __init__(
        self, target: Target, open_: Callable[[str, Sequence[tuple[str, Any]], grpc.ChannelCredentials | None], Any],
        close: Callable[[Any], object], *, options: Sequence[tuple[str, Any]] = (), credentials: grpc.ChannelCredentials | None = None,
        given: Any = None,
    ) -> None:
        self._target = target
        self._open = open_
        self._close = close
        self._options = OPTIONS | dict(options)
        #: What the user gave, and in place of it what the policy's TLS asks for.
        self.credentials = credentials
        self._secured: dict[Tls, Secured] = {}
        #: The one channel there is, if the user brought it.
        self.given = None if given is None else Subchannel(given, self._drained)
        #: By address (``None``: the target itself), the time that a connection may take, and the authority (``None``: the target's).
        self._by_key: dict[Key, Subchannel] = {}
        self._retired: list[Subchannel] = []
        #: The endpoints of the present policy, once it has changed.
        self._known: Collection[str] | None = None
        self._lock = threading.Lock()
        self.closed = False
        _all.add(self)

    def enter(
        self, address: str | None, connect_timeout: float | None, authority: str | None = None, tls: Tls | None = None,
    ) -> Subchannel:
        """The sub-channel to an endpoint, or to the target itself, with a call more on it, which owes ``left``.

        ``authority``: what its calls say they are for, if not the target's. ``tls``: of the policy's, which has been secured. Raises
        ``ValueError`` when the channel is closed.
        """
        if self.given is not None:
            self.given.in_flight += 1
            return self.given
        while True:
            key = address, connect_timeout, authority, tls
            sub = self._by_key.get(key) or self._make(key)
            sub.in_flight += 1
            if not sub.retired or sub.parting:
                return sub
            sub.left()  # it went out of use between these lines

    def _make(self, key: Key) -> Subchannel:
        address, _, authority, tls = key
        with self._lock:
            if self.closed:
                raise ValueError("Cannot invoke RPC on closed channel!")  # grpc's own words
            found = self._by_key.get(key)
            if found is not None:
                return found
            its = None if tls is None else self._secured[tls]
            credentials = self.credentials if its is None else its.credentials
            made = self._open(self._target.text if address is None else address, [*self._arguments(*key).items()], credentials)
            found = Subchannel(made, self._drained)
            found.identity = None if its is None else its.identity
            if address is not None and self._known is not None and address not in self._known:
                found.retired = found.parting = True
                self._retired.append(found)
                return found
            for old in [each for each in self._by_key if (each[0], each[2], each[3]) == (address, authority, tls)]:
                self._retire(old)  # another connectTimeout
            self._by_key[key] = found
        return found

    def secured(self, tls: Tls) -> Secured | None:
        """What the sub-channels under the policy's TLS are begun with."""
        return self._secured.get(tls)

    def secure(self, tls: Tls, its: Secured) -> None:
        """Begin them with this, and take those out of use that were begun with something else."""
        with self._lock:
            self._secured[tls] = its
            for key in [key for key, sub in self._by_key.items() if key[3] == tls and sub.identity is not its.identity]:
                self._retire(key)

    def _arguments(self, address: str | None, connect_timeout: float | None, authority: str | None, tls: Tls | None) -> dict[str, Any]:
        own: dict[str, Any] = {}
        if connect_timeout is not None:
            own["grpc.min_reconnect_backoff_ms"] = max(1, round(connect_timeout * 1000))
        if address is not None or authority is not None:
            own["grpc.default_authority"] = authority or self._target.authority
            if self.credentials is not None or tls is not None:  # TLS proves the host that the caller wrote
                own["grpc.ssl_target_name_override"] = self._target.host
        own |= self._options
        name = None if tls is None else self._secured[tls].name
        if name is not None:
            # Or who the policy says that it is, whatever the caller's options say. Whom its calls are for they go on saying, but without
            # a port: grpc holds that against the channel's target, of which it knows no port.
            own["grpc.default_authority"] = without_port(own.get("grpc.default_authority", self._target.authority))
            own["grpc.ssl_target_name_override"] = name
        return own

    def opened(self) -> list[Any]:
        """The grpc channels in use whose calls are for the target."""
        with self._lock:
            own = [each for key, each in self._by_key.items() if key[2] is None]
            return [each.channel for each in ([self.given] if self.given is not None else own)]

    def retire(self, addresses: Collection[str]) -> None:
        """Take the sub-channels to endpoints that are not among ``addresses`` out of use."""
        with self._lock:
            self._known = addresses
            for key in [key for key in self._by_key if key[0] is not None and key[0] not in addresses]:
                self._retire(key)

    def _retire(self, key: Key) -> None:
        sub = self._by_key.pop(key)
        self._retired.append(sub)
        sub.retired = True
        if sub.in_flight <= 0:
            self._drained(sub)

    def _drained(self, sub: Subchannel) -> None:
        try:
            self._retired.remove(sub)  # whoever takes it out closes it
        except ValueError:
            return
        sub.forget()
        self._close(sub.channel)

    def clear(self) -> list[Any]:
        """No call any more; gives the grpc channels to close."""
        with self._lock:
            self.closed = True
            left = [*self._by_key.values(), *self._retired, *(() if self.given is None else (self.given,))]
            self._by_key, self._retired = {}, []
        for sub in left:
            sub.forget()
        return [sub.channel for sub in left]

    def after_fork(self) -> None:
        """A child has no use for its parent's connections, and must not touch them."""
        self._lock = threading.Lock()
        _parents.append((self._by_key, self._retired))
        self._by_key, self._retired = {}, []


_all: weakref.WeakSet[Subchannels] = weakref.WeakSet()
#: What a forked child inherited: kept, because the destructor of a channel would wait for threads that are not there.
_parents: list[Any] = []


def _after_fork() -> None:
    for each in list(_all):
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
