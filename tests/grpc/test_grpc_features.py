"""grpc's own features go on working through a channel of ours: TLS, credentials, compression, wait_for_ready, limits of messages,
reflection, health checking, channelz, forks."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_channelz.v1 import channelz, channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

import resilmesh_grpc
from resilmesh import Mesh
from tests.grpc.grpc_driver import HOST, mesh_of
from tests.grpc.grpc_service import HANG, GrpcService
from tests.grpc.protos.shop_pb2 import DESCRIPTOR, Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub

SHOP = DESCRIPTOR.services_by_name["Shop"].full_name
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def certificate() -> tuple[bytes, bytes]:
    """A key, and a certificate for the host of the policy that it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST), x509.IPAddress(ipaddress.ip_address("127.0.0.2"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return private, made.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def secure(certificate: tuple[bytes, bytes]) -> Iterator[GrpcService]:
    with GrpcService(credentials=grpc.ssl_server_credentials([certificate])) as service:
        yield service


class Token(grpc.AuthMetadataPlugin):
    """Call credentials."""

    def __call__(self, context: Any, callback: Any) -> None:
        callback((("x-token", "secret"), ("x-for", context.service_url)), None)


def test_tls_proves_the_host_that_the_caller_wrote_and_call_credentials_are_sent(secure: GrpcService, certificate: Any) -> None:
    trusted = grpc.ssl_channel_credentials(certificate[1])
    both = grpc.composite_channel_credentials(trusted, grpc.metadata_call_credentials(Token()))
    with mesh_of(secure) as mesh, resilmesh_grpc.channel(mesh, HOST, credentials=both) as channel:
        ShopStub(channel).Buy(Order(), timeout=10)
        list(ShopStub(channel).Watch(Order(number=1), timeout=10))
    with mesh_of(secure) as mesh, resilmesh_grpc.channel(mesh, HOST, credentials=trusted) as channel:
        ShopStub(channel).Buy(Order(), timeout=10, credentials=grpc.metadata_call_credentials(Token()))
        ShopStub(channel).Buy.future(Order(), timeout=10, credentials=grpc.metadata_call_credentials(Token())).result(10)
    assert [each.metadata["x-token"] for each in secure.seen] == ["secret"] * 4
    assert {each.metadata["x-for"] for each in secure.seen} == {f"https://{HOST}/{SHOP}"}


@pytest.mark.anyio
async def test_the_same_for_grpc_aio(secure: GrpcService, certificate: Any) -> None:
    trusted = grpc.ssl_channel_credentials(certificate[1])
    with mesh_of(secure) as mesh:
        async with resilmesh_grpc.aio_channel(mesh, HOST, credentials=trusted) as channel:
            await ShopStub(channel).Buy(Order(), timeout=10, credentials=grpc.metadata_call_credentials(Token()))
            assert [each async for each in ShopStub(channel).Watch(Order(number=1), timeout=10)]
    assert [each.metadata.get("x-token") for each in secure.seen] == ["secret", None]


def test_a_service_that_proves_another_host_is_not_believed(secure: GrpcService, certificate: Any) -> None:
    service = f'{{name: a, hosts: [other.test], protocol: GRPC, endpoints: [{{address: "{secure.address}"}}]}}'
    trusted = grpc.ssl_channel_credentials(certificate[1])
    with (
        Mesh.from_text(f"{{apiVersion: resilmesh/v1, services: [{service}]}}") as mesh,
        resilmesh_grpc.channel(mesh, "other.test", credentials=trusted) as channel,
        pytest.raises(grpc.RpcError) as error,
    ):
        ShopStub(channel).Buy(Order(), timeout=10)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert secure.seen == []


def test_compression_and_limits_of_messages() -> None:
    with GrpcService(compression=grpc.Compression.Gzip) as service, mesh_of(service) as mesh:
        options = [("grpc.max_receive_message_length", 1000)]
        with resilmesh_grpc.channel(mesh, HOST, compression=grpc.Compression.Gzip, options=options) as channel:
            stub = ShopStub(channel)
            assert stub.Buy(Order(text="tea"), compression=grpc.Compression.Deflate).text.endswith("tea")
            with pytest.raises(grpc.RpcError) as error:
                stub.Buy(Order(text="t" * 5000))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_wait_for_ready_waits_for_a_service_that_comes_later() -> None:
    with GrpcService() as service, mesh_of(service) as mesh, resilmesh_grpc.channel(mesh, HOST) as channel:
        service.stop()
        later = threading.Timer(0.3, service.start)
        later.start()
        try:
            assert ShopStub(channel).Buy(Order(text="tea"), wait_for_ready=True, timeout=20).text.endswith("tea")
        finally:
            later.join()


def test_reflection_health_and_channelz() -> None:
    checks = health.HealthServicer()
    checks.set(SHOP, health_pb2.HealthCheckResponse.SERVING)

    def also(server: grpc.Server) -> None:
        reflection.enable_server_reflection((SHOP, reflection.SERVICE_NAME), server)
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)
        channelz.add_channelz_servicer(server)

    with GrpcService(also=also) as service, mesh_of(service) as mesh, resilmesh_grpc.channel(mesh, HOST) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert SHOP in database.get_services()
        assert database.FindFileContainingSymbol(SHOP).package == "resilmesh.test.v1"
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service=SHOP)
        assert stub.Check(request, timeout=10).status == health_pb2.HealthCheckResponse.SERVING
        watching = stub.Watch(request)
        assert next(watching).status == health_pb2.HealthCheckResponse.SERVING
        checks.set(SHOP, health_pb2.HealthCheckResponse.NOT_SERVING)
        assert next(watching).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watching.cancel()
        tops = channelz_pb2_grpc.ChannelzStub(channel).GetTopChannels(channelz_pb2.GetTopChannelsRequest(), timeout=10)
        assert any(top.data.target.endswith(service.address) for top in tops.channel)


