"""What applies to a call, as data: in the order of decisions, each value with its unit and the place where it was written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from resilmesh import Mesh, UnknownService
from resilmesh.describe import ORDER
from resilmesh.policy.resolve import CALL_BLOCKS, ROUTE_BLOCKS, SERVICE_BLOCKS
from resilmesh.testing import ManualClock

POLICY = """\
apiVersion: resilmesh/v1
defaults:
  timeout: 3s
services:
- name: inventory
  hosts: [inventory.prod.svc, "*.inventory"]
  endpoints: [{address: "10.0.0.1:80"}]
  circuitBreaker: {failureRateThreshold: 25}
  routes:
  - name: write
    match: [{method: POST}]
    mode: OBSERVE
  - name: read
    match: [{method: GET, path: {prefix: /v1}}]
    retries: {maxRetries: 2, retryOn: [5xx, 409], perTryTimeout: 400ms}
    fault: {abort: {httpStatus: 503, percent: 0.5}, scope: ATTEMPT}
- name: bare
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Mesh:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return Mesh.from_file(path, reload_interval=None, clock=ManualClock(), seed=1)


def test_every_value_has_its_unit_and_its_place(mesh: Mesh, tmp_path: Path) -> None:
    plan = mesh.describe("inventory", route="read")
    assert (plan.service, plan.route) == ("inventory", "read")
    assert plan["timeout"] == "3s"
    assert plan["retries.retryOn"] == ["5xx", 409]
    assert plan["circuitBreaker.failureRateThreshold"] == 25
    assert "rateLimit" not in plan.values
    file = tmp_path / "policy.yaml"
    assert plan.sources["timeout"] == f"{file}:3:12"
    assert plan.sources["retries.perTryTimeout"] == f"{file}:15:66"
    assert plan.sources["retries.backoff.base"] == "built-in default"
    assert plan.sources["retries.backoff.max"] == "ten times backoff.base"
    units = {value.name: value.unit for decision in plan.decisions for value in decision.values}
    assert (units["circuitBreaker.failureRateThreshold"], units["timeout"]) == ("percent", "duration")


def test_the_decisions_are_in_their_order(mesh: Mesh) -> None:
    assert [each.name for each in mesh.describe("inventory", route="read").decisions] == [
        "mode", "local replies", "deadline", "headers, rewrite", "circuit breaker", "endpoint", "fault, scope ATTEMPT", "retry?",
    ]
    assert [each.name for each in mesh.describe("bare").decisions] == ["mode", "local replies", "deadline", "headers, rewrite", "endpoint"]


def test_the_order_is_the_one_that_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/explanation/order.md").read_text()
    listed = page.partition("```text\n")[2].partition("```")[0].splitlines()
    documented = [line[16:37].strip() for line in listed]
    places = [documented.index(name) for name in ORDER if name in documented]
    assert places == sorted(places)
    assert [name for name in ORDER if name not in documented] == ["local replies"]


def test_every_block_of_the_model_belongs_to_a_decision() -> None:
    from resilmesh.policy.model import Route, Service

    placed = {key for keys in ORDER.values() for key in keys} | {"fault"}
    for name in (*CALL_BLOCKS, *SERVICE_BLOCKS, *ROUTE_BLOCKS):
        level: Any = Service if name in Service.model_fields else Route
        assert (level.model_fields[name].alias or name) in placed


def test_plans_compare_wherever_they_were_written(mesh: Mesh) -> None:
    moved = Mesh.from_text("# a line more\n" + POLICY)
    here, there = mesh.describe("inventory", route="read"), moved.describe("inventory", route="read")
    assert here.values == there.values
    assert here != there
    assert here == mesh.describe("inventory", route="read")
    assert here.values != mesh.describe("inventory").values


