"""No process is left behind, whatever happens to the comparison."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resilmesh.compare.children import Child, ChildFailed
from resilmesh.compare.service import Script
from resilmesh.compare.testbed import TestBed


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A child of a killed parent may stay a zombie where nobody reaps orphans; it runs no more.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def gone_within(pids: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_services_end_with_the_block() -> None:
    with TestBed([Script("a"), Script("b")]) as bed:
        assert all(alive(pid) for pid in bed.pids)
    assert gone_within(bed.pids, 0)


def test_services_end_when_the_block_raises() -> None:
    with pytest.raises(KeyboardInterrupt), TestBed([Script("a")]) as bed:
        raise KeyboardInterrupt
    assert gone_within(bed.pids, 0)


_HOLDER = """
import sys, time
from resilmesh.compare.service import Script
from resilmesh.compare.testbed import TestBed
with TestBed([Script("a"), Script("b")]) as bed:
    print(*bed.pids, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_services_end_when_the_comparison_is_killed(death: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", _HOLDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as holder:
        assert holder.stdout is not None
        pids = [int(pid) for pid in holder.stdout.readline().split()]
        assert len(pids) == 2
        holder.send_signal(death)
    assert gone_within(pids, 5)


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise SystemExit('no such luck')")
    with pytest.raises(ChildFailed, match=r"(?s)client ended early.*no such luck"), Child(script, "client") as child:
        child.hear(10)
    assert gone_within([child.pid], 0)


def test_a_child_that_is_silent_or_deaf_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "deaf.py"
    script.write_text("import time; time.sleep(60)")
    ticks: list[int] = []
    with pytest.raises(ChildFailed, match="said nothing for 1 s"), Child(script, "client") as child:
        child.hear(0.6, tick=lambda: ticks.append(1))
    assert len(ticks) >= 2
    assert gone_within([child.pid], 0)
