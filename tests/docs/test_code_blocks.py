"""Every code block of the README and of docs/ does what the page says. ``page.py`` tells how a block is run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def run(page: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(HERE / "page.py"), str(page)], capture_output=True, text=True, check=False, timeout=300)


Running = dict[Path, Future[subprocess.CompletedProcess[str]]]


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[Running]:
    """The pages that were chosen, two at a time: each is a process that mostly waits."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.originalname == "test_page"]
    pool = ThreadPoolExecutor(2)
    yield {page: pool.submit(run, page) for page in (item.callspec.params["page"] for item in items)}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path, running: Running) -> None:
    done = running[page].result()
    assert done.returncode == 0, done.stderr


POLICY = """\
```yaml title="policy.yaml"
apiVersion: resilmesh/v1
services:
- name: inventory
  hosts: [inventory.internal]
  timeout: 3s
```
"""


@pytest.mark.parametrize("text", [
    POLICY + '```console\n$ resilmesh check policy.yaml\n...\n```\n',
    '```yaml\ntimeout: 3s\nrateLimit: {requests: 5, per: 1s}\n```\n',
    '```yaml\nservices:\n- name: inventory\n```\n',
    '```yaml refused\ntimeuot: 3s\n```\n',
    '```python\nseen = 1\n```\nand later\n```python\nassert seen == 1\n```\n',
    '```python title="hello.py"\nprint("hello", 42)\n```\n```console\n$ python hello.py\nhello ...\n```\n',
    '```console\n$ printf "a\\nb\\nc\\n"\na\n...\nc\n```\n',
    '```console exit=1\n$ false\n```\n',
    '```console\n$ make test\n$ pip install resilmesh[all]\n$ pip install ".[httpx]"\n```\n',
    '- in a list\n\n  ```python\n  assert True\n  ```\n',
    '```python\nimport urllib.request as r\nassert r.urlopen("http://inventory.internal/x").status == 200\n```\n',
    '```python title="c.py"\nimport urllib.request as r\nprint(r.urlopen("http://inventory.internal:81/x").status)\n```\n'
    '```console\n$ python c.py\n200\n```\n',
])
def test_a_page_that_is_right(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    done = run(tmp_path / "page.md")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("text", "complaint"), [
    ("```python\nx = 1\nassert x == 2\n```\n", "page.md\", line 3"),
    ("```console\n$ echo hello\ngoodbye\n```\n", "page.md:2: $ echo hello"),
    ("```console\n$ false\n```\n", "ended with 1"),
    ("```console\n$ make no-such-target\n```\n", "no-such-target"),
    ("```console\n$ pip install resilmesh[nothing]\n```\n", "no extra nothing"),
    ("```console\n$ pip install .[nothing]\n```\n", "no extra nothing"),
    ("```yaml\ntimeuot: 3s\n```\n", "resilmesh check ended with 1"),
    ("```yaml refused\ntimeout: 3s\n```\n", "resilmesh check ended with 0"),
    ("```json\n{\n```\n", "JSONDecodeError"),
    ("```\nx\n```\n", "no language"),
    ("```python\nx = 1\n", "never closed"),
])
def test_a_page_that_is_wrong(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(text)
    done = run(tmp_path / "page.md")
    assert done.returncode == 1
    assert complaint in done.stderr
