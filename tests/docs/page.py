"""Runs every code block of one page, in order, in an empty directory: ``python tests/docs/page.py PAGE``.

    ```python                       executed; the blocks of a page share one namespace
    ```python title="service.py"    saved under that name; a later command runs it
    ```yaml title="policy.yaml"     saved under that name, and `resilmesh check` must accept it
    ```yaml                         checked too: a policy, or the blocks of one service, or a list of services
    ```yaml refused                 `resilmesh check` must refuse it
    ```console                      each `$ command` is run; the lines below it are its output, `...` stands for anything
    ```console exit=1               the same, where a command is expected to end with 1
    ```json                         parsed
    ```text, ```mermaid             shown, not run

Any host but 127.0.0.1 leads to the service of ``example_service.py``. A few commands are not carried out but checked: ``make TARGET``
(the target exists), ``pip install`` (the extras exist), ``resilmesh compare`` (its options exist); see ``commands.py``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import commands  # noqa: E402  # beside this file, which is run as a program
import example_service  # noqa: E402

SHOWN_ONLY = frozenset({"text", "mermaid"})
FENCE = re.compile(r"(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<info>.*)")
TITLE = re.compile(r'title="([\w./-]+)"')


class Wrong(Exception):
    """A block that does not do what its page says."""


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. ``line`` is that of its first line of text, from 1."""

    line: int
    info: str
    text: str

    @property
    def language(self) -> str:
        return self.info.split(maxsplit=1)[0] if self.info else ""

    @property
    def title(self) -> str | None:
        found = TITLE.search(self.info)
        return found[1] if found else None

    @property
    def words(self) -> list[str]:
        return self.info.split()[1:]


def blocks(markdown: str) -> Iterator[Block]:
    """The fenced blocks of a page."""
    lines = iter(enumerate(markdown.splitlines(), 1))
    for number, line in lines:
        opening = FENCE.fullmatch(line)
        if not opening:
            continue
        body = []
        for _, inner in lines:
            if inner.strip().startswith(opening["fence"]) and not inner.strip().strip(opening["fence"][0]):
                break
            body.append(inner.removeprefix(opening["indent"]))
        else:
            raise Wrong(f"line {number}: a fence that is never closed")
        yield Block(number + 1, opening["info"].strip(), "\n".join(body) + "\n")


class Page:
    """What the blocks of one page share: a directory, a namespace, the name of the page."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name, self.directory = name, directory
        self.namespace: dict[str, Any] = {"__name__": "__main__"}

    def run(self, block: Block) -> None:
        if block.title:
            path = self.directory / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)
        match block.language:
            case "python" if not block.title:
                # Blank lines before the text: a traceback then gives the line of the page.
                exec(compile("\n" * (block.line - 1) + block.text, self.name, "exec"), self.namespace)
            case "python":
                compile(block.text, block.title, "exec")
            case "yaml":
                check_policy(block, self.directory)
            case "console":
                run_console(block, self.directory)
            case "json":
                json.loads(block.text)
            case language if language not in SHOWN_ONLY:
                raise Wrong(f"a block of {language or 'no language'!r}: see the list at the top of tests/docs/page.py")


def check_policy(block: Block, directory: Path) -> None:
    """``resilmesh check`` on a policy, or on a part of one put where it belongs."""
    text = block.text
    if not re.search(r"^apiVersion:", text, re.MULTILINE):
        if re.search(r"^(services|defaults|mesh|inbound):", text, re.MULTILINE):
            text = "apiVersion: resilmesh/v1\n" + text
        else:
            inner = "".join(f"  {line}\n" if line else "\n" for line in text.splitlines())
            text = "apiVersion: resilmesh/v1\nservices:\n- name: example\n  hosts: [example.internal]\n" + inner
        if "services:" not in text:
            text += "services: []\n"
    path = directory / (block.title or f"line-{block.line}.yaml")
    path.write_text(text)
    program = [sys.executable, "-m", "resilmesh", "check", path.name]
    done = subprocess.run(program, cwd=directory, capture_output=True, text=True, check=False)
    if (done.returncode != 0) != ("refused" in block.words):
        raise Wrong(f"resilmesh check ended with {done.returncode}:\n{done.stdout}{done.stderr}")


def run_console(block: Block, directory: Path) -> None:
    """Each command, and what it prints."""
    exits = [word.removeprefix("exit=") for word in block.words if word.startswith("exit=")]
    allowed = {0, *map(int, exits)}
    for command, shown in console_commands(block.text):
        if commands.checked_only(command):
            continue
        done = subprocess.run(
            ["bash", "-c", command], cwd=directory, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, check=False, timeout=120,
        )
        if done.returncode not in allowed:
            raise Wrong(f"$ {command}\nended with {done.returncode}:\n{done.stdout}")
        if shown.strip() and not same(shown, done.stdout):
            raise Wrong(f"$ {command}\nprinted\n{done.stdout}\nwhere the page shows\n{shown}")


def console_commands(text: str) -> Iterator[tuple[str, str]]:
    """Every ``$ command`` with the output shown below it. A command that ends in a backslash goes on in the next line."""
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        taken = 1
        while lines[taken - 1].endswith("\\") and taken < len(lines):
            taken += 1
        yield "\n".join(lines[:taken]), "\n".join(lines[taken:])


def same(shown: str, printed: str) -> bool:
    """Whether the output is the one shown. A line ``...`` stands for any lines, ``...`` in a line for any text."""
    pattern = ""
    for line in shown.strip("\n").splitlines():
        if line.strip() == "...":
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*?".join(re.escape(piece.rstrip()) for piece in line.split("...")) + r"[ ]*\n"
    return re.fullmatch(pattern, printed.strip("\n") + "\n") is not None


def environment() -> dict[str, str]:
    """The commands of a page find this environment's programs, and the example service."""
    here = str(Path(sys.executable).parent)
    path = os.pathsep.join(filter(None, [str(HERE / "startup"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PATH": here + os.pathsep + os.environ["PATH"], "PYTHONPATH": path, "COLUMNS": "100", "NO_COLOR": "1"}


def main() -> int:
    """Run one page; say where it goes wrong."""
    path = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as directory, example_service.running():
        os.chdir(directory)
        page = Page(str(path), Path(directory))
        for block in blocks(path.read_text()):
            try:
                page.run(block)
            except Exception as error:
                reason = str(error) if isinstance(error, Wrong) else traceback.format_exc()
                print(f"{path.name}:{block.line}: {reason}", file=sys.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
