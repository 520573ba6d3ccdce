"""gunicorn and werkzeug over mutual TLS, as the how-to says: who the caller is, and that certificates rotate live."""

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
POLICY = """
apiVersion: resilmesh/v1
mesh: {identity: {directory: identity}}
inbound:
  mtls: STRICT
  authorization:
  - {name: readers, rules: [{from: [{principals: ["shop.example/ns/prod/sa/web"]}], to: [{methods: [GET]}]}]}
"""
APP = '''
import json
import resilmesh

mesh = resilmesh.Mesh.from_file("policy.yaml")


def told(server):
    caller = resilmesh.inbound.caller()
    return json.dumps({"identity": caller.identity and str(caller.identity), "source": caller.source, "server": server}).encode()


def inner(environ, start_response):
    body = told(environ["SERVER_SOFTWARE"])
    start_response("200 OK", [("content-length", str(len(body)))])
    return [body]


async def inner_async(scope, receive, send):
    body = told("uvicorn")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})


app = resilmesh.inbound.wsgi.Middleware(inner, mesh)
asgi_app = resilmesh.inbound.asgi.Middleware(inner_async, mesh)

if __name__ == "__main__":
    import sys
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", int(sys.argv[1]), app, ssl_context=resilmesh.inbound.server_context(mesh), threaded=True)
'''
CONFIGURATION = '''
import resilmesh
from served import mesh

certfile = "identity/tls.crt"  # has gunicorn speak TLS; which certificate it is says the context below
keyfile = "identity/tls.key"


def ssl_context(config, default):
    return resilmesh.inbound.server_context(mesh)
'''

def gunicorn(*words: str) -> list[str]:
    return ["-m", "gunicorn", "--config", "gunicorn.conf.py", "--bind", "127.0.0.1:PORT", *words]


SERVERS = {
    "gunicorn, sync": gunicorn("--worker-class", "sync", "served:app"),
    "gunicorn, gthread": gunicorn("--worker-class", "gthread", "--threads", "2", "served:app"),
    "werkzeug": ["served.py", "PORT"],
}


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


def write(folder: Path) -> int:
    """The serial number of the service's new certificate."""
    leaf = ROOT.issue(INVENTORY, dns=["localhost"])
    folder.mkdir(exist_ok=True)
    for name, content in (("tls.key", leaf.key_pem()), ("tls.crt", leaf.certificates_pem()), ("ca.crt", ROOT.bundle.pem())):
        (folder / f"{name}.new").write_bytes(content)
        (folder / f"{name}.new").rename(folder / name)
    return leaf.chain[0].serial_number


def trusting(folder: Path, who: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "identity" / "ca.crt"))
    if who is not None:
        own = ROOT.issue(who)
        (folder / "own.pem").write_bytes(own.key_pem() + own.certificates_pem())
        context.load_cert_chain(folder / "own.pem")
    return context


@pytest.fixture(scope="module", params=SERVERS.values(), ids=SERVERS.keys())
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    folder = tmp_path_factory.mktemp("server")
    for name, text in (("served.py", APP), ("policy.yaml", POLICY), ("gunicorn.conf.py", CONFIGURATION)):
        (folder / name).write_text(text)
    write(folder / "identity")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with running(folder, [word.replace("PORT", str(port)) for word in request.param]):
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
                break
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.05)
        yield folder, f"https://localhost:{port}/v1/items"


def test_the_caller_is_known_and_let_in_by_the_rules(server: tuple[Path, str]) -> None:
    folder, url = server
    with httpx.Client(verify=trusting(folder, WEB)) as client:
        for _ in range(3):
            told = json.loads(client.get(url).text)
            assert (told["identity"], told["source"]) == (WEB, "127.0.0.1"), (folder / "log").read_text()
        assert client.post(url).status_code == 403
    with httpx.Client(verify=trusting(folder, INVENTORY)) as client:
        assert (client.get(url).status_code, client.get(url).text) == (403, "RBAC: access denied")


def test_who_shows_no_certificate_is_not_served(server: tuple[Path, str]) -> None:
    folder, url = server
    with httpx.Client(verify=trusting(folder, None)) as client, pytest.raises(httpx.TransportError):
        client.get(url)


def test_a_renewed_certificate_is_shown_to_new_connections(server: tuple[Path, str]) -> None:
    folder, url = server
    serial, deadline = write(folder / "identity"), time.monotonic() + 10
    while True:
        with httpx.Client(verify=trusting(folder, WEB)) as client, client.stream("GET", url) as answer:
            secured = answer.extensions["network_stream"].get_extra_info("ssl_object")
            shown = int(secured.getpeercert()["serialNumber"], 16)
        if shown == serial:
            return
        assert time.monotonic() < deadline
        time.sleep(0.05)
