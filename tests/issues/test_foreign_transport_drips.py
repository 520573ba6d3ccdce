"""A sync client over a foreign transport: the body that drips is cut between two of its parts when the call's time is over."""

from collections.abc import Iterator

import httpx
import pytest

import resilmesh
from resilmesh.http import Transport
from resilmesh.testing import ManualClock

POLICY = """
apiVersion: resilmesh/v1
services:
- {name: slow, hosts: [slow.test], timeout: 500ms}
"""


def test_the_deadline_holds_between_parts() -> None:
    clock = ManualClock()
    read = []

    class Dripping(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            for number in range(100):
                clock.advance(0.1)
                read.append(number)
                yield b"x"

    mesh = resilmesh.Mesh.from_text(POLICY, clock=clock)
    inner = httpx.MockTransport(lambda request: httpx.Response(200, stream=Dripping()))
    with httpx.Client(transport=Transport(mesh, inner=inner)) as client, pytest.raises(resilmesh.DeadlineExceeded, match="body"):
        client.get("http://slow.test/")
    assert len(read) == 5
    assert mesh.snapshot()["inFlight"] == 0
