"""A call that had chosen its lane when another thread closed it, after a reload, left an idle connection that nobody closed."""

from __future__ import annotations

import httpcore
import httpx

from resilmesh.http import pool
from tests.http.http_service import Service


def test_its_connection_is_closed_when_it_ends() -> None:
    service = Service()
    try:
        with httpx.HTTPTransport() as prototype:
            lane = pool.clone(prototype, httpcore, None)
            lane.close()
            response = lane.handle_request(httpx.Request("GET", f"http://{service.address}/"))
            assert response.read() == b"ok"
            response.close()
        assert not lane._pool._open
        assert not lane._pool.doomed
    finally:
        service.stop()
