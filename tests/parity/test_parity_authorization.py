"""``inbound.authorization``: the same verdicts from the library's middleware and from a real Envoy with the RBAC that Istio would write."""

from __future__ import annotations

import contextlib
import http.server
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sidebyside import WRITTEN, covers, written_fields

from resilmesh.envoy.ingress import ingress
from resilmesh.envoy.process import Envoy
from resilmesh.identity import Fixed
from resilmesh.identity.gate import Connection
from resilmesh.identity.spiffe import SpiffeId
from resilmesh.identity.tls import ANYBODY, LiveContext
from resilmesh.inbound.serving import Arrival, Reply, let_in
from resilmesh.mesh import Mesh
from resilmesh.policy.load import load_text
from tests.identity.pki import INVENTORY, Authority

ROOT = Authority()
CALLERS = [
    None, "spiffe://shop.example/ns/prod/sa/web", "spiffe://shop.example/ns/prod/sa/admin", "spiffe://shop.example/ns/dev/sa/web",
    "spiffe://shop.example/web",
]
HEADER = [(), (("x-role", "admin"),), (("x-role", "user"),), (("x-role", "admin"), ("x-role", "user")), (("x-role", ""),)]
PATHS = [
    "/", "/items", "/items/", "/items/7", "/items/7/parts", "/items/7/parts/9", "/Items/7", "/secret", "/items/secret",
    "/items/secret?a=/x", "/items//7", "/items/./7", "/items/x/../7",
    "/items/%37", "/items/a%2fb", "/items/a%5cb", "/shop.Items/Get", "/a%20b",
    "/items;v=1/7",
]
METHODS = ["GET", "POST", "DELETE"]
HOSTS = ["inventory.prod.svc", "Inventory.prod.svc", "inventory.prod.svc:8443", "other"]


