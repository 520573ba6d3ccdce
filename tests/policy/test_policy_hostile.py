"""Hostile files by every way into the library: the same diagnostics, nothing else, and the last good policy goes on."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resilmesh import Mesh
from resilmesh.cli import main
from resilmesh.errors import PolicyError
from resilmesh.policy import document
from resilmesh.policy.check import check
from resilmesh.policy.codes import Diagnostic
from resilmesh.policy.load import load_file, load_text

TESTDATA = Path(__file__).parent / "testdata"
GOOD = "apiVersion: resilmesh/v1\nservices: [{name: a, hosts: [a.test]}]\n"
#: Those that cannot carry comments of their own: what they earn is in a file beside them.
BYTES = sorted((TESTDATA / "bytes").glob("*.bin"))
INVALID = [*sorted((TESTDATA / "invalid").glob("*.yaml")), *BYTES]


def found(path: Path) -> list[Diagnostic]:
    try:
        return [each for each in check(load_file(path)) if each.severity == "error"]
    except PolicyError as error:
        return list(error.diagnostics)


@pytest.mark.parametrize("path", BYTES, ids=lambda path: path.stem)
def test_bytes(path: Path) -> None:
    said = "".join(f"{each}\n".removeprefix(f"{path}:") for each in found(path))
    assert said == path.with_suffix(".expected").read_text(encoding="utf-8")


def test_there_are_as_many_as_were_promised() -> None:
    assert len(INVALID) >= 200
    texts = {path.read_bytes() for path in INVALID}
    assert len(texts) == len(INVALID)


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_every_way_in_says_the_same(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = found(path)
    assert expected
    with pytest.raises(PolicyError) as caught:
        Mesh.from_file(path, reload_interval=None)
    assert list(caught.value.diagnostics) == expected

    assert main(["check", str(path)]) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert all(str(each) in said.out for each in expected)

    assert main(["check", "--json", str(path)]) == 1
    report = [each for each in json.loads(capsys.readouterr().out)["diagnostics"] if each["severity"] == "error"]
    assert [(each["line"], each["column"], each["code"], each["message"]) for each in report] == [
        (each.line, each.column, each.code, each.message) for each in expected
    ]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Mesh, Path]]:
    path = tmp_path / "policy.yaml"
    path.write_text(GOOD)
    with Mesh.from_file(path, reload_interval=None) as mesh:
        yield mesh, path


def test_none_of_them_takes_the_place_of_the_last_good_policy(
    running: tuple[Mesh, Path], caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    mesh, path = running
    table = mesh.table
    for number, hostile in enumerate(INVALID, 1):
        path.write_bytes(hostile.read_bytes())
        os.utime(path, ns=(number, number))  # the looks come faster than the file system's clock ticks
        with pytest.raises(PolicyError) as caught:
            mesh.reload()
        assert {each.code for each in caught.value.diagnostics} == {each.code for each in found(hostile)}
        assert mesh.table is table
    shown = mesh.snapshot()
    assert (shown["revision"], shown["refused"]) == (1, len(INVALID))
    path.write_text(GOOD)
    assert mesh.reload()
    assert mesh.snapshot()["revision"] == 2


# ------------------------------------------------------------------------- bounded, however large


def named(text: str) -> str:
    return f"apiVersion: resilmesh/v1\n{text}"


#: By the size that is asked for, in characters: each is malformed in a way that could cost more than its size.
LARGE: dict[str, Callable[[int], str]] = {
    "one long line": lambda size: named("x-a: [" + "1," * (size // 2) + "]\nzzz: 1"),
    "one long line that never ends": lambda size: named("x-a: [" + "1, " * (size // 3)),
    "one string": lambda size: named(f"services: '{'a' * size}'"),
    "one string that never ends": lambda size: named("services: \"" + "a" * size),
    "one word": lambda size: "a" * size,
    "one key": lambda size: named(f"{'a' * size}: 1"),
    "one comment": lambda size: named("#" * size + "\nzzz: 1"),
    "one number": lambda size: named("defaults: {timeout: " + "9" * size + "}"),
    "many keys": lambda size: named("".join(f"k{number}: 1\n" for number in range(size // 10))),
    "many keys in a block": lambda size: named("defaults:\n" + "".join(f"  k{number}: 1\n" for number in range(size // 12))),
    "the same key": lambda size: named("timeout: 1\n" * (size // 11)),
    "many services without a name": lambda size: named("services:\n" + "- {}\n" * (size // 5)),
    "many services of one name": lambda size: named("services:\n" + "- {name: a}\n" * (size // 12)),
    "many hosts of one service": lambda size: named("services: [{name: a, hosts: [" + "a.test, " * (size // 8) + "]}]"),
    "many anchors": lambda size: named("".join(f"x-{number}: &a{number} 1\n" for number in range(size // 16))),
    "aliases of aliases": lambda size: named("".join(f"x-{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, size // 25))),
    "many documents": lambda size: named("---\na: 1\n" * (size // 9)),
    "many tags": lambda size: named("x-a:\n" + "- !!int 1\n" * (size // 10)),
    "deep in brackets": lambda size: named("x-a: " + "[" * size),
    "deep in braces": lambda size: named("x-a: " + "{a: " * (size // 4)),
    "deep in dashes": lambda size: named("x-a:\n  " + "- " * (size // 2)),
    "deep in keys": lambda size: named("".join(" " * depth + "a:\n" for depth in range(int(size ** 0.5)))),
    "deep in question marks": lambda size: "? " * (size // 2),
    "closed too often": lambda size: named("x-a: [1" + "]" * size),
    "empty lines": lambda size: named("\n" * size + "zzz: 1"),
    "carriage returns": lambda size: named("\r" * size + "zzz: 1"),
    "blanks": lambda size: named(" " * size + "zzz: 1"),
    "tabs": lambda size: named("\t" * size + "zzz: 1"),
    "wrong characters": lambda size: named("\x07" * size),
    "escapes": lambda size: named('x-a: "' + "\\x41" * (size // 4) + '"\nzzz: 1'),
    "json": lambda size: '{"apiVersion": "resilmesh/v1", "services": [' + '{"name": 1},' * (size // 12) + "]}",
    "a regular expression": lambda size: named(
        "services: [{name: a, hosts: [a.test], routes: [{name: r, match: {path: {regex: '" + "(" * size + "'}}}]}]"),
    "regular expressions": lambda size: named(
        "services: [{name: a, hosts: [a.test], routes: [" + "{name: r, match: {path: {regex: '(a'}}}," * (size // 40) + "]}]"),
    "splits": lambda size: named(
        "services: [{name: a, hosts: [a.test], split: [" + "{subset: v, weight: 1}," * (size // 23) + "]}]"),
    "retry words": lambda size: named("defaults: {retries: {retryOn: [" + "'5x'," * (size // 5) + "]}}"),
}


class Counted:
    """The parser, counting the events that are asked of it."""

    events = 0

    def __init__(self, text: str) -> None:
        self._inner = _LOADER(text)

    def get_event(self) -> Any:
        Counted.events += 1
        return self._inner.get_event()


_LOADER = document._Loader


@pytest.mark.parametrize("shape", LARGE)
def test_work_grows_no_faster_than_the_text(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: events of the parser, bytes at the peak, what is said. A tenth of a file costs at least a twentieth of the whole."""
    monkeypatch.setattr(document, "_Loader", Counted)
    events, peaks = [], []
    for size in (3_000, 30_000):
        text = LARGE[shape](size)
        load_and_check(text)  # whatever is remembered for ever is remembered now
        Counted.events = 0
        tracemalloc.start()
        diagnostics = load_and_check(text)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        events.append(Counted.events)
        assert diagnostics
        assert len(diagnostics) <= document.MAX_MISTAKES + 1
        assert all(len(str(each)) < 2000 for each in diagnostics)
    assert events[1] <= 20 * events[0] + 10
    assert peaks[1] <= 20 * peaks[0] + 1_000_000
    assert events[1] <= 30_000 + 100
    assert peaks[1] < 40_000_000


