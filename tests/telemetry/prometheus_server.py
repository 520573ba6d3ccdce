"""A real Prometheus: Debian's package, from PATH or unpacked below ``build``, which it is downloaded to once."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "prometheus"


def binary(name: str) -> str:
    """The path of ``prometheus`` or ``promtool``. Raises ``CalledProcessError`` where Debian's package cannot be had."""
    found = shutil.which(name)
    unpacked = KEPT / "usr" / "bin" / name
    if found is None and not unpacked.exists():
        beside = KEPT.with_suffix(".new")
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        subprocess.run(["apt-get", "download", "-qq", "prometheus"], cwd=beside, check=True, capture_output=True)
        [package] = beside.glob("prometheus_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(beside)], check=True)
        package.unlink()
        shutil.rmtree(KEPT, ignore_errors=True)
        beside.rename(KEPT)
    return found or str(unpacked)


class Prometheus:
    """The running server, and what it answers."""

    def __init__(self, url: str) -> None:
        self._url = url

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=10) as answer:
            told = json.load(answer)
        assert told["status"] == "success", told
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def value(self, expression: str) -> float:
        """The one value of a query."""
        [sample] = self.query(expression)
        return float(sample["value"][1])


@contextmanager
def prometheus(directory: Path, targets: list[str], path: str = "/metrics") -> Iterator[Prometheus]:
    """A server that scrapes ``targets`` four times a second, and is ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = directory / "prometheus.yml"
    config.write_text(json.dumps({  # which is YAML, too
        "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms", "evaluation_interval": "250ms"},
        "scrape_configs": [{"job_name": "resilmesh", "metrics_path": path, "static_configs": [{"targets": targets}]}],
    }))
    command = [
        binary("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={directory / 'data'}", f"--web.listen-address={address}",
        "--enable-feature=exemplar-storage", "--log.level=warn",
    ]
    with (directory / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        server = Prometheus(f"http://{address}")
        try:
            _until_ready(server, process, directory / "log")
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def _until_ready(server: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            if [each["health"] for each in server.get("targets")["activeTargets"]] == ["up"]:
                return
        except (OSError, AssertionError):
            pass
        time.sleep(0.05)
    raise AssertionError(f"Prometheus is not ready: {log.read_text()}")
