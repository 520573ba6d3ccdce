"""A real Prometheus scrapes a mesh: nothing is refused, figures are those of the calls, and the dashboard's queries find them."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

import resilmesh
from resilmesh import Mesh
from tests.telemetry.prometheus_server import Prometheus, binary, prometheus

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = json.loads((ROOT / "docs" / "dashboards" / "resilmesh.json").read_text())
QUERIES = [
    (panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
]

POLICY = """
apiVersion: resilmesh/v1
services:
- name: stock
  hosts: [stock.test]
  endpoints: [{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]
  circuitBreaker: {failureRateThreshold: 40, minimumNumberOfCalls: 30, waitDurationInOpenState: 100ms}
  rateLimit: {requests: 40, per: 1s}
  concurrency: {maxRequests: 10, maxPending: 5}
  retryBudget: {percent: 20, minRetriesPerSecond: 1, ttl: 10s}
  retries: {maxRetries: 1, retryOn: [5xx], backoff: {base: 1ms}}
  outlierDetection: {consecutive5xxErrors: 2, interval: 100ms, baseEjectionTime: 1s, maxEjectionPercent: 50}
  routes: [{name: read, match: [{method: GET}]}]
"""
#: Of the dashboard's panels those whose queries find nothing in this traffic, which has no gRPC, no certificate and serves nobody.
EMPTY = ("rpc_", "http_server_", "resilmesh_authorization", "resilmesh_identity", "resilmesh_rejections_observed")


@pytest.fixture(scope="module")
def mesh() -> Mesh:
    return Mesh.from_text(POLICY, seed=1)


@pytest.fixture(scope="module")
def server(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    ended, answers = threading.Event(), [200, 200, 503, 200, 503, 503, 200, 503]

    def traffic() -> None:
        number = 0

        def answer(request: httpx.Request) -> httpx.Response:
            nonlocal number
            number += 1
            return httpx.Response(answers[number % len(answers)], content=b"body")

        with httpx.Client(transport=resilmesh.http.Transport(mesh, httpx.MockTransport(answer))) as client:
            while not ended.is_set():
                with suppress(httpx.HTTPError):
                    client.get("http://stock.test/")
                time.sleep(0.005)

    thread = threading.Thread(target=traffic)
    thread.start()
    try:
        with mesh.serve_admin("127.0.0.1:0") as admin, \
                prometheus(tmp_path_factory.mktemp("prometheus"), [admin.address], "/stats/prometheus") as server:
            until = time.monotonic() + 20  # a rate needs a few scrapes
            while not server.query("rate(resilmesh_calls_total[2s]) > 0"):
                assert time.monotonic() < until
                time.sleep(0.1)
            time.sleep(1.5)
            yield server
    finally:
        ended.set()
        thread.join()
        mesh.close()


def test_nothing_of_a_scrape_is_refused(server: Prometheus) -> None:
    [target] = server.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    assert server.value("up") == 1


def test_figures_are_those_of_the_calls(server: Prometheus, mesh: Mesh) -> None:
    before = mesh.snapshot()["services"]["stock"]["routes"]["read"]["succeeded"]
    time.sleep(0.6)
    told = server.value('resilmesh_calls_total{outcome="succeeded"}')
    assert before <= told <= mesh.snapshot()["services"]["stock"]["routes"]["read"]["succeeded"]
    types = {metric: each[0]["type"] for metric, each in server.get("metadata").items()}
    assert types["resilmesh_calls_total" if "resilmesh_calls_total" in types else "resilmesh_calls"] == "counter"
    assert types["http_client_request_duration_seconds"] == "histogram"
    assert types["resilmesh_circuit_state"] == "gauge"


@pytest.mark.parametrize(("panel", "query"), QUERIES)
def test_the_dashboards_queries_find_what_they_show(server: Prometheus, panel: str, query: str) -> None:
    filled = re.sub(r"\$__rate_interval|\$__range", "2s", query).replace("$service", ".*").replace("$route", ".*")
    assert "$" not in filled
    found = server.query(filled)
    assert bool(found) is not any(f"{prefix}" in query for prefix in EMPTY), (panel, filled, found)


@pytest.mark.parametrize("openmetrics", [False, True])
def test_promtool_finds_nothing_wrong(mesh: Mesh, server: Prometheus, openmetrics: bool) -> None:
    told = mesh.prometheus().text(openmetrics=openmetrics)
    if openmetrics:
        told = told.replace("# EOF\n", "")  # promtool reads the older format alone
        told = "".join(f"{line.partition(' # ')[0]}\n" for line in told.splitlines() if not line.startswith("# "))
    command = [binary("promtool"), "check", "metrics", "--extended"]
    checked = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    assert checked.returncode in (0, 3), checked.stderr  # 3: style, such as a counter's name; nothing that cannot be read
    assert "error while linting" not in checked.stderr


def test_the_alerts_of_the_documentation_are_rules(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "prometheus.md").read_text()
    [rules] = [block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if block.startswith("groups:")]
    (tmp_path / "rules.yml").write_text(rules)
    command = [binary("promtool"), "check", "rules", str(tmp_path / "rules.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "4 rules found" in checked.stdout
