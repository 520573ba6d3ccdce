"""``tls: MUTUAL`` under httpx: the URL stays as it was written, the policy's TLS is added below, and who is refused gets no byte."""

from __future__ import annotations

import http.server
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import pytest

import resilmesh
from resilmesh.errors import PolicyError, TlsImpossible
from resilmesh.identity import Fixed
from resilmesh.identity.svid import Identity
from resilmesh.identity.tls import LiveContext, PeerRefused
from tests.identity.pki import INVENTORY, WEB, Authority

ROOT = Authority()


class Service:
    """An HTTP/1.1 service behind mutual TLS."""

    def __init__(self, identity: Identity, **options: Any) -> None:
        self.source = Fixed(identity)
        self.seen: list[tuple[str, str, str | None]] = []
        #: Serial numbers of the certificates that callers have shown, by connection.
        self.callers: list[str] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                shown = self.request.getpeercert(True)
                service.callers.append(ssl.DER_cert_to_PEM_cert(shown) if shown else "")

            def do_GET(self) -> None:
                service.seen.append((self.path, self.headers["Host"], str(getattr(self.connection, "peer", None))))
                self.rfile.read(int(self.headers["content-length"] or 0))
                body = b"hello"
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: Any, client_address: Any) -> None:
                try:
                    secured = context.wrap_socket(request, server_side=True)
                except OSError:
                    return
                try:
                    super().finish_request(secured, client_address)  # type: ignore[arg-type]
                except OSError:
                    pass
                finally:
                    secured.close()

        context = LiveContext(self.source, serves=True, now=time.time, **options)
        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def policy(address: str, tls: str = f"{{mode: MUTUAL, identities: ['{INVENTORY}']}}", more: str = "", mode: str = "ENFORCE") -> str:
    return f"""
apiVersion: resilmesh/v1
mesh: {{mode: {mode}}}
services:
- name: inventory
  hosts: [inventory.prod.svc, 127.0.0.1]
  tls: {tls}
  endpoints: [{{address: "{address}"}}]
  {more}
"""


@contextmanager
def mesh_of(text: str, identity: Identity | None = None) -> Iterator[resilmesh.Mesh]:
    with resilmesh.Mesh.from_text(text, identity=Fixed(identity or ROOT.identity(WEB))) as mesh:
        yield mesh


def get(mesh: resilmesh.Mesh, way: str, url: str = "http://inventory.prod.svc/v1/items", times: int = 1) -> list[httpx.Response]:
    if way == "blocking":
        with httpx.Client(transport=resilmesh.http.Transport(mesh)) as client:
            return [client.get(url) for _ in range(times)]

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(mesh)) as client:
            return [await client.get(url) for _ in range(times)]

    return anyio.run(main, backend=way)


ways = pytest.mark.parametrize("way", ["blocking", "asyncio", "trio"])


@pytest.fixture
def service() -> Iterator[Service]:
    with Service(ROOT.identity(INVENTORY)) as service:
        yield service


@ways
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_url_stays_and_tls_is_added(service: Service, way: str, scheme: str) -> None:
    with mesh_of(policy(service.address)) as mesh:
        responses = get(mesh, way, f"{scheme}://inventory.prod.svc/v1/items", times=3)
    assert [each.text for each in responses] == ["hello"] * 3
    assert {str(each.request.url) for each in responses} == {f"{scheme}://inventory.prod.svc/v1/items"}
    assert service.seen == [("/v1/items", "inventory.prod.svc", WEB)] * 3
    assert len(service.callers) == 1  # one connection


