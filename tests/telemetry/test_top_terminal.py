"""`resilmesh top` in a real terminal: keys, and that the terminal is given back."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

import resilmesh
from resilmesh.cli import main

#: In a session of its own, whose terminal it takes, so that Ctrl-C comes to it.
PROGRAM = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from resilmesh.cli import main
sys.exit(main())
"""
POLICY = """
apiVersion: resilmesh/v1
mesh: {workload: checkout}
services: [{name: ledger, routes: [{name: book}]}]
"""


@pytest.fixture
def address() -> Iterator[str]:
    mesh = resilmesh.Mesh.from_text(POLICY)
    mesh.guard("ledger", route="book")(lambda: None)()
    with mesh.serve_admin("127.0.0.1:0") as admin:
        yield admin.address
    mesh.close()


def until(terminal: int, words: bytes) -> bytes:
    """What comes until these words do."""
    seen, end = b"", time.monotonic() + 20
    while words not in seen:
        left = end - time.monotonic()
        assert left > 0, seen
        if select.select([terminal], [], [], left)[0]:
            seen += os.read(terminal, 65536)
    return seen


@pytest.mark.parametrize(("end", "status"), [("q", 0), ("ctrl-c", 130), ("term", 143)])
def test_keys_work_and_the_terminal_is_given_back(address: str, end: str, status: int) -> None:
    terminal, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 160))
    before = termios.tcgetattr(slave)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "top", address, "--interval", "0.2"], stdin=slave, stdout=slave, stderr=slave,
        env={**os.environ, "TERM": "xterm"}, start_new_session=True,
    )
    try:
        assert b"\x1b[?1049h" in until(terminal, b"workload checkout")
        os.write(terminal, b"\r")
        until(terminal, b"services > ledger")
        termios.tcsetwinsize(slave, (10, 40))
        until(terminal, b"Enter in  Esc back  s sort  r reverse  p\x1b")  # as much of the last line as 40 columns hold
        os.write(terminal, b"?")
        until(terminal, b"sort by the next column")
        if end == "term":
            process.send_signal(signal.SIGTERM)
        else:
            os.write(terminal, b"q" if end == "q" else b"\x03")
        until(terminal, b"\x1b[?1049l")
        assert process.wait(20) == status
        assert termios.tcgetattr(slave)[:4] == before[:4]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(terminal)
        os.close(slave)


def test_a_pipe_gets_a_table_and_json(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", address, "--once"]) == 0
    assert "workload checkout" in capsys.readouterr().out
    assert main(["top", address, "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["services"][0]["name"] == "ledger"


def test_nobody_there_and_no_address_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "127.0.0.1:1", "--once"]) == 2
    assert "nobody answers at 127.0.0.1:1" in capsys.readouterr().err
    assert main(["top", "nowhere"]) == 2
    assert "HOST:PORT" in capsys.readouterr().err
