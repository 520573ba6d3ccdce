"""A shortened interval took effect only at the end of the old one, which may be hours away."""

from __future__ import annotations

from resilmesh.state.outlier import Endpoint, OutlierDetector, OutlierSettings


def test_a_shorter_interval_counts_from_the_retune():
    def settings(interval):
        return OutlierSettings(1, None, None, False, interval, 1.0, 300.0, 100.0, 0.0)

    endpoint = Endpoint("10.0.0.1:80", {})
    detector = OutlierDetector(settings(86400.0), [endpoint], lambda *event: None)
    detector.tick(1000.0)
    detector.failure(endpoint, 1000.0, status=500, local_origin=False)
    detector.retune(settings(1.0), [endpoint])
    detector.tick(1001.0)
    detector.tick(1002.0)
    assert not endpoint.ejected