@pytest.mark.anyio
async def test_reflection_and_health_with_grpc_aio() -> None:
    checks = health.HealthServicer()

    def also(server: grpc.Server) -> None:
        health_pb2_grpc.add_HealthServicer_to_server(checks, server)

    with GrpcService(also=also) as service, mesh_of(service) as mesh:
        async with resilmesh_grpc.aio_channel(mesh, HOST) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING
            watching = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watching.read()).status == health_pb2.HealthCheckResponse.SERVING
            watching.cancel()


@pytest.mark.anyio
async def test_closing_with_grace_lets_a_stream_end() -> None:
    with GrpcService() as service, mesh_of(service) as mesh:
        channel = resilmesh_grpc.aio_channel(mesh, HOST)
        call = ShopStub(channel).Watch(Order(number=3))
        first = await call.read()
        closing = asyncio.ensure_future(channel.close(10))
        rest = [message.number async for message in call]
        await closing
        assert [first.number, *rest] == [0, 1, 2]
        hanging = resilmesh_grpc.aio_channel(mesh, HOST)
        service.play(HANG)
        call = ShopStub(hanging).Buy(Order())
        await asyncio.sleep(0.05)
        await hanging.close()
        with pytest.raises(asyncio.CancelledError):
            await call


def test_calls_from_many_threads_share_a_channel() -> None:
    with GrpcService() as service, mesh_of(service) as mesh, resilmesh_grpc.channel(mesh, HOST) as channel:
        stub = ShopStub(channel)
        with futures.ThreadPoolExecutor(8) as pool:
            assert len(list(pool.map(lambda number: stub.Buy(Order(number=number)), range(100)))) == 100
        assert len({each.peer for each in service.seen}) == 1


_FORKS = """
import os, sys
import resilmesh, resilmesh_grpc
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub
text = ('{apiVersion: resilmesh/v1, services: [{name: shop, protocol: GRPC, endpoints: [{address: "%s"}], '
        'retries: {maxRetries: 1, retryOn: [unavailable]}}]}' % sys.argv[1])
mesh = resilmesh.Mesh.from_text(text)
channel = resilmesh_grpc.channel(mesh, "shop")
stub = ShopStub(channel)
stub.Buy(Order(text="parent"), timeout=10)
stub.Buy.future(Order(text="future"), timeout=10).result(10)
child = os.fork()
who = "parent again" if child else "child"
assert stub.Buy(Order(text=who), timeout=20).text.endswith(who)
assert [each.number for each in stub.Watch(Order(number=2), timeout=20)] == [0, 1]
assert mesh.snapshot()["inFlight"] == 0
if not child:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
channel.close()
"""


def test_a_forked_child_calls_on_the_same_channel_as_grpc_documents_it() -> None:
    with GrpcService() as service:
        environment = {**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-c", _FORKS, service.address]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        bought = sorted(each.messages[0].text for each in service.seen if each.method == "Buy")
        assert bought == ["child", "future", "parent", "parent again"]
