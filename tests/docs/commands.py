"""Commands of the pages that are checked and not carried out: they take minutes, or change the machine."""

from __future__ import annotations

import argparse
import shlex
import subprocess
from importlib.metadata import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]


class Unknown(Exception):
    """The page names something that does not exist."""


def checked_only(command: str) -> bool:
    """True for a command that is not to be carried out, after it was checked."""
    match shlex.split(command, comments=True):
        case ["make", *words]:
            subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)
        case ["pip", "install", *words]:
            for word in words:
                if not word.startswith("-"):
                    # `.[httpx]` is this checkout.
                    _exists(Requirement(f"resilmesh{word[1:]}" if word.startswith(".") else word))
        case ["resilmesh", "compare", *words]:
            from resilmesh.cli import compare

            parser = argparse.ArgumentParser(exit_on_error=False)
            compare.add(parser)
            parser.parse_args(words)
        case ["git", "clone", *_] | ["cd", *_] | ["apt-get", "install", *_]:
            pass
        case _:
            return False
    return True


def _exists(requirement: Requirement) -> None:
    if requirement.name == "resilmesh":
        missing = requirement.extras - set(metadata("resilmesh").get_all("Provides-Extra") or ())
        if missing:
            raise Unknown(f"resilmesh has no extra {', '.join(sorted(missing))}")
