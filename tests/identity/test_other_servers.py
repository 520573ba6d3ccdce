"""hypercorn and granian tell an application nothing of a caller's certificate: it lets nobody in, and a trusted proxy's word counts."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.identity.pki import INVENTORY, WEB, Authority

ROOT = Authority()
#: Two meshes in one process: `/behind` believes a proxy at 127.0.0.1, everything else nobody.
APP = '''
import json
import resilmesh

STRICT = "apiVersion: resilmesh/v1\\ninbound: {mtls: STRICT}\\n"
PERMISSIVE = "apiVersion: resilmesh/v1\\ninbound: {mtls: PERMISSIVE}\\n"
BEHIND = "apiVersion: resilmesh/v1\\ninbound: {mtls: STRICT, trustedProxies: [127.0.0.1/32]}\\n"


async def inner(scope, receive, send):
    caller = resilmesh.inbound.caller()
    told = {"identity": caller.identity and str(caller.identity), "scope": repr(sorted(scope)) + repr(scope.get("extensions"))}
    body = json.dumps(told).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


apps = {
    name: resilmesh.inbound.asgi.Middleware(inner, resilmesh.Mesh.from_text(text))
    for name, text in (("/strict", STRICT), ("/permissive", PERMISSIVE), ("/behind", BEHIND))
}


async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    await apps[scope["path"]](scope, receive, send)
'''


def hypercorn(folder: Path, port: int) -> list[str]:
    return [
        "-m", "hypercorn", "--bind", f"127.0.0.1:{port}", "--certfile", str(folder / "tls.crt"), "--keyfile", str(folder / "tls.key"),
        "--ca-certs", str(folder / "ca.crt"), "--verify-mode", "CERT_REQUIRED", "served:app",
    ]


def granian(folder: Path, port: int) -> list[str]:
    return [
        "-m", "granian", "--interface", "asgi", "--host", "127.0.0.1", "--port", str(port), "--ssl-certificate", str(folder / "tls.crt"),
        "--ssl-keyfile", str(folder / "tls.key"), "--ssl-ca", str(folder / "ca.crt"), "--ssl-client-verify", "served:app",
    ]


@contextlib.contextmanager
def running(folder: Path, words: list[str]) -> Iterator[None]:
    with (folder / "log").open("wb") as log, subprocess.Popen([sys.executable, *words], cwd=folder, stdout=log, stderr=log) as process:
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module", params=[hypercorn, granian], ids=["hypercorn", "granian"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Shows a good certificate to a server that asks for one and verifies it."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "served.py").write_text(APP)
    leaf, own = ROOT.issue(INVENTORY, dns=["localhost"]), ROOT.issue(WEB)
    (folder / "tls.crt").write_bytes(leaf.certificates_pem())
    (folder / "tls.key").write_bytes(leaf.key_pem())
    (folder / "ca.crt").write_bytes(ROOT.bundle.pem())
    (folder / "own.pem").write_bytes(own.key_pem() + own.certificates_pem())
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "own.pem")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with running(folder, request.param(folder, port)), httpx.Client(verify=context, base_url=f"https://localhost:{port}") as made:
        deadline = time.monotonic() + 30
        while True:
            try:
                made.get("/permissive")
                break
            except httpx.ConnectError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield made


SAYS = {"x-forwarded-client-cert": f"By={INVENTORY};URI={WEB}"}


def test_nothing_of_the_certificate_reaches_the_application(client: httpx.Client) -> None:
    """If this fails, the server has learnt to tell: then the middleware can learn to listen."""
    told = json.loads(client.get("/permissive").text)
    assert told["identity"] is None
    assert "tls" not in told["scope"]
    assert "cert" not in told["scope"]


@pytest.mark.parametrize("headers", [{}, SAYS], ids=["as it is", "with a header that anybody can write"])
def test_strict_lets_nobody_in(client: httpx.Client, headers: dict[str, str]) -> None:
    answer = client.get("/strict", headers=headers)
    assert (answer.status_code, answer.text) == (403, "RBAC: access denied")


def test_a_header_of_anybody_is_nothing_under_permissive(client: httpx.Client) -> None:
    assert json.loads(client.get("/permissive", headers=SAYS).text)["identity"] is None


def test_behind_a_trusted_proxy_its_word_counts(client: httpx.Client) -> None:
    assert json.loads(client.get("/behind", headers=SAYS).text)["identity"] == WEB
    assert client.get("/behind").status_code == 403
