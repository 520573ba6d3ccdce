"""The application of one plane: one process that makes the scheduled calls and notes what became of each.

It is run as a script and imports only the standard library, then the client, then (in the library's planes alone)
resilmesh: what each plane's process weighs and how long it takes to start is part of what is compared.

    stdin   the job: one line of JSON, see ``Job``
    stdout  {"startup": seconds} once a first call was answered
    stdin   the monotonic second at which to begin
    stdout  ``Told``: what became of every call, what it took, what the library says it did

It ends when stdin does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
import threading
import time
from contextvars import ContextVar
from dataclasses import asdict, astuple, dataclass, field
from typing import Any, Literal

#: Time limit of the client itself, in every plane: far above anything a scenario scripts.
CLIENT_TIMEOUT = 10.0
WARM_UP = "warm-up"

#: Where an answer was made without a service, its body says why, in Envoy's words; the library answers alike.
_LOCAL_BODIES = (
    ("reset reason: overflow", "limit reached"),
    ("no healthy upstream", "no healthy endpoint"),
    ("local_rate_limited", "rate limited"),
    ("upstream request timeout", "deadline"),
    ("fault filter abort", "injected fault"),
    ("remote connection failure", "connect failure"),
    ("reset reason:", "reset"),
)
_LOCAL_BODY_BYTES = 400
#: Of these, the ones for which nothing was sent.
REFUSALS = frozenset({"limit reached", "circuit open", "no healthy endpoint", "rate limited"})
_EXCEPTIONS = {
    "ConnectError": "connect failure", "ConnectTimeout": "connect failure", "ReadTimeout": "deadline", "WriteTimeout": "deadline",
    "PoolTimeout": "client's pool exhausted", "ReadError": "reset", "WriteError": "reset", "RemoteProtocolError": "reset",
}


#: What the library's own events say, in the order in which they are told: of the state of a service, not of single calls.
WATCHED = frozenset({"circuit_changed", "endpoint_ejected", "endpoint_returned", "policy_applied"})
#: Whether an open circuit refused the call that this thread or task has just made: the answer is that of a reached limit,
#: for want of another word of Envoy's.
_circuit_open: ContextVar[bool] = ContextVar("circuit_open", default=False)


@dataclass(frozen=True, slots=True)
class Job:
    """What one process of one plane's client has to do."""

    #: ``httpx``, ``httpx-async``, ``httpx2`` or ``httpx2-async``.
    client: str
    #: Base URLs, used in turn; the library and the sidecar have one, which stands for the service.
    targets: list[str]
    #: The Host header of every call.
    host: str
    #: ``(number, due, method, path)`` of each call, ``due`` in seconds of the run; None: as soon as a worker is free.
    schedule: list[tuple[int, float | None, str, str]]
    workers: int
    #: Calls that open connections and fill caches before the run.
    warm_up: int
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


@dataclass(slots=True)
class Happened:
    """One event of the library. ``at`` in seconds of the run."""

    at: float
    name: str
    detail: dict[str, Any]


class Client:
    """One kind of client, bare or with the library's transport; everything else about it is equal."""

    def __init__(self, job: Job) -> None:
        library, _, style = job.client.partition("-")
        http = importlib.import_module(library)
        kind = "Async" if style else ""
        options = {
            "limits": http.Limits(max_connections=None, max_keepalive_connections=None), "trust_env": False,
            "http1": not job.http2, "http2": job.http2,
        }
        self.mesh = None if job.policy is None else _mesh(job.policy, job)
        self.events: list[Any] = []
        if self.mesh is not None and job.watched:
            self.mesh.subscribe(self._observe)
        if self.mesh is None:
            transport = getattr(http, f"{kind}HTTPTransport")(**options)
        else:
            adapter = importlib.import_module("resilmesh.http")
            transport = getattr(adapter, f"{kind}Transport")(self.mesh, **options)
        self._client = getattr(http, f"{kind}Client")(transport=transport, timeout=CLIENT_TIMEOUT, trust_env=False)
        self._targets = job.targets
        self._host = job.host
        self._signed = job.signed
        self._warm_up = ("GET", "/warm-up") if job.signed or not job.schedule else job.schedule[0][2:]
        #: What a call of this client raises when there is no response.
        self.failure: type[Exception] = http.TransportError

    def _observe(self, event: Any) -> None:
        if event.name in WATCHED:
            self.events.append(event)
        elif event.name == "call_rejected" and event.detail["reason"] == "CircuitOpen":
            _circuit_open.set(True)

    def request(self, number: int, method: str, path: str, name: str = "") -> Any:
        """The response, or (from an asynchronous client) its awaitable."""
        url = self._targets[number % len(self._targets)] + path
        headers = {"host": self._host}
        if self._signed:
            headers["x-call"] = name or str(number)
        return self._client.request(method, url, headers=headers)

    def warm_up(self, number: int) -> Any:
        """A call that is not counted."""
        return self.request(number, *self._warm_up, WARM_UP)


