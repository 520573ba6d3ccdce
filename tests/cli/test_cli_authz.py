"""``resilmesh authz check``: the decision, the rule that it came from and where that is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resilmesh.cli import main

POLICY = """apiVersion: resilmesh/v1
inbound:
  mtls: PERMISSIVE
  authorization:
  - name: readers
    rules:
    - from: [{principals: ["shop.example/ns/prod/sa/*"]}]
      to: [{methods: [GET], paths: ["/items*"]}]
    - when: [{key: "request.headers[x-role]", values: [admin]}]
  - {name: never, action: DENY, rules: [{to: [{paths: ["*/secret"]}]}]}
  - {name: watched, action: AUDIT, rules: [{}]}
  - {name: soon, mode: OBSERVE, action: DENY, rules: [{to: [{methods: [GET]}]}]}
"""
WEB = "spiffe://shop.example/ns/prod/sa/web"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def check(policy: Path, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    status = main(["authz", "check", "--policy", str(policy), "--json", *words])
    return status, json.loads(capsys.readouterr().out)


def test_allowed(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = check(policy, capsys, "--as", WEB, "GET", "/x/../items/7")
    assert status == 0
    assert answer == {
        "allowed": True, "status": 200, "method": "GET", "path": "/items/7", "as": WEB, "policy": "readers", "rule": 0,
        "place": f"{policy}:7", "reason": "rule 0 of the ALLOW policy 'readers' matches", "audited": ["watched"],
        "shadow": {
            "allowed": False, "policy": "soon", "rule": 0, "place": f"{policy}:12", "reason": "rule 0 of the DENY policy 'soon' matches",
        },
    }


@pytest.mark.parametrize(("words", "allowed", "decided"), [
    (["GET", "/items"], False, None), (["--header", "X-Role=admin", "POST", "/other"], True, ("readers", 1)),
    (["--as", WEB, "GET", "/items/secret"], False, ("never", 0)), (["--as", WEB, "GET", "/items//%73ecret"], False, ("never", 0)),
])
def test_decisions(
    policy: Path, capsys: pytest.CaptureFixture[str], words: list[str], allowed: bool, decided: tuple[str, int] | None,
) -> None:
    status, answer = check(policy, capsys, *words)
    assert (status, answer["allowed"]) == (0 if allowed else 1, allowed)
    assert (answer["policy"], answer["rule"]) == (decided or (None, None))


def test_a_hostile_path(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, answer = check(policy, capsys, "GET", "/items/a%2fb")
    assert (status, answer["allowed"], answer["status"]) == (1, False, 400)
    assert answer["reason"] == "the path cannot be used: a slash in it is escaped"


@pytest.mark.parametrize(("words", "reason"), [
    (["get", "/items"], "the method is not in capitals"), (["--host", "a", "--header", "Host=b", "GET", "/items"], "there are two hosts"),
])
def test_what_is_read_in_two_ways(policy: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As the middlewares answer it."""
    assert main(["authz", "check", "--policy", str(policy), "--as", WEB, "--json", *words]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["status"], answer["reason"]) == (400, reason)


def test_strict_without_an_identity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("apiVersion: resilmesh/v1\ninbound: {mtls: STRICT}\n")
    status, answer = check(path, capsys, "GET", "/")
    assert (status, answer["status"], answer["reason"]) == (1, 403, "mtls is STRICT, and the caller has proved no identity")
    assert check(path, capsys, "--as", WEB, "GET", "/")[0] == 0


def test_in_words(policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["authz", "check", "--policy", str(policy), "--as", WEB, "GET", "/items"]) == 0
    assert capsys.readouterr().out == (
        f"allowed: rule 0 of the ALLOW policy 'readers' matches ({policy}:7)\n  GET /items as {WEB}\n  audited by 'watched'\n"
        f"  policies of mode OBSERVE would have denied it: rule 0 of the DENY policy 'soon' matches ({policy}:12)\n"
    )


@pytest.mark.parametrize("words", [
    ["check", "GET", "/"], ["explain", "--policy", "x", "GET", "/"], ["check", "--policy", "x", "--as", "web", "GET", "/"],
    ["check", "--policy", "x", "--as", "spiffe://shop.example", "GET", "/"], ["check", "--policy", "x", "--header", "a", "GET", "/"],
    ["check", "--policy", "x", "--source-ip", "a", "GET", "/"],
])
def test_words_that_mean_nothing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["authz", *words])
    assert caught.value.code == 2


def test_a_policy_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("apiVersion: resilmesh/v1\ninbound: {mtls: SOMETIMES}\n")
    assert main(["authz", "check", "--policy", str(path), "GET", "/"]) == 1
    assert "RM104" in capsys.readouterr().err
