"""Matching: whose request this is, and which route of that service applies.

Hosts, most specific first: ``host:port``, ``host`` (on any port), the longest ``*.suffix``, ``*``. Routes: the first
whose match holds. Both are decided by dictionaries and short tuples of predicates that are compiled once, so
that the cost does not grow with the number of services.

Values are compared as Envoy compares them: header names without case, values with it; the path without the query;
a regular expression (RE2) must match the whole value. Of a header that is sent several times one value must match; of
a query parameter the first value counts, as it is sent, escapes and all. Beyond ASCII bytes are compared, of which
those of the policy are UTF-8: here a character stands for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from resilmesh.policy.regex import compile_regex

if TYPE_CHECKING:
    from resilmesh.policy.model import Match, Policy, Service, StringMatch


class Headers(Protocol):
    """What a route needs of a request's headers: httpx.Headers and a plain lower-case dict both do."""

    def get(self, name: str, /) -> Any: ...


#: method, path, query, headers
Predicate = Callable[[str, str, str, Headers], bool]


class Hosts:
    """Finds the service that has a host."""

    __slots__ = ("_any", "_exact", "_suffixes")

    def __init__(self) -> None:
        self._exact: dict[str, int] = {}
        self._suffixes: dict[str, int] = {}
        self._any: int | None = None

    def add(self, host: str, index: int) -> None:
        """``host``, as a policy writes it, belongs to the service of number ``index``."""
        host = host.lower()
        host = host.replace("[", "").replace("]", "")  # clients name an IPv6 host without them
        if host == "*":
            self._any = index
        elif host.startswith("*."):
            self._suffixes[host[1:]] = index
        else:
            self._exact[host] = index

    def find(self, host: str, port: int) -> int | None:
        """Number of the service that has ``host``."""
        host = host.lower()
        exact = self._exact
        found = exact.get(f"{host}:{port}")
        if found is None:
            found = exact.get(host)
        if found is not None or not self._suffixes:
            return self._any if found is None else found
        return self._by_suffix(host, port)

    def _by_suffix(self, host: str, port: int) -> int | None:
        at = host.find(".", 1)
        while at != -1:
            for suffix in (f"{host[at:]}:{port}", host[at:]):
                if suffix in self._suffixes:
                    return self._suffixes[suffix]
            at = host.find(".", at + 1)
        return self._any

#: One match of a route: the route's number, its exact path or ``None``, its prefix, and the conditions beside method, path and prefix.
Entry = tuple[int, str | None, str, Predicate | None]


class Routes:
    """Finds the route of one service. A method has a list of its own, and nearly every condition is two comparisons in it."""

    __slots__ = ("_by_method", "_others")

    def __init__(self, service: Service) -> None:
        found = [_entry(number, match) for number, route in enumerate(service.routes or ()) for match in route.match or (None,)]
        methods = {method for _, only in found for method in only or ()}
        #: Of the methods that some condition names; and of any other.
        self._by_method = {method: tuple(entry for entry, only in found if only is None or method in only) for method in methods}
        self._others = tuple(entry for entry, only in found if only is None)

    def find(self, method: str, target: str, headers: Headers) -> int | None:
        """Number of the first route that matches; ``None``: the service's own blocks apply."""
        entries = self._by_method.get(method, self._others)
        if not entries:
            return None
        path, _, query = target.partition("?")
        for number, exact, prefix, more in entries:
            if path != exact if exact is not None else not path.startswith(prefix):
                continue
            if more is None or more(method, path, query, headers):
                return number
        return None


def _entry(number: int, match: Match | None) -> tuple[Entry, frozenset[str] | None]:
    """A match, taken apart; and the methods that it is for (``None``: all)."""
    if match is None:
        return (number, None, "", None), None
    path = match.path
    exact = None if path is None or path.exact is None else bytewise(path.exact)
    prefix = "" if path is None or path.prefix is None else bytewise(path.prefix)
    return (number, exact, prefix, _rest(match)), None if match.method is None else frozenset(match.method)


