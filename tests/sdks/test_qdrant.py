"""qdrant-client over our transport. It has one loop, in its uploads, and no header says that it goes round."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse
from sdk_driver import HOST, RETRIED, RETRIED_POSTS, Runtime, counted, mesh_of
from sdk_service import qdrant_api, reply

import resilmesh
from resilmesh import Mesh
from resilmesh.http import AsyncTransport, Transport
from tests.http.http_service import Service, hang, unused_port

POINT = models.PointStruct(id=7, vector=[0.1, 0.2], payload={"city": "Ulm"})
UNAVAILABLE = reply({"status": {"error": "busy"}}, 503)


@contextmanager
def client_of(mesh: Mesh, runtime: Runtime, **options: Any) -> Iterator[Any]:
    """``transport=`` is an option of the ``httpx.Client`` that it makes. The check of the version is a request around that client."""
    kind: Any = QdrantClient if runtime.blocking else AsyncQdrantClient
    transport: Any = Transport(mesh) if runtime.blocking else AsyncTransport(mesh)
    client = kind(url=f"http://{HOST}:6333", transport=transport, check_compatibility=False, **options)
    try:
        yield client
    finally:
        runtime.run(client.close)


@pytest.fixture(autouse=True)
def api(service: Service) -> None:
    service.otherwise = qdrant_api


def test_calls(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, timeout="3s")
    with client_of(mesh, runtime) as client:
        assert runtime.run(client.get_collections).collections[0].name == "places"
        assert runtime.run(client.upsert, "places", [POINT]).status == models.UpdateStatus.COMPLETED
        assert runtime.run(client.query_points, "places", [0.1, 0.2]).points[0].payload == {"city": "Ulm"}
    assert [seen.method for seen in service.seen] == ["GET", "PUT", "POST"]
    assert service.seen[0].headers["host"] == f"{HOST}:6333"
    assert counted(mesh) == (3, 0, 0)


def test_our_retry(runtime: Runtime, service: Service) -> None:
    service.script = [UNAVAILABLE, UNAVAILABLE]
    mesh = mesh_of(service.address, retries=RETRIED)
    with client_of(mesh, runtime) as client:
        runtime.run(client.upsert, "places", [POINT])
    assert (len(service.seen), counted(mesh)) == (3, (1, 0, 2))


@pytest.mark.parametrize(("retries", "attempts"), [(RETRIED, 1), (RETRIED_POSTS, 3)])
def test_a_query_is_a_post(runtime: Runtime, service: Service, retries: str, attempts: int) -> None:
    service.otherwise = UNAVAILABLE
    with client_of(mesh_of(service.address, retries=retries), runtime) as client, pytest.raises(UnexpectedResponse) as raised:
        runtime.run(client.query_points, "places", [0.1, 0.2])
    assert (len(service.seen), raised.value.status_code) == (attempts, 503)


# It warns, by `warnings.warn`, at each turn of its loop.
@pytest.mark.filterwarnings("ignore:Batch upload failed:UserWarning")
@pytest.mark.parametrize("runtime", ["sync"], indirect=True)
def test_both_loops_multiply(runtime: Runtime, service: Service) -> None:
    service.otherwise = UNAVAILABLE
    mesh = mesh_of(service.address, retries=RETRIED)
    with client_of(mesh, runtime) as client, pytest.raises(UnexpectedResponse):
        client.upload_points("places", [POINT], max_retries=2)
    assert (len(service.seen), counted(mesh)) == (9, (3, 0, 6))


# As above.
@pytest.mark.filterwarnings("ignore:Batch upload failed:UserWarning")
@pytest.mark.parametrize("runtime", ["sync"], indirect=True)
def test_no_number_bounds_how_often_an_upload_waits(runtime: Runtime, service: Service) -> None:
    service.script = [reply({"status": {"error": "slow down"}}, 429, retry_after="0")] * 5
    mesh = mesh_of(service.address, retries=RETRIED)
    with client_of(mesh, runtime) as client:
        client.upload_points("places", [POINT], max_retries=0)
    assert (len(service.seen), counted(mesh)) == (6, (6, 0, 0))


# As above.
@pytest.mark.filterwarnings("ignore:Batch upload failed:UserWarning")
@pytest.mark.parametrize("runtime", ["async"], indirect=True)
def test_uploads_of_the_asynchronous_client_block(runtime: Runtime, service: Service) -> None:
    """It makes an ``httpx.Client`` for them, and gives it what was meant for its ``httpx.AsyncClient``."""
    with client_of(mesh_of(service.address), runtime) as client, pytest.raises(ResponseHandlingException, match="handle_request"):
        client.upload_points("places", [POINT])
    assert service.seen == []


def test_what_was_never_sent_is_repeated(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(f"127.0.0.1:{unused_port()}", service.address, retries=RETRIED)
    with client_of(mesh, runtime) as client:
        for _ in range(2):
            runtime.run(client.query_points, "places", [0.1, 0.2])
    assert len(service.seen) == 2
    assert counted(mesh)[2] >= 1


def test_rejections(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, rateLimit="{requests: 1, per: 1m}")
    with client_of(mesh, runtime) as client:
        runtime.run(client.get_collections)
        with pytest.raises(ResponseHandlingException) as limited:
            runtime.run(client.get_collections)
    mesh = mesh_of(service.address, circuitBreaker="{failureRateThreshold: 50}")
    mesh.force_circuit("sdk", "OPEN")
    with client_of(mesh, runtime) as client, pytest.raises(ResponseHandlingException) as refused:
        runtime.run(client.get_collections)
    # No `__cause__`: what it caught is its `source`.
    assert isinstance(limited.value.source, resilmesh.RateLimited)
    assert 50 < limited.value.source.retry_after <= 60
    assert isinstance(refused.value.source, resilmesh.CircuitOpen)
    assert len(service.seen) == 1


def test_rejections_as_responses(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, mesh="{localReplies: RESPOND}", rateLimit="{requests: 1, per: 1m}")
    with client_of(mesh, runtime) as client:
        runtime.run(client.get_collections)
        with pytest.raises(UnexpectedResponse) as raised:
            runtime.run(client.get_collections)
    assert raised.value.status_code == 429


def test_its_time_out_and_the_policys(runtime: Runtime, service: Service) -> None:
    service.otherwise = hang()
    with client_of(mesh_of(service.address), runtime, timeout=1) as client, pytest.raises(ResponseHandlingException) as own:
        runtime.run(client.get_collections)
    assert type(own.value.source) is httpx.ReadTimeout
    with client_of(mesh_of(service.address, timeout="100ms"), runtime) as client, pytest.raises(ResponseHandlingException) as policys:
        runtime.run(client.get_collections)
    assert isinstance(policys.value.source, resilmesh.DeadlineExceeded)
