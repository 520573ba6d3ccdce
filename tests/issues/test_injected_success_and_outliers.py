"""A fault of attempt scope with a status such as 404 was told to outlier detection as a success of the endpoint."""

from __future__ import annotations

from resilmesh import Mesh
from resilmesh.engine.call import SEND, Call
from resilmesh.engine.verdict import Answer, Verdict

POLICY = """
apiVersion: resilmesh/v1
services:
- name: s
  endpoints: [{address: "10.0.0.1:80"}]
  outlierDetection: {consecutive5xxErrors: 2}
  fault: {abort: {httpStatus: 404, percent: 50}, scope: ATTEMPT}
"""


def test_what_a_fault_makes_up_ends_no_row_of_failures():
    with Mesh.from_text(POLICY) as mesh:
        plan = mesh.table.named("s", None)[1]
        for answer in (Answer(Verdict.FAILURE, status=500), Answer(Verdict.SUCCESS, status=404, injected=True),
                       Answer(Verdict.FAILURE, status=500)):
            call = Call(plan)
            assert call.start(mesh.clock.monotonic()) is SEND
            call.answered(mesh.clock.monotonic(), 1, answer)
        assert plan.endpoints[0].ejected
