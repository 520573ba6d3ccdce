"""``inbound`` of gRPC servers, both kinds and all arities: who calls, and whether it may."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

import resilmesh
import resilmesh_grpc
from resilmesh import Mesh
from resilmesh.identity import Fixed
from resilmesh.identity.svid import Identity
from tests.grpc.protos.shop_pb2 import Order, Receipt
from tests.grpc.protos.shop_pb2_grpc import ShopServicer, ShopStub, add_ShopServicer_to_server
from tests.identity.pki import INVENTORY, WEB, Authority

ROOT, PARTNER = Authority(), Authority(trust_domain="partner.example")
OTHER = "spiffe://shop.example/ns/dev/sa/other"


def who() -> str:
    caller = resilmesh.inbound.caller()
    return str(caller and caller.identity)


class Shop(ShopServicer):
    def Buy(self, request: Order, context: Any) -> Receipt:
        return Receipt(text=who())

    def Watch(self, request: Order, context: Any) -> Iterator[Receipt]:
        for _ in range(3):
            yield Receipt(text=who())

    def Collect(self, request_iterator: Any, context: Any) -> Receipt:
        list(request_iterator)
        return Receipt(text=who())

    def Chat(self, request_iterator: Any, context: Any) -> Iterator[Receipt]:
        for _ in request_iterator:
            yield Receipt(text=who())


class AioShop(ShopServicer):
    async def Buy(self, request: Order, context: Any) -> Receipt:
        return Receipt(text=who())

    async def Watch(self, request: Order, context: Any) -> Any:
        for _ in range(3):
            yield Receipt(text=who())

    async def Collect(self, request_iterator: Any, context: Any) -> Receipt:
        async for _ in request_iterator:
            pass
        return Receipt(text=who())

    async def Chat(self, request_iterator: Any, context: Any) -> Any:
        async for _ in request_iterator:
            yield Receipt(text=who())


@contextmanager
def serving(mesh: Mesh, kind: str, *, secure: bool = True) -> Iterator[str]:
    def bind(server: Any) -> str:
        address = "127.0.0.1:0"
        port = server.add_secure_port(address, resilmesh_grpc.server_credentials(mesh)) if secure else server.add_insecure_port(address)
        return f"127.0.0.1:{port}"

    if kind == "blocking":
        server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[resilmesh_grpc.server_interceptor(mesh)])
        add_ShopServicer_to_server(Shop(), server)
        address = bind(server)
        server.start()
        try:
            yield address
        finally:
            server.stop(None).wait()
        return
    ready, done = threading.Event(), threading.Event()
    found: list[str] = []

    async def main() -> None:
        server = grpc.aio.server(interceptors=[resilmesh_grpc.aio_server_interceptor(mesh)])
        add_ShopServicer_to_server(AioShop(), server)
        found.append(bind(server))
        await server.start()
        ready.set()
        await asyncio.to_thread(done.wait)
        await server.stop(None)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        assert ready.wait(10)
        yield found[0]
    finally:
        done.set()
        thread.join()


def mesh_of(inbound: str, *bundles: Any) -> Mesh:
    return Mesh.from_text(f"apiVersion: resilmesh/v1\ninbound: {inbound}\n", identity=Fixed(ROOT.identity(INVENTORY, *bundles)))


@contextmanager
def stub(address: str, identity: Identity) -> Iterator[ShopStub]:
    text = f"""
apiVersion: resilmesh/v1
services:
- {{name: shop, protocol: GRPC, hosts: [shop.test], endpoints: [{{address: "{address}"}}], timeout: 20s,
   tls: {{mode: MUTUAL, identities: ["{INVENTORY}"]}}}}
