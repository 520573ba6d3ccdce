"""``tls: MUTUAL`` over gRPC: the service is verified by the DNS SAN that stands for its SPIFFE ID, and both sides rotate live."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

import resilmesh_grpc
from resilmesh import Mesh
from resilmesh.errors import PolicyError, TlsImpossible
from resilmesh.identity import Fixed
from resilmesh.identity.svid import Identity, TrustBundle
from tests.grpc.grpc_service import GrpcService
from tests.grpc.protos.shop_pb2 import Order
from tests.grpc.protos.shop_pb2_grpc import ShopStub
from tests.identity.pki import INVENTORY, WEB, Authority, Leaf

ROOT = Authority()
MUTUAL = f"{{mode: MUTUAL, identities: ['{INVENTORY}']}}"


def policy(address: str, tls: str = MUTUAL, more: str = "") -> str:
    return f"""
apiVersion: resilmesh/v1
services:
- name: shop
  hosts: [shop.test]
  protocol: GRPC
  timeout: 20s
  tls: {tls}
  endpoints: [{{address: "{address}"}}]
{more}
"""


def mesh_of(text: str, identity: Identity | None = None) -> Mesh:
    return Mesh.from_text(text, identity=Fixed(identity or ROOT.identity(WEB)))


@contextmanager
def serving(identity: Identity) -> Iterator[tuple[GrpcService, Fixed]]:
    """A service behind the library's own server credentials."""
    source = Fixed(identity)
    with (
        Mesh.from_text("apiVersion: resilmesh/v1", identity=source) as mesh,
        GrpcService(credentials=resilmesh_grpc.server_credentials(mesh)) as service,
    ):
        yield service, source


def buy(mesh: Mesh, way: str, **options: Any) -> str:
    order = Order(text="tea")
    if way == "blocking":
        with resilmesh_grpc.channel(mesh, "shop.test", **options) as channel:
            return str(ShopStub(channel).Buy(order).text)

    async def main() -> str:
        async with resilmesh_grpc.aio_channel(mesh, "shop.test", **options) as channel:
            return str((await ShopStub(channel).Buy(order)).text)

    return asyncio.run(main())


ways = pytest.mark.parametrize("way", ["blocking", "aio"])


@ways
def test_both_prove_who_they_are(way: str) -> None:
    with serving(ROOT.identity(INVENTORY)) as (service, _), mesh_of(policy(service.address)) as mesh:
        buy(mesh, way)
        assert len(service.seen) == 1
        assert service.seen[0].metadata.get(":authority", "shop.test") == "shop.test"


def test_a_target_with_a_port() -> None:
    """Its port is left out of ``:authority``, which grpc would not let pass otherwise."""
    with serving(ROOT.identity(INVENTORY)) as (service, _), mesh_of(policy(service.address)) as mesh:
        with resilmesh_grpc.channel(mesh, "shop.test:50051") as channel:
            ShopStub(channel).Buy(Order())
        assert len(service.seen) == 1


@ways
@pytest.mark.parametrize("make", [
    lambda: ROOT.identity(WEB), lambda: Authority().identity(INVENTORY), lambda: ROOT.issue(INVENTORY, dns=[]).identity(),
    lambda: ROOT.issue(INVENTORY, dns=["shop.test"]).identity(),
], ids=["another workload", "another authority", "no DNS SAN", "the host's DNS SAN"])
def test_a_service_that_does_not_prove_who_it_is_gets_no_call(way: str, make: Callable[[], Identity]) -> None:
    with serving(make()) as (service, _), mesh_of(policy(service.address)) as mesh:
        with pytest.raises(grpc.RpcError) as caught:
            buy(mesh, way)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert service.seen == []
    (note,) = caught.value.__notes__
    assert note.startswith(f"resilmesh: the certificate of shop is refused; to be proved is {INVENTORY}, by the DNS SAN ")


@ways
def test_a_caller_that_nobody_vouches_for_is_refused(way: str) -> None:
    stranger = Authority()
    with serving(ROOT.identity(INVENTORY)) as (service, _):
        with mesh_of(policy(service.address), stranger.issue(WEB).unchecked(ROOT.bundle)) as mesh, pytest.raises(grpc.RpcError):
            buy(mesh, way)
        assert service.seen == []


@ways
def test_plain_text_is_never_fallen_back_to(way: str) -> None:
    with GrpcService() as service, mesh_of(policy(service.address)) as mesh:
        with pytest.raises(grpc.RpcError) as caught:
            buy(mesh, way)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert service.seen == []


@ways
def test_by_the_dns_san_that_the_policy_names(way: str) -> None:
    tls = f"{{mode: MUTUAL, identities: ['{INVENTORY}'], dnsSans: [inventory.internal]}}"
    leaf = ROOT.issue(INVENTORY, dns=["inventory.internal"])
    with serving(leaf.identity()) as (service, _), mesh_of(policy(service.address, tls)) as mesh:
        buy(mesh, way)
        assert len(service.seen) == 1


@pytest.mark.parametrize(("leaf", "tls"), [
    (ROOT.issue(INVENTORY, WEB), MUTUAL),
    (ROOT.issue(subject="inventory.internal", dns=[]), "{mode: MUTUAL, dnsSans: [inventory.internal]}"),
], ids=["two URI SANs", "a common name alone"])
def test_what_grpc_does_not_see(leaf: Leaf, tls: str) -> None:
    """As the threat model says; over HTTP both are refused."""
    with serving(leaf.unchecked()) as (service, _), mesh_of(policy(service.address, tls)) as mesh:
        buy(mesh, "blocking")
        assert len(service.seen) == 1


