"""The admin server over real sockets: every page, what it refuses, and what it changes where it may."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
import threading
import time

import pytest

from resilmesh import CircuitOpen, Mesh
from resilmesh.telemetry.hystrix import Rolling

POLICY = """
apiVersion: resilmesh/v1
services:
- name: ledger
  circuitBreaker: {consecutiveFailures: 3}
  fault: {abort: {httpStatus: 503, percent: 0}, delay: {fixedDelay: 1ms, percent: 100}}
  endpoints: [{address: "10.0.0.1:80"}]
  routes: [{name: book, match: [{method: POST}], timeout: 3s}]
"""


@pytest.fixture
def mesh():
    with Mesh.from_text(POLICY) as mesh:
        yield mesh


def _ask(address, path, method="GET", **headers):
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers
    finally:
        connection.close()


PAGES = ("/", "/stats", "/stats?format=json", "/stats/prometheus", "/config_dump", "/clusters", "/clusters?format=json", "/circuits",
         "/circuits?format=json", "/healthz", "/logging", "/stats?format=prometheus", "/config_dump?service=ledger")


@pytest.mark.parametrize("path", PAGES)
def test_every_page_answers_before_and_after_a_call(mesh, path):
    with mesh.serve_admin("127.0.0.1:0") as admin:
        assert _ask(admin.address, path)[0] == 200
        mesh.call("ledger", lambda: 1)
        status, body, headers = _ask(admin.address, path)
        assert status == 200
        if headers["content-type"] == "application/json":
            json.loads(body)
        else:
            assert "ledger" in body or path == "/"
        assert _ask(admin.address, path, "HEAD")[1] == ""


def test_plans_are_told_with_the_place_of_each_value(mesh):
    with mesh.serve_admin("127.0.0.1:0") as admin:
        plans = json.loads(_ask(admin.address, "/config_dump")[1])["plans"]
    [book] = [plan for plan in plans if plan["route"] == "book"]
    [timeout] = [value for value in book["values"] if value["name"] == "timeout"]
    assert timeout == {"name": "timeout", "value": "3s", "source": "<text>:8:59"}


@pytest.mark.parametrize(("method", "path", "status", "words"), [
    ("GET", "/nothing", 404, "GET / lists"),
    ("PUT", "/stats", 405, "read with GET"),
    ("DELETE", "/circuits", 405, "changed with POST"),
    ("GET", "/stats?format=xml", 400, "text, json or prometheus"),
    ("GET", "/stats?filter=(", 400, "regular expression"),
    ("GET", "/config_dump?service=nobody", 404, "no service 'nobody'"),
    ("POST", "/circuits?service=ledger&to=OPEN", 403, "write=True"),
    ("POST", "/faults?enabled=false", 403, "write=True"),
])
def test_what_cannot_be_is_refused_with_words(mesh, method, path, status, words):
    with mesh.serve_admin("127.0.0.1:0") as admin:
        found, body, _ = _ask(admin.address, path, method)
    assert found == status
    assert words in json.loads(body)["error"]


@pytest.mark.parametrize(("path", "status"), [
    ("/circuits", 400), ("/circuits?service=nobody&to=OPEN", 404), ("/circuits?service=ledger&to=AJAR", 400),
    ("/faults", 400), ("/faults?enabled=maybe", 400), ("/logging?level=loud", 400),
])
def test_a_change_that_cannot_be(mesh, path, status):
    with mesh.serve_admin("127.0.0.1:0", write=True) as admin:
        assert _ask(admin.address, path, "POST")[0] == status


def test_a_circuit_is_forced_and_given_back(mesh):
    with mesh.serve_admin("127.0.0.1:0", write=True) as admin:
        assert _ask(admin.address, "/circuits?service=ledger&to=OPEN", "POST")[0] == 200
        with pytest.raises(CircuitOpen):
            mesh.call("ledger", lambda: 1)
        assert _ask(admin.address, "/circuits?service=ledger&to=AUTO", "POST")[0] == 200
        assert mesh.call("ledger", lambda: 1) == 1


def test_faults_are_turned_off_and_on(mesh):
    def faults():
        before = mesh.snapshot()["services"]["ledger"]["routes"]["*"]["faults"].get("delay", 0)
        mesh.call("ledger", lambda: 1)
        return mesh.snapshot()["services"]["ledger"]["routes"]["*"]["faults"].get("delay", 0) - before

    with mesh.serve_admin("127.0.0.1:0", write=True) as admin:
        assert faults() == 1
        _ask(admin.address, "/faults?enabled=false", "POST")
        assert faults() == 0
        mesh.apply_text(POLICY.replace("3s", "4s"))
        assert faults() == 0
        _ask(admin.address, "/faults?enabled=true", "POST")
        assert faults() == 1


def test_a_page_of_somebody_elses_reaches_nothing(mesh):
    with mesh.serve_admin("127.0.0.1:0", write=True) as admin:
        assert _ask(admin.address, "/stats", host="evil.example")[0] == 403
        assert _ask(admin.address, "/faults?enabled=false", "POST", origin="http://evil.example")[0] == 403
        assert _ask(admin.address, "/faults?enabled=false", "POST", origin=f"http://{admin.address}")[0] == 200
        assert _ask(admin.address, "/stats", host="localhost")[0] == 200


def test_a_unix_socket_is_its_users_alone(mesh, tmp_path):
    path = tmp_path / "admin.sock"
    path_left_behind = socket.socket(socket.AF_UNIX)
    path_left_behind.bind(str(path))
    path_left_behind.close()  # as a process does that was killed
    with mesh.serve_admin(f"unix:{path}") as admin:
        assert admin.address == f"unix:{path}"
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as asked:
            asked.connect(str(path))
            asked.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b"200 OK" in asked.recv(1000)
        with pytest.raises(OSError, match="in use"):
            Mesh.from_text(POLICY).serve_admin(f"unix:{path}")
    assert not path.exists()


def test_an_address_that_is_taken_or_none(mesh):
    with mesh.serve_admin("127.0.0.1:0") as admin:
        with pytest.raises(OSError, match="in use"):
            Mesh.from_text(POLICY).serve_admin(admin.address)
        with pytest.raises(ValueError, match=r"HOST:PORT or unix:/PATH"):
            Mesh.from_text(POLICY).serve_admin("nowhere")


def test_the_environment_starts_it_and_who_waits_takes_over(monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("RESILMESH_ADMIN", address)
    first, second = Mesh.from_text(POLICY), Mesh.from_text(POLICY.replace("ledger", "stock"))
    assert "ledger" in _ask(address, "/config_dump")[1]
    first.close()
    until = time.monotonic() + 15
    while True:
        try:
            assert "stock" in _ask(address, "/config_dump")[1]
            break
        except ConnectionRefusedError:
            assert time.monotonic() < until
            time.sleep(0.05)
    second.close()


def test_the_stream_for_hystrix_dashboards_ends_with_the_server(mesh):
    mesh.call("ledger", lambda: 1)
    admin = mesh.serve_admin("127.0.0.1:0")
    host, _, port = admin.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    connection.request("GET", "/hystrix.stream")
    response = connection.getresponse()
    assert response.headers["content-type"].startswith("text/event-stream")
    told = json.loads(response.readline().removeprefix(b"data: "))
    assert (told["type"], told["name"], told["isCircuitBreakerOpen"]) == ("HystrixCommand", "ledger", False)
    began = time.monotonic()
    closing = threading.Thread(target=admin.close)
    closing.start()
    while response.readline():
        pass
    closing.join()
    assert time.monotonic() - began < 5
    connection.close()


def test_rolling_figures_are_those_of_the_last_ten_seconds(mesh):
    rolling = Rolling()
    list(rolling.commands(0.0, 0.0, mesh.snapshot()))
    mesh.call("ledger", lambda: 1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            mesh.call("ledger", lambda: 1 / 0)
    [first] = rolling.commands(5.0, 5.0, mesh.snapshot())
    assert (first["requestCount"], first["errorCount"], first["errorPercentage"], first["isCircuitBreakerOpen"]) == (4, 3, 75, True)
    with pytest.raises(CircuitOpen):
        mesh.call("ledger", lambda: 1)
    [later] = rolling.commands(15.1, 15.1, mesh.snapshot())
    assert (later["requestCount"], later["rollingCountShortCircuited"], later["rollingCountFailure"]) == (1, 1, 0)
