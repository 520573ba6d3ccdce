"""TLS to an endpoint: dialled, or tunnelled to through a proxy, the service proves the name that the application wrote."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest
from http_driver import Driver, mesh_of, nothing_in_flight, policy
from http_proxy import Proxy
from http_service import Service
from http_tls import contexts

from resilmesh import Mesh

URL = "https://svc.test/things"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return contexts("svc.test", tmp_path_factory.mktemp("tls"))


@pytest.fixture
def secured(both: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Service]:
    service = Service(tls=both[0])
    yield service
    service.stop()


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    proxy = Proxy({})
    yield proxy
    proxy.stop()


@pytest.fixture(params=["dialled", "tunnelled"])
def options(request: pytest.FixtureRequest, proxy: Proxy, both: tuple[ssl.SSLContext, ssl.SSLContext]) -> dict[str, object]:
    return {"verify": both[1], **({"proxy": proxy.url} if request.param == "tunnelled" else {})}


def test_the_name_in_the_url_is_proved(driver: Driver, secured: Service, proxy: Proxy, options: dict[str, object]) -> None:
    mesh = mesh_of(secured, timeout="5s")
    with driver.client(transport=driver.transport(mesh, **options)) as client:
        for _ in range(2):
            response = client.get(URL)
            assert response.text == "ok"
            assert response.extensions["resilmesh"]["endpoint"] == secured.address
            assert str(response.request.url) == URL
    assert [each.headers["host"] for each in secured.seen] == ["svc.test"] * 2
    assert secured.connections == 1
    assert proxy.asked == ([f"CONNECT {secured.address} HTTP/1.1"] if "proxy" in options else [])
    assert nothing_in_flight(mesh)


def test_another_name_is_refused_before_anything_is_sent(driver: Driver, secured: Service, options: dict[str, object]) -> None:
    blocks = {"timeout": "5s", "retries": "{maxRetries: 1, retryOn: [connect-failure], backoff: {base: 1ms}}"}
    mesh = Mesh.from_text(policy(secured, **blocks).replace("[svc.test]", "[svc.test, other.test]"))
    with driver.client(transport=driver.transport(mesh, **options)) as client:
        with pytest.raises(driver.library.ConnectError):
            client.post("https://other.test/things")
        assert secured.seen == []
        assert client.get(URL).text == "ok"
    assert nothing_in_flight(mesh)
