"""``resilmesh check``, ``explain`` and ``schema``, as the shell sees them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resilmesh.cli import main
from resilmesh.policy.schema import json_schema

TESTDATA = Path(__file__).parent / "testdata"

POLICY = """\
apiVersion: resilmesh/v1
mesh: {localReplies: RESPOND}
defaults:
  timeout: 3s
  retryBudget: {percent: 20}
services:
- name: inventory
  hosts: [inventory.svc, "*.inventory.svc", "inventory.svc:8443"]
  mode: OBSERVE
  retries: {retryOn: [5xx]}
  circuitBreaker: {slidingWindow: {size: 10}}
  rateLimit: {requests: 5}
  routes:
  - name: order
    match: {method: POST}
    retries: null
    idleTimeout: null
  - name: read
    match: [{method: GET, path: {prefix: /v1}}, {headers: {x-tenant: acme}, query: {q: {present: true}}}]
    timeout: 500ms
    rateLimit: [{requests: 7, per: 1m}]
- {name: rest, hosts: ["[::1]:8080", "*"]}
- {name: ledger}
"""


@pytest.fixture
def policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("policy.yaml").write_text(POLICY, encoding="utf-8")
    return "policy.yaml"


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["explain", "policy.yaml", *words, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    found["values"] = {each["name"]: (each["value"], each["source"]) for each in found["values"]}
    return found


# ---------------------------------------------------------------------------------------------------- check


def test_check_of_a_policy_without_mistakes(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", policy]) == 0
    assert capsys.readouterr().out == "1 file: 0 errors, 0 warnings\n"


def test_check_prints_every_mistake_of_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(TESTDATA / "invalid" / "many_at_once.yaml"), str(TESTDATA / "dangers" / "wait_without_queue.yaml"), "missing.yaml"]
    assert main(["check", *files]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{files[0]}:8:14: RM104 mode: 'on' is not known (one of ENFORCE, OBSERVE, OFF)"
    assert lines[6].startswith(f"{files[1]}:7:49: RM412 ")
    assert lines[8] == "missing.yaml: RM001 cannot read the policy: No such file or directory"
    assert lines[9:] == ["3 files: 7 errors, 2 warnings"]


def test_check_lets_warnings_pass_unless_strict(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(TESTDATA / "dangers" / "never_slow.yaml")
    assert main(["check", file]) == 0
    assert main(["check", "--strict", file]) == 1
    assert capsys.readouterr().out.count("RM409") == 2


def test_check_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(TESTDATA / "invalid" / "duplicate_host.yaml")
    assert main(["check", "--json", file]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["files"], found["errors"], found["warnings"]) == ([file], 2, 0)
    assert found["diagnostics"][0] == {
        "file": file, "line": 6, "column": 18, "code": "RM202", "severity": "error",
        "message": "host 'A.svc' belongs to service 'a' already (line 6)", "hint": "Remove it from one of the two",
    }


# -------------------------------------------------------------------------------------------------- explain


def test_explain_says_where_each_value_was_written(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = explained(capsys, "GET", "http://inventory.svc/v1/items?page=2")
    assert (found["method"], found["host"], found["port"], found["target"]) == ("GET", "inventory.svc", 80, "/v1/items?page=2")
    assert found["service"] == {"name": "inventory", "why": "its host 'inventory.svc'", "source": "policy.yaml:8:11"}
    assert found["route"] == {
        "name": "read", "source": "policy.yaml:18:11",
        "why": "first to match: method GET, path prefix /v1 | header x-tenant exact acme, query q present true",
    }
    assert found["passed_over"] == ["order"]
    values = found["values"]
    assert values["mode"] == ("OBSERVE", "policy.yaml:9:9")
    assert values["localReplies"] == ("RESPOND", "policy.yaml:2:22")
    assert values["timeout"] == ("500ms", "policy.yaml:20:14")
    assert values["idleTimeout"] == (None, "not set")
    assert values["retries.retryOn"] == (["5xx"], "policy.yaml:10:13")
    assert values["retries.maxRetries"] == (1, "built-in default")
    assert values["retries.backoff.base"] == ("25ms", "built-in default")
    assert values["retries.backoff.max"] == ("250ms", "ten times backoff.base")
    assert values["retryBudget.percent"] == (20, "policy.yaml:5:26")
    assert values["retryBudget.ttl"] == ("10s", "built-in default")
    assert values["circuitBreaker.minimumNumberOfCalls"] == (10, "never more than the window's size")
    assert values["rateLimit[0].requests"] == (7, "policy.yaml:21:28")
    assert values["rateLimit[0].burst"] == (7, "as many as requests")
    assert values["rateLimit[0].scope"] == ("ROUTE", "it stands on the route")
    assert values["loadBalancer.policy"] == ("ROUND_ROBIN", "built-in default")
    assert values["outlierDetection"] == (None, "not set")


def test_explain_shows_what_null_unset(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = explained(capsys, "post", "http://inventory.svc/")
    assert found["route"]["name"] == "order"
    assert found["values"]["retries"] == (None, "policy.yaml:16:14")
    assert found["values"]["rateLimit[0].scope"] == ("SERVICE", "it stands above the routes")


@pytest.mark.parametrize(("url", "host"), [
    ("https://inventory.svc:8443/", (2, "inventory.svc:8443")), ("http://INVENTORY.svc:99", (0, "inventory.svc")),
    ("http://a.b.inventory.svc/", (1, "*.inventory.svc")),
])
def test_explain_names_the_host_that_matched(policy: str, capsys: pytest.CaptureFixture[str], url: str, host: tuple[int, str]) -> None:
    found = explained(capsys, "PUT", url)
    assert found["service"]["why"] == f"its host {host[1]!r}"
    assert (found["route"], found["passed_over"]) == (None, ["order", "read"])


def test_explain_of_the_rest(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explained(capsys, "GET", "http://[::1]:8080/")["service"] == {
        "name": "rest", "why": "its host '[::1]:8080'", "source": "policy.yaml:22:24",
    }
    assert explained(capsys, "GET", "http://elsewhere/")["service"]["why"] == "its host '*'"


def test_explain_matches_headers(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("PUT", "http://inventory.svc/?q=1")
    assert explained(capsys, *words)["route"] is None
    assert explained(capsys, *words, "--header", "X-Tenant=acme")["route"]["name"] == "read"


def test_explain_in_words(policy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", policy, "GET", "http://inventory.svc/v1"]) == 0
    lines = [line.split(None, 2) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["service", "inventory", "policy.yaml:8:11  its host 'inventory.svc'"]
    assert lines[1][:2] == ["route", "read"]
    assert ["timeout", "500ms", "policy.yaml:20:14"] in lines
    assert ["idleTimeout", "-", "not set"] in lines
    assert main(["explain", policy, "PUT", "http://inventory.svc/v1"]) == 0
    assert "no route matches: the service's own blocks" in capsys.readouterr().out


@pytest.mark.parametrize(("outbound", "fate"), [("ALLOW_ANY", "is made without policy"), ("REGISTRY_ONLY", "is refused")])
def test_explain_of_a_host_that_no_service_has(tmp_path: Path, capsys: pytest.CaptureFixture[str], outbound: str, fate: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(f"apiVersion: resilmesh/v1\nmesh: {{outbound: {outbound}}}\n", encoding="utf-8")
    assert main(["explain", str(path), "GET", "http://a.svc/"]) == 0
    assert capsys.readouterr().out == f"no service has the host a.svc: the call {fate} (outbound: {outbound})\n"


def test_explain_refuses_a_policy_that_contradicts_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for name, code in (("duplicate_host", "RM202"), ("unknown_key", "RM101"), ("match_with_two_keys", "RM208")):
        assert main(["explain", str(TESTDATA / "invalid" / f"{name}.yaml"), "GET", "http://a.svc/"]) == 1
        output = capsys.readouterr()
        assert (output.out, code in output.err) == ("", True)


@pytest.mark.parametrize("words", [
    ["GET", "a.svc/x"], ["GET", "http://"], ["GET", "http://a:99999/"], ["GET", "http://a/", "--header", "x"],
])
def test_explain_refuses_words_that_mean_nothing(policy: str, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["explain", policy, *words])
    assert stopped.value.code == 2
    assert "usage: resilmesh explain" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- schema


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
    assert main(["schema", "--reference"]) == 0
    assert "# The policy file" in capsys.readouterr().out
    assert main(["schema", "--diagnostics"]) == 0
    assert "# Diagnostics" in capsys.readouterr().out
