"""``resilmesh collector``, as a newcomer runs it; and an Envoy's configuration that sends spans to it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from resilmesh.cli import main


class _Running:
    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "resilmesh", "collector", "--grpc", "0", "--http", "0", *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        lines = [self.process.stderr.readline() for _ in range(3)]  # type: ignore[union-attr]  # it is a pipe
        self.endpoints = [re.search(r"ENDPOINT=(\S+) ", line)[1] for line in lines[:2]]  # type: ignore[index]  # or the test has failed

    def send(self, exporter: Grpc | Http) -> None:
        provider = TracerProvider(resource=Resource({"service.name": "shop"}))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        tracer = provider.get_tracer("tests")
        with tracer.start_as_current_span("check out"), tracer.start_as_current_span("charge"):
            pass
        provider.shutdown()

    def end(self) -> tuple[str, str]:
        self.process.send_signal(signal.SIGINT)
        return self.process.communicate(timeout=20)


@pytest.fixture
def run() -> Iterator[type[_Running]]:
    started: list[_Running] = []

    def begin(*words: str) -> _Running:
        started.append(_Running(*words))
        return started[-1]

    yield begin  # type: ignore[misc]  # it makes one
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


def test_a_trace_is_printed_as_a_tree(run):  # type: ignore[no-untyped-def]
    collector = run()
    collector.send(Grpc(endpoint=collector.endpoints[0], insecure=True))
    collector.send(Http(endpoint=collector.endpoints[1] + "/v1/traces"))
    printed, summary = collector.end()
    assert printed.count("check out [shop, internal]") == 2
    assert re.search(r"check out \[shop, internal\]\n.*  charge \[shop, internal\]", printed)
    assert "4 spans of 2 traces, 0 metrics" in summary
    assert collector.process.returncode == 0


def test_or_each_span_as_json(run):  # type: ignore[no-untyped-def]
    collector = run("--json")
    collector.send(Grpc(endpoint=collector.endpoints[0], insecure=True))
    printed, _ = collector.end()
    spans = [json.loads(line) for line in printed.splitlines()]
    assert [span["name"] for span in spans] == ["charge", "check out"]


def test_a_port_that_is_taken_is_told(run, capsys):  # type: ignore[no-untyped-def]
    port = run().endpoints[1].rpartition(":")[2]
    assert main(["collector", "--grpc", "0", "--http", port]) == 1
    assert "choose another port" in capsys.readouterr().err


def test_an_exported_envoy_sends_its_spans(tmp_path, capsys):  # type: ignore[no-untyped-def]
    policy = tmp_path / "policy.yaml"
    policy.write_text("apiVersion: resilmesh/v1\nservices:\n- {name: stock, hosts: [stock.test], endpoints: [{address: '127.0.0.1:1'}]}\n")
    assert main(["export", "envoy", str(policy), "--json", "--tracing", "127.0.0.1:4317"]) == 0
    bootstrap = json.loads(capsys.readouterr().out)
    manager = bootstrap["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["tracing"]["spawn_upstream_span"] is True
    assert "/collector" in [cluster["name"] for cluster in bootstrap["static_resources"]["clusters"]]
    assert main(["export", "envoy", str(policy), "--tracing", "127.0.0.1:4317", "--inbound", "127.0.0.1:80"]) == 2