@ways
def test_a_service_of_another_identity_gets_no_request(way: str) -> None:
    with Service(ROOT.identity(WEB)) as service, mesh_of(policy(service.address)) as mesh:
        with pytest.raises(httpx.ConnectError, match=f"it is {WEB}, and {INVENTORY} is expected") as caught:
            get(mesh, way)
        shown = mesh.snapshot()["services"]["inventory"]["routes"]["*"]
    causes = [caught.value, *_causes(caught.value)]
    assert any(isinstance(each, PeerRefused) for each in causes), causes
    assert service.seen == []
    assert shown["failed"] == 1


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def test_what_was_refused_was_not_sent_so_a_post_is_repeated() -> None:
    """Another endpoint may be who it says."""
    with Service(ROOT.identity(WEB)) as wrong, Service(ROOT.identity(INVENTORY)) as right:
        text = policy(wrong.address, more="retries: {maxRetries: 3, retryOn: [connect-failure]}").replace(
            "endpoints: [", f'endpoints: [{{address: "{right.address}"}}, ')
        with mesh_of(text) as mesh, httpx.Client(transport=resilmesh.http.Transport(mesh)) as client:
            for _ in range(4):
                assert client.post("http://inventory.prod.svc/v1/items", content=b"x").text == "hello"
        assert wrong.seen == []
        assert len(right.seen) == 4


@ways
def test_no_falling_back_to_plain_text(way: str) -> None:
    """The service speaks no TLS at all: what reaches it is a hello of TLS's, and nothing of the request."""
    import socket

    received = []

    def serve() -> None:
        accepted, _ = listener.accept()
        with accepted:
            received.append(accepted.recv(1000))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        with mesh_of(policy(f"127.0.0.1:{listener.getsockname()[1]}")) as mesh, pytest.raises(httpx.ConnectError):
            get(mesh, way)
        thread.join()
    assert received[0][:1] == b"\x16"
    assert b"GET" not in received[0]


@ways
@pytest.mark.parametrize("mode", ["OBSERVE", "OFF"])
def test_no_mode_takes_the_tls_away(service: Service, way: str, mode: str) -> None:
    with mesh_of(policy(service.address, mode=mode)) as mesh:
        assert get(mesh, way, f"http://{service.address}/")[0].text == "hello"
    assert service.seen[0][2] == WEB


@ways
def test_simple_shows_no_certificate(way: str) -> None:
    tls = f"{{mode: SIMPLE, identities: ['{INVENTORY}']}}"
    with Service(ROOT.identity(INVENTORY), requires=False) as service, mesh_of(policy(service.address, tls)) as mesh:
        assert get(mesh, way)[0].text == "hello"
        assert service.callers == [""]


@ways
def test_simple_without_names_is_the_clients_own_tls(service: Service, way: str) -> None:
    """Its roots are those of SSL_CERT_FILE, among which ours is not."""
    with mesh_of(policy(service.address, "{mode: SIMPLE}")) as mesh, pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        get(mesh, way)
    assert service.seen == []


def test_by_a_dns_san() -> None:
    tls = "{mode: MUTUAL, dnsSans: [Inventory.Internal]}"
    with Service(ROOT.issue(INVENTORY, dns=["inventory.internal"]).identity()) as service, mesh_of(policy(service.address, tls)) as mesh:
        assert get(mesh, "blocking")[0].text == "hello"
    with (
        Service(ROOT.identity(INVENTORY)) as service, mesh_of(policy(service.address, tls)) as mesh,
        pytest.raises(httpx.ConnectError, match="is expected"),
    ):
        get(mesh, "blocking")


def test_two_services_at_one_address_do_not_share_connections(service: Service) -> None:
    """What one service's identity was proved for must not carry another's request."""
    text = policy(service.address) + f"""
- name: ledger
  hosts: [ledger.prod.svc]
  tls: {{mode: MUTUAL, identities: ["{WEB}"]}}
  endpoints: [{{address: "{service.address}"}}]
"""
    with mesh_of(text) as mesh, httpx.Client(transport=resilmesh.http.Transport(mesh)) as client:
        client.get("http://inventory.prod.svc/")
        with pytest.raises(httpx.ConnectError, match=f"it is {INVENTORY}, and {WEB} is expected"):
            client.get("http://ledger.prod.svc/")
    assert len(service.seen) == 1


def test_an_expected_name_that_changes_begins_new_connections(service: Service) -> None:
    with mesh_of(policy(service.address)) as mesh, httpx.Client(transport=resilmesh.http.Transport(mesh)) as client:
        client.get("http://inventory.prod.svc/")
        mesh.apply_text(policy(service.address, f"{{mode: MUTUAL, identities: ['{WEB}']}}"))
        with pytest.raises(httpx.ConnectError, match=f"{WEB} is expected"):
            client.get("http://inventory.prod.svc/")