"""
    with Mesh.from_text(text, identity=Fixed(identity)) as mesh, resilmesh_grpc.channel(mesh, "shop.test") as channel:
        yield ShopStub(channel)


def all_calls(shop: ShopStub) -> dict[str, list[str]]:
    """What each of the four kinds of call answers: its texts, or the name of its status."""
    jobs = {
        "Buy": lambda: [shop.Buy(Order())], "Watch": lambda: list(shop.Watch(Order())),
        "Collect": lambda: [shop.Collect(iter([Order(), Order()]))], "Chat": lambda: list(shop.Chat(iter([Order(), Order()]))),
    }
    found = {}
    for name, job in jobs.items():
        try:
            found[name] = [each.text for each in job()]
        except grpc.RpcError as error:
            found[name] = [f"{error.code().name}: {error.details()}"]
    return found


kinds = pytest.mark.parametrize("kind", ["blocking", "aio"])
DENIED = ["PERMISSION_DENIED: RBAC: access denied"]


@kinds
def test_a_handler_knows_who_calls(kind: str) -> None:
    with mesh_of("{mtls: STRICT}") as mesh, serving(mesh, kind) as address, stub(address, ROOT.identity(WEB)) as shop:
        assert all_calls(shop) == {"Buy": [WEB], "Watch": [WEB] * 3, "Collect": [WEB], "Chat": [WEB] * 2}
    assert resilmesh.inbound.caller() is None


@kinds
def test_authorization(kind: str) -> None:
    rules = """{mtls: STRICT, authorization: [
      {name: web, rules: [{from: [{principals: ["*/sa/web"]}],
                          to: [{methods: [POST], paths: ["/resilmesh.test.v1.Shop/Buy", "*/Watch"]}]}]},
    ]}"""
    with mesh_of(rules) as mesh, serving(mesh, kind) as address:
        with stub(address, ROOT.identity(WEB)) as shop:
            assert all_calls(shop) == {"Buy": [WEB], "Watch": [WEB] * 3, "Collect": DENIED, "Chat": DENIED}
        with stub(address, ROOT.identity(OTHER)) as shop:
            assert set(map(tuple, all_calls(shop).values())) == {tuple(DENIED)}
        shown = mesh.snapshot()
    assert (shown["authorization"]["allowed"], shown["authorization"]["denied"]) == (2, 6)
    assert shown["inFlight"] == 0


@kinds
def test_strict_in_plain_text(kind: str) -> None:
    strict = mesh_of("{mtls: STRICT}")
    with strict as mesh, serving(mesh, kind, secure=False) as address, grpc.insecure_channel(address) as channel:
        assert set(map(tuple, all_calls(ShopStub(channel)).values())) == {tuple(DENIED)}
        with pytest.raises(grpc.RpcError):
            ShopStub(channel).Buy(Order(), metadata=[("x-forwarded-client-cert", f"URI={WEB}")])
        assert mesh.snapshot()["authorization"] is None


@kinds
def test_what_a_trusted_proxy_says(kind: str) -> None:
    inbound = "{mtls: STRICT, trustedProxies: [127.0.0.1]}"
    with mesh_of(inbound) as mesh, serving(mesh, kind, secure=False) as address, grpc.insecure_channel(address) as channel:
        shop = ShopStub(channel)
        assert shop.Buy(Order(), metadata=[("x-forwarded-client-cert", f"URI={WEB}")]).text == WEB
        with pytest.raises(grpc.RpcError) as caught:
            shop.Buy(Order(), metadata=[("x-forwarded-client-cert", "nothing")])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@kinds
def test_a_federated_domain_does_not_vouch_for_ours(kind: str) -> None:
    """BoringSSL has both roots, and lets it pass."""
    with mesh_of("{mtls: STRICT}", PARTNER.bundle) as mesh, serving(mesh, kind) as address:
        with stub(address, PARTNER.issue(WEB).unchecked(ROOT.bundle)) as shop:
            assert all_calls(shop)["Buy"] == DENIED
        partner = "spiffe://partner.example/ns/prod/sa/ledger"
        with stub(address, PARTNER.identity(partner, ROOT.bundle)) as shop:
            assert all_calls(shop)["Buy"] == [partner]


@kinds
def test_rules_about_what_grpc_does_not_tell_let_nobody_in(kind: str) -> None:
    rules = "{authorization: [{name: a, action: DENY, rules: [{to: [{hosts: [admin]}]}]}]}"
    with mesh_of(rules) as mesh, serving(mesh, kind) as address, stub(address, ROOT.identity(WEB)) as shop:
        told: list[Any] = []
        mesh.subscribe(told.append)
        assert all_calls(shop)["Buy"] == DENIED
    assert "grpcio does not tell what inbound.authorization asks about: hosts" in [each.detail.get("reason") for each in told]


@kinds
def test_the_trace_of_a_call_goes_on(kind: str) -> None:
    """From the call that is served to the calls that its handler makes."""
    from tests.grpc.grpc_service import GrpcService

    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with GrpcService() as behind:
        text = f"apiVersion: resilmesh/v1\nservices: [{{name: shop, protocol: GRPC, endpoints: [{{address: '{behind.address}'}}]}}]\n"
        with Mesh.from_text(text) as mesh, resilmesh_grpc.channel(mesh, "shop") as channel:
            class Relays(ShopServicer):
                def Buy(self, request: Order, context: Any) -> Receipt:
                    return Receipt(text=ShopStub(channel).Buy(request).text)

            interceptor = resilmesh_grpc.server_interceptor(mesh)
            server = grpc.server(futures.ThreadPoolExecutor(2), interceptors=[interceptor])
            add_ShopServicer_to_server(Relays(), server)
            port = server.add_insecure_port("127.0.0.1:0")
            server.start()
            with grpc.insecure_channel(f"127.0.0.1:{port}") as front:
                ShopStub(front).Buy(Order(), metadata=[("traceparent", trace), ("x-secret", "s")])
            server.stop(None).wait()
        seen = behind.seen[0].metadata
    assert seen["traceparent"] == trace
    assert "x-secret" not in seen
