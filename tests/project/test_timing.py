"""Who is late once is run again; who is late each time fails, and so does whoever is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

TESTS = '''
import time
from collections import Counter
import pytest
from resilmesh import DeadlineExceeded, Mesh
from tests.timing import in_time, lasts

runs = Counter()

@pytest.fixture
def fresh(request):
    runs[request.node.name] += 1
    return [runs[request.node.name]]

def test_late_once(fresh):
    in_time(2 - fresh.pop(), 0)

def test_late_twice(fresh):
    in_time(3 - fresh.pop(), 0)

def test_late_once_by_a_limit(fresh):
    if fresh.pop() == 1:
        raise DeadlineExceeded("svc: no answer within the timeout of 1s")

@pytest.mark.anyio
async def test_late_once_in_a_coroutine(fresh, anyio_backend):
    del anyio_backend
    with lasts(0, 1 if fresh.pop() > 1 else 0):
        time.sleep(0.001)

def test_late_always(fresh):
    with lasts(0, 0.0001):
        time.sleep(0.001)

def test_early(fresh):
    with lasts(1, 2):
        pass

def test_late_and_then_wrong(fresh):
    run = fresh.pop()
    assert run != 2
    in_time(run, 0)

def test_how_often_each_ran():
    assert runs == {
        "test_late_once": 2, "test_late_twice": 3, "test_late_once_by_a_limit": 2, "test_late_once_in_a_coroutine[asyncio]": 2,
        "test_late_once_in_a_coroutine[trio]": 2, "test_late_always": 3, "test_early": 1, "test_late_and_then_wrong": 2,
    }
'''


def test_who_has_another_chance(tmp_path: Path) -> None:
    tmp_path.joinpath("test_times.py").write_text(TESTS)
    words = ["pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-rA", "--tb=no", "--rootdir", tmp_path, tmp_path]
    done = subprocess.run([sys.executable, "-m", *words], check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    outcomes = dict(reversed(line.split()[:2]) for line in done.stdout.splitlines() if line.startswith(("PASSED ", "FAILED ")))
    wrong = {name.partition("::")[2] for name, outcome in outcomes.items() if outcome == "FAILED"}
    assert wrong == {"test_late_always", "test_early", "test_late_and_then_wrong"}, done.stdout
    assert len(outcomes) == 9