@ways
@pytest.mark.parametrize("mode", ["OFF", "OBSERVE"])
def test_no_mode_takes_the_tls_away(way: str, mode: str) -> None:
    with serving(ROOT.identity(INVENTORY)) as (service, _):
        text = policy(service.address).replace("services:", f"mesh: {{mode: {mode}}}\nservices:")
        text = text.replace("[shop.test]", "[shop.test, 127.0.0.1]")
        with mesh_of(text) as mesh, resilmesh_grpc.channel(mesh, service.address) as channel:
            ShopStub(channel).Buy(Order())
        assert len(service.seen) == 1


# ----------------------------------------------------------------------------------- where it cannot be had


def test_more_names_than_one_are_a_mistake_of_the_policy() -> None:
    tls = f"{{mode: MUTUAL, identities: ['{INVENTORY}', '{WEB}']}}"
    with pytest.raises(PolicyError, match="RM231 service 'shop' speaks gRPC, which can compare with one name, not 2"):
        mesh_of(policy("127.0.0.1:1", tls))


@ways
def test_a_channel_with_credentials_of_its_own(way: str) -> None:
    with mesh_of(policy("127.0.0.1:1")) as mesh, pytest.raises(TlsImpossible, match="the channel has credentials of its own") as caught:
        buy(mesh, way, credentials=grpc.ssl_channel_credentials())
    assert isinstance(caught.value, grpc.RpcError)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]


def test_a_channel_that_somebody_else_made() -> None:
    with GrpcService() as service, mesh_of(policy(service.address)) as mesh, grpc.insecure_channel(service.address) as plain:
        with pytest.raises(TlsImpossible, match=r"use resilmesh_grpc.channel"):
            ShopStub(resilmesh_grpc.intercept(plain, mesh, target="shop.test")).Buy(Order())
        assert service.seen == []
        assert mesh.snapshot()["inFlight"] == 0


def test_an_option_does_not_change_who_is_expected() -> None:
    options = [("grpc.ssl_target_name_override", "shop.test")]
    with serving(ROOT.issue(INVENTORY, dns=["shop.test"]).identity()) as (service, _), mesh_of(policy(service.address)) as mesh:
        with pytest.raises(grpc.RpcError):
            buy(mesh, "blocking", options=options)
        assert service.seen == []


def test_a_bundle_that_nobody_has() -> None:
    tls = "{mode: MUTUAL, identities: ['spiffe://other.example/ns/prod/sa/web']}"
    with mesh_of(policy("127.0.0.1:1", tls)) as mesh, pytest.raises(TlsImpossible, match="nobody may vouch for the trust domain other"):
        buy(mesh, "blocking")


def test_a_server_needs_an_identity() -> None:
    from resilmesh.identity import IdentityError

    with Mesh.from_text("apiVersion: resilmesh/v1") as mesh, pytest.raises(IdentityError, match="a server needs an identity"):
        resilmesh_grpc.server_credentials(mesh)


# ------------------------------------------------------------------------------------------------- rotation


def test_a_hundred_rotations_under_unary_calls_and_streams() -> None:
    """And one of the root. Streams that are open go on; each call after a rotation is on a connection with the new certificates."""
    new_root = Authority(name="next")
    both = {"shop.example": TrustBundle("shop.example", (ROOT.certificate, new_root.certificate))}
    ours = Fixed(Identity(ROOT.identity(WEB).svid, both))
    failures: list[str] = []
    calls, streams = [0], [0]
    done = threading.Event()

    def unary(stub: ShopStub) -> None:
        stub.Buy(Order(text="tea"))
        calls[0] += 1

    def stream(stub: ShopStub) -> None:
        assert len(list(stub.Watch(Order(number=20)))) == 20
        streams[0] += 1

    def load(job: Callable[[ShopStub], None], stub: ShopStub) -> None:
        while not done.is_set():
            try:
                job(stub)
            except Exception as error:
                failures.append(repr(error))

    with (
        serving(Identity(ROOT.identity(INVENTORY).svid, both)) as (service, theirs),
        Mesh.from_text(policy(service.address), identity=ours) as mesh, resilmesh_grpc.channel(mesh, "shop.test") as channel,
    ):
        stub = ShopStub(channel)
        threads = [threading.Thread(target=load, args=(job, stub)) for job in (unary, stream)]
        for each in threads:
            each.start()
        for number in range(100):
            authority = ROOT if number < 50 else new_root
            theirs.put(Identity(authority.issue(INVENTORY).identity().svid, both), time.time())
            ours.put(Identity(authority.issue(WEB).identity().svid, both), time.time())
            before, until = (calls[0], streams[0]), time.monotonic() + 10
            while (calls[0] == before[0] or streams[0] == before[1]) and time.monotonic() < until:
                time.sleep(0.001)
        done.set()
        for each in threads:
            each.join()
        assert failures == []
        assert calls[0] >= 100
        assert streams[0] >= 100
        shown = mesh.snapshot()
        assert shown["inFlight"] == 0
        assert shown["identity"]["rotations"] == 100
