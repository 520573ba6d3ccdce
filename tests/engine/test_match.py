"""Whose request it is, and which route applies."""

from __future__ import annotations

import pytest

from resilmesh import Mesh
from resilmesh.errors import Forbidden


def services(**hosts):
    body = "".join(f"- {{name: {name}, hosts: {list(patterns)}}}\n" for name, patterns in hosts.items())
    return Mesh.from_text("apiVersion: resilmesh/v1\nservices:\n" + body)


def owner(mesh, host, port=80):
    plan = mesh.route_http("GET", host, port, "/", {})
    return plan and plan.service


EVERYTHING = services(
    exact=["a.example"], ported=["a.example:8080"], narrow=["*.b.example"], wide=["*.example"], narrow9=["*.c.example:9000"], rest=["*"],
)


@pytest.mark.parametrize(("host", "port", "name"), [
    ("a.example", 80, "exact"), ("a.example", 8080, "ported"), ("A.Example", 8080, "ported"), ("x.a.example", 80, "wide"),
    ("x.b.example", 80, "narrow"), ("x.y.b.example", 80, "narrow"), ("b.example", 80, "wide"), ("example", 80, "rest"),
    ("notexample", 80, "rest"), ("x.c.example", 9000, "narrow9"), ("x.c.example", 9001, "wide"), ("other.org", 80, "rest"),
])
def test_the_most_specific_host_wins(host, port, name):
    assert owner(EVERYTHING, host, port) == name


def test_the_order_of_services_does_not_matter():
    mesh = services(rest=["*"], wide=["*.example"], narrow=["*.b.example"], exact=["x.b.example"])
    assert [owner(mesh, host) for host in ("x.b.example", "y.b.example", "y.example", "org")] == ["exact", "narrow", "wide", "rest"]


@pytest.mark.parametrize(("host", "port", "name"), [
    ("::1", 8080, "ported"), ("::1", 80, "any"), ("2001:DB8::1", 80, "db8"), ("::2", 80, None),
])
def test_an_ipv6_host_is_found_as_clients_name_it(host, port, name):
    assert owner(services(ported=["[::1]:8080"], any=["[::1]"], db8=["[2001:db8::1]"]), host, port) == name


@pytest.mark.parametrize(("outbound", "forbidden"), [("ALLOW_ANY", False), ("REGISTRY_ONLY", True)])
def test_a_host_that_nobody_has(outbound, forbidden):
    mesh = Mesh.from_text(f"apiVersion: resilmesh/v1\nmesh: {{outbound: {outbound}}}\nservices: [{{name: s, hosts: [a]}}]\n")
    if forbidden:
        with pytest.raises(Forbidden):
            owner(mesh, "b")
    else:
        assert owner(mesh, "b") is None
    assert owner(mesh, "a") == "s"


def routed(matches):
    rules = "".join(f"  - {{name: r{number}, match: {match}}}\n" for number, match in enumerate(matches))
    return Mesh.from_text(f"apiVersion: resilmesh/v1\nservices:\n- name: s\n  hosts: [h]\n  routes:\n{rules}")


def route(mesh, method="GET", target="/", **headers):
    return mesh.route_http(method, "h", 80, target, {name.replace("_", "-"): value for name, value in headers.items()}).route


@pytest.mark.parametrize(("match", "hits", "misses"), [
    ("{method: GET}", ["GET /"], ["POST /"]),
    ("{method: [PUT, POST]}", ["POST /", "PUT /x"], ["GET /"]),
    ("{path: /a}", ["GET /a", "GET /a?x=1"], ["GET /a/", "GET /A", "GET /ab"]),
    ("{path: {prefix: /v1/res}}", ["GET /v1/res", "GET /v1/reservations?x", "GET /v1/res/1"], ["GET /v1/re", "GET /v2?p=/v1/res"]),
    ("{path: {regex: '/v[0-9]+'}}", ["GET /v1", "GET /v12?x=1"], ["GET /v12x", "GET /x/v1"]),
    ("{query: {q: a}}", ["GET /?q=a", "GET /?x=1&q=a&q=b"], ["GET /", "GET /?q=b&q=a", "GET /?q=A", "GET /?Q=a"]),
    ("{query: {q: {present: true}}}", ["GET /?q", "GET /?q=&x"], ["GET /", "GET /?qq"]),
    ("{query: {q: {present: false}}}", ["GET /", "GET /?qq"], ["GET /?q"]),
    ("{query: {q: 'a%20b'}}", ["GET /?q=a%20b"], ["GET /?q=a+b"]),  # as it is sent: Envoy decodes nothing
    ("{grpc: {service: shop.Inventory}}", ["POST /shop.Inventory/Reserve"],
     ["GET /shop.Inventory/Reserve", "POST /shop.InventoryX/Reserve"]),
    ("{grpc: {service: shop.Inventory, method: Reserve}}", ["POST /shop.Inventory/Reserve"], ["POST /shop.Inventory/Reserves"]),
    ("{grpc: {method: Reserve}}", ["POST /shop.Inventory/Reserve"], ["POST /a/b/Reserve", "POST /Reserve", "POST /s/XReserve"]),
    ("{method: GET, path: {prefix: /a}, query: {q: b}}", ["GET /a?q=b"], ["POST /a?q=b", "GET /b?q=b", "GET /a?q=c"]),
    ("[{method: GET, path: /a}, {method: POST, path: /b}]", ["GET /a", "POST /b"], ["GET /b", "POST /a"]),
])
def test_a_match_is_all_of_its_conditions(match, hits, misses):
    mesh = routed([match])
    assert [route(mesh, *hit.split(" ")) for hit in hits] == ["r0"] * len(hits)
    assert [route(mesh, *miss.split(" ")) for miss in misses] == [None] * len(misses)


@pytest.mark.parametrize(("wanted", "value", "holds"), [
    ("blue", "blue", True), ("blue", "Blue", False), ("blue", None, False), ("{prefix: bl}", "blue", True), ("{suffix: ue}", "blue", True),
    ("{suffix: bl}", "blue", False), ("{regex: 'b.*e'}", "blue", True), ("{regex: 'b.'}", "blue", False), ("{present: true}", "", True),
    ("{present: true}", None, False), ("{present: false}", None, True), ("{present: false}", "x", False), ("''", "", True),
])
def test_headers(wanted, value, holds):
    headers = {} if value is None else {"x_tenant": value}
    assert route(routed([f"{{headers: {{x-tenant: {wanted}}}}}"]), **headers) == ("r0" if holds else None)


def test_the_first_route_that_matches_wins():
    mesh = routed(["{path: /a}", "{path: {prefix: /}}", "{path: /a}"])
    assert [route(mesh, "GET", path) for path in ("/a", "/b")] == ["r0", "r1"]


def test_a_route_without_match_takes_everything():
    mesh = Mesh.from_text("apiVersion: resilmesh/v1\nservices:\n- {name: s, hosts: [h], routes: [{name: all}, {name: never}]}\n")
    assert route(mesh, "DELETE", "/any?x") == "all"
