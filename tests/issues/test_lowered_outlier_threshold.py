"""An endpoint that had failed more often than a lowered threshold was never ejected: the count was compared with ==."""

from __future__ import annotations

import pytest

from resilmesh.state.outlier import Endpoint, OutlierDetector, OutlierSettings


@pytest.mark.parametrize(("kind", "status", "local"), [("consecutive_5xx", 500, False), ("consecutive_gateway", 503, False),
                                                       ("consecutive_local", 0, True)])
def test_the_next_failure_meets_the_lowered_threshold(kind, status, local):
    def settings(threshold):
        thresholds = {"consecutive_5xx": None, "consecutive_gateway": None, "consecutive_local": None, kind: threshold}
        return OutlierSettings(**thresholds, split_local=local, interval=10.0, base=30.0, longest=300.0, max_percent=100.0, panic=0.0)

    endpoint = Endpoint("10.0.0.1:80", {})
    detector = OutlierDetector(settings(10), [endpoint], lambda *event: None)
    for _ in range(6):
        detector.failure(endpoint, 1000.0, status=status, local_origin=local)
    detector.retune(settings(3), [endpoint])
    assert not endpoint.ejected
    detector.failure(endpoint, 1000.0, status=status, local_origin=local)
    assert endpoint.ejected
