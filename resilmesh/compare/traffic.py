"""The application of one plane: one process that makes the scheduled calls and notes what became of each.

It is run as a script and imports only the standard library, then the client (``traffic_http`` or ``traffic_grpc``), then
(in the library's planes alone) resilmesh: what each plane's process weighs and how long it takes to start is part of
what is compared.

    stdin   the job: one line of JSON, see ``Job``
    stdout  {"startup": seconds}, until a first call was answered, once all is warm
    stdin   the monotonic second at which to begin
    stdout  ``Told``: what became of every call, what it took, what the library says it did

It ends when stdin does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

#: Time limit of the client itself, in every plane: far above anything a scenario scripts.
CLIENT_TIMEOUT = 10.0
WARM_UP = "warm-up"

#: Where an answer was made without a service, its body (of gRPC its details) says why, in Envoy's words; the library answers alike.
_LOCAL_TEXTS = (
    ("reset reason: overflow", "limit reached"),
    ("no healthy upstream", "no healthy endpoint"),
    ("local_rate_limited", "rate limited"),
    ("upstream request timeout", "deadline"),
    ("fault filter abort", "injected fault"),
    ("remote connection failure", "connect failure"),
    ("RBAC: access denied", "denied"),
    ("reset reason:", "reset"),
)
#: Of these, the ones for which nothing was sent.
REFUSALS = frozenset({"limit reached", "circuit open", "no healthy endpoint", "rate limited"})

#: What the library's own events say, in the order in which they are told: of the state of a service, not of single calls.
WATCHED = frozenset({"circuit_changed", "endpoint_ejected", "endpoint_returned", "policy_applied"})
#: What came of a call: its status (of gRPC the name of its code), the headers or metadata, what it says, and why no service
#: answered, as far as the client knows.
Came = tuple[int | str, Mapping[str, str], str, str]


@dataclass(frozen=True, slots=True)
class Job:
    """What one process of one plane's client has to do."""

    #: One of ``CLIENTS`` or ``GRPC_CLIENTS`` of ``resilmesh.compare.planes``.
    client: str
    #: Base URLs, of gRPC targets, used in turn; the library and the sidecar have one, which stands for the service.
    targets: list[str]
    #: The Host header, or the authority, of every call.
    host: str
    #: ``(number, due, method, path)`` of each call, ``due`` in seconds of the run; None: as soon as a worker is free.
    #: The method of a gRPC call is ``unary`` or ``stream``.
    schedule: list[tuple[int, float | None, str, str]]
    workers: int
    #: Calls that open connections and fill caches before the run, and what they call: method and path.
    warm_up: int
    first: tuple[str, str]
    #: Monotonic seconds at which this process was started.
    spawned: float
    #: The policy's text in the library's planes, and a file with it where it is edited during the run.
    policy: str | None = None
    policy_file: str | None = None
    mode: Literal["ENFORCE", "OFF"] = "ENFORCE"
    #: Where resilmesh is imported from, should it not be installed.
    library_path: str = ""
    seed: int = 0
    #: Whether the client speaks HTTP/2 and nothing else; otherwise HTTP/1.1.
    http2: bool = False
    #: Whether the library is asked for its events, which cost it something: not where costs are measured.
    watched: bool = False
    #: Whether the services sign their answers, as those of the test bed do. Others get the calls of the schedule and nothing else.
    signed: bool = True
    #: Of the client itself, in seconds.
    timeout: float = CLIENT_TIMEOUT
    #: For grpcio itself to decide by, as JSON.
    service_config: str | None = None
    #: Directories with an identity: of the library's policy, or, where there is none, of TLS as one writes it by hand. Of several
    #: callers each has a client of its own, and a call's number says whose it is.
    identities: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Happened:
    """One event of the library. ``at`` in seconds of the run."""

    at: float
    name: str
    detail: dict[str, Any]


