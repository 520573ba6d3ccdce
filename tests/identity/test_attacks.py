"""One table of what an attacker sends to a service under mutual TLS, and what becomes of it: nothing of it reaches the application.

A real uvicorn, the bytes as they are, from a caller with a good certificate, who may read /items and nothing else. Hostile certificates are
in ``test_tls`` (``REFUSED``, as a service's and as a caller's), IDs in ``test_spiffe``, and every form of a path in ``test_paths``.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from resilmesh.identity import Fixed
from resilmesh.identity.tls import ANYBODY, LiveContext
from tests.identity.pki import INVENTORY, WEB
from tests.identity.test_inbound_asgi import ROOT, mesh_of, serving

ADMIN = "spiffe://shop.example/ns/prod/sa/admin"
RULES = """{mtls: STRICT, authorization: [
  {name: readers, rules: [{from: [{principals: ["shop.example/ns/prod/sa/web"]}], to: [{methods: [GET], paths: ["/items*"]}]}]},
  {name: admins, rules: [{from: [{principals: ["shop.example/ns/prod/sa/admin"]}]}]},
  {name: trusted-header, rules: [{to: [{paths: ["/by-header"]}], when: [{key: "request.headers[x-role]", values: [admin]}]}]},
  {name: by-host, rules: [{to: [{hosts: [inside.test], paths: ["/by-host"]}]}]},
  {name: inside-only, rules: [{from: [{remoteIpBlocks: ["10.0.0.0/8"]}], to: [{paths: ["/by-address"]}]}]},
  {name: nothing-secret, action: DENY, rules: [{to: [{paths: ["/items/secret*"]}]}]},
  {name: no-robots, action: DENY, rules: [{when: [{key: "request.headers[x-robot]", values: ["*"]}]}]},
]}"""


class Attack(NamedTuple):
    name: str
    target: str
    status: int
    headers: tuple[str, ...] = ()
    method: str = "GET"
    host: str = "inventory"


XFCC = "x-forwarded-client-cert: "
ATTACKS = [
    # what is not allowed, said plainly
    Attack("another path", "/admin", 403), Attack("another method", "/items", 403, method="POST"),
    Attack("the denied path", "/items/secret", 403), Attack("below the denied path", "/items/secret/1", 403),
    # the denied path in other forms
    Attack("an escaped letter", "/items/%73ecret", 403), Attack("every letter escaped", "/items/%73%65%63%72%65%74", 403),
    Attack("two slashes", "/items//secret", 403), Attack("many slashes", "////items////secret", 403),
    Attack("a dot", "/items/./secret", 403),
    Attack("an escaped dot", "/items/%2e/secret", 403), Attack("up and down", "/items/x/../secret", 403),
    Attack("escaped up and down", "/items/x/%2e%2e/secret", 403), Attack("half escaped", "/items/x/.%2E/secret", 403),
    Attack("from outside", "/x/../items/secret", 403), Attack("a query", "/items/secret?/items/7", 403),
    Attack("the whole URL", "https://inventory/items/secret", 403), Attack("another's URL", "https://evil.example/items/secret", 403),
    Attack("with a user", "http://a@inventory/items/secret", 403), Attack("a parameter behind", "/items/secret;x=1", 403),
    # paths that are read in two ways
    Attack("an escaped slash", "/items%2fsecret", 400), Attack("in capitals", "/items%2Fsecret", 400),
    Attack("a backslash", "/items\\secret", 400),
    Attack("an escaped backslash", "/items%5csecret", 400), Attack("escaped twice", "/items/%2573ecret", 400),
    Attack("escaped twice, in parts", "/items/%25%37%33ecret", 400), Attack("a slash escaped twice", "/items%252fsecret", 400),
    Attack("a dot segment with a parameter", "/items/..;/admin", 400), Attack("an empty segment with one", "/items/;/secret", 400),
    Attack("an escaped one", "/items/%2e%2e;x=1/admin", 400), Attack("a NUL", "/items/7%00/../secret", 400),
    Attack("a line", "/items/7%0d%0ax", 400),
    Attack("an overlong slash", "/items/x%c0%af..%c0%afsecret", 400), Attack("an overlong dot", "/items/%c0%ae%c0%ae/secret", 400),
    Attack("half a surrogate", "/items/%ed%a0%80", 400), Attack("IIS's escape", "/items/%u002e", 400),
    Attack("no escape", "/items/%zz", 400),
    Attack("a fragment", "/items#/secret", 400), Attack("above the root", "/../items", 400),
    Attack("above it, escaped", "/%2e%2e/items", 400),
    Attack("no slash", "items", 400),
    # who calls
    Attack("an admin by header", "/admin", 403, (f"{XFCC}URI={ADMIN}",)), Attack("twice", "/admin", 403, (f"{XFCC}URI={ADMIN}",) * 2),
    Attack("as a proxy writes it", "/admin", 403, (f"{XFCC}By={INVENTORY};Hash=00ff;URI={ADMIN}",)),
    Attack("behind a true one", "/admin", 403, (f"{XFCC}URI={WEB},URI={ADMIN}",)),
    Attack("in capitals", "/admin", 403, (f"X-FORWARDED-CLIENT-CERT: URI={ADMIN}",)),
    Attack("with underscores", "/admin", 403, (f"x_forwarded_client_cert: URI={ADMIN}",)),
    Attack("a near address", "/by-address", 403, ("x-forwarded-for: 10.0.0.1",)),
    Attack("by RFC 7239", "/by-address", 403, ("forwarded: for=10.0.0.1",)),
    Attack("by another header", "/by-address", 403, ("x-real-ip: 10.0.0.1", "x-envoy-external-address: 10.0.0.1")),
    Attack("a method by header", "/items", 403, ("x-http-method-override: GET",), method="DELETE"),
    Attack("a path by header", "/admin", 403, ("x-original-url: /items", "x-rewrite-url: /items")),
    Attack("a path of Envoy's", "/admin", 403, ("x-envoy-original-path: /items",)),
    # headers that rules look at
    Attack("not quite the value", "/by-header", 403, ("x-role: admin2",)), Attack("in capitals", "/by-header", 403, ("x-role: ADMIN",)),
    Attack("in a list", "/by-header", 403, ("x-role: user, admin",)),
    Attack("a name with an underscore", "/by-header", 403, ("x_role: admin",)),
    Attack("what denies, empty first", "/items", 403, ("x-robot:", "x-robot: 1")), Attack("in capitals", "/items", 403, ("X-ROBOT: 1",)),
    Attack("another host", "/by-host", 403), Attack("two hosts", "/by-host", 400, ("host: inside.test",)),
    Attack("a host by header", "/by-host", 403, ("x-forwarded-host: inside.test",)),
    Attack("a host in the target", "https://inside.test/by-host", 403),
    Attack("a host and more", "/by-host", 403, host="inside.test.evil.example"),
    # methods
    Attack("in small letters", "/items", 400, method="get"), Attack("mixed", "/items", 400, method="Get"),
    Attack("of nobody", "/items", 403, method="PROPFIND"), Attack("of a tunnel", "/items", 403, method="TRACE"),
]


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[str, list[str]]]:
    served: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        served.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    with mesh_of(RULES) as mesh, serving(mesh, app=application) as address:
        yield address, served


def ask(address: str, who: str, attack: Attack) -> int:
    """The status of the answer to these very bytes."""
    context = LiveContext(Fixed(ROOT.identity(who)), serves=False, accepted=ANYBODY, now=time.time)
    host, _, port = address.removeprefix("https://").rpartition(":")
    lines = [f"{attack.method} {attack.target} HTTP/1.1", f"host: {attack.host}", *attack.headers, "connection: close", "", ""]
    with socket.create_connection((host, int(port)), timeout=10) as plain, context.wrap_socket(plain, server_hostname="x") as secured:
        secured.sendall("\r\n".join(lines).encode("latin-1"))
        answer = b""
        while part := secured.recv(65536):
            answer += part
    return int(answer.split(b" ", 2)[1])


def test_there_are_enough_of_them() -> None:
    assert len(ATTACKS) >= 60
    assert len({attack[1:] for attack in ATTACKS}) == len(ATTACKS)


@pytest.mark.parametrize("attack", ATTACKS, ids=[f"{number} {attack.name}" for number, attack in enumerate(ATTACKS)])
def test_it_is_refused_and_the_application_sees_nothing(service: tuple[str, list[str]], attack: Attack) -> None:
    address, served = service
    served.clear()
    assert ask(address, WEB, attack) == attack.status
    assert served == []


@pytest.mark.parametrize("attack", [
    Attack("plain", "/items", 200), Attack("an item", "/items/7", 200), Attack("an escaped letter", "/%69tems/7", 200),
    Attack("a word that begins alike", "/itemsecret", 200), Attack("by header", "/by-header", 200, ("x-role: admin",)),
    Attack("by host", "/by-host", 200, host="inside.test"), Attack("by host, with a port", "/by-host", 403, host="inside.test:8443"),
], ids=lambda attack: attack.name)
def test_what_is_allowed_is_served(service: tuple[str, list[str]], attack: Attack) -> None:
    """Or the table above would show nothing."""
    assert ask(service[0], WEB, attack) == attack.status


def test_another_caller_with_a_good_certificate(service: tuple[str, list[str]]) -> None:
    assert ask(service[0], "spiffe://shop.example/ns/prod/sa/we", Attack("", "/items", 403)) == 403
    assert ask(service[0], "spiffe://shop.example/ns/prod/sa/web/x", Attack("", "/items", 403)) == 403
    assert ask(service[0], ADMIN, Attack("", "/admin", 200)) == 200
