"""The inbound middleware under uvicorn, over real TLS: who is let in, what the application gets, and what it passes on."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn

import resilmesh
from resilmesh import Mesh
from resilmesh.identity import Fixed
from resilmesh.identity.spiffe import SpiffeId
from resilmesh.identity.svid import Identity
from resilmesh.identity.tls import Accepted, LiveContext
from tests.identity.pki import INVENTORY, WEB, Authority

ROOT = Authority()
OTHER = "spiffe://shop.example/ns/dev/sa/other"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it sees."""
    caller = resilmesh.inbound.caller()
    seen = {
        "path": scope["path"], "raw_path": scope["raw_path"].decode(), "identity": None if caller is None else str(caller.identity),
        "source": caller and caller.source, "remote": caller and caller.remote,
        "headers": [[name.decode(), value.decode()] for name, value in scope["headers"]],
        "left": None if resilmesh.inbound.deadline() == float("inf") else resilmesh.inbound.deadline() - time.monotonic(),
    }
    body = json.dumps(seen).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


def mesh_of(inbound: str, identity: Identity | None = None) -> Mesh:
    text = f"apiVersion: resilmesh/v1\nmesh: {{workload: inventory}}\ninbound: {inbound}\n"
    return Mesh.from_text(text, identity=Fixed(identity or ROOT.identity(INVENTORY)))


@contextmanager
def serving(mesh: Mesh, *, tls: bool = True, app: Any = application, http: str = "resilmesh.inbound.uvicorn:H11Protocol") -> Iterator[str]:
    """The address of a uvicorn in a thread of this process."""
    more: dict[str, Any] = {"ssl_context_factory": lambda config, default: resilmesh.inbound.server_context(mesh)} if tls else {}
    config = uvicorn.Config(
        resilmesh.inbound.asgi.Middleware(app, mesh), http=http, lifespan="off", log_config=None, ws="none", **more,
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=asyncio.run, args=(server.serve([listener]),))
        thread.start()
        until = time.monotonic() + 10
        while not server.started and time.monotonic() < until:
            time.sleep(0.005)
        try:
            yield f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def client(who: str | None = WEB) -> httpx.Client:
    accepted = Accepted(frozenset({SpiffeId.parse(INVENTORY)}))
    source = Fixed(ROOT.identity(who or WEB))
    return httpx.Client(verify=LiveContext(source, serves=False, accepted=accepted, proves=who is not None, now=time.time), timeout=10)


def test_the_application_knows_who_calls() -> None:
    with mesh_of("{mtls: STRICT}") as mesh, serving(mesh) as address, client() as caller:
        seen = caller.get(address + "/a/../b//c%7e?x=1", headers={"x-forwarded-client-cert": "URI=spiffe://evil.example/x"}).json()
    assert seen["identity"] == WEB
    assert (seen["path"], seen["raw_path"]) == ("/b/c~", "/b/c~")
    assert (seen["source"], seen["remote"]) == ("127.0.0.1", "127.0.0.1")
    certificates = [value for name, value in seen["headers"] if name == "x-forwarded-client-cert"]
    assert len(certificates) == 1
    assert certificates[0].startswith(f"By={INVENTORY};Hash=")
    assert certificates[0].endswith(f';Subject="";URI={WEB}')


@pytest.mark.parametrize("mtls", ["STRICT", "PERMISSIVE"])
def test_a_caller_without_a_certificate(mtls: str) -> None:
    with mesh_of(f"{{mtls: {mtls}}}") as mesh, serving(mesh) as address, client(None) as caller:
        if mtls == "STRICT":
            with pytest.raises(httpx.TransportError):
                caller.get(address + "/")
        else:
            assert caller.get(address + "/").json()["identity"] == "None"


def test_strict_over_plain_text() -> None:
    """Nobody can prove anything there, so nobody is let in."""
    with mesh_of("{mtls: STRICT}") as mesh, serving(mesh, tls=False) as address:
        response = httpx.get(address + "/", headers={"x-forwarded-client-cert": f"URI={WEB}"})
        assert (response.status_code, response.text, response.headers["content-type"]) == (403, "RBAC: access denied", "text/plain")


