"""Builds the documentation site: ``python -m tests.docs.build_site DIRECTORY [--serve]``; what ``make docs`` runs.

The pages are staged in DIRECTORY first, because zensical knows nothing outside ``docs/``: a file of the repository that a page links to
is copied to ``repository/`` on the site, and the link led there. The pages in ``docs/`` thus keep links that work in a checkout too.
A warning of zensical (a link to a page or to a heading that is not there) fails the build.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
#: Words after the language of a fence that tests/docs/page.py reads: not for readers, and zensical's parser does not know them.
TEST_WORDS = re.compile(r"^( *```\w+)((?: title=\S+)?)(?: (?:refused|exit=\d+))+$", re.MULTILINE)
ADDRESS = "127.0.0.1:8000"


def stage(directory: Path) -> None:
    """Lay out in ``directory`` what zensical builds: its configuration, the pages, the files of the repository that they link to."""
    shutil.rmtree(directory / "docs", ignore_errors=True)
    shutil.copytree(ROOT / "docs", directory / "docs")
    shutil.copy(ROOT / "zensical.toml", directory)
    for page in sorted((ROOT / "docs").rglob("*.md")):
        staged = directory / page.relative_to(ROOT)
        text = LINK.sub(partial(_on_the_site, page, directory), page.read_text())
        staged.write_text(TEST_WORDS.sub(r"\1\2", text))


def _on_the_site(page: Path, directory: Path, found: re.Match[str]) -> str:
    """The link as it is for a page or a picture of docs/; to the copy of any other file of the repository."""
    link = found[1]
    target = Path(os.path.normpath(page.parent / link))
    if target.is_relative_to(ROOT / "docs") or not target.is_file():
        return link
    # As plain text: its own links are meant for a checkout.
    suffix = ".txt" if target.suffix == ".md" else ""
    copy = directory / "docs" / "repository" / f"{target.relative_to(ROOT)}{suffix}"
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(target, copy)
    return os.path.relpath(copy, (directory / page.relative_to(ROOT)).parent)


def main() -> int:
    """Stage and build; the exit status is zensical's."""
    parser = argparse.ArgumentParser(description="Build the documentation site into DIRECTORY/site.")
    parser.add_argument("directory", type=Path, metavar="DIRECTORY")
    parser.add_argument("--serve", action="store_true", help=f"serve it on {ADDRESS} and build again when a staged page changes")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    stage(options.directory)
    how = ["serve", "--dev-addr", ADDRESS] if options.serve else ["build", "--strict", "--clean"]
    return subprocess.run([sys.executable, "-m", "zensical", *how], cwd=options.directory, check=False).returncode  # our own words


if __name__ == "__main__":
    sys.exit(main())