def _mesh(policy: str, job: Job) -> Any:
    sys.path.append(job.library_path)
    from resilmesh import Mesh

    # Every setting that the environment could change is given: both planes must obey the file alone.
    settings: dict[str, Any] = {
        "seed": job.seed, "mode": job.mode, "outbound": "ALLOW_ANY", "local_replies": "RESPOND", "workload": "shop",
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
    status: int
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
    snapshot: dict[str, Any] | None = None


class Run:
    """The workers' shared state: which call is next, and the notes."""

    def __init__(self, client: Client, job: Job, epoch: float) -> None:
        self._client = client
        self._epoch = epoch
        self._signed = job.signed
        self._schedule = iter(job.schedule)
        self._lock = threading.Lock()
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
        _circuit_open.set(False)
        return now

    def _note(self, number: int, due: float | None, began: float, response: Any, error: Exception | None) -> None:
        ended = time.monotonic()
        planned = began if due is None else self._epoch + due
        self.notes.append(Note(number, planned - self._epoch, began - planned, ended - planned, *_outcome(response, error, self._signed)))

    def work(self) -> None:
        """One worker of a blocking client."""
        while (call := self._next()) is not None:
            number, due, method, path = call
            if wait := self._wait(due):
                time.sleep(wait)
            began = self._begin(due, wait)
            response = error = None
            try:
                response = self._client.request(number, method, path)
            except self._client.failure as failure:
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
                response = await self._client.request(number, method, path)
            except self._client.failure as failure:
                error = failure
            self._note(number, due, began, response, error)

    def told(self, cpu: float) -> Told:
        mesh = self._client.mesh
        events = [Happened(event.at - self._epoch, event.name, event.detail) for event in self._client.events]
        return Told(
            [astuple(note) for note in self.notes], cpu, self.overslept, [astuple(event) for event in events],
            None if mesh is None else mesh.snapshot(),
        )


def _outcome(response: Any, error: Exception | None, signed: bool) -> tuple[int, str, str, str]:
    """Status, version and name of the endpoint, and why no service answered."""
    if response is None:
        return 0, "", "", _EXCEPTIONS.get(type(error).__name__, type(error).__name__)
    headers = response.headers
    if "x-served-by" in headers:
        return response.status_code, headers["x-version"], headers["x-served-by"], ""
    if _circuit_open.get():
        return response.status_code, "", "", "circuit open"
    # What the library and Envoy say themselves is short; a page of somebody's service may hold any words.
    body = response.text if len(response.content) < _LOCAL_BODY_BYTES else ""
    unknown = f"{response.status_code} {body[:60]}" if signed else ""
    return response.status_code, "", "", next((word for text, word in _LOCAL_BODIES if text in body), unknown)


def drive(job: Job) -> None:
    """The whole of a blocking client's process."""
    client = Client(job)
    for number in range(job.warm_up):
        # An endpoint may refuse even these, by script.
        with contextlib.suppress(client.failure):
            client.warm_up(number)
        if number == 0:
            _say({"startup": time.monotonic() - job.spawned})
    run = Run(client, job, _begin())
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
    client = Client(job)
    for number in range(job.warm_up):
        with contextlib.suppress(client.failure):
            await client.warm_up(number)
        if number == 0:
            _say({"startup": time.monotonic() - job.spawned})
    run = Run(client, job, _begin())
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
