"""The endurance run, in small: ``make soak`` makes a million calls."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak.books import Count
from benchmarks.soak.policy import policies
from resilmesh import Mesh

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("protocol", "calls"), [("http", 4000), ("grpc", 1200)])
def test_nothing_is_left_after_some_thousand_calls(protocol: str, calls: int) -> None:
    command = [
        sys.executable, "-m", "benchmarks.soak", "--protocol", protocol, "--calls", str(calls), "--rounds", "2", "--seed", "7", "--json",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["calls"] >= calls
    assert result["counts"]["abandoned"] > 0, "some were cancelled"
    assert sum(result["disturbances"].values()) > 10


def test_what_is_left_is_found() -> None:
    from benchmarks.soak.__main__ import _growth, _left

    clean = Count(["MainThread"], ["socket"], 0, {"Call": 1}, 1000, 2**20)
    leaky = Count(["MainThread", "left"], ["socket", "socket"], 1, {"Call": 3}, 9000, 2**26)
    assert _left(clean, clean) == []
    assert _left(clean, leaky) == [
        "threads: 1 left more than after the first round", "descriptors: 1 socket more than after the first round",
        "objects: 2 Call more than after the first round", "children: 1 at the end, 0 after the first round",
    ]
    assert _growth([clean, clean, leaky]) == ["8000 allocated blocks more each round", "63.0 MiB more over the last half"]
    assert _growth([clean, clean, clean]) == []


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_both_policies_are_accepted(number: int, protocol: str) -> None:
    assert Mesh.from_text(policies(("127.0.0.1:1", "127.0.0.1:2"), 3, protocol)[number]).snapshot()["revision"] == 1