class Client(Protocol):
    """One kind of client. ``request`` gives a response, or its awaitable, or raises ``failure``; ``came`` says what it was."""

    failure: type[Exception]
    texts: tuple[tuple[str, str], ...]

    def request(self, number: int, method: str, path: str, name: str) -> Any: ...
    def came(self, response: Any, error: Exception | None) -> Came: ...


class Application:
    """The client with its policy, and what the library tells of its decisions."""

    def __init__(self, job: Job) -> None:
        self.meshes = [] if job.policy is None else [_mesh(job.policy, job, each) for each in (job.identities or (None,))]
        self.events: list[Any] = []
        if job.watched:
            for mesh in self.meshes:
                mesh.subscribe(self._observe)
        self._client = _client(job, self.meshes)
        self.failure = self._client.failure
        self._signed = job.signed
        self._texts = (*_LOCAL_TEXTS, *self._client.texts)
        self._first = job.first

    def _observe(self, event: Any) -> None:
        if event.name in WATCHED:
            self.events.append(event)

    def request(self, number: int, method: str, path: str) -> Any:
        """The response, or (from an asynchronous client) its awaitable."""
        return self._client.request(number, method, path, str(number))

    def warm_up(self, number: int) -> Any:
        """A call that is not counted."""
        return self._client.request(number, *self._first, WARM_UP)

    def outcome(self, response: Any, error: Exception | None) -> tuple[int | str, str, str, str]:
        """Status, version and name of the endpoint, and why no service answered."""
        status, headers, text, word = self._client.came(response, error)
        if "x-served-by" in headers:
            return status, headers["x-version"], headers["x-served-by"], ""
        unknown = f"{status} {text[:60]}" if self._signed else ""
        return status, "", "", word or next((word for said, word in self._texts if said in text), unknown)


def _client(job: Job, meshes: list[Any]) -> Client:
    """Of the module beside this one, by its path: as a script this one is in no package."""
    name = "traffic_grpc" if job.client.startswith("grpcio") else "traffic_http"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    client: Client = module.Client(job, meshes)
    return client


def _mesh(policy: str, job: Job, identity: str | None) -> Any:
    sys.path.append(job.library_path)
    from resilmesh import Mesh

    # Every setting that the environment could change is given: both planes must obey the file alone.
    settings: dict[str, Any] = {
        "seed": job.seed, "mode": job.mode, "outbound": "ALLOW_ANY", "local_replies": "RESPOND", "workload": "shop", "identity": identity,
    }
    return Mesh.from_text(policy, **settings) if job.policy_file is None else Mesh.from_file(job.policy_file, **settings)


@dataclass(slots=True)
class Note:
    """What became of one call. Times in seconds."""

    number: int
    #: When it was due, in the run.
    due: float
    #: How late it began: above zero when every worker was busy, or the machine was.
    late: float
    #: From when it was due, so that a queue in the client is not hidden.
    latency: float
    #: Of HTTP a number, 0 without an answer; of gRPC the name of a code.
    status: int | str
    version: str
    #: Name of the endpoint that answered; empty when none did.
    endpoint: str
    #: Empty when a service answered; else why none did.
    reason: str