def test_overrides_and_injections_are_part_of_it(mesh: Mesh) -> None:
    overridden = Mesh.from_text(POLICY, mode="OFF", local_replies="RESPOND")
    plan = overridden.describe("inventory", route="write")
    assert (plan["mode"], plan["localReplies"]) == ("OFF", "RESPOND")
    assert plan.sources["mode"] == plan.sources["localReplies"] == "an argument of the mesh, or the environment"
    before = mesh.describe("inventory", route="read")
    with mesh.inject("inventory", status=500), mesh.inject("inventory", route="read", delay=3, percent=10):
        plan = mesh.describe("inventory", route="read")
        assert plan.decisions[2].name == "fault, scope CALL"
        assert [(each.name, each.value, each.unit, each.source) for each in plan.decisions[2].values] == [
            ("inject[0].delay", 3.0, "seconds", "mesh.inject"), ("inject[0].percent", 10.0, "percent", "mesh.inject"),
            ("inject[1].status", 500, "", "mesh.inject"), ("inject[1].percent", 100.0, "percent", "mesh.inject"),
        ]
        assert "inject[1].status" not in mesh.describe("inventory", route="write").values
        assert mesh.describe("bare") == mesh.describe("bare")
    assert mesh.describe("inventory", route="read") == before


def test_a_mode_of_the_service_or_route_keeps_its_place(mesh: Mesh, tmp_path: Path) -> None:
    plan = mesh.describe("inventory", route="write")
    assert (plan["mode"], plan.sources["mode"]) == ("OBSERVE", f"{tmp_path / 'policy.yaml'}:12:11")


def test_it_follows_a_new_policy(mesh: Mesh) -> None:
    mesh.apply_text(POLICY.replace("timeout: 3s", "timeout: 9s"), "new.yaml")
    plan = mesh.describe("inventory", route="read")
    assert (plan["timeout"], plan.sources["timeout"]) == ("9s", "new.yaml:3:12")


def test_it_reads_as_a_table(mesh: Mesh) -> None:
    lines = str(mesh.describe("inventory", route="read")).splitlines()
    assert lines[0] == "inventory/read"
    assert any(re.fullmatch(r"  fault.abort.percent +0\.5 percent +.*policy.yaml:16:\d+", line) for line in lines)
    assert any(re.fullmatch(r"  timeout +3s +.*policy.yaml:3:12", line) for line in lines)


def test_a_name_that_is_not_there(mesh: Mesh) -> None:
    with pytest.raises(UnknownService, match="no service 'invntory'"):
        mesh.describe("invntory")
    with pytest.raises(UnknownService, match="no route 'raed'; it has write, read"):
        mesh.describe("inventory", route="raed")


def test_which_service_and_route_a_request_belongs_to(mesh: Mesh) -> None:
    found = mesh.describe_request("get", "http://INVENTORY.prod.svc/v1/items?page=2", headers={"X-Tenant": "acme"})
    assert (found.service, found.route, found.passed_over) == ("inventory", "read", ("write",))
    assert found.why == "its host 'inventory.prod.svc'; first to match: method GET, path prefix /v1"
    assert found.plan == mesh.describe("inventory", route="read")
    other = mesh.describe_request("GET", "https://eu.inventory:8443/health")
    assert (other.service, other.route, other.passed_over) == ("inventory", None, ("write", "read"))
    assert other.why == "its host '*.inventory'; no route matches: the service's own blocks"
    nobody = mesh.describe_request("GET", "http://nobody/")
    assert (nobody.service, nobody.plan) == (None, None)
    assert nobody.why == "no service has the host nobody: the call is made without policy (outbound: ALLOW_ANY)"
    with pytest.raises(ValueError, match="is not a URL such as"):
        mesh.describe_request("GET", "/v1/items")


def test_headers_decide_too() -> None:
    mesh = Mesh.from_text("""
apiVersion: resilmesh/v1
services:
- name: svc
  hosts: [svc]
  routes: [{name: canary, match: [{headers: {x-tenant: {exact: acme}}}]}]
""")
    assert mesh.describe_request("GET", "http://svc/", headers={"X-Tenant": "acme"}).route == "canary"
    assert mesh.describe_request("GET", "http://svc/", headers={"X-Tenant": "other"}).route is None


def test_of_very_many_services_the_places_are_not_kept() -> None:
    services = "".join(f"- {{name: s{number}, timeout: 3s}}\n" for number in range(1001))
    mesh = Mesh.from_text("apiVersion: resilmesh/v1\nservices:\n" + services)
    plan = mesh.describe("s7")
    assert (plan["timeout"], plan.sources["timeout"]) == ("3s", "<text>")