def test_what_a_trusted_proxy_says() -> None:
    with mesh_of("{mtls: STRICT, trustedProxies: [127.0.0.0/8]}") as mesh, serving(mesh, tls=False) as address:
        headers = {"x-forwarded-client-cert": f"URI={OTHER},By={INVENTORY};URI={WEB}", "x-forwarded-for": "6.6.6.6, 10.1.2.3, 127.0.0.9"}
        seen = httpx.get(address + "/", headers=headers).json()
        assert (seen["identity"], seen["remote"], seen["source"]) == (WEB, "10.1.2.3", "127.0.0.1")
        for said in ("URI=nobody", f"URI={WEB};URI={OTHER}", 'Subject="x', "URI"):
            assert httpx.get(address + "/", headers={"x-forwarded-client-cert": said}).status_code == 400


RULES = """{mtls: PERMISSIVE, authorization: [
  {name: readers, rules: [{from: [{principals: ["shop.example/ns/prod/sa/*"]}], to: [{methods: [GET], paths: ["/items*"]}]}]},
  {name: nothing-secret, action: DENY, rules: [{to: [{paths: ["*/secret"]}]}]},
  {name: watched, action: AUDIT, rules: [{to: [{paths: ["/items/7"]}]}]},
  {name: stricter, mode: OBSERVE, rules: [{to: [{paths: ["/items/1"]}]}]},
]}"""


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with mesh_of(RULES) as mesh, serving(mesh) as address:
        yield address


def raw(address: str, who: str | None, request: str) -> str:
    """What is answered to the bytes of ``request``: a client library would mend them."""
    context = LiveContext(Fixed(ROOT.identity(who or WEB)), serves=False, proves=who is not None, now=time.time)
    url = httpx.URL(address)
    with socket.create_connection((url.host, url.port or 0), timeout=10) as plain, context.wrap_socket(plain) as secured:
        secured.sendall(request.encode("latin-1"))
        return b"".join(iter(lambda: secured.recv(65536), b"")).decode()


@pytest.mark.parametrize(("who", "method", "path", "status"), [
    (WEB, "GET", "http://inventory/items/1", 200), (WEB, "GET", "http://inventory/items/secret", 403), (WEB, "OPTIONS", "*", 403),
    (WEB, "GET", "/items/\\secret", 400), (WEB, "GET", "/items/1?x=/secret", 200),
    (WEB, "GET", "/items/1", 200), (WEB, "GET", "/items/7", 200), (WEB, "POST", "/items/1", 403), (WEB, "GET", "/", 403),
    (OTHER, "GET", "/items/1", 403), (None, "GET", "/items/1", 403), (WEB, "GET", "/items/secret", 403),
    (WEB, "GET", "/items/x/../secret", 403), (WEB, "GET", "/items//secret", 403), (WEB, "GET", "/items/%73ecret", 403),
    (WEB, "GET", "/items/a%2fsecret", 400), (WEB, "GET", "/items/secret%00", 400), (WEB, "GET", "/items/secret/..;/x", 400),
    (WEB, "GET", "/items/../../etc", 400), (WEB, "GET", "/items/%252e%252e/secret", 400), (WEB, "GET", "/items/secret/.", 200),
])
def test_authorization(guarded: str, who: str | None, method: str, path: str, status: int) -> None:
    answer = raw(guarded, who, f"{method} {path} HTTP/1.1\r\nhost: inventory\r\nconnection: close\r\n\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ")
    assert ("RBAC: access denied" in answer) is (status == 403)


@pytest.mark.parametrize(("request_line", "headers", "status"), [
    ("get /items/1", "host: a", 400), ("Delete /items/1", "host: a", 400), ("GET /items/1", "host: a\r\nhost: b", 400),
    ("GET /items/1", "HOST: a", 200), ("PROPFIND /items/1", "host: a", 403),
])
def test_what_is_read_in_two_ways(guarded: str, request_line: str, headers: str, status: int) -> None:
    answer = raw(guarded, WEB, f"{request_line} HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n")
    assert answer.startswith(f"HTTP/1.1 {status} ")


