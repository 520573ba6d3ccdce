"""``resilmesh serve``: a program of its own, called over TLS and in plain text, and interrupted."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from resilmesh.identity import Fixed, SpiffeId
from resilmesh.identity.tls import Accepted, LiveContext
from tests.identity.pki import INVENTORY, WEB, Authority

ROOT = Authority()
APP = """
import resilmesh

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    caller = resilmesh.inbound.caller()
    body = f"{scope['path']} {caller.identity}".encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
    await send({"type": "http.response.body", "body": body})

def make():
    return app
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    leaf = ROOT.issue(INVENTORY)
    for name, content in (("tls.crt", leaf.certificates_pem()), ("tls.key", leaf.key_pem()), ("ca.crt", ROOT.bundle.pem())):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "shop.py").write_text(APP)
    return tmp_path


def command(directory: Path, inbound: str, *words: str, app: str = "shop:app") -> list[str]:
    (directory / "policy.yaml").write_text(f"apiVersion: resilmesh/v1\nmesh: {{identity: {{directory: .}}}}\ninbound: {inbound}\n")
    return [sys.executable, "-m", "resilmesh", "serve", app, "--policy", "policy.yaml", "--port", "0", *words]


@contextmanager
def serving(directory: Path, inbound: str, *words: str, app: str = "shop:app") -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """The port of the program, once it listens."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        command(directory, inbound, *words, app=app), cwd=directory, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    try:
        assert process.stderr is not None
        port = None
        for line in process.stderr:
            found = re.search(r"running on https?://127\.0\.0\.1:([0-9]+)", line)
            if found:
                port = int(found[1])
                break
        assert port is not None, process.wait(10)
        yield port, process
    finally:
        process.kill()
        process.communicate()


def over_tls(port: int, who: str | None = WEB) -> httpx.Response:
    accepted = Accepted(frozenset({SpiffeId.parse(INVENTORY)}))
    context = LiveContext(Fixed(ROOT.identity(WEB)), serves=False, accepted=accepted, proves=who is not None, now=time.time)
    return httpx.get(f"https://127.0.0.1:{port}/a/../b", verify=context, timeout=10)


def test_strict(directory: Path) -> None:
    with serving(directory, "{mtls: STRICT}") as (port, process):
        assert over_tls(port).text == f"/b {WEB}"
        with pytest.raises(httpx.TransportError):
            over_tls(port, None)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/", timeout=10)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (0, 130, -signal.SIGINT)


def test_permissive_has_tls_and_plain_text_on_one_port(directory: Path) -> None:
    with serving(directory, "{mtls: PERMISSIVE}", "--factory", app="shop:make") as (port, process):
        assert over_tls(port).text == f"/b {WEB}"
        assert over_tls(port, None).text == "/b None"
        large = {f"x-{number}": "y" * 4000 for number in range(10)}
        assert httpx.get(f"http://127.0.0.1:{port}/c", timeout=10, headers=large).text == "/c None"
        process.send_signal(signal.SIGINT)
        assert process.wait(10) in (0, 130, -signal.SIGINT)


def test_disable_is_plain_text(directory: Path) -> None:
    with serving(directory, "{mtls: DISABLE, rateLimit: {requests: 1, per: 1h}}") as (port, _):
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=10).text == "/ None"
        assert httpx.get(f"http://127.0.0.1:{port}/", timeout=10).status_code == 429


@pytest.mark.parametrize(("inbound", "words", "app", "said"), [
    ("{mtls: SOMETIMES}", [], "shop:app", "policy.yaml:3:17: RM104"), ("{}", ["--identity", "/nowhere"], "shop:app", "RM234"),
    ("{}", [], "nothing:app", "nothing"), ("{}", [], "shop:none", "none"),
])
def test_what_cannot_be_served(directory: Path, inbound: str, words: list[str], app: str, said: str) -> None:
    path = os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command(directory, inbound, *words, app=app), cwd=directory, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
