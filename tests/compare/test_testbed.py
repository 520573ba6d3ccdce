"""The test bed does what its scripts say, and counts it. Real processes, real sockets."""

from __future__ import annotations

import http.client
import threading
import time

import pytest

from resilmesh.compare.service import Latency, Outage, Script
from resilmesh.compare.testbed import TestBed
from tests.timing import lasts


def call(address: str, name: str, path: str = "/v1/items", timeout: float = 5) -> int | str:
    """The status of one call, or the name of the exception it ended in."""
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", path, headers={"x-call": name})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__
    finally:
        connection.close()


def test_answers_name_the_endpoint_and_its_version() -> None:
    with TestBed([Script("a", version="v7")]) as bed:
        connection = http.client.HTTPConnection(bed.addresses[0], timeout=5)
        for _ in range(3):  # on one connection: keep-alive
            connection.request("POST", "/v1/items", body=b"x" * 100_000)
            response = connection.getresponse()
            assert response.read().startswith(b"{")
            assert (response.status, response.headers["x-served-by"], response.headers["x-version"]) == (200, "a", "v7")
        connection.close()
        assert bed.seen().requests == 3


def test_shares_of_outcomes_are_drawn_from_the_seed_and_are_the_same_every_time() -> None:
    script = Script("a", outcomes={"503": 0.2, "reset": 0.1, "close": 0.1})

    def outcomes(seed: int) -> list[int | str]:
        with TestBed([script], seed) as bed:
            return [call(bed.addresses[0], str(number)) for number in range(200)]

    first = outcomes(1)
    assert first == outcomes(1)
    assert first != outcomes(2)
    assert set(first) == {200, 503, "ConnectionResetError", "RemoteDisconnected"}
    assert 20 <= first.count(503) <= 60
    assert 8 <= first.count("ConnectionResetError") <= 35


def test_a_second_attempt_of_a_call_is_drawn_anew() -> None:
    with TestBed([Script("a", outcomes={"503": 0.5})]) as bed:
        again = {(call(bed.addresses[0], str(number)), call(bed.addresses[0], str(number))) for number in range(40)}
        assert again == {(200, 200), (200, 503), (503, 200), (503, 503)}
        assert set(bed.seen().calls.values()) == {2}


def test_hang_never_answers() -> None:
    with TestBed([Script("a", outcomes={"hang": 1.0})]) as bed:
        assert call(bed.addresses[0], "1", timeout=0.2) == "TimeoutError"
        assert bed.seen().outcomes == {"hang": 1}


def test_latency_is_waited() -> None:
    with TestBed([Script("a", latency=Latency(0.1))]) as bed, lasts(0.1, 1):
        assert call(bed.addresses[0], "1") == 200


def test_capacity_bounds_what_is_worked_on_and_the_queue_what_waits() -> None:
    with TestBed([Script("a", latency=Latency(0.2), capacity=2, queue=1)]) as bed:
        statuses: list[int | str] = []

        def one(number: int) -> None:
            statuses.append(call(bed.addresses[0], str(number)))

        callers = [threading.Thread(target=one, args=(number,)) for number in range(5)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert sorted(map(str, statuses)) == ["200", "200", "200", "503", "503"]
        assert bed.seen().most_at_once == 2


def test_an_outage_has_a_beginning_and_an_end() -> None:
    with TestBed([Script("a", outages=(Outage(10, 20, "503"),))]) as bed:
        statuses = []
        for elapsed in (9, 11, 19, 21):
            bed.start_at(time.monotonic() - elapsed)
            statuses.append(call(bed.addresses[0], "1"))
        assert statuses == [200, 503, 503, 200]
        assert bed.seen().in_outage == 2


def test_counts_by_call_path_status_and_attempt_header() -> None:
    with TestBed([Script("a"), Script("b")]) as bed:
        for address in bed.addresses:
            call(address, "17", "/v1/items?x=1")
        call(bed.addresses[0], "18", "/v1/stock")
        call(bed.addresses[0], "warm-up", "/warm-up")
        seen = bed.seen()
        assert seen.requests == 3
        assert seen.calls == {"17": 2, "18": 1}
        assert seen.paths == {"/v1/items": 2, "/v1/stock": 1}
        assert seen.outcomes == {"200": 3}
        assert seen.attempt_headers == {"none": 3}


def test_a_chunked_request_is_refused_not_misread() -> None:
    with TestBed([Script("a")]) as bed:
        connection = http.client.HTTPConnection(bed.addresses[0], timeout=5)
        connection.request("POST", "/", body=iter([b"a", b"b"]), encode_chunked=True, headers={"transfer-encoding": "chunked"})
        assert connection.getresponse().status == 411
        connection.close()


@pytest.mark.parametrize("path", ["/.testbed/nothing", "/.testbed/epoch"])
def test_unknown_control_is_404(path: str) -> None:
    with TestBed([Script("a")]) as bed:
        assert call(bed.addresses[0], "1", path) == 404
        assert bed.seen().requests == 0
