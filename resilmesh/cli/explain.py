"""``resilmesh explain FILE METHOD URL``: the effective plan of a request, and where each value was written."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

from resilmesh.errors import PolicyError

if TYPE_CHECKING:
    from resilmesh.policy.load import Loaded


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words."""
    parser.add_argument("file", metavar="FILE", help="a policy, YAML or JSON")
    parser.add_argument("method", metavar="METHOD", help="such as GET")
    parser.add_argument("url", metavar="URL", type=_url, help="such as http://inventory.prod.svc/v1/items?page=2")
    parser.add_argument(
        "--header", metavar="NAME=VALUE", action="append", default=[], type=_header, help="a request header; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print the plan. 1: the policy is wrong. 0 otherwise, also when no service has the host."""
    from resilmesh.engine.match import Matcher
    from resilmesh.policy.check import check
    from resilmesh.policy.load import load_file

    try:
        loaded = load_file(options.file)
        mistakes = [each for each in check(loaded) if each.severity == "error"]
        for mistake in mistakes:
            print(mistake, file=sys.stderr)
        if mistakes:
            return 1
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 1
    host, port, target = options.url
    found = Matcher(loaded.policy).find(options.method.upper(), host, port, target, dict(options.header))
    explanation = _explanation(loaded, found, host, port)
    if options.json:
        print(json.dumps({"method": options.method.upper(), "host": host, "port": port, "target": target, **explanation}, indent=2))
    else:
        _show(explanation)
    return 0


def _explanation(loaded: Loaded, found: tuple[int, int | None] | None, host: str, port: int) -> dict[str, Any]:
    """What ``--json`` prints: service, route, why each, and the plan's values."""
    from resilmesh.describe import of_no_service, why_route, why_service
    from resilmesh.policy.explain import explain, matched_host

    if found is None:
        return {"service": None, "route": None, "outcome": of_no_service(loaded, host), "values": []}
    service_index, route_index = found
    service = loaded.policy.services[service_index]
    routes = service.routes or []
    matched = matched_host(service, host, port)
    host_path = ("services", service_index, "hosts", matched[0]) if matched is not None else ("services", service_index)
    explained: dict[str, Any] = {
        "service": {
            "name": service.name, "why": why_service(loaded, service_index, host, port), "source": _source(loaded, host_path),
        },
        "route": None,
        "passed_over": [route.name for route in routes[:route_index]],
    }
    if route_index is not None:
        route = routes[route_index]
        explained["route"] = {
            "name": route.name,
            "why": why_route(loaded, service_index, route_index),
            "source": _source(loaded, ("services", service_index, "routes", route_index, "name")),
        }
    else:
        explained["why_no_route"] = why_route(loaded, service_index, None)
    explained["values"] = [
        {"name": each.name, "value": each.value, "source": each.source} for each in explain(loaded, service_index, route_index)
    ]
    return explained


def _source(loaded: Loaded, path: tuple[str | int, ...]) -> str:
    line, column = loaded.places.line_column(path)
    return f"{loaded.source}:{line}:{column}"


def _show(explained: dict[str, Any]) -> None:
    service, route = explained["service"], explained["route"]
    if service is None:
        print(explained["outcome"])
        return
    rows = [("service", service["name"], f"{service['source']}  {service['why']}")]
    if route is None:
        rows.append(("route", "-", explained["why_no_route"]))
    else:
        rows.append(("route", route["name"], f"{route['source']}  {route['why']}"))
    if explained["passed_over"]:
        rows.append(("passed over", ", ".join(explained["passed_over"]), "they do not match"))
    for each in explained["values"]:
        value = each["value"]
        rows.append((each["name"], "-" if value is None else value if isinstance(value, str) else json.dumps(value), each["source"]))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, source in rows:
        print(f"{name:<{widths[0]}}  {value:<{min(widths[1], 40)}}  {source}")


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name.strip().lower(), value


def _url(text: str) -> tuple[str, int, str]:
    from resilmesh.describe import parse_url

    try:
        return parse_url(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
