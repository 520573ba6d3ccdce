"""What it costs to be told of each call: metrics and spans of ours beside OpenTelemetry's own instrumentations of httpx and grpcio.

    python -m benchmarks.telemetry [--rounds N] [--seed N] [--json FILE]

All in one process, interleaved, against the same service in a process of its own; client CPU of a request is counted. "Recording": an
All in one process, interleaved, against one service in a process of its own; client CPU of a request is counted. "Recording": an
same rounds: median [quartiles].
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
from opentelemetry import trace
from opentelemetry.instrumentation.grpc import client_interceptor
from opentelemetry.instrumentation.grpc.grpcext import intercept_channel
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import resilmesh
import resilmesh_grpc
from benchmarks.grpc import clients as grpc_clients
from benchmarks.grpc import server as grpc_server
from benchmarks.http import clients as http_clients
from benchmarks.http import server as http_server
from benchmarks.measure import Sampler, Samples, Spread, interleave, machine, ratio
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

#: Requests of a sample.
REQUESTS = 200
BARE, THEIRS, OURS = "bare", "OpenTelemetry, recording", "resilmesh, recording"
_UNSAMPLED = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=True, trace_flags=trace.TraceFlags(0)))


def tracer_provider() -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(http_clients.Nowhere()))
    return provider


def meter_provider() -> MeterProvider:
    return MeterProvider([InMemoryMetricReader()])


def sampler(act: Callable[[], object]) -> Sampler:
    act()

    def sample() -> float:
        began = time.process_time_ns()
        for _ in range(REQUESTS):
            act()
        return (time.process_time_ns() - began) / REQUESTS / 1000

    return sample


def unsampled(act: Callable[[], object]) -> Callable[[], object]:
    def within() -> object:
        with trace.use_span(_UNSAMPLED):
            return act()

    return within


def mesh(text: str, *, recording: bool) -> resilmesh.Mesh:
    made = resilmesh.Mesh.from_text(text)
    if recording:
        made.telemetry.use(tracer_provider=tracer_provider(), meter_provider=meter_provider())
    return made


def http(port: int) -> dict[str, Sampler]:
    url, policy = f"http://127.0.0.1:{port}/items/7", http_clients.FULL.format(port=port, mode="ENFORCE")

    def ours(recording: bool) -> Callable[[], object]:
        client = httpx.Client(transport=resilmesh.http.Transport(mesh(policy, recording=recording)))
        return lambda: client.get(url)

    def theirs(**providers: Any) -> Callable[[], object]:
        client = httpx.Client()
        HTTPXClientInstrumentor.instrument_client(client, **providers)
        return lambda: client.get(url)

    bare = httpx.Client()
    recording = {"tracer_provider": tracer_provider(), "meter_provider": meter_provider()}
    return {
        BARE: sampler(lambda: bare.get(url)),
        "OpenTelemetry, no SDK": sampler(theirs()),
        THEIRS: sampler(theirs(**recording)),
        "resilmesh, no SDK": sampler(ours(False)),
        "resilmesh, unsampled": sampler(unsampled(ours(True))),
        OURS: sampler(ours(True)),
    }


def http_async(port: int, runner: asyncio.Runner) -> dict[str, Sampler]:
    url, policy = f"http://127.0.0.1:{port}/items/7", http_clients.FULL.format(port=port, mode="ENFORCE")

    def ours(recording: bool) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(mesh(policy, recording=recording)))

    instrumented = httpx.AsyncClient()
    HTTPXClientInstrumentor.instrument_client(instrumented, tracer_provider=tracer_provider(), meter_provider=meter_provider())
    clients = {BARE: httpx.AsyncClient(), THEIRS: instrumented, "resilmesh, no SDK": ours(False), OURS: ours(True)}

    def sample_of(client: httpx.AsyncClient) -> Sampler:
        async def some() -> None:
            for _ in range(REQUESTS):
                await client.get(url)

        def sample() -> float:
            began = time.process_time_ns()
            runner.run(some())
            return (time.process_time_ns() - began) / REQUESTS / 1000

        return sample

    return {name: sample_of(client) for name, client in clients.items()}


def unary(port: int) -> dict[str, Sampler]:
    policy = grpc_clients.FULL.format(port=port, mode="ENFORCE")

    def act(channel: Any) -> Callable[[], object]:
        stub, order = ShopStub(channel), Order(text="tea")
        return lambda: stub.Buy(order)

    def plain() -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{port}", grpc_clients.OWN_CONNECTION)

    def ours(recording: bool) -> Callable[[], object]:
        return act(resilmesh_grpc.channel(mesh(policy, recording=recording), grpc_clients.HOST, options=grpc_clients.OWN_CONNECTION))

    return {
        BARE: sampler(act(plain())),
        "OpenTelemetry, no SDK": sampler(act(intercept_channel(plain(), client_interceptor(trace.NoOpTracerProvider())))),
        THEIRS: sampler(act(intercept_channel(plain(), client_interceptor(tracer_provider())))),
        "resilmesh, no SDK": sampler(ours(False)),
        "resilmesh, unsampled": sampler(unsampled(ours(True))),
        OURS: sampler(ours(True)),
    }


def show(title: str, samples: Samples) -> None:
    print(f"\n{title}: client CPU of a request")
    for name, values in samples.items():
        print(f"  {name:26} {Spread.of(values).median:8.1f} us   x{ratio(values, samples[BARE])} of bare")
    verdict = ratio(samples[OURS], samples[THEIRS])
    print(f"  {OURS} over {THEIRS}: x{verdict}; target: no dearer: {'reached' if verdict.median <= 1 else 'missed'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    rng, found = random.Random(options.seed), {}
    print(machine())
    with http_server.running() as port, asyncio.Runner() as runner:
        found["httpx"] = interleave(http(port), options.rounds, rng)
        show("httpx", found["httpx"])
        found["httpx, asyncio"] = interleave(http_async(port, runner), options.rounds, rng)
        show("httpx, asyncio", found["httpx, asyncio"])
    with grpc_server.running() as port:
        found["grpcio, unary"] = interleave(unary(port), options.rounds, rng)
        show("grpcio, unary", found["grpcio, unary"])
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "microseconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