def test_decisions_are_told_and_counted() -> None:
    with mesh_of(RULES) as mesh, serving(mesh) as address, client() as caller:
        told: list[Any] = []
        mesh.subscribe(told.append)
        for path in ("/items/1", "/items/7", "/items/secret", "/items/%00"):
            caller.get(address + path)
        shown = mesh.snapshot()["authorization"]
    assert shown == {"allowed": 2, "denied": 1, "audited": 1, "shadowDenied": 2, "refused": 1}
    decisions = [event.detail for event in told if event.name == "authorized"]
    assert decisions[0] == {
        "workload": "inventory", "principal": "shop.example/ns/prod/sa/web", "method": "GET",
        "allowed": True, "policy": "readers", "rule": 0, "audited": [], "shadow": {"allowed": True, "policy": "stricter", "rule": 0},
    }
    assert (decisions[1]["audited"], decisions[1]["shadow"]["allowed"]) == (["watched"], False)
    assert (decisions[2]["allowed"], decisions[2]["policy"]) == (False, "nothing-secret")
    assert [event.detail["reason"] for event in told if event.name == "turned_away"] == [
        "the path cannot be used: the control character '\\x00' stands in it, escaped",
    ]


def test_limits_and_faults_of_the_inbound_block() -> None:
    with mesh_of("{rateLimit: {requests: 1, per: 1h}}") as mesh, serving(mesh) as address, client() as caller:
        assert caller.get(address + "/").status_code == 200
        refused = caller.get(address + "/")
        assert (refused.status_code, refused.text) == (429, "local_rate_limited")
        assert int(refused.headers["retry-after"]) > 3000
        assert mesh.snapshot()["inbound"]["calls"]["rejected"] == {"RateLimited": 1}
    with mesh_of("{fault: {abort: {httpStatus: 418}}}") as mesh, serving(mesh) as address, client() as caller:
        assert caller.get(address + "/").status_code == 418


def test_the_deadline_of_the_caller_is_inherited() -> None:
    with mesh_of("{mtls: STRICT}") as mesh, serving(mesh) as address, client() as caller:
        assert 4 < caller.get(address + "/", headers={"x-envoy-expected-rq-timeout-ms": "5000"}).json()["left"] <= 5
        assert caller.get(address + "/").json()["left"] is None


def test_certificates_of_a_server_rotate_live() -> None:
    source = Fixed(ROOT.identity(INVENTORY))
    with Mesh.from_text("apiVersion: resilmesh/v1\ninbound: {mtls: STRICT}\n", identity=source) as mesh, serving(mesh) as address:
        serials = set()
        for _ in range(5):
            with client() as caller:
                response = caller.get(address + "/")
                stream = response.extensions["network_stream"].get_extra_info("ssl_object")
                serials.add(stream.getpeercert()["serialNumber"])
            source.put(ROOT.identity(INVENTORY), time.time())
    assert len(serials) == 5


def test_context_goes_to_threads_and_tasks_and_to_no_other_request() -> None:
    seen: dict[str, list[str]] = {}
    background = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        name = scope["path"]
        own = resilmesh.inbound.caller()
        in_thread = await asyncio.to_thread(resilmesh.inbound.caller)
        task = asyncio.create_task(_later())
        background.append(task)
        await asyncio.sleep(0.01)
        seen.setdefault(name, []).extend(str(each and each.identity) for each in (own, in_thread, await task))
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def _later() -> Any:
        await asyncio.sleep(0.005)
        return resilmesh.inbound.caller()

    def call(who: str, path: str) -> None:
        with client(who) as caller:
            for _ in range(5):
                assert caller.get(address + path).status_code == 204

    with mesh_of("{mtls: STRICT}") as mesh, serving(mesh, app=app) as address:
        threads = [threading.Thread(target=call, args=each) for each in ((WEB, "/web"), (OTHER, "/other"))]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert seen == {"/web": [WEB] * 15, "/other": [OTHER] * 15}
    assert resilmesh.inbound.caller() is None
