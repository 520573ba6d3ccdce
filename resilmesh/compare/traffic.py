"""The application of one plane: one process that makes the scheduled calls and notes what became of each.

It is run as a script and imports only the standard library, then the client, then (in the library's planes alone)
resilmesh: what each plane's process weighs and how long it takes to start is part of what is compared.

    stdin   the job: one line of JSON, see ``Job``
    stdout  {"startup": seconds} once a first call was answered
    stdin   the monotonic second at which to begin
    stdout  {"notes": [...], "cpu": seconds, "snapshot": {...}}

It ends when stdin does.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import threading
import time
from dataclasses import astuple, dataclass
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
#: Of these, the ones for which nothing was sent.
REFUSALS = frozenset({"limit reached", "circuit open", "no healthy endpoint", "rate limited"})
_EXCEPTIONS = {
    "ConnectError": "connect failure", "ConnectTimeout": "connect failure", "ReadTimeout": "deadline", "WriteTimeout": "deadline",
    "PoolTimeout": "client's pool exhausted", "ReadError": "reset", "WriteError": "reset", "RemoteProtocolError": "reset",
}


@dataclass(frozen=True, slots=True)
class Job:
    """What one plane's client has to do."""

    #: ``httpx``, ``httpx-async``, ``httpx2`` or ``httpx2-async``.
    client: str
    #: Base URLs, used in turn; the library and the sidecar have one, which stands for the service.
    targets: list[str]
    #: The Host header of every call.
    host: str
    #: ``(due, method, path)`` of each call, ``due`` in seconds of the run; None: as soon as a worker is free.
    schedule: list[tuple[float | None, str, str]]
    workers: int
    #: Calls that open connections and fill caches before the run.
    warm_up: int
    #: Monotonic seconds at which this process was started.
    spawned: float
    #: The policy's text in the library's planes.
    policy: str | None = None
    mode: Literal["ENFORCE", "OFF"] = "ENFORCE"
    #: Where resilmesh is imported from, should it not be installed.
    library_path: str = ""
    seed: int = 0


class Client:
    """One kind of client, bare or with the library's transport; everything else about it is equal."""

    def __init__(self, job: Job) -> None:
        library, _, style = job.client.partition("-")
        http = importlib.import_module(library)
        kind = "Async" if style else ""
        options = {"limits": http.Limits(max_connections=None, max_keepalive_connections=None), "trust_env": False}
        self.mesh = None if job.policy is None else _mesh(job.policy, job)
        if self.mesh is None:
            transport = getattr(http, f"{kind}HTTPTransport")(**options)
        else:
            adapter = importlib.import_module("resilmesh.http")
            transport = getattr(adapter, f"{kind}Transport")(self.mesh, **options)
        self._client = getattr(http, f"{kind}Client")(transport=transport, timeout=CLIENT_TIMEOUT, trust_env=False)
        self._targets = job.targets
        self._host = job.host
        #: What a call of this client raises when there is no response.
        self.failure: type[Exception] = http.TransportError

    def request(self, number: int, method: str, path: str, name: str = "") -> Any:
        """The response, or (from an asynchronous client) its awaitable."""
        url = self._targets[number % len(self._targets)] + path
        return self._client.request(method, url, headers={"host": self._host, "x-call": name or str(number)})


def _mesh(policy: str, job: Job) -> Any:
    sys.path.append(job.library_path)
    from resilmesh import Mesh

    # Every setting that the environment could change is given: both planes must obey the file alone.
    return Mesh.from_text(policy, seed=job.seed, mode=job.mode, outbound="ALLOW_ANY", local_replies="RESPOND", workload="shop")


@dataclass(slots=True)
class Note:
    """What became of one call. Times in seconds."""

    #: When it was due, in the run.
    due: float
    #: How late it began: above zero when every worker was busy, or the machine was.
    late: float
    #: From when it was due, so that a queue in the client is not hidden.
    latency: float
    status: int
    version: str
    #: Empty when a service answered; else why none did.
    reason: str


class Run:
    """The workers' shared state: which call is next, and the notes."""

    def __init__(self, client: Client, job: Job, epoch: float) -> None:
        self._client = client
        self._epoch = epoch
        self._schedule = iter(enumerate(job.schedule))
        self._lock = threading.Lock()
        self.notes: list[Note] = []

    def _next(self) -> tuple[int, float | None, str, str] | None:
        with self._lock:
            index, (due, method, path) = next(self._schedule, (-1, (None, "", "")))
        return None if index < 0 else (index, due, method, path)

    def _wait(self, due: float | None) -> float:
        return 0.0 if due is None else max(0.0, self._epoch + due - time.monotonic())

    def _note(self, due: float | None, began: float, response: Any, error: Exception | None) -> None:
        ended = time.monotonic()
        planned = began if due is None else self._epoch + due
        self.notes.append(Note(planned - self._epoch, began - planned, ended - planned, *_outcome(response, error)))

    def work(self) -> None:
        """One worker of a blocking client."""
        while (call := self._next()) is not None:
            index, due, method, path = call
            if wait := self._wait(due):
                time.sleep(wait)
            began = time.monotonic()
            response = error = None
            try:
                response = self._client.request(index, method, path)
            except self._client.failure as failure:
                error = failure
            self._note(due, began, response, error)

    async def work_async(self) -> None:
        """The same for an asynchronous client."""
        while (call := self._next()) is not None:
            index, due, method, path = call
            if wait := self._wait(due):
                await asyncio.sleep(wait)
            began = time.monotonic()
            response = error = None
            try:
                response = await self._client.request(index, method, path)
            except self._client.failure as failure:
                error = failure
            self._note(due, began, response, error)


def _outcome(response: Any, error: Exception | None) -> tuple[int, str, str]:
    """Status, version of the service, and why no service answered."""
    if response is None:
        return 0, "", _EXCEPTIONS.get(type(error).__name__, type(error).__name__)
    if "x-served-by" in response.headers:
        return response.status_code, response.headers["x-version"], ""
    body = response.text
    return response.status_code, "", next((word for text, word in _LOCAL_BODIES if text in body), f"{response.status_code} {body[:60]}")


def drive(job: Job) -> None:
    """The whole of a blocking client's process."""
    client = Client(job)
    for number in range(job.warm_up):
        client.request(number, "GET", "/warm-up", WARM_UP)
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
    _report(run, client, time.process_time() - cpu)


async def drive_async(job: Job) -> None:
    """The whole of an asynchronous client's process."""
    client = Client(job)
    for number in range(job.warm_up):
        await client.request(number, "GET", "/warm-up", WARM_UP)
        if number == 0:
            _say({"startup": time.monotonic() - job.spawned})
    run = Run(client, job, _begin())
    cpu = time.process_time()
    await asyncio.gather(*(run.work_async() for _ in range(job.workers)))
    _report(run, client, time.process_time() - cpu)


def _begin() -> float:
    """Wait for the word to begin, then watch for the end of stdin, which ends this process at any time."""
    line = sys.stdin.readline()
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    return float(line)


def _end_with_stdin() -> None:
    os.read(0, 1)
    os._exit(0)


def _report(run: Run, client: Client, cpu: float) -> None:
    _say({
        "notes": [astuple(note) for note in run.notes],
        "cpu": cpu,
        "snapshot": None if client.mesh is None else client.mesh.snapshot(),
    })
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
