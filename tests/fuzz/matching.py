"""The target that matches requests, beside a reading of the same policy that takes nothing but its time."""

from __future__ import annotations

import json
from typing import Any

import httpx
import re2

from resilmesh.engine.match import Matcher
from resilmesh.errors import PolicyError
from resilmesh.policy.check import check
from resilmesh.policy.load import load_text
from tests.fuzz.draws import Draws

_LABELS = ("a", "b", "com", "xn--4ca", "A", "*", "1")
_PORTS = ("", ":80", ":1")
_METHODS = ("GET", "POST", "M-SEARCH", "get")
_NAMES = ("x-a", "x-b", "host", "cookie")
_PIECES = ("/", "a", "b", "/a/b", "%2F", "\u00e9", "\u65e5", ".", "=", "&", "?", ";", " ", "A", "//", "")
_EXPRESSIONS = (".*", "a+", "(a|b)*", "/[^/]+", "\u00e9?", "[[:alpha:]]", "\\d*", "")


def request(data: bytes) -> None:
    """Whose request it is, and which route applies."""
    draws = Draws(data)
    services = [_service(draws, index) for index in range(1 + draws.below(4))]
    try:
        loaded = load_text(json.dumps({"apiVersion": "resilmesh/v1", "services": services}))
    except PolicyError:
        return
    if any(each.severity == "error" for each in check(loaded)):
        return
    matcher = Matcher(loaded.policy)
    for _ in range(3):
        host, port, method = _host(draws).replace("*", "q"), draws.pick((80, 1, 443)), draws.pick(_METHODS)
        target = "/" + _words(draws).replace("?", "") + draws.pick(("", "?" + _words(draws)))
        target = target.encode("ascii", "ignore").decode()  # clients escape the rest
        headers = httpx.Headers([(draws.pick(_NAMES).encode(), _words(draws).encode()) for _ in range(draws.below(4))])
        found = matcher.find(method, host, port, target, headers)
        assert found == _slowly(loaded.policy.model_dump(by_alias=True)["services"], method, host.lower(), port, target, headers)


def _service(draws: Draws, index: int) -> Any:
    hosts = sorted({_host(draws) + draws.pick(_PORTS) for _ in range(1 + draws.below(3))})
    routes = [{"name": f"r{each}", "match": [_match(draws) for _ in range(1 + draws.below(2))]} for each in range(draws.below(4))]
    return {"name": f"s{index}", "hosts": hosts, "routes": routes}


def _host(draws: Draws) -> str:
    return ".".join(draws.pick(_LABELS) for _ in range(1 + draws.below(4)))


def _words(draws: Draws) -> str:
    return "".join(draws.pick(_PIECES) for _ in range(draws.below(5)))


def _match(draws: Draws) -> Any:
    match: dict[str, Any] = {}
    if draws.below(2):
        match["method"] = draws.pick(_METHODS[:3])
    if draws.below(2):
        match["path"] = draws.pick(({"exact": "/" + _words(draws)}, {"prefix": "/" + _words(draws)}, {"regex": draws.pick(_EXPRESSIONS)}))
    if draws.below(3) == 0:
        match["headers"] = {draws.pick(_NAMES): _string(draws)}
    if draws.below(3) == 0:
        match["query"] = {_words(draws) or "q": _string(draws)}
    if not match or draws.below(8) == 0:
        match["grpc"] = draws.pick(({"service": "a"}, {"method": "b"}, {"service": "a", "method": "b"}))
        match.pop("path", None)
        match.pop("method", None)
    return match


def _string(draws: Draws) -> Any:
    kind = draws.pick(("exact", "prefix", "suffix", "regex", "present"))
    return {kind: {"present": bool(draws.below(2)), "regex": draws.pick(_EXPRESSIONS)}.get(kind, _words(draws) or "a")}


# ---------------------------------------------------------------------------------------- the slow reading


def _slowly(services: list[Any], method: str, host: str, port: int, target: str, headers: httpx.Headers) -> tuple[int, int | None] | None:
    ranked = [
        (rank, index) for index, service in enumerate(services) for each in service["hosts"] or ()
        if (rank := _rank(each.lower(), host, port)) is not None
    ]
    if not ranked:
        return None
    service = max(ranked)[1]
    path, _, query = target.partition("?")
    for index, route in enumerate(services[service]["routes"] or ()):
        if any(_holds(match, method, path, query, headers) for match in route["match"]):
            return service, index
    return service, None


def _rank(claimed: str, host: str, port: int) -> tuple[int, ...] | None:
    """How closely ``claimed`` names the host; ``None``: not at all."""
    if claimed == "*":
        return (0,)
    name, _, number = claimed.partition(":")
    if number and int(number) != port:
        return None
    if name.startswith("*."):
        return (1, len(name), len(number)) if host.endswith(name[1:]) and host != name[1:] else None
    return (2, len(number)) if name == host else None


def _holds(match: Any, method: str, path: str, query: str, headers: httpx.Headers) -> bool:
    if match["grpc"]:
        parts = path.split("/")
        service, name = match["grpc"]["service"], match["grpc"]["method"]
        if method != "POST" or not path.startswith("/"):
            return False
        if service and not path.startswith(f"/{service}/"):
            return False
        if name and service and path != f"/{service}/{name}":
            return False
        if name and not service and not (len(parts) == 3 and parts[2] == name):
            return False
    raw = [(name.decode().lower(), value) for name, value in headers.raw]
    return (
        (not match["method"] or method in match["method"])
        and (not match["path"] or _equal(match["path"], path.encode()))
        and all(_one_of(wanted, [value for each, value in raw if each == name]) for name, wanted in (match["headers"] or {}).items())
        and all(_one_of(wanted, _of_query(query, name)) for name, wanted in (match["query"] or {}).items())
    )


def _of_query(query: str, name: str) -> list[bytes]:
    pairs = [pair.partition("=") for pair in query.split("&") if pair]
    return [value.encode() for key, _, value in pairs if key == name][:1]


def _one_of(wanted: Any, values: list[bytes]) -> bool:
    if wanted["present"] is not None:
        return bool(values) is wanted["present"]
    return any(_equal(wanted, each) for each in values)


def _equal(wanted: Any, value: bytes) -> bool:
    if wanted["exact"] is not None:
        return bool(wanted["exact"].encode() == value)
    if wanted["prefix"] is not None:
        return value.startswith(wanted["prefix"].encode())
    if wanted.get("suffix") is not None:
        return value.endswith(wanted["suffix"].encode())
    # A character for each byte, as Envoy sees it.
    return re2.fullmatch(wanted["regex"].encode().decode("latin-1"), value.decode("latin-1")) is not None
