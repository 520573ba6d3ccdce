"""The same policy and the same requests through the library and through a real Envoy.

    seen = side_by_side(services, POLICY, lambda caller: caller.get("/items"), a=[status(503), OK])
    seen.agree()
    assert seen.envoy.statuses == [200]

``$a``, ``$b`` and ``$c`` in a policy are the addresses of three scripted services. What the planes are said to do is
asserted of Envoy's observation too, so that a case cannot pass because both do nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from string import Template
from typing import Any

import httpx
from scripted import OK, Script, Seen, Service

import resilmesh.http
from resilmesh.envoy.process import Envoy
from resilmesh.envoy.translate import translate
from resilmesh.mesh import Mesh
from resilmesh.policy.check import check
from resilmesh.policy.fields import Block
from resilmesh.policy.load import load_text
from resilmesh.policy.model import Policy
from tests.timing import Late

#: What the library and Envoy may be apart in elapsed time: two busy cores, not a difference of behaviour.
TOLERANCE = 0.25
#: For how long the machine may stand still, in seconds: less than the shortest limit (150 ms) that an answer must be within.
STALL = 0.1
#: How often a plane is observed again at most, because it did.
AGAIN = 2
#: Headers of an answer that must agree. Envoy also adds `date`, `server` and its own timings.
_HEADERS = ("content-type", "content-length", "retry-after", "x-envoy-overloaded", "x-from", "x-twice", "x-new")


@dataclass(frozen=True)
class Reply:
    """What the client saw. ``cut``: the headers came, the body did not end."""

    status: int
    body: str
    headers: dict[str, str]
    cut: bool
    seconds: float = field(compare=False)
    #: After which time since the start of the traffic it was there.
    at: float = field(compare=False)


class Caller:
    """Makes requests through one plane, and keeps the replies in the order of the requests."""

    def __init__(self, client: httpx.Client, sidecar: str | None) -> None:
        self._client = client
        self._sidecar = sidecar
        #: This is the library's plane, whose client calls the service itself.
        self.direct = sidecar is None
        self._started = time.monotonic()
        self.replies: list[Reply] = []

    def get(self, path: str = "/", **more: Any) -> Reply:
        return self.send("GET", path, **more)

    def post(self, path: str = "/", **more: Any) -> Reply:
        return self.send("POST", path, **more)

    def send(self, method: str, path: str = "/", *, host: str = "svc.test", **more: Any) -> Reply:
        """``scheme``: of the library's plane only; a sidecar is called over HTTP."""
        self.replies.append(reply := self._exchange(method, path, host, **more))
        return reply

    def together(self, count: int, path: str = "/", *, host: str = "svc.test", **more: Any) -> None:
        """``count`` GETs at once."""
        with ThreadPoolExecutor(count) as pool:
            self.replies += pool.map(lambda _: self._exchange("GET", path, host, **more), range(count))

    def open(self, path: str) -> contextlib.AbstractContextManager[httpx.Response]:
        """A GET whose body is not read yet. Its reply is not kept."""
        where, headers = self._target("svc.test")
        return self._client.stream("GET", where + path, headers=headers)

    def _target(self, host: str, scheme: str = "http") -> tuple[str, list[tuple[str, str]]]:
        return (f"{scheme}://{host}", []) if self._sidecar is None else (self._sidecar, [("host", host)])

    def _exchange(
        self, method: str, path: str, host: str, headers: Sequence[tuple[str, str]] = (), content: Any = None, scheme: str = "http",
    ) -> Reply:
        where, named = self._target(host, scheme)
        begun = time.monotonic()
        body, cut = b"", False
        with self._client.stream(method, where + path, headers=[*named, *headers], content=content) as response:
            try:
                for piece in response.iter_raw():
                    body += piece
            except httpx.TransportError:
                cut = True
        now = time.monotonic()
        kept = {name: response.headers[name] for name in _HEADERS if name in response.headers}
        return Reply(response.status_code, body.decode(), kept, cut, now - begun, now - self._started)


@dataclass
class Observation:
    """One plane: what the client saw, and what the services saw."""

    replies: list[Reply]
    seen: dict[str, list[Seen]] = field(repr=False)
    #: Envoy's counters, or the library's snapshot.
    inside: dict[str, Any] = field(repr=False)

    @property
    def statuses(self) -> list[int]:
        return [reply.status for reply in self.replies]

    @property
    def bodies(self) -> list[str]:
        return [reply.body for reply in self.replies]

    @property
    def attempts(self) -> int:
        return sum(map(len, self.seen.values()))

    def requests(self) -> dict[str, list[tuple[str, str, bytes]]]:
        return {name: sorted((each.method, each.target, each.body) for each in seen) for name, seen in self.seen.items()}


