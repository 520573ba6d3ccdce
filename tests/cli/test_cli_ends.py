"""How the command ends when its output or its user goes away: with a word and a status, never with a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resilmesh import cli
from resilmesh.cli import schema

RESILMESH = [sys.executable, "-m", "resilmesh"]


def ended(*words: str, stdout: int, unbuffered: bool = False) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if unbuffered:
        environment["PYTHONUNBUFFERED"] = "1"
    done = subprocess.run([*RESILMESH, *words], stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("words", [("schema",), ("check", "absent.yaml")], ids=["long", "short"])
def test_a_reader_that_is_gone_needs_no_word(words: tuple[str, ...], unbuffered: bool) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        assert ended(*words, stdout=write, unbuffered=unbuffered) == (141, "")
    finally:
        os.close(write)


@pytest.mark.parametrize("words", [("schema",), ("check", "absent.yaml")], ids=["long", "short"])
def test_a_full_disk_below_the_output_is_said(words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        assert ended(*words, stdout=full.fileno()) == (1, "resilmesh: [Errno 28] No space left on device\n")


def test_an_interrupt_while_the_verb_is_imported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(parser: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(schema, "add", interrupted)
    assert cli.main(["schema"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