@dataclass(slots=True)
class Told:
    """The report of one process."""

    notes: list[tuple[Any, ...]]
    #: CPU seconds of the process during the run.
    cpu: float
    #: For each call that a worker slept for: how long after the due time the machine woke it, in seconds.
    overslept: list[float]
    events: list[tuple[Any, ...]] = field(default_factory=list)
    #: Of each mesh, at the end; and before the run, when all was warm.
    snapshots: list[dict[str, Any]] = field(default_factory=list)
    before: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """The workers' shared state: which call is next, and the notes."""

    def __init__(self, application: Application, job: Job, epoch: float) -> None:
        self._application = application
        self._epoch = epoch
        self._schedule = iter(job.schedule)
        self._lock = threading.Lock()
        self._before = [mesh.snapshot() for mesh in application.meshes]
        self.notes: list[Note] = []
        self.overslept: list[float] = []

    def _next(self) -> tuple[int, float | None, str, str] | None:
        with self._lock:
            return next(self._schedule, None)

    def _wait(self, due: float | None) -> float:
        return 0.0 if due is None else max(0.0, self._epoch + due - time.monotonic())

    def _begin(self, due: float | None, waited: float) -> float:
        now = time.monotonic()
        if waited and due is not None:
            self.overslept.append(now - self._epoch - due)
        return now

    def _note(self, number: int, due: float | None, began: float, response: Any, error: Exception | None) -> None:
        ended = time.monotonic()
        planned = began if due is None else self._epoch + due
        outcome = self._application.outcome(response, error)
        self.notes.append(Note(number, planned - self._epoch, began - planned, ended - planned, *outcome))

    def work(self) -> None:
        """One worker of a blocking client."""
        while (call := self._next()) is not None:
            number, due, method, path = call
            if wait := self._wait(due):
                time.sleep(wait)
            began = self._begin(due, wait)
            response = error = None
            try:
                response = self._application.request(number, method, path)
            except self._application.failure as failure:
                error = failure
            self._note(number, due, began, response, error)

    async def work_async(self) -> None:
        """The same for an asynchronous client."""
        while (call := self._next()) is not None:
            number, due, method, path = call
            if wait := self._wait(due):
                await asyncio.sleep(wait)
            began = self._begin(due, wait)
            response = error = None
            try:
                response = await self._application.request(number, method, path)
            except self._application.failure as failure:
                error = failure
            self._note(number, due, began, response, error)

    def told(self, cpu: float) -> Told:
        events = [Happened(event.at - self._epoch, event.name, event.detail) for event in self._application.events]
        return Told(
            [astuple(note) for note in self.notes], cpu, self.overslept, [astuple(event) for event in events],
            [mesh.snapshot() for mesh in self._application.meshes], self._before,
        )


def drive(job: Job) -> None:
    """The whole of a blocking client's process."""
    application = Application(job)
    startup = 0.0
    for number in range(job.warm_up):
        # An endpoint may refuse even these, by script.
        with contextlib.suppress(application.failure):
            application.warm_up(number)
        if number == 0:
            startup = time.monotonic() - job.spawned
    _say({"startup": startup})
    run = Run(application, job, _begin())
    cpu = time.process_time()
    threads = [threading.Thread(target=run.work) for _ in range(job.workers - 1)]
    for thread in threads:
        thread.start()
    run.work()
    for thread in threads:
        thread.join()
    if len(run.notes) < len(job.schedule):
        raise SystemExit("a caller died of an exception that is not the client's, see above")
    _report(run.told(time.process_time() - cpu))


async def drive_async(job: Job) -> None:
    """The whole of an asynchronous client's process."""
    application = Application(job)
    startup = 0.0
    for number in range(job.warm_up):
        with contextlib.suppress(application.failure):
            await application.warm_up(number)
        if number == 0:
            startup = time.monotonic() - job.spawned
    _say({"startup": startup})
    run = Run(application, job, _begin())
    cpu = time.process_time()
    await asyncio.gather(*(run.work_async() for _ in range(job.workers)))
    _report(run.told(time.process_time() - cpu))


def _begin() -> float:
    """Wait for the word to begin, then watch for the end of stdin, which ends this process at any time."""
    line = sys.stdin.readline()
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    return float(line)


def _end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(0)


def _report(told: Told) -> None:
    _say(asdict(told))
    # The parent weighs this process as it is now, with its pools and state, then closes stdin.
    threading.Event().wait()


def _say(message: Any) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _job = Job(**json.loads(sys.stdin.readline()))
    if _job.client.endswith("-async"):
        asyncio.run(drive_async(_job))
    else:
        drive(_job)
