"""The site builds without a warning, and every link in it leads to a page, a file or a heading that is there."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Page(HTMLParser):
    """What a page of the site offers (ids) and asks for (links)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif name in ("href", "src") and value:
                self.links.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("docs")
    build = [sys.executable, "-m", "tests.docs.build_site", str(directory)]
    done = subprocess.run(build, cwd=ROOT, env=os.environ | {"NO_COLOR": "1"}, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory / "site"


def test_every_page_is_on_the_site_and_in_the_navigation(site: Path) -> None:
    pages = {str(page.relative_to(ROOT / "docs").with_suffix(".html")) for page in (ROOT / "docs").rglob("*.md")}
    home = Page(site / "index.html")
    assert {page for page in pages if not (site / page).exists()} == set()
    assert pages - {os.path.normpath(urlsplit(link).path) for link in home.links} == set()


def test_every_link_resolves(site: Path) -> None:
    pages = {path: Page(path) for path in site.rglob("*.html")}
    broken = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are absolute, for a site at the root of a host
            continue
        for link in page.links:
            target, anchor = _target(link, path)
            if target is not None and (not target.exists() or (anchor and anchor not in pages[target].ids)):
                broken.append(f"{path.relative_to(site)}: {link}")
    assert broken == []


def _target(link: str, page: Path) -> tuple[Path | None, str]:
    """The file and the anchor that a link names; no file for one that leads elsewhere."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None, ""
    path = Path(os.path.normpath(page.parent / unquote(parts.path))) if parts.path else page
    return path / "index.html" if path.is_dir() else path, unquote(parts.fragment)


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    """A page asks no other host for scripts, styles, fonts or pictures; what it links to is the reader's choice."""
    home = (site / "index.html").read_text()
    assert "fonts.googleapis.com" not in home
    assert 'src="http' not in home


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    from tests.docs.build_site import stage

    stage(tmp_path)
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[gone](gone.md)\n")
    build = [sys.executable, "-m", "zensical", "build", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, check=False, timeout=60)
    assert done.returncode != 0
