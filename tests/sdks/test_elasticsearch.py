"""elasticsearch over our transport: its own nodes are urllib3's and aiohttp's, so a node of ours is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import elastic_transport
import elasticsearch
import pytest
from elastic_transport import HttpxAsyncHttpNode, HttpxHttpNode, NodeConfig
from sdk_driver import HOST, RETRIED, RETRIED_POSTS, Runtime, cause_of, counted, mesh_of
from sdk_service import elasticsearch_api, reply

import resilmesh
from resilmesh import Mesh
from tests.http.http_service import Service, hang, unused_port

UNAVAILABLE = reply({"error": "busy"}, 503, x_elastic_product="Elasticsearch")


def node_of(mesh: Mesh, runtime: Runtime) -> Any:
    """elastic_transport's node for httpx, whose client (a public attribute) is given the policy."""
    base: Any = HttpxHttpNode if runtime.blocking else HttpxAsyncHttpNode

    class PolicyNode(base):  # type: ignore[misc]  # its base is chosen above
        def __init__(self, config: NodeConfig) -> None:
            super().__init__(config)
            resilmesh.wrap(self.client, mesh)

    return PolicyNode


@contextmanager
def client_of(mesh: Mesh, runtime: Runtime, **options: Any) -> Iterator[Any]:
    kind: Any = elasticsearch.Elasticsearch if runtime.blocking else elasticsearch.AsyncElasticsearch
    client = kind(f"http://{HOST}:9200", node_class=node_of(mesh, runtime), **options)
    try:
        yield client
    finally:
        runtime.run(client.close)


@pytest.fixture(autouse=True)
def api(service: Service) -> None:
    service.otherwise = elasticsearch_api


def test_calls(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, timeout="3s")
    with client_of(mesh, runtime) as client:
        found = runtime.run(client.search, index="places", query={"match_all": {}})
        assert found["hits"]["hits"][0]["_source"] == {"name": "Ulm"}
        assert runtime.run(client.index, index="places", id="1", document={"name": "Ulm"})["result"] == "created"
    assert [(seen.method, seen.headers["host"]) for seen in service.seen] == [("POST", f"{HOST}:9200"), ("PUT", f"{HOST}:9200")]
    assert counted(mesh) == (2, 0, 0)


def test_our_retry_with_its_own_loop_off(runtime: Runtime, service: Service) -> None:
    service.script = [UNAVAILABLE, UNAVAILABLE]
    mesh = mesh_of(service.address, retries=RETRIED_POSTS)
    with client_of(mesh, runtime, max_retries=0) as client:
        runtime.run(client.search, index="places")
    assert (len(service.seen), counted(mesh)) == (3, (1, 0, 2))


def test_both_loops_multiply(runtime: Runtime, service: Service) -> None:
    service.otherwise = UNAVAILABLE
    mesh = mesh_of(service.address, retries=RETRIED_POSTS)
    with client_of(mesh, runtime) as client, pytest.raises(elasticsearch.ApiError):
        runtime.run(client.search, index="places")
    assert (len(service.seen), counted(mesh)) == (12, (4, 0, 8)), "its three retries, which no header tells"


def test_its_loop_repeats_a_post_which_we_do_not(runtime: Runtime, service: Service) -> None:
    service.otherwise = UNAVAILABLE
    mesh = mesh_of(service.address, retries=RETRIED)
    with client_of(mesh, runtime) as client, pytest.raises(elasticsearch.ApiError):
        runtime.run(client.index, index="places", document={"name": "Ulm"})
    assert ({seen.method for seen in service.seen}, counted(mesh)) == ({"POST"}, (4, 0, 0))


def test_what_was_never_sent_is_repeated(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(f"127.0.0.1:{unused_port()}", service.address, retries=RETRIED)
    with client_of(mesh, runtime, max_retries=0) as client:
        for _ in range(2):
            runtime.run(client.search, index="places")
    assert len(service.seen) == 2
    assert counted(mesh)[2] >= 1


def test_rejections(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, rateLimit="{requests: 1, per: 1m}")
    with client_of(mesh, runtime, max_retries=0) as client:
        runtime.run(client.search, index="places")
        with pytest.raises(elastic_transport.ConnectionError) as raised:
            runtime.run(client.search, index="places")
        assert 50 < cause_of(raised.value, resilmesh.RateLimited).retry_after <= 60
        with pytest.raises(elastic_transport.ConnectionError):
            runtime.run(client.options(max_retries=2).search, index="places")
    assert (len(service.seen), counted(mesh)) == (1, (5, 0, 0)), "it takes a rejection for a broken connection, and asks again"


def test_rejections_as_responses(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, mesh="{localReplies: RESPOND}", circuitBreaker="{failureRateThreshold: 50}")
    mesh.force_circuit("sdk", "OPEN")
    with client_of(mesh, runtime, max_retries=0) as client, pytest.raises(elasticsearch.ApiError) as raised:
        runtime.run(client.search, index="places")
    assert (raised.value.status_code, service.seen) == (503, [])


def test_its_time_out_and_the_policys(runtime: Runtime, service: Service) -> None:
    service.otherwise = hang()
    mesh = mesh_of(service.address)
    with client_of(mesh, runtime, request_timeout=0.1) as client, pytest.raises(elastic_transport.ConnectionTimeout):
        runtime.run(client.search, index="places")
    mesh = mesh_of(service.address, timeout="100ms")
    with client_of(mesh, runtime) as client, pytest.raises(elastic_transport.ConnectionTimeout) as raised:
        runtime.run(client.search, index="places")
    cause_of(raised.value, resilmesh.DeadlineExceeded)
    assert len(service.seen) == 2, "a time-out is not repeated, unless retry_on_timeout says so"


def test_its_own_node_goes_around_the_policy(runtime: Runtime, service: Service) -> None:
    mesh = mesh_of(service.address, rateLimit="{requests: 1, per: 1m}")
    kind: Any = elasticsearch.Elasticsearch if runtime.blocking else elasticsearch.AsyncElasticsearch
    client = kind(f"http://{service.address}", node_class="httpx" if runtime.blocking else "httpxasync")
    runtime.run(client.search, index="places")
    runtime.run(client.close)
    assert (len(service.seen), counted(mesh)) == (1, (0, 0, 0))


@pytest.mark.parametrize("runtime", ["sync"], indirect=True)
def test_its_default_is_no_client_of_ours(runtime: Runtime) -> None:
    with elasticsearch.Elasticsearch("http://127.0.0.1:9200") as client:
        assert isinstance(client.transport.node_pool.get(), elastic_transport.Urllib3HttpNode)