class Matcher:
    """Finds ``(service index, route index or None)`` for a request; ``None`` when no service has the host."""

    __slots__ = ("_hosts", "_routes")

    def __init__(self, policy: Policy) -> None:
        self._hosts = Hosts()
        self._routes = [Routes(service) for service in policy.services]
        for index, service in enumerate(policy.services):
            for host in service.hosts or ():
                self._hosts.add(host, index)

    def service(self, host: str, port: int) -> int | None:
        """Number of the service that has ``host``, without regard to routes."""
        return self._hosts.find(host, port)

    def find(self, method: str, host: str, port: int, target: str, headers: Headers) -> tuple[int, int | None] | None:
        """Service and route of a request. ``target`` is the path with its query, as it is sent."""
        service = self._hosts.find(host, port)
        return None if service is None else (service, self._routes[service].find(method, target, headers))


def condition(match: Match) -> Predicate:
    """Whether a request satisfies a match: all of its keys."""
    (_, exact, prefix, more), methods = _entry(0, match)

    def holds(method: str, path: str, query: str, headers: Headers) -> bool:
        if methods is not None and method not in methods:
            return False
        if path != exact if exact is not None else not path.startswith(prefix):
            return False
        return more is None or more(method, path, query, headers)

    return holds


def _rest(match: Match) -> Predicate | None:
    """What a match asks beside the method, the exact path and the prefix; ``None``: nothing."""
    conditions: list[Predicate] = []
    if match.grpc is not None:
        conditions.append(_grpc(match.grpc.service, match.grpc.method))
    if match.path is not None and match.path.regex is not None:
        on_path = comparison(match.path)
        conditions.append(lambda method, path, query, headers: on_path(path))
    for name, wanted in (match.headers or {}).items():
        conditions.append(_header(name, wanted))
    for name, wanted in (match.query or {}).items():
        conditions.append(_query(name, wanted))
    if len(conditions) < 2:
        return conditions[0] if conditions else None
    return lambda method, path, query, headers: all(each(method, path, query, headers) for each in conditions)


def _grpc(service: str | None, wanted: str | None) -> Predicate:
    if service is not None and wanted is not None:
        exact = f"/{service}/{wanted}"
        return lambda method, path, query, headers: method == "POST" and path == exact
    if service is not None:
        prefix = f"/{service}/"
        return lambda method, path, query, headers: method == "POST" and path.startswith(prefix)
    suffix = f"/{wanted}"
    return lambda method, path, query, headers: (
        method == "POST" and path.count("/") == 2 and (wanted is None or path.endswith(suffix))
    )


def _header(name: str, wanted: StringMatch) -> Predicate:
    if wanted.present is not None:
        present = wanted.present
        return lambda method, path, query, headers: (headers.get(name) is not None) is present
    matches = comparison(wanted)

    return lambda method, path, query, headers: any(map(matches, _values(headers, name)))


def _values(headers: Headers, name: str) -> Sequence[str]:
    several = getattr(headers, "get_list", None)  # httpx.Headers, whose `get` joins them
    if several is not None:
        found: Sequence[str] = several(name)
    else:
        value = headers.get(name)
        found = () if value is None else (value,)
    if all(map(str.isascii, found)):
        return found
    # httpx guesses the encoding from all headers together.
    return [bytewise(each, getattr(headers, "encoding", "utf-8")) for each in found]


def bytewise(text: str, encoding: str = "utf-8") -> str:
    """A character for each byte of ``text``."""
    return text if text.isascii() else text.encode(encoding).decode("latin-1")


def _query(name: str, wanted: StringMatch) -> Predicate:
    present = wanted.present
    matches = comparison(wanted) if present is None else None

    def holds(method: str, path: str, query: str, headers: Headers) -> bool:
        value = _first(query, name)
        if matches is None:
            return (value is not None) is present
        return value is not None and matches(value)

    return holds


def _first(query: str, name: str) -> str | None:
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if pair and key == name:
            return value
    return None


def comparison(wanted: Any) -> Callable[[str], bool]:
    """How a StringMatch or PathMatch compares a value; its ``present`` is for the caller to see to."""
    if wanted.exact is not None:
        exact = bytewise(wanted.exact)
        return lambda value: bool(value == exact)
    if wanted.prefix is not None:
        prefix = bytewise(wanted.prefix)
        return lambda value: value.startswith(prefix)
    if getattr(wanted, "suffix", None) is not None:
        suffix = bytewise(wanted.suffix)
        return lambda value: value.endswith(suffix)
    pattern = compile_regex(bytewise(wanted.regex))
    return lambda value: pattern.fullmatch(value) is not None
