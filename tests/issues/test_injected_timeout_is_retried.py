"""An injected delay that outlasted perTryTimeout was no time-out for retryOn, so that the drill exercised no retry."""

from __future__ import annotations

import pytest

from resilmesh import Mesh
from resilmesh.engine.call import SLEEP, Call
from resilmesh.testing import ManualClock

POLICY = """
apiVersion: resilmesh/v1
services:
- name: s
  retries: {retryOn: [gateway-error], perTryTimeout: 1s, idempotent: true}
  fault: {delay: {fixedDelay: 5s}, scope: ATTEMPT}
"""


@pytest.mark.mesh_leaks("off")  # the call is left in its second attempt
def test_it_is_retried_like_any_time_out():
    clock = ManualClock()
    call = Call(Mesh.from_text(POLICY, clock=clock).table.named("s", None)[1], True)
    assert call.start(clock.monotonic()) is SLEEP
    clock.advance(1)
    assert call.woke(clock.monotonic()) is SLEEP
    clock.advance(1)
    call.woke(clock.monotonic())
    assert call.number == 2
