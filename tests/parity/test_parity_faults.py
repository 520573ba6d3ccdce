"""fault: answers and delays that nobody asked the service for."""

from __future__ import annotations

import pytest
from scripted import OK, Say, Service, status
from sidebyside import Caller, covers, side_by_side

from tests.timing import in_time

Services = dict[str, Service]


def policy(fault: str, more: str = "") -> str:
    return f"""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{{address: "$a"}}]
  fault: {fault}
  {more}
"""


@covers("CallBlocks.fault", "Fault.abort", "FaultAbort.http_status")
def test_an_abort_answers_in_place_of_the_service(services: Services) -> None:
    text = policy("{abort: {httpStatus: 418}}", "retries: {maxRetries: 3, retryOn: [418]}")
    both = side_by_side(services, text, lambda caller: caller.get())
    both.agree()
    assert (both.envoy.statuses, both.envoy.bodies, both.envoy.attempts) == ([418], ["fault filter abort"], 0)


@pytest.mark.parametrize("code", [204, 304])
@covers("FaultAbort.http_status")
def test_an_abort_whose_status_has_no_body(services: Services, code: int) -> None:
    """One request only: Envoy sends a body all the same, which breaks its connection, as the notes say."""
    both = side_by_side(services, policy(f"{{abort: {{httpStatus: {code}}}}}"), lambda caller: caller.get())
    both.agree()
    assert both.envoy.bodies == [""]


@covers("Fault.abort", "FaultAbort.grpc_status")
def test_a_grpc_status_for_a_plain_request(services: Services) -> None:
    both = side_by_side(services, policy("{abort: {grpcStatus: 14}}"), lambda caller: caller.get())
    both.agree()
    assert (both.envoy.statuses, both.envoy.bodies, both.envoy.attempts) == ([200], ["fault filter abort"], 0)


@covers("FaultAbort.percent")
def test_a_share_of_aborts(services: Services) -> None:
    def traffic(caller: Caller) -> None:
        for _ in range(400):
            caller.get()

    both = side_by_side(services, policy("{abort: {httpStatus: 503, percent: 30}}"), traffic)
    for plane in both:
        # 120 of 400 are expected; 46 are five standard deviations.
        assert plane.statuses.count(503) == pytest.approx(120, abs=46)
        assert plane.attempts == plane.statuses.count(200)


@covers("FaultAbort.percent", "FaultDelay.percent")
def test_never_is_never(services: Services) -> None:
    text = policy("{abort: {httpStatus: 503, percent: 0}, delay: {fixedDelay: 5s, percent: 0}}")

    def traffic(caller: Caller) -> None:
        for _ in range(20):
            caller.get()

    both = side_by_side(services, text, traffic)
    both.agree()
    assert both.envoy.statuses == [200] * 20


@covers("Fault.delay", "FaultDelay.fixed_delay")
def test_a_delay_eats_nothing_of_the_timeout(services: Services) -> None:
    text = policy("{delay: {fixedDelay: 500ms}}", "timeout: 400ms")
    both = side_by_side(services, text, lambda caller: caller.get(), a=Say(delay=0.2))
    both.agree()
    assert both.envoy.statuses == [200]
    assert both.envoy.replies[0].seconds >= 0.69


@covers("Fault.delay", "Fault.abort")
def test_the_delay_comes_before_the_abort_and_once_a_call(services: Services) -> None:
    text = policy("{delay: {fixedDelay: 300ms}, abort: {httpStatus: 503}}", "retries: {maxRetries: 2, retryOn: [5xx]}")
    both = side_by_side(services, text, lambda caller: caller.get())
    both.agree()
    assert both.envoy.bodies == ["fault filter abort"]
    in_time(both.envoy.replies[0].seconds, 0.5, least=0.29)


@covers("FaultDelay.percent")
def test_a_share_of_delays_drawn_apart_from_the_aborts(services: Services) -> None:
    text = policy("{delay: {fixedDelay: 60ms, percent: 50}, abort: {httpStatus: 503, percent: 50}}")

    def traffic(caller: Caller) -> None:
        for _ in range(5):
            caller.together(40)

    both = side_by_side(services, text, traffic)
    for plane in both:
        aborted = plane.statuses.count(503)
        # 100 of 200 are expected; 35 are five standard deviations.
        assert aborted == pytest.approx(100, abs=35)
        assert plane.attempts == 200 - aborted


@covers("Fault.delay")
def test_a_delayed_call_holds_no_slot(services: Services) -> None:
    text = policy("{delay: {fixedDelay: 300ms}}", "concurrency: {maxRequests: 1}")
    both = side_by_side(services, text, lambda caller: caller.together(4), a=Say(delay=0.3))
    both.agree(in_any_order=True, tolerance=0.3)
    assert sorted(both.envoy.statuses) == [200, 503, 503, 503]


@covers("CallBlocks.fault")
def test_a_route_without_a_fault(services: Services) -> None:
    text = policy("{abort: {httpStatus: 503}}", "routes: [{name: spared, match: {path: /spared}, fault: null}]")

    def traffic(caller: Caller) -> None:
        caller.get("/spared")
        caller.get("/other")

    both = side_by_side(services, text, traffic, a=[OK, status(500)])
    both.agree()
    assert both.envoy.statuses == [200, 503]
