"""As ``sidebyside``, for gRPC: the same policy and the same calls through ``resilmesh_grpc.channel`` and through a real Envoy.

    both = grpc_sides(shops, POLICY, lambda caller: caller.buy("tea"), a=[status("UNAVAILABLE"), OK])
    both.agree()
    assert both.envoy.codes == ["OK"]
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from string import Template
from typing import Any

import grpc
from sidebyside import WRITTEN, written_fields

import resilmesh_grpc
from resilmesh.envoy.process import Envoy
from resilmesh.envoy.translate import translate
from resilmesh.mesh import Mesh
from resilmesh.policy.check import check
from resilmesh.policy.load import load_text
from resilmesh.policy.model import Policy
from tests.grpc.grpc_service import OK as AS_ASKED
from tests.grpc.grpc_service import GrpcService, Metadata, Script, Seen
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

#: For every call: nothing here may hang. Seconds.
PATIENCE = 20.0


@dataclass(frozen=True)
class Reply:
    """What the caller saw. ``messages`` are the texts of what arrived before the end."""

    code: str
    messages: tuple[str, ...]
    #: Metadata whose name begins with ``x-`` and is not Envoy's.
    initial: tuple[tuple[str, str], ...]
    trailing: tuple[tuple[str, str], ...]
    details: str = field(compare=False)
    seconds: float = field(compare=False)


class Caller:
    """Makes calls through one plane, and keeps the replies in the order of the calls."""

    def __init__(self, channel: Callable[[str], grpc.Channel]) -> None:
        self._channel = channel
        self.replies: list[Reply] = []

    def buy(self, text: str = "", **more: Any) -> Reply:
        return self.call("Buy", Order(text=text), **more)

    def watch(self, count: int = 3, **more: Any) -> Reply:
        """``count`` messages from the service."""
        return self.call("Watch", Order(number=count), **more)

    def collect(self, *texts: str, **more: Any) -> Reply:
        return self.call("Collect", (Order(text=text) for text in texts), **more)

    def chat(self, *texts: str, **more: Any) -> Reply:
        return self.call("Chat", (Order(text=text) for text in texts), **more)

    def together(self, count: int, method: str = "Buy") -> None:
        """``count`` calls at once."""
        with ThreadPoolExecutor(count) as pool:
            self.replies += pool.map(lambda _: self._exchange(method, Order(number=1)), range(count))

    def call(self, method: str, request: Any, **more: Any) -> Reply:
        self.replies.append(reply := self._exchange(method, request, **more))
        return reply

    def _exchange(
        self, method: str, request: Any, *, host: str = "svc.test", case: str = "", metadata: Metadata = (), timeout: float = PATIENCE,
    ) -> Reply:
        begun = time.monotonic()
        call = None
        arrived: list[str] = []
        sent = (*metadata, ("x-case", case)) if case else metadata
        start = getattr(ShopStub(self._channel(host)), method)
        try:
            if method in ("Buy", "Look", "Collect"):
                message, call = start.with_call(request, timeout=timeout, metadata=sent)
                arrived.append(_shown(message))
            else:
                call = start(request, timeout=timeout, metadata=sent)
                arrived.extend(map(_shown, call))
        except grpc.RpcError as error:
            call = error
        return Reply(
            call.code().name, tuple(arrived), _own(call.initial_metadata()), _own(call.trailing_metadata()), call.details() or "",
            time.monotonic() - begun,
        )


def _shown(receipt: Any) -> str:
    return receipt.text or str(receipt.number)


def _own(metadata: Iterable[Any] | None) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(
        (name, value) for name, value in metadata or () if name.startswith("x-") and not name.startswith("x-envoy-")
    ))


@dataclass
class Observation:
    """One plane: what the caller saw, and what the services saw."""

    replies: list[Reply]
    seen: dict[str, list[Seen]] = field(repr=False)
    #: Envoy's counters, or the library's snapshot.
    inside: dict[str, Any] = field(repr=False)

    @property
    def codes(self) -> list[str]:
        return [reply.code for reply in self.replies]

    @property
    def details(self) -> list[str]:
        return [reply.details for reply in self.replies]

    @property
    def attempts(self) -> int:
        return sum(map(len, self.seen.values()))

    def calls(self) -> dict[str, list[tuple[str, list[str]]]]:
        return {name: sorted((each.method, [order.text for order in each.messages]) for each in seen) for name, seen in self.seen.items()}


@dataclass
class Both:
    library: Observation
    envoy: Observation

    def __iter__(self) -> Iterator[Observation]:
        return iter((self.library, self.envoy))

    def agree(self, *, in_any_order: bool = False) -> None:
        """Caller and services saw the same. A service's own words are the same too; of what is made locally each plane has its own."""
        library, envoy = ([*each.replies] for each in self)
        if in_any_order:
            library.sort(key=lambda reply: (reply.code, reply.messages))
            envoy.sort(key=lambda reply: (reply.code, reply.messages))
        assert library == envoy
        for mine, its in zip(library, envoy, strict=True):
            if "service says" in its.details:
                assert mine.details == its.details
        assert self.library.calls() == self.envoy.calls()


Traffic = Callable[[Caller], object]
Services = Mapping[str, GrpcService]


def grpc_sides(shops: Services, text: str, traffic: Traffic, **scripts: Script) -> Both:
    """Run ``traffic`` through both planes; each service plays its script (default: what it is asked for) from the start for each."""
    filled = Template(text).substitute({name: shop.address for name, shop in shops.items()})
    loaded = load_text(filled)
    errors = [each for each in check(loaded) if each.severity == "error"]
    assert not errors, "\n".join(map(str, errors))
    WRITTEN.update(written_fields(loaded.policy))
    return Both(
        _observe(shops, scripts, traffic, lambda: _library(filled)), _observe(shops, scripts, traffic, lambda: _envoy(loaded.policy)),
    )


Plane = tuple[Callable[[str], grpc.Channel], Callable[[], dict[str, Any]]]


def _observe(
    shops: Services, scripts: dict[str, Script], traffic: Traffic, plane: Callable[[], contextlib.AbstractContextManager[Plane]],
) -> Observation:
    for name, shop in shops.items():
        shop.play(scripts.get(name, AS_ASKED))
    with plane() as (channel, inside):
        caller = Caller(channel)
        traffic(caller)
        return Observation(caller.replies, {name: list(shop.seen) for name, shop in shops.items()}, inside())


class _Channels(contextlib.ExitStack):
    """One channel for each host, made when it is first asked for."""

    def __init__(self, make: Callable[[str], grpc.Channel]) -> None:
        super().__init__()
        self._make = make
        self._made: dict[str, grpc.Channel] = {}

    def __call__(self, host: str) -> grpc.Channel:
        if host not in self._made:
            self._made[host] = self.enter_context(self._make(host))
        return self._made[host]


@contextlib.contextmanager
def _library(text: str) -> Iterator[Plane]:
    with Mesh.from_text(text, local_replies="RESPOND") as mesh, _Channels(lambda host: resilmesh_grpc.channel(mesh, host)) as channels:
        yield channels, mesh.snapshot


@contextlib.contextmanager
def _envoy(policy: Policy) -> Iterator[Plane]:
    with Envoy(translate(policy).bootstrap) as envoy, _Channels(lambda host: to_sidecar(envoy, host)) as channels:
        yield channels, envoy.stats


def to_sidecar(envoy: Envoy, host: str) -> grpc.Channel:
    """A channel to Envoy that calls it by the service's name, and does nothing of its own."""
    options = [("grpc.default_authority", host), ("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(envoy.url.removeprefix("http://"), options)