@dataclass
class Both:
    library: Observation
    envoy: Observation

    def __iter__(self) -> Iterator[Observation]:
        return iter((self.library, self.envoy))

    def agree(self, *, in_any_order: bool = False, tolerance: float = TOLERANCE) -> None:
        """Client and services saw the same; and, if nothing else differs, at about the same time."""
        ordered = [
            sorted(each.replies, key=lambda reply: (reply.status, reply.seconds)) if in_any_order else each.replies for each in self
        ]
        assert ordered[0] == ordered[1]
        assert self.library.requests() == self.envoy.requests()
        for mine, its in zip(*ordered, strict=True):
            if abs(mine.seconds - its.seconds) > tolerance:
                raise Late(f"{mine.seconds:.3f} s in the library, {its.seconds:.3f} s in Envoy: {mine}")


Traffic = Callable[[Caller], object]
#: Fields of the model that the policies of the running test write, as ``Block.field``.
WRITTEN: set[str] = set()


def side_by_side(
    services: dict[str, Service], text: str, traffic: Traffic, *, transport: dict[str, Any] | None = None, **scripts: Script,
) -> Both:
    """Run ``traffic`` through both planes; each service plays its script (default: 200) from the start for each.

    ``transport`` are further words for the library's transport.
    """
    filled = Template(text).substitute({name: service.address for name, service in services.items()})
    loaded = load_text(filled)
    errors = [each for each in check(loaded) if each.severity == "error"]
    assert not errors, "\n".join(map(str, errors))
    WRITTEN.update(written_fields(loaded.policy))
    return Both(
        _observe(services, scripts, traffic, lambda: _library(filled, transport or {})),
        _observe(services, scripts, traffic, lambda: _envoy(loaded.policy)),
    )


Plane = tuple[httpx.Client, str | None, Callable[[], dict[str, Any]]]


def _observe(
    services: dict[str, Service], scripts: dict[str, Script], traffic: Traffic,
    plane: Callable[[], contextlib.AbstractContextManager[Plane]],
) -> Observation:
    """Of one plane; again where the machine stood still meanwhile, whatever was seen: some statuses are a matter of time."""
    for _ in range(1 + AGAIN):
        for name, service in services.items():
            service.play(scripts.get(name, OK))
        with plane() as (client, sidecar, inside):
            caller = Caller(client, sidecar)
            with Stalls() as stalls:
                traffic(caller)
            seen = {name: list(service.seen) for name, service in services.items()}
            observation = Observation(caller.replies, seen, inside())
        if stalls.longest <= STALL:
            break
    return observation


class Stalls:
    """Takes naps for as long as the block runs; ``longest`` is by how much one was too long, in seconds."""

    _NAP = 0.01

    def __enter__(self) -> Stalls:
        self.longest = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        before = time.monotonic()
        while not self._done.wait(self._NAP):
            now = time.monotonic()
            self.longest = max(self.longest, now - before - self._NAP)
            before = now


@contextlib.contextmanager
def _library(text: str, options: dict[str, Any]) -> Iterator[Plane]:
    with Mesh.from_text(text, local_replies="RESPOND") as mesh, contextlib.ExitStack() as stack:
        # Nothing here is encrypted, and reading every CA certificate would take a tenth of a second of the first call.
        transport = resilmesh.http.Transport(mesh, verify=False, **options)
        yield stack.enter_context(httpx.Client(transport=transport, timeout=20)), None, mesh.snapshot


@contextlib.contextmanager
def _envoy(policy: Policy) -> Iterator[Plane]:
    with Envoy(translate(policy).bootstrap) as envoy, httpx.Client(timeout=20, verify=False) as client:
        yield client, envoy.url, envoy.stats


# --------------------------------------------------------------------------------------------- coverage


def covers(*fields: str) -> Callable[[Any], Any]:
    """The test shows what these fields of the model (``"Retries.max_retries"``) do in both planes."""
    def mark(test: Any) -> Any:
        test.covers = frozenset(fields)
        return test

    return mark


def owner(block: type[Block], name: str) -> str:
    """``Block.field``, named after the class that declares the field: several levels share some."""
    declares = next(kind for kind in reversed(block.__mro__) if name in getattr(kind, "__annotations__", {}))
    return f"{declares.__name__}.{name}"


def written_fields(block: Block) -> set[str]:
    """Every field that ``block`` and the blocks below it write."""
    found: set[str] = set()
    for name in block.model_fields_set:
        found.add(owner(type(block), name))
        value = getattr(block, name)
        for each in value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]:
            if isinstance(each, Block):
                found |= written_fields(each)
    return found