# ----------------------------------------------------------------------------------- where it cannot be had


class Elsewhere(httpx.BaseTransport):
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        raise AssertionError("sent in the clear")


def test_a_transport_that_makes_its_own_connections_is_refused(service: Service) -> None:
    with mesh_of(policy(service.address)) as mesh, httpx.Client(transport=resilmesh.http.Transport(mesh, Elsewhere())) as client:
        with pytest.raises(TlsImpossible, match="Elsewhere makes its connections itself"):
            client.get("http://inventory.prod.svc/")
        assert mesh.snapshot()["inFlight"] == 0


def test_a_mock_has_no_connections(service: Service) -> None:
    mock = httpx.MockTransport(lambda request: httpx.Response(200, text="mocked"))
    with mesh_of(policy(service.address)) as mesh, httpx.Client(transport=resilmesh.http.Transport(mesh, mock)) as client:
        assert client.get("http://inventory.prod.svc/").text == "mocked"


def test_a_proxy_is_refused(service: Service) -> None:
    with mesh_of(policy(service.address)) as mesh:
        client = httpx.Client(transport=resilmesh.http.Transport(mesh, proxy="http://127.0.0.1:1"))
        with client, pytest.raises(TlsImpossible, match="a proxy makes the connections"):
            client.get("http://inventory.prod.svc/")


def test_no_identity_is_a_mistake_of_the_policy() -> None:
    with pytest.raises(PolicyError, match="RM233 service 'inventory' is called over mutual TLS, and nothing says") as caught:
        resilmesh.Mesh.from_text(policy("127.0.0.1:1"))
    assert "<text>:7:" in str(caught.value)


# ------------------------------------------------------------------------------------------------- rotation


@ways
def test_a_hundred_rotations_of_both_sides_and_one_of_the_root(service: Service, way: str) -> None:
    """Under load. Every connection that begins has the newest certificates; none that is in use is cut."""
    new_root = Authority()
    ours = Fixed(ROOT.identity(WEB))
    done = threading.Event()
    failures: list[str] = []
    answered = [0]

    def rotate() -> None:
        try:
            for number in range(100):
                authority = ROOT if number < 50 else new_root
                both = resilmesh.identity.svid.TrustBundle("shop.example", (ROOT.certificate, new_root.certificate))
                for source, name in ((service.source, INVENTORY), (ours, WEB)):
                    leaf = authority.issue(name)
                    source.put(Identity(leaf.identity().svid, {"shop.example": both}), time.time())
                before, until = answered[0], time.monotonic() + 10
                while answered[0] == before and time.monotonic() < until:
                    time.sleep(0.001)
        finally:
            done.set()

    with resilmesh.Mesh.from_text(policy(service.address), identity=ours) as mesh:
        if way == "blocking":
            def load() -> None:
                with httpx.Client(transport=resilmesh.http.Transport(mesh)) as client:
                    while not done.is_set():
                        try:
                            assert client.get("http://inventory.prod.svc/").text == "hello"
                            answered[0] += 1
                        except Exception as error:
                            failures.append(repr(error))

            # Both bundles have both roots before a certificate of the new one is used.
            threads = [threading.Thread(target=load) for _ in range(3)]
            rotation = threading.Thread(target=rotate)
            for each in (*threads, rotation):
                each.start()
            for each in (*threads, rotation):
                each.join()
        else:
            async def main() -> None:
                async with httpx.AsyncClient(transport=resilmesh.http.AsyncTransport(mesh)) as client, anyio.create_task_group() as group:
                    async def load() -> None:
                        while not done.is_set():
                            try:
                                assert (await client.get("http://inventory.prod.svc/")).text == "hello"
                                answered[0] += 1
                            except Exception as error:
                                failures.append(repr(error))

                    for _ in range(3):
                        group.start_soon(load)
                    await anyio.to_thread.run_sync(rotate)

            anyio.run(main, backend=way)
        shown = mesh.snapshot()
    assert failures == []
    assert answered[0] >= 100
    assert shown["identity"]["rotations"] == 100
    assert shown["inFlight"] == 0
    assert len(set(service.callers)) > 20
