"""The target that lets a service say anything: bytes off a socket, through the client and the whole policy.

No socket: the network that httpcore would use is a script, and each read takes 10 ms of a clock that moves by hand.
"""

from __future__ import annotations

from typing import Any

import httpcore
import httpx

from resilmesh import Mesh
from resilmesh.errors import CallError
from resilmesh.http import Transport
from resilmesh.testing import ManualClock
from tests.fuzz.draws import Draws

_POLICY = """
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  protocol: {protocol}
  endpoints: [{{address: "127.0.0.1:1"}}, {{address: "127.0.0.1:2"}}]
  timeout: 2s
  concurrency: {{maxRequests: 1}}
  retries: {{maxRetries: 1, retryOn: [5xx, reset, envoy-ratelimited, 200], idempotent: true, retryAfter: {{max: 1s}}}}
  circuitBreaker: {{failureRateThreshold: 50, slidingWindow: {{type: COUNT_BASED, size: 4}}, minimumNumberOfCalls: 2}}
"""


class _Stream(httpcore.NetworkStream):
    def __init__(self, network: _Network) -> None:
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._network.clock.advance(0.01)
        return self._network.script.pop(0) if self._network.script else b""

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._network.open -= 1

    closed = False

    def get_extra_info(self, info: str) -> Any:
        return None


class _Network(httpcore.NetworkBackend):
    """Connections whose service says what the script says, one part a read, and then closes."""

    def __init__(self, script: list[bytes], clock: ManualClock) -> None:
        self.script = script
        self.clock = clock
        self.open = 0

    def connect_tcp(self, *args: Any, **options: Any) -> _Stream:
        self.open += 1
        return _Stream(self)


def http1(data: bytes) -> None:
    _call(data, "HTTP1")


def http2(data: bytes) -> None:
    _call(data, "HTTP2")


def _call(data: bytes, protocol: str) -> None:
    draws = Draws(data)
    method, whole = draws.pick(("GET", "POST", "HEAD")), draws.below(2)
    cut = 1 + draws.below(200)
    said = draws.rest()
    clock = ManualClock()
    network = _Network([said[start : start + cut] for start in range(0, len(said), cut)], clock)
    inner = httpx.HTTPTransport(verify=False)  # no TLS here, and reading every CA certificate takes 20 ms
    inner._pool._network_backend = network
    mesh = Mesh.from_text(_POLICY.format(protocol=protocol), clock=clock, seed=1)
    with httpx.Client(transport=Transport(mesh, inner), timeout=60) as client:
        for _ in range(2):
            try:
                if whole:
                    client.request(method, "http://svc.test/")
                else:
                    with client.stream(method, "http://svc.test/") as response:
                        next(response.iter_bytes(), None)
            except (httpx.HTTPError, CallError):
                pass  # both kinds are promised; anything else is a finding
            else:
                assert clock.monotonic() <= 1000 + 2 * 2.1
            assert _held(mesh.snapshot()) == []
    mesh.close()
    assert network.open == 0, f"{network.open} connections were left open"


def _held(shown: Any, name: str = "mesh") -> list[str]:
    """Whatever a snapshot shows as held by a call."""
    if not isinstance(shown, dict):
        return []
    own = [f"{name}.{key}" for key in ("inFlight", "pending", "probesOut") if shown.get(key)]
    return own + [each for key, value in shown.items() for each in _held(value, f"{name}.{key}")]
