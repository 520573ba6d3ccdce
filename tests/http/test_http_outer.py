"""Which requests say that a loop outside of ours repeats them, and where that is counted and told."""

from __future__ import annotations

from types import ModuleType

import pytest
from http_driver import Driver, mesh_of, nothing_in_flight
from http_service import Service

import resilmesh
from resilmesh.http.outer import repetition


@pytest.mark.parametrize(("headers", "number"), [
    ({}, 0),
    ({"x-stainless-retry-count": "0"}, 0),
    ({"x-stainless-retry-count": "1"}, 1),
    ({"X-Stainless-Retry-Count": "12"}, 12),
    ({"X-Retry-Count": "3"}, 3),
    ({"retry-count": "3", "x-stainless-retry": "3"}, 0),
    # What anybody may have put there is not what a loop says.
    ({"x-retry-count": "once"}, 0),
    ({"x-retry-count": "-1"}, 0),
    ({"x-retry-count": ""}, 0),
    ({"x-retry-count": "9" * 5000}, 0),
    ({"x-retry-count": "\u0663".encode()}, 0),
])
def test_what_says_so(library: ModuleType, headers: dict[str, str | bytes], number: int) -> None:
    assert repetition(library.Request("POST", "http://llm.internal/", headers=headers).headers) == number


def test_it_is_counted_and_told(driver: Driver, service: Service) -> None:
    mesh = mesh_of(service, timeout="3s")
    events: list[resilmesh.Event] = []
    mesh.subscribe(events.append)
    with driver.client(transport=driver.transport(mesh)) as client:
        for number in range(3):
            client.post("http://svc.test/", headers={"x-stainless-retry-count": str(number)})
    routes = mesh.snapshot()["services"]["svc"]["routes"]["*"]
    assert (routes["calls"], routes["outerRetries"], routes["retries"]) == (3, 2, 0)
    assert [event.detail for event in events if event.name == "call_started"] == [{}, {"repetition": 1}, {"repetition": 2}]
    assert nothing_in_flight(mesh)