class App(http.server.BaseHTTPRequestHandler):
    """What is behind Envoy: whoever gets there is let in."""

    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST = do_DELETE = _answer

    def log_message(self, *arguments: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 100


@pytest.fixture(scope="module")
def app() -> Iterator[tuple[str, int]]:
    with Server(("127.0.0.1", 0), App) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield "127.0.0.1", server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("identity")
    leaf = ROOT.issue(INVENTORY)
    (made / "tls.crt").write_bytes(leaf.certificates_pem())
    (made / "tls.key").write_bytes(leaf.key_pem())
    (made / "ca.crt").write_bytes(ROOT.bundle.pem())
    return made


Request = tuple[str | None, str, str, str, tuple[tuple[str, str], ...]]


def by_the_library(mesh: Mesh, request: Request, port: int) -> int:
    who, method, path, host, headers = request
    connection = Connection("127.0.0.1", None if who is None else SpiffeId.parse(who), server=("127.0.0.1", port), sni="inventory.internal")
    found = let_in(mesh, Arrival(method, path, [("host", host), *headers], connection))
    return found.status if isinstance(found, Reply) else 200


def connect(port: int, who: str | None) -> Any:
    """In plain text for a caller without an identity."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=10)
    if who is None:
        return plain
    context = LiveContext(Fixed(ROOT.identity(who)), serves=False, accepted=ANYBODY, now=time.time)
    return context.wrap_socket(plain, server_hostname="inventory.internal")


def by_envoy(connection: Any, request: Request) -> int:
    _, method, path, host, headers = request
    lines = [f"{method} {path} HTTP/1.1", f"host: {host}", *(f"{name}: {value}" for name, value in headers)]
    connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536) or _gone()
    head, _, body = answer.partition(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split(b" ", 2)[1])


def _gone() -> bytes:
    raise ConnectionResetError("Envoy has closed the connection")


def compare(directory: Path, app: tuple[str, int], authorization: str, requests: list[Request]) -> list[int]:
    """The verdicts of both, which are the same."""
    text = f"""
apiVersion: resilmesh/v1
mesh: {{identity: {{directory: "{directory}"}}}}
inbound:
  mtls: PERMISSIVE
  authorization: {authorization}
"""
    policy = load_text(text).policy
    WRITTEN.update(written_fields(policy))
    with Mesh.from_text(text) as mesh, Envoy(ingress(policy, app)) as envoy:
        port = int(envoy.url.rpartition(":")[2])
        found = []
        for who in CALLERS:  # a connection for each
            mine = [each for each in requests if each[0] == who]
            found += verdicts(mesh, port, who, mine)
    return found


def verdicts(mesh: Mesh, port: int, who: str | None, requests: list[Request]) -> list[int]:
    found: list[int] = []
    while len(found) < len(requests):
        with connect(port, who) as connection:  # which Envoy closes after a 400
            for request in requests[len(found) :]:
                mine, its = by_the_library(mesh, request, port), by_envoy(connection, request)
                assert mine == its, f"{request}: {mine} by the library, {its} by Envoy"
                found.append(mine)
                if its == 400:
                    break
    return found


# ------------------------------------------------------------------------------------------------- by hand

WEB, ADMIN, DEV, PLAIN = (each for each in CALLERS if each is not None)


def asked(
    who: str | None, method: str = "GET", path: str = "/items", host: str = "inventory.prod.svc", *headers: tuple[str, str],
) -> Request:
    return who, method, path, host, headers


@covers(
    "Inbound.authorization", "AuthorizationPolicy.action", "AuthorizationPolicy.name", "AuthorizationPolicy.rules",
    "AuthorizationRule.from_", "AuthorizationRule.to", "Source.principals", "Source.not_principals",
    "Source.namespaces", "Source.not_namespaces",
    "Operation.methods",
    "Operation.not_methods", "Operation.paths", "Operation.not_paths",
)
def test_who_may_do_what(directory: Path, app: tuple[str, int]) -> None:
    rules = """[
  {name: web, rules: [{from: [{principals: ["shop.example/ns/prod/sa/web", "*/sa/admin"], notNamespaces: [dev]}],
                       to: [{methods: [GET], paths: ["/items", "/items/{*}", "/items/{*}/parts/{**}"]}]}]},
  {name: dev, rules: [{from: [{namespaces: ["d*"], notPrincipals: ["*/sa/admin"]}], to: [{notMethods: [DELETE], notPaths: ["/secret*"]}]}]},
  {name: never, action: DENY, rules: [{to: [{paths: ["*/secret"]}]}]},
  {name: watched, action: AUDIT, rules: [{}]},
]"""
    requests = [asked(who, method, path) for who in CALLERS for method in METHODS for path in PATHS]
    found = compare(directory, app, rules, requests)
    assert {200, 400, 403} == set(found)


@covers(
    "AuthorizationPolicy.mode", "AuthorizationRule.when", "Condition.key", "Condition.values", "Condition.not_values", "Operation.hosts",
    "Operation.not_hosts", "Operation.ports", "Operation.not_ports", "Source.ip_blocks", "Source.not_ip_blocks", "Source.remote_ip_blocks",
    "Source.not_remote_ip_blocks",
)
def test_from_where_to_where_and_when(directory: Path, app: tuple[str, int]) -> None:
    rules = """[
  {name: a, rules: [{from: [{ipBlocks: [127.0.0.0/8], notIpBlocks: [127.0.0.2]}], to: [{hosts: ["Inventory.prod.svc", "*:8443"]}],
                     when: [{key: "request.headers[X-Role]", values: [admin, "us*"]}]}]},
  {name: b, rules: [{from: [{remoteIpBlocks: [127.0.0.1], notRemoteIpBlocks: ["10.0.0.0/8"]}],
                     to: [{notHosts: ["inventory*"], notPorts: [1]}],
                     when: [{key: source.namespace, values: [prod]}, {key: "request.headers[x-role]", notValues: ["*"]}]}]},
  {name: c, action: DENY, rules: [{to: [{ports: [2]}]}, {when: [{key: source.ip, values: ["10.0.0.0/8"]}]}]},
  {name: d, action: DENY, rules: [{when: [{key: connection.sni, values: ["inventory.*"]},
                                          {key: source.principal, values: ["*/sa/admin"]}]}]},
  {name: e, action: DENY, rules: [{when: [{key: destination.port, values: ["3"]}]}, {when: [{key: destination.ip, values: [10.1.1.1]}]}]},
  {name: f, mode: OBSERVE, rules: [{to: [{paths: ["/nothing"]}]}]},
  {name: g, rules: [{when: [{key: remote.ip, notValues: ["127.0.0.0/8"]}]}]},
]"""
    requests = [asked(who, "GET", "/items", host, *headers) for who in CALLERS for host in HOSTS for headers in HEADER]
    found = compare(directory, app, rules, requests)
    assert {200, 403} == set(found)


@pytest.mark.parametrize(("rules", "status"), [
    ("[{name: a}]", 403), ("[{name: a, action: DENY}]", 200), ("[{name: a, action: DENY, rules: [{}]}]", 403),
    ("[{name: a, rules: [{}]}]", 200), ("[{name: a, mode: OBSERVE}]", 200), ("[{name: a, action: AUDIT, rules: [{}]}]", 200),
])
def test_policies_of_few_words(directory: Path, app: tuple[str, int], rules: str, status: int) -> None:
    assert compare(directory, app, rules, [asked(WEB)]) == [status]


@covers("Inbound.mtls")
@pytest.mark.parametrize(("mtls", "plain", "secured"), [("STRICT", None, 200), ("PERMISSIVE", 200, 200), ("DISABLE", 200, None)])
def test_mtls(directory: Path, app: tuple[str, int], mtls: str, plain: int | None, secured: int | None) -> None:
    """What Envoy does to a connection; the library's is in tests/identity."""
    text = f"apiVersion: resilmesh/v1\nmesh: {{identity: {{directory: '{directory}'}}}}\ninbound: {{mtls: {mtls}}}\n"
    policy = load_text(text).policy
    WRITTEN.update(written_fields(policy))
    with Envoy(ingress(policy, app)) as envoy:
        port = int(envoy.url.rpartition(":")[2])
        for who, status in ((None, plain), (WEB, secured)):
            found = None
            with contextlib.suppress(OSError), connect(port, who) as connection:
                found = by_envoy(connection, asked(who))
            assert found == status


# ------------------------------------------------------------------------------------------------- by chance


def any_policy(chance: random.Random) -> str:
    """Some policies, by rules whose values are near those of the requests."""
    def some(values: list[str]) -> str:
        return "[" + ", ".join(f'"{each}"' for each in chance.sample(values, chance.randint(1, min(3, len(values))))) + "]"

    principals = ["shop.example/ns/prod/sa/web", "shop.example/ns/*", "*/sa/web", "*", "shop.example/web", "other.example/*"]
    namespaces = ["prod", "dev", "p*", "*", "*v"]
    paths = [
        "/items", "/items*", "*/secret", "/items/{*}", "/items/{**}", "/{**}/parts", "/items/{*}/parts/{**}", "/", "*", "/Items/7",
        "/a%20b", "/shop.Items/Get",
    ]
    hosts = ["inventory.prod.svc", "INVENTORY*", "*.svc", "*:8443", "other", "*"]
    roles = ["admin", "admin,user", "a*", "*r", "*", "user"]
    blocks = ["127.0.0.1", "127.0.0.0/8", "10.0.0.0/8", "::/0"]

    def keys(*choices: tuple[str, list[str]]) -> str:
        chosen = [each for each in choices if chance.random() < 0.5] or [choices[0]]
        made = [f"{chance.choice([name, 'not' + name[0].upper() + name[1:]])}: {some(values)}" for name, values in chosen]
        return "{" + ", ".join(made) + "}"

    def rule() -> str:
        parts = []
        if chance.random() < 0.7:
            parts.append("from: [" + ", ".join(
                keys(("principals", principals), ("namespaces", namespaces), ("ipBlocks", blocks)) for _ in range(chance.randint(1, 2))
            ) + "]")
        if chance.random() < 0.7:
            parts.append("to: [" + ", ".join(
                keys(("methods", ["GET", "POST", "P*", "*"]), ("paths", paths), ("hosts", hosts)) for _ in range(chance.randint(1, 2))
            ) + "]")
        if chance.random() < 0.4:
            word = chance.choice(["values", "notValues"])
            attributes = [("request.headers[x-role]", roles), ("source.principal", principals), ("source.namespace", namespaces)]
            key, values = chance.choice(attributes)
            parts.append(f"when: [{{key: '{key}', {word}: {some(values)}}}]")
        return "{" + ", ".join(parts) + "}"

    policies = []
    for number in range(chance.randint(1, 4)):
        rules = ", ".join(rule() for _ in range(chance.randint(1, 3)))
        policies.append(f"{{name: p{number}, action: {chance.choice(['ALLOW', 'ALLOW', 'DENY'])}, rules: [{rules}]}}")
    return "[" + ", ".join(policies) + "]"


@pytest.mark.parametrize("seed", range(12))
def test_policies_by_chance(directory: Path, app: tuple[str, int], seed: int) -> None:
    chance = random.Random(seed)
    requests = [
        asked(chance.choice(CALLERS), chance.choice(METHODS), chance.choice(PATHS), chance.choice(HOSTS), *chance.choice(HEADER))
        for _ in range(150)
    ]
    compare(directory, app, any_policy(chance), requests)
