"""``resilmesh compare --policy FILE --target URL``, on a real small service."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from resilmesh import cli
from resilmesh.compare.own import CannotCompare, Own, Steady, prepare
from resilmesh.errors import PolicyError
from resilmesh.policy.check import check
from resilmesh.policy.load import load_text

POLICY = """\
apiVersion: resilmesh/v1
services:
- name: inventory
  hosts: [inventory.prod.svc, "*.inventory.svc"]
  endpoints: [{address: "ADDRESS"}]
  timeout: 2s
  retries: {maxRetries: 3, retryOn: [5xx], backoff: {base: 1ms, max: 5ms}}
  retryBudget: {percent: 100}
  outlierDetection: {consecutive5xxErrors: 50}
- name: bare
  hosts: [bare.prod.svc, 127.0.0.1]
  timeout: 2s
- name: by-name
- name: versions
  hosts: [versions.prod.svc]
  endpoints: [{address: "127.0.0.1:1", labels: {v: "1"}}]
  subsets: [{name: one, labels: {v: "1"}}]
"""


class Service(ThreadingHTTPServer):
    """Every third request is answered 503. Keeps what it saw."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str, str]] = Counter()
        self.headers: set[str] = set()
        self.turn = 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body in one segment: a delayed acknowledgement would take 40 ms.
    wbufsize = -1
    server: Service

    def do_GET(self) -> None:
        service = self.server
        service.turn += 1
        service.seen[self.command, self.path, self.headers["host"]] += 1
        service.headers |= {name.lower() for name in self.headers}
        self.send_response(503 if service.turn % 3 == 0 else 200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_PUT = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def policy(service: Service, tmp_path: Path) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text(POLICY.replace("ADDRESS", service.address))
    return file


def prepared(policy: Path, target: str, service: str | None = None, **options: Any) -> Own:
    chosen: dict[str, Any] = {"rate": 10.0, "duration": 1.0, "method": "get", "path": None, "workers": 4, **options}
    return prepare(policy, target, service, **chosen)


def test_every_plane_calls_the_service_and_nothing_else_is_sent(
    service: Service, policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, page = tmp_path / "report.json", tmp_path / "page.html"
    status = cli.main([
        "compare", "--policy", str(policy), "--target", "http://inventory.prod.svc/v1/items?page=2", "--method", "put", "--rate", "80",
        "--duration", "0.6", "--rounds", "1", "--workers", "8", "--json", str(report), "--html", str(page),
    ])
    assert status == 0
    assert set(service.seen) == {("PUT", "/v1/items?page=2", "inventory.prod.svc")}
    assert not {"x-call", "x-served-by"} & service.headers
    (scenario,) = json.loads(report.read_text())["scenarios"]
    planes = scenario["planes"]
    assert list(planes) == ["bare", "library-off", "library", "sidecar"]
    for plane in ("bare", "library-off"):
        assert 0.5 < planes[plane]["success_rate"] < 0.85
        assert list(planes[plane]["failures"]) == ["503 of the service"]
    for plane in ("library", "sidecar"):
        assert planes[plane]["success_rate"] > 0.9
        assert planes[plane]["retries"][0] > 0
    # What only the service could know is not said.
    for measured in planes.values():
        assert measured["attempts_per_call"] is measured["requests"] is measured["most_at_once"] is None
        assert measured["series"]["requests"] == {}
    assert not [each for each in scenario["compared"] if each["figure"].startswith(("attempts", "requests", "most"))]
    assert "service itself saw of the attempts is not known" in " ".join(capsys.readouterr().out.split())
    shown = page.read_text(encoding="utf-8")
    assert "service itself saw of the attempts is not known" in shown
    assert "Requests that reached the services" not in shown


def test_ctrl_c_tells_what_was_measured_so_far(service: Service, policy: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [
        sys.executable, "-m", "resilmesh", "compare", "--policy", str(policy), "--target", "http://inventory.prod.svc/", "--rate", "40",
        "--duration", "0.3", "--rounds", "50", "--planes", "bare,library", "--json", str(report),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        for line in process.stderr:
            if "round 2 of 50" in line:
                break
        process.send_signal(signal.SIGINT)
        output, errors = process.stdout.read(), process.stderr.read()
    assert process.returncode == 130
    assert "Interrupted: this is what had been measured" in output
    assert "Traceback" not in errors
    told = json.loads(report.read_text())
    assert told["run"]["interrupted"] is True
    assert told["scenarios"][0]["rounds"] == 1
    assert list(told["scenarios"][0]["planes"]) == ["bare", "library"]


def test_calls_go_to_the_endpoints_as_written_under_the_urls_host(service: Service, policy: Path) -> None:
    found = prepared(policy, "http://eu.inventory.svc:8080/a")
    assert (found.addresses, found.authority, found.text) == ((service.address,), "eu.inventory.svc:8080", policy.read_text())
    assert found.traffic == Steady(10.0, 1.0, "GET", "/a")


def test_without_endpoints_and_for_a_named_service_the_target_is_called(service: Service, policy: Path) -> None:
    found = prepared(policy, f"http://{service.address}/a", path="/b?c")
    assert (found.addresses, found.authority) == ((service.address,), service.address)
    assert found.traffic.schedule(1, found.calls)[0][1:] == ("GET", "/b?c")

    elsewhere = Path(policy).with_name("elsewhere.yaml")
    elsewhere.write_text(POLICY.replace("ADDRESS", "10.255.255.1:80"))
    named = prepared(elsewhere, f"http://{service.address}/", service="inventory")
    assert (named.addresses, named.authority) == ((service.address,), "inventory.prod.svc")
    loaded = load_text(named.text)
    assert [each.address for each in loaded.policy.services[0].endpoints or ()] == [service.address]


def test_the_policy_of_library_off_is_one_that_check_accepts(service: Service, policy: Path) -> None:
    loaded = load_text(prepared(policy, "http://inventory.prod.svc/").direct_text)
    # 127.0.0.1 belongs to another service already.
    assert loaded.policy.services[0].hosts == ["inventory.prod.svc", "*.inventory.svc"]
    assert [each for each in check(loaded) if each.severity == "error"] == []
    policy.write_text(policy.read_text().replace(", 127.0.0.1]", "]"))
    changed = load_text(prepared(policy, "http://inventory.prod.svc/").direct_text)
    assert changed.policy.services[0].hosts == ["inventory.prod.svc", "*.inventory.svc", "127.0.0.1"]


@pytest.mark.parametrize(("target", "named", "said"), [
    ("http://inventory.prd.svc/", None, "no service of the policy has the host inventory.prd.svc: did you mean inventory.prod.svc?"),
    ("http://nothing.like.it/", None, "--service NAME takes one whatever its hosts (inventory, bare, by-name, versions)"),
    ("http://127.0.0.1/", "inventry", "there is no service 'inventry' in the policy: did you mean inventory?"),
    ("http://127.0.0.1:9/", "by-name", "by-name has no host that could be called"),
    ("http://127.0.0.1:9/", "versions", "versions has subsets, which one address cannot stand for"),
    ("https://inventory.prod.svc/", None, "the way through a sidecar is plain HTTP"),
    ("inventory.prod.svc", None, "is not a URL such as http://127.0.0.1:8080/v1/items"),
    ("http://inventory.prod.svc:x/", None, "Port could not be cast"),
])
def test_what_does_not_fit_is_said_before_a_call_is_made(policy: Path, service: Service, target: str, named: str | None, said: str) -> None:
    with pytest.raises(CannotCompare) as error:
        prepared(policy, target, named)
    assert said in str(error.value)
    assert not service.seen


def test_a_target_where_nothing_listens(policy: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(CannotCompare, match=rf"nothing answers at 127.0.0.1:{port} \(Connection refused\): start the service first"):
            prepared(policy, f"http://127.0.0.1:{port}/")


def test_a_policy_with_mistakes_or_switched_off(policy: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("apiVersion: resilmesh/v1\nservices: [{name: a, hosts: [a], timeout: 5}]")
    with pytest.raises(PolicyError):
        prepared(wrong, "http://a/")
    wrong.write_text("apiVersion: resilmesh/v1\nservices: [{name: a, hosts: [a]}, {name: a, hosts: [b]}]")
    with pytest.raises(CannotCompare, match=r"wrong.yaml:2:\d+: RM"):
        prepared(wrong, "http://a/")
    policy.write_text(policy.read_text().replace("services:", "mesh: {mode: OBSERVE}\nservices:", 1))
    with pytest.raises(CannotCompare, match="the policy's mode is OBSERVE"):
        prepared(policy, "http://inventory.prod.svc/")


@pytest.mark.parametrize(("words", "said"), [
    (["--policy", "p.yaml"], "belong together"),
    (["--target", "http://a/"], "belong together"),
    (["--policy", "p.yaml", "--target", "http://a/", "--only", "outage"], "are for the scenarios"),
    (["--policy", "/nowhere/p.yaml", "--target", "http://a/"], "cannot read the policy"),
])
def test_words_that_do_not_go_together(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--rate", "0"], ["--duration", "nan"], ["--method", "G T"], ["--workers", "0"]])
def test_numbers_are_checked(words: list[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compare", "--policy", "p", "--target", "http://a/", *words])
