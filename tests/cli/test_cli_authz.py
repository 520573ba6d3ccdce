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
    ["check", "--policy", "x", "--source-ip", "a", "GET", "/"], ["check", "--policy", "x", "", "/"], ["check", "--policy", "x", "G T", "/"],
    ["check", "--policy", "x", "--header", ":path=/", "GET", "/"], ["check", "--policy", "x", "--header", "a b=1", "GET", "/"],
    ["check", "--policy", "x", "--port", "65536", "GET", "/"], ["check", "--policy", "x", "--port", "-1", "GET", "/"],
    ["check", "--policy", "x", "--as", "", "GET", "/"], ["check", "--policy", "x", "GET"],
])
def test_words_that_mean_nothing(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["authz", *words])
    assert caught.value.code == 2


def test_a_policy_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("apiVersion: resilmesh/v1\ninbound: {mtls: SOMETIMES}\n")
    assert main(["authz", "check", "--policy", str(path), "GET", "/"]) == 2
    assert "RM104" in capsys.readouterr().err


def test_a_policy_that_is_not_there_denies_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script that expects a denial would be content with the wrong name of a file."""
    assert main(["authz", "check", "--policy", str(tmp_path / "polcy.yaml"), "--json", "GET", "/"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, "RM001" in shown.err) == ("", True)


def test_without_an_inbound_block_everybody_may_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("apiVersion: resilmesh/v1\n")
    status, answer = check(path, capsys, "DELETE", "/")
    assert (status, answer["allowed"], answer["policy"], answer["place"]) == (0, True, None, None)


@pytest.mark.parametrize(("rule", "words"), [
    ("from: [{ipBlocks: [192.0.2.0/24]}]", ["--source-ip", "192.0.2.7"]),
    ("from: [{remoteIpBlocks: [192.0.2.0/24]}]", ["--remote-ip", "192.0.2.7"]),
    ("from: [{remoteIpBlocks: [192.0.2.0/24]}]", ["--source-ip", "10.0.0.9", "--header", "X-Forwarded-For=192.0.2.7"]),
    ("from: [{principals: [shop.example/ns/prod/sa/web]}]",
     ["--source-ip", "10.0.0.9", "--header", f"X-Forwarded-Client-Cert=URI={WEB}"]),
    ("from: [{namespaces: [prod]}]", ["--as", WEB]), ("to: [{hosts: [api.example]}]", ["--host", "api.example"]),
    ("to: [{hosts: [api.example]}]", ["--header", "Host=api.example"]), ("to: [{ports: [8443]}]", ["--port", "8443"]),
    ("when: [{key: source.ip, values: [192.0.2.7]}]", ["--source-ip", "192.0.2.7"]),
    ("when: [{key: remote.ip, values: [192.0.2.7]}]", ["--remote-ip", "192.0.2.7"]),
    ("when: [{key: source.principal, values: [shop.example/ns/prod/sa/web]}]", ["--as", WEB]),
    ("when: [{key: source.namespace, values: [prod]}]", ["--as", WEB]),
    ("when: [{key: destination.ip, values: [192.0.2.9]}]", ["--destination-ip", "192.0.2.9"]),
    ("when: [{key: destination.port, values: ['8443']}]", ["--port", "8443"]),
    ("when: [{key: connection.sni, values: [api.example]}]", ["--sni", "api.example"]),
    ("when: [{key: 'request.headers[x-role]', values: [admin]}]", ["--header", "x-role=admin"]),
])
def test_whatever_a_rule_asks_about_can_be_said(tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str, words: list[str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "apiVersion: resilmesh/v1\ninbound:\n  mtls: PERMISSIVE\n  trustedProxies: [10.0.0.0/8]\n"
        f"  authorization:\n  - name: it\n    rules:\n    - {rule}\n"
    )
    assert check(path, capsys, "GET", "/")[0] == 1
    status, answer = check(path, capsys, *words, "GET", "/")
    assert (status, answer["policy"], answer["place"]) == (0, "it", f"{path}:8")


def test_what_a_stranger_says_of_the_caller_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("apiVersion: resilmesh/v1\ninbound: {mtls: STRICT, trustedProxies: [10.0.0.0/8]}\n")
    said = ["--header", f"X-Forwarded-Client-Cert=URI={WEB}", "GET", "/"]
    assert check(path, capsys, "--source-ip", "10.0.0.9", *said)[1]["as"] == WEB
    status, answer = check(path, capsys, "--source-ip", "192.0.2.7", *said)
    assert (status, answer["status"], answer["as"]) == (1, 403, None)
