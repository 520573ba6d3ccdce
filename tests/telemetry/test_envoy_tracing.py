"""A real Envoy's spans: one of each request, below it one of each attempt, in the caller's trace, if the caller records it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import yaml

from resilmesh.cli import main
from resilmesh.compare.collector import Collector
from resilmesh.envoy.process import Envoy, validate
from resilmesh.envoy.translate import translate
from resilmesh.policy.load import load_text

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
POLICY = """\
apiVersion: resilmesh/v1
mesh: {{workload: shop}}
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{{address: "127.0.0.1:{port}"}}]
  retries: {{maxRetries: 2, retryOn: [5xx], backoff: {{base: 1ms}}}}
"""


@dataclass
class Service:
    """Answers with ``statuses``, then with 200; ``traceparents`` came."""

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    traceparents: list[str] = field(default_factory=list)


@pytest.fixture
def service() -> Iterator[Service]:
    serving = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            serving.traceparents.append(self.headers.get("traceparent", ""))
            self.send_response(serving.statuses.pop(0) if serving.statuses else 200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        serving.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield serving
        server.shutdown()
        thread.join()


def test_a_span_for_each_attempt_of_a_retried_call(service: Service) -> None:
    with Collector() as collector:
        address = ("127.0.0.1", int(collector.grpc_endpoint.rpartition(":")[2]))
        policy = load_text(POLICY.format(port=service.port)).policy
        with Envoy(translate(policy, collector=address).bootstrap) as envoy:
            def call(flags: str) -> int:
                headers = {"host": "svc.test", "traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
                return httpx.get(envoy.url, headers=headers).status_code

            # Not recorded first: spans of it would be here before those that are waited for.
            assert call("00") == 200
            service.statuses = [503, 503]
            assert call("01") == 200
            assert collector.wait_for(lambda: len(collector.spans) == 4, 5)
    (request,) = collector.traces()[TRACE]
    assert (request.span.kind, request.span.parent_id, request.orphan, request.span.service) == ("SERVER", PARENT, True, "shop")
    attempts = [node.span for node in request.children]
    assert [(span.kind, span.status, span.attributes["http.status_code"]) for span in attempts] == [
        ("CLIENT", "ERROR", "503"), ("CLIENT", "ERROR", "503"), ("CLIENT", "UNSET", "200")]
    not_recorded, *recorded = service.traceparents
    assert not_recorded.endswith("-00")
    # Each attempt is the parent of what the service makes of it.
    assert recorded == [f"00-{TRACE}-{span.span_id}-01" for span in attempts]


def test_without_a_collector_nothing_is_traced() -> None:
    made = str(translate(load_text(POLICY.format(port=1)).policy).bootstrap)
    assert "tracing" not in made
    assert "layered_runtime" not in made


def test_export_names_the_collector(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(port=1))
    assert main(["export", "envoy", str(policy), "--tracing", "127.0.0.1:4317"]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    (collector,) = [each for each in made["static_resources"]["clusters"] if each["name"] == "/collector"]
    (endpoint,) = collector["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 4317}
    assert validate(made) is None
