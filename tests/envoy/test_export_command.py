"""``resilmesh export envoy``: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from resilmesh.cli import main
from resilmesh.envoy.process import validate

POLICY = """\
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc.test]
  endpoints: [{address: "127.0.0.1:1"}]
  connectTimeout: 1s
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def test_yaml_to_stdout(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "envoy", str(policy), "--strict"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    made = yaml.safe_load(out)
    assert made["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 15000}
    assert made["static_resources"]["listeners"][0]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 15001}
    assert validate(made) is None
    assert "&id" not in out
    assert "*id" not in out


@pytest.mark.parametrize(("words", "name"), [([], "made.yaml"), ([], "made.json"), (["--json"], "made.txt")])
def test_to_a_file(policy: Path, tmp_path: Path, words: list[str], name: str, capsys: pytest.CaptureFixture[str]) -> None:
    written = tmp_path / name
    arguments = ["export", "envoy", str(policy), "--listen", "[::1]:8000", "--admin", "127.0.0.1:9000", "-o", str(written), *words]
    assert main(arguments) == 0
    assert capsys.readouterr().out == ""
    made = json.loads(written.read_text()) if name != "made.yaml" else yaml.safe_load(written.read_text())
    assert made["static_resources"]["listeners"][0]["address"]["socket_address"] == {"address": "::1", "port_value": 8000}
    assert made["admin"]["address"]["socket_address"]["port_value"] == 9000


def test_differences_are_named_with_their_lines(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fault = "{abort: {httpStatus: 503}, scope: ATTEMPT}"
    policy.write_text(f"{POLICY}  circuitBreaker: {{consecutiveFailures: 3}}\n  routes:\n  - {{name: r, fault: {fault}}}\n")
    assert main(["export", "envoy", str(policy)]) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)
    first, second = err.splitlines()
    assert first.startswith(f"{policy}:7: circuitBreaker: library-only: Envoy has no failure-rate circuit breaker")
    assert second.startswith(f"{policy}:9: fault.scope: library-only: Envoy cannot fault an attempt")


def test_strict_refuses_any_difference(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.write_text(POLICY + "  timeout: 1s\n")
    written = tmp_path / "made.json"
    assert main(["export", "envoy", str(policy), "--strict", "-o", str(written)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{policy}:7: timeout: approximate: " in err
    assert err.splitlines()[-1] == f"{policy}: refused: 1 difference, and --strict allows none"
    assert not written.exists()


def test_a_policy_that_does_not_load(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.write_text(POLICY + "  timout: 1s\n")
    assert main(["export", "envoy", str(policy)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{policy}:7:3: RM101 ")


def test_a_policy_that_contradicts_itself(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy.write_text(POLICY + "  split: [{subset: none, weight: 1}]\n")
    assert main(["export", "envoy", str(policy)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "RM205" in err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "envoy", str(tmp_path / "missing.yaml")]) == 1
    assert "cannot read the policy" in capsys.readouterr().err


def test_a_file_that_cannot_be_written(policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "envoy", str(policy), "-o", str(tmp_path / "missing" / "made.yaml")]) == 1
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("address", ["8000", "127.0.0.1:", ":80", "127.0.0.1:65536", "127.0.0.1:http", "127.0.0.1:٣"])
def test_an_address_must_be_one(policy: Path, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", "envoy", str(policy), "--listen", address])
    assert stopped.value.code == 2
    assert "is not HOST:PORT" in capsys.readouterr().err


def test_one_address_cannot_be_both(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "envoy", str(policy), "--listen", "127.0.0.1:15000"]) == 2
    assert capsys.readouterr() == ("", "--listen and --admin are the same, 127.0.0.1:15000\n")
    assert main(["export", "envoy", str(policy), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]) == 0
