"""uvicorn with two workers: whichever answers a scrape tells of both, over ASGI; and the admin address moves to who is left."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

APP = '''
import os
from resilmesh import Mesh
mesh = Mesh.from_text("""
apiVersion: resilmesh/v1
services:
- name: ledger
""")
metrics = mesh.prometheus()
book = mesh.guard("ledger")(lambda: b"booked")

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    if scope["path"] == "/metrics":
        return await metrics(scope, receive, send)
    body = str(os.getpid()).encode() if scope["path"] == "/pid" else book()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
'''


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def server(tmp_path):
    (tmp_path / "shop.py").write_text(APP)
    port, admin = _free_port(), _free_port()
    environment = {**os.environ, "RESILMESH_STATS_DIR": str(tmp_path / "stats"), "RESILMESH_ADMIN": f"127.0.0.1:{admin}"}
    command = [
        sys.executable, "-m", "uvicorn", "--workers", "2", "--port", str(port), "--app-dir", str(tmp_path), "--log-level", "warning",
        "--lifespan", "off", "shop:app",
    ]
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield process, port, admin, tmp_path / "stats"
        finally:
            process.terminate()


def _get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


def _until(true, seconds=20):
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except OSError:
            pass
        assert time.monotonic() < end
        time.sleep(0.05)


def test_both_are_told_and_the_admin_address_outlives_its_worker(server):
    _, port, admin, stats = server
    _until(lambda: _get(port, "/pid") and len(list(stats.glob("*.counts"))) == 2)

    def scraped():
        return [int(found) for found in re.findall(r'resilmesh_calls_total\{[^}]*outcome="succeeded"\} (\d+)', _get(port, "/metrics"))]

    for _ in range(30):
        assert _get(port, "/book") == "booked"
    assert [scraped() for _ in range(5)] == [[30]] * 5
    document = json.loads(_get(admin, "/stats?format=json"))
    assert document["snapshot"]["services"]["ledger"]["routes"]["*"]["calls"] <= 30
    os.kill(document["pid"], signal.SIGKILL)  # the one that has the admin address
    _until(lambda: json.loads(_get(admin, "/stats?format=json"))["pid"] != document["pid"])
    _until(lambda: scraped() == [30])
    for _ in range(10):
        _until(lambda: _get(port, "/book") == "booked")
    assert [scraped() for _ in range(5)] == [[40]] * 5
    assert "resilmesh.calls{resilmesh.service=ledger,outcome=succeeded}: 40" in _get(admin, "/stats?filter=calls")
