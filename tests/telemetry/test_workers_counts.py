"""Several processes that share a directory tell of themselves as one, also after one of them was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from resilmesh import Mesh

POLICY = "apiVersion: resilmesh/v1\nservices:\n- {name: ledger, circuitBreaker: {consecutiveFailures: 3}}\n"
SERVER = '''
import sys
from resilmesh import Mesh
mesh = Mesh.from_text(POLICY)
book = mesh.guard("ledger")(lambda: 1)
for line in sys.stdin:
    for _ in range(int(line)):
        book()
    print("done", flush=True)
'''.replace("POLICY", repr(POLICY))


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("RESILMESH_STATS_DIR", str(tmp_path / "stats"))
    return tmp_path / "stats"


@pytest.fixture
def mesh(directory):
    with Mesh.from_text(POLICY) as mesh:
        yield mesh


class _Process:
    """Another worker, which makes as many calls as it is told."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ),
        )

    def calls(self, number):
        self.process.stdin.write(f"{number}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self, how):
        self.process.send_signal(how)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def others(directory):
    found = [_Process() for _ in range(2)]
    yield found
    for each in found:
        if each.process.poll() is None:
            each.end(signal.SIGKILL)


def _told(mesh, name):
    return {
        "/".join(str(value) for key, value in point.attributes if key != "resilmesh.service"): point.value
        for point in mesh.telemetry.points()[name]
    }


def _succeeded(mesh):
    return _told(mesh, "resilmesh.calls")["succeeded"]


def test_a_scrape_tells_all_also_after_one_was_killed(mesh, others):
    mesh.call("ledger", lambda: 1)
    others[0].calls(300)
    others[1].calls(20)
    assert _succeeded(mesh) == 321
    assert _told(mesh, "resilmesh.workers") == {"": 3}
    others[0].end(signal.SIGKILL)
    assert [_succeeded(mesh) for _ in range(4)] == [321] * 4
    assert _told(mesh, "resilmesh.workers") == {"": 2}
    others[1].calls(5)
    [histogram] = mesh.telemetry.points()["resilmesh.call.duration"]
    assert sum(histogram.counts) == _succeeded(mesh) == 326
    others[1].end(signal.SIGTERM)
    assert [_succeeded(mesh) for _ in range(2)] == [326, 326]
    assert 'resilmesh_calls_total{resilmesh_service="ledger",outcome="succeeded"} 326' in mesh.prometheus().text()


def test_what_ended_is_added_up_and_its_files_are_gone(mesh, others, directory):
    others[0].calls(3)
    others[1].calls(1)
    others[0].end(signal.SIGKILL)
    assert len(list(directory.glob("*.counts"))) == 3
    assert _succeeded(mesh) == 4
    assert len(list(directory.glob("*.counts"))) == 2
    assert (directory / "ended.json").exists()


def test_who_is_killed_while_adding_up_counts_nothing_twice(mesh, others, directory):
    others[0].calls(3)
    others[1].calls(1)
    kept = {path.name: path.read_bytes() for path in directory.glob("*.counts")}
    others[0].end(signal.SIGKILL)
    assert _succeeded(mesh) == 4
    [gone] = set(kept) - {path.name for path in directory.glob("*.counts")}
    (directory / gone).write_bytes(kept[gone])  # as if it had been killed before it removed the file
    assert [_succeeded(mesh) for _ in range(2)] == [4, 4]


def test_a_fork_counts_for_itself(mesh):
    for _ in range(4):
        mesh.call("ledger", lambda: 1)
    child = os.fork()
    if child == 0:
        try:
            for _ in range(10):
                mesh.call("ledger", lambda: 1)
        finally:
            os._exit(0 if _succeeded(mesh) == 14 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert _succeeded(mesh) == 14


def test_two_meshes_of_a_process_are_two(mesh):
    with Mesh.from_text(POLICY) as other:
        mesh.call("ledger", lambda: 1)
        other.call("ledger", lambda: 1)
        assert (_succeeded(mesh), _succeeded(other)) == (2, 2)
        assert [_succeeded(mesh) for _ in range(3)] == [2, 2, 2]


def test_threads_lose_nothing_in_shared_memory(mesh):
    book = mesh.guard("ledger")(lambda: 1)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=lambda: [book() for _ in range(3000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert _succeeded(mesh) == _told(mesh, "resilmesh.attempts")[""] == 24_000


def test_scrapes_at_once_all_tell_the_same(mesh, others):
    others[0].calls(7)
    others[0].end(signal.SIGKILL)
    found = []
    threads = [threading.Thread(target=lambda: found.append(_succeeded(mesh))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [7] * 8


def test_gauges_are_those_of_the_living(mesh, others):
    fails = mesh.guard("ledger")(lambda: 1 / 0)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            fails()
    others[0].calls(1)
    states = _told(mesh, "resilmesh.circuit.state")
    assert states["OPEN"] == 1
    deadline = time.monotonic() + 10
    while sum(_told(mesh, "resilmesh.circuit.state").values()) < 3:  # the others tell their gauges every second
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert _told(mesh, "resilmesh.circuit.state") == {"CLOSED": 2, "OPEN": 1, "HALF_OPEN": 0}
    document = mesh.telemetry.document()
    assert len(document["workers"]) == 3
    assert document["snapshot"]["services"]["ledger"]["circuitBreakers"]["*"]["state"] == "OPEN"
    assert document["snapshot"]["services"]["ledger"]["routes"]["*"]["failed"] == 3


def test_a_directory_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    mesh = Mesh.from_text(POLICY)
    with pytest.raises(ValueError, match="directory for the workers' counts cannot be used"):
        mesh.telemetry.share(tmp_path / "file")
    mesh.call("ledger", lambda: 1)
    assert _succeeded(mesh) == 1


APP = '''
from resilmesh import Mesh
mesh = Mesh.from_text(POLICY)
metrics = mesh.prometheus()
book = mesh.guard("ledger")(lambda: b"booked")

def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        return metrics.wsgi(environ, start_response)
    start_response("200 OK", [("Content-Length", "6")])
    return [book()]
'''.replace("POLICY", repr(POLICY))


def test_gunicorn_with_three_workers(directory, tmp_path):
    """Whichever worker is asked, and after one was killed and another began."""
    import httpx

    (tmp_path / "shop.py").write_text(APP)
    socket = tmp_path / "shop.sock"
    command = [
        sys.executable, "-m", "gunicorn", "-w", "3", "-b", f"unix:{socket}", "--chdir", str(tmp_path), "--no-control-socket", "shop:app",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ)) as server:
        try:
            until = time.monotonic() + 20
            while not (socket.exists() and len(list(directory.glob("*.counts"))) >= 3):
                assert server.poll() is None, server.stderr.read()
                assert time.monotonic() < until
                time.sleep(0.05)

            def get(path):
                with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://shop") as client:
                    return client.get(path).text

            def scraped():
                lines = [line for line in get("/metrics").splitlines() if 'outcome="succeeded"} ' in line and "calls_total" in line]
                return [int(line.rpartition(" ")[2]) for line in lines]

            for _ in range(40):
                assert get("/book") == "booked"
            assert [scraped() for _ in range(6)] == [[40]] * 6
            victim = min(int(path.name.partition("-")[0]) for path in directory.glob("*.counts"))
            os.kill(victim, signal.SIGKILL)
            until = time.monotonic() + 20
            while any(path.name.startswith(f"{victim}-") for path in directory.glob("*.counts")):
                assert scraped() == [40]
                assert time.monotonic() < until
                time.sleep(0.05)
            for _ in range(10):
                assert get("/book") == "booked"
            assert [scraped() for _ in range(6)] == [[50]] * 6
        finally:
            server.terminate()
            server.stderr.close()


