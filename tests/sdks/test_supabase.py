"""supabase over our transport: its tables (postgrest), whose loop says in a header that it goes round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from postgrest.exceptions import APIError
from sdk_driver import HOST, RETRIED, RETRIED_POSTS, Runtime, counted, mesh_of
from sdk_service import reply, supabase_api
from supabase import AsyncClientOptions, create_async_client, create_client
from supabase.lib.client_options import SyncClientOptions

import resilmesh
from resilmesh import Mesh
from resilmesh.http import AsyncTransport, Transport
from tests.http.http_service import Service, hang, unused_port

UNAVAILABLE = reply({"message": "busy", "code": "503", "hint": None, "details": None}, 503)


@contextmanager
def client_of(mesh: Mesh, runtime: Runtime, *, loop: bool, timeout: float = 5.0) -> Iterator[Any]:
    """``httpx_client`` serves its tables, functions, storage and auth."""
    if runtime.blocking:
        http: Any = httpx.Client(transport=Transport(mesh), timeout=timeout, follow_redirects=True)
        options: Any = SyncClientOptions(httpx_client=http, postgrest_client_retry=loop, auto_refresh_token=False)
    else:
        http = httpx.AsyncClient(transport=AsyncTransport(mesh), timeout=timeout, follow_redirects=True)
        options = AsyncClientOptions(httpx_client=http, postgrest_client_retry=loop, auto_refresh_token=False)
    client = runtime.run(create_client if runtime.blocking else create_async_client, f"http://{HOST}", "none", options)
    try:
        yield client
    finally:
        runtime.run(http.close if runtime.blocking else http.aclose)


@pytest.fixture(autouse=True)
def api(service: Service) -> None:
    service.otherwise = supabase_api


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loop waits 1, 2 and 4 s, and there is no option for that."""
    for runtime in ("_sync", "_async"):
        monkeypatch.setattr(f"postgrest.{runtime}.request_builder.get_retry_delay", lambda attempt: 0)


def rows(client: Any) -> Any:
    return client.table("places").select("*")


def new_row(client: Any) -> Any:
    return client.table("places").insert({"name": "Ulm"})


def test_calls(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, timeout="3s")
    with client_of(mesh, runtime, loop=True) as client:
        assert runtime.run(rows(client).execute).data == [{"id": 1, "name": "Ulm"}]
        assert runtime.run(new_row(client).execute).data == [{"id": 1, "name": "Ulm"}]
        runtime.run(client.rpc("near", {"id": 1}).execute)
    assert [(seen.method, seen.headers["host"]) for seen in service.seen] == [("GET", HOST), ("POST", HOST), ("POST", HOST)]
    assert "x-retry-count" not in service.seen[0].headers
    assert counted(mesh) == (3, 0, 0)


def test_our_retry_with_its_own_loop_off(runtime: Runtime, service: Service) -> None:
    service.script = [UNAVAILABLE, UNAVAILABLE]
    mesh = mesh_of(service.address, retries=RETRIED)
    with client_of(mesh, runtime, loop=False) as client:
        assert len(runtime.run(rows(client).execute).data) == 1
    assert (len(service.seen), counted(mesh)) == (3, (1, 0, 2))


def test_both_loops_multiply(runtime: Runtime, service: Service) -> None:
    service.otherwise = UNAVAILABLE
    mesh = mesh_of(service.address, retries=RETRIED)
    with client_of(mesh, runtime, loop=True) as client, pytest.raises(APIError):
        runtime.run(rows(client).execute)
    assert [seen.headers.get("x-retry-count") for seen in service.seen] == [None] * 3 + ["1"] * 3 + ["2"] * 3 + ["3"] * 3
    assert counted(mesh) == (4, 3, 8)


@pytest.mark.parametrize(("retries", "attempts"), [(RETRIED, 1), (RETRIED_POSTS, 3)])
def test_its_loop_leaves_a_post_alone_and_so_do_we(runtime: Runtime, service: Service, retries: str, attempts: int) -> None:
    service.otherwise = UNAVAILABLE
    with client_of(mesh_of(service.address, retries=retries), runtime, loop=True) as client, pytest.raises(APIError):
        runtime.run(new_row(client).execute)
    assert len(service.seen) == attempts


def test_what_was_never_sent_is_repeated(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(f"127.0.0.1:{unused_port()}", service.address, retries=RETRIED)
    with client_of(mesh, runtime, loop=False) as client:
        for _ in range(2):
            runtime.run(new_row(client).execute)
    assert len(service.seen) == 2
    assert counted(mesh)[2] >= 1


def test_rejections_pass_as_they_are(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, rateLimit="{requests: 1, per: 1m}")
    with client_of(mesh, runtime, loop=True) as client:
        runtime.run(rows(client).execute)
        with pytest.raises(resilmesh.RateLimited) as raised:
            runtime.run(rows(client).execute)
    assert raised.value.retry_after is not None
    assert 50 < raised.value.retry_after <= 60
    assert counted(mesh) == (2, 0, 0), "a rejection is no NetworkError, which its loop repeats"
    mesh = mesh_of(service.address, circuitBreaker="{failureRateThreshold: 50}")
    mesh.force_circuit("sdk", "OPEN")
    with client_of(mesh, runtime, loop=True) as client, pytest.raises(resilmesh.CircuitOpen):
        runtime.run(rows(client).execute)
    assert len(service.seen) == 1


def test_rejections_as_responses(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, mesh="{localReplies: RESPOND}", circuitBreaker="{failureRateThreshold: 50}")
    mesh.force_circuit("sdk", "OPEN")
    with client_of(mesh, runtime, loop=True) as client, pytest.raises(APIError) as raised:
        runtime.run(rows(client).execute)
    assert raised.value.code == "503"
    assert (service.seen, counted(mesh)) == ([], (4, 3, 0)), "a 503 is what its loop repeats"


def test_its_time_out_and_the_policys(runtime: Runtime, service: Service) -> None:
    service.otherwise = hang()
    with client_of(mesh_of(service.address), runtime, loop=True, timeout=0.1) as client, pytest.raises(httpx.ReadTimeout) as own:
        runtime.run(rows(client).execute)
    assert type(own.value) is httpx.ReadTimeout
    with client_of(mesh_of(service.address, timeout="100ms"), runtime, loop=True) as client, pytest.raises(resilmesh.DeadlineExceeded):
        runtime.run(rows(client).execute)
    assert len(service.seen) == 2, "neither is repeated"