def load_and_check(text: str) -> list[Diagnostic]:
    try:
        return [each for each in check(load_text(text)) if each.severity == "error"]
    except PolicyError as error:
        return list(error.diagnostics)


@pytest.mark.parametrize("shape", ["one long line", "one string", "many keys"])
def test_ten_megabytes_are_not_even_read(shape: str, tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(LARGE[shape](10_000_000 * (6 if shape == "many keys" else 5) // 4))
    assert path.stat().st_size > 10_000_000
    tracemalloc.start()
    with pytest.raises(PolicyError, match="RM003 the policy is larger than 8 MiB"):
        load_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * document.MAX_BYTES


_BOUNDED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
sys.setrecursionlimit(400)
from resilmesh.cli import main
sys.exit(max(main(["check", path]) for path in sys.argv[1:]))
"""


def test_a_program_with_little_memory_and_stack_survives_them(tmp_path: Path) -> None:
    """What is just small enough to be read, under limits of the operating system."""
    shapes = ("one string", "one long line that never ends", "deep in brackets", "deep in keys", "the same key")
    paths = []
    for shape in shapes:
        path = tmp_path / f"{shape}.yaml"
        path.write_text(LARGE[shape](document.MAX_BYTES - 1000 if shape == "one string" else 1_000_000))
        paths.append(str(path))
    done = subprocess.run([sys.executable, "-c", _BOUNDED, *paths], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert [line.rpartition("/")[2] for line in io.StringIO(done.stdout) if ": RM" in line]
