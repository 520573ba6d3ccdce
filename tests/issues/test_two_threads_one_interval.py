"""Two threads that found the same interval over worked it off twice: the second time with the clock of the future."""

from __future__ import annotations

from resilmesh.state.outlier import Endpoint, OutlierDetector, OutlierSettings


class _Meanwhile:
    """A lock that lets another thread go first."""

    def __init__(self, lock, other):
        self.lock, self.other = lock, other

    def __enter__(self):
        other, self.other = self.other, lambda: None
        other()
        self.lock.acquire()

    def __exit__(self, *error):
        self.lock.release()


def test_an_interval_is_worked_off_once():
    endpoint = Endpoint("10.0.0.1:80", {})
    settings = OutlierSettings(1, None, None, False, 10.0, 10.0, 300.0, 100.0, 0.0)
    detector = OutlierDetector(settings, [endpoint], lambda *event: None)
    detector.tick(1000.0)
    detector.failure(endpoint, 1009.9, status=500, local_origin=False)
    detector._lock = _Meanwhile(detector._lock, lambda: detector.tick(1010.5))
    detector.tick(1010.5)
    assert endpoint.ejected, "for another nine seconds"
    assert detector._next_tick == 1020.0
