"""Whether earlier routes match every request that a later one does.

Sound, not complete: "covered" is never said of a route that some request could reach, but a route that only
several earlier ones cover together is not found, nor are most relations between two regular expressions.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from resilmesh.policy.document import shorten
from resilmesh.policy.matching import GrpcMatch, Match, PathMatch, StringMatch
from resilmesh.policy.regex import compile_regex

#: So that a service with very many routes of one path is judged in bounded time.
_MOST_CANDIDATES = 256


class Earlier:
    """The matches of the routes so far, found by their path, so that a thousand routes take no million comparisons."""

    def __init__(self) -> None:
        #: Number of the route, its name, and one of its matches.
        self._others: list[tuple[int, str, Match]] = []
        self._exact: dict[str, list[tuple[int, str, Match]]] = {}
        self._prefix: dict[str, list[tuple[int, str, Match]]] = {}
        self._lengths: set[int] = set()

    def add(self, number: int, route: str, matches: list[Match] | None) -> None:
        """Remember a route; ``None``: it matches every request."""
        for match in matches or [Match()]:
            path, entry = match.path, (number, route, match)
            if path is not None and path.exact is not None:
                self._exact.setdefault(path.exact, []).append(entry)
            elif path is not None and path.prefix is not None:
                self._prefix.setdefault(path.prefix, []).append(entry)
                self._lengths.add(len(path.prefix))
            else:
                self._others.append(entry)

    def covering(self, matches: list[Match] | None) -> list[str]:
        """Names of earlier routes that match everything ``matches`` do; empty when some request may get past them."""
        routes: dict[str, None] = {}
        for match in matches or [Match()]:
            candidates = islice(self._candidates(match), _MOST_CANDIDATES)
            by = [(number, route) for number, route, wider in candidates if covers(wider, match)]
            if not by:
                return []
            routes[min(by)[1]] = None
        return list(routes)

    def _candidates(self, match: Match) -> Iterator[tuple[int, str, Match]]:
        yield from self._others
        start, whole = _path_start(match)
        if whole:
            yield from self._exact.get(start, ())
        for length in self._lengths:
            if length <= len(start):
                yield from self._prefix.get(start[:length], ())


def covers(wider: Match, match: Match) -> bool:
    """Whether every request that ``match`` matches is matched by ``wider`` too."""
    return (
        _methods_cover(wider, match)
        and (wider.path is None or _path_covers(wider.path, match))
        and (wider.grpc is None or _grpc_covers(wider.grpc, match.grpc))
        and _values_cover(wider.headers, match.headers)
        and _values_cover(wider.query, match.query)
    )


def impossible(match: Match) -> str:
    """Why no request can satisfy ``match``; empty when one may."""
    path = match.path
    for text in (path.exact, path.prefix) if path is not None else ():
        if text is not None and ("?" in text or "#" in text):
            return "a path is compared without its query and fragment, and this one has them"
    if match.grpc is None:
        return ""
    if match.method is not None and "POST" not in match.method:
        return "gRPC calls are POST, and 'method' does not have it"
    if path is not None and path.exact is not None and not _is_grpc_path(path.exact, match.grpc):
        return f"no gRPC call that 'grpc' describes has the path {shorten(path.exact)!r}"
    start = _grpc_start(match.grpc)
    if path is not None and path.prefix is not None and not (start.startswith(path.prefix) or path.prefix.startswith(start)):
        return f"no gRPC call that 'grpc' describes has a path that begins with {shorten(path.prefix)!r}"
    return ""


def _methods_cover(wider: Match, match: Match) -> bool:
    if wider.method is None:
        return True
    if match.grpc is not None:
        return "POST" in wider.method
    return match.method is not None and set(match.method) <= set(wider.method)


def _path_covers(wider: PathMatch, match: Match) -> bool:
    start, whole = _path_start(match)
    if wider.exact is not None:
        return whole and start == wider.exact
    if wider.prefix is not None:
        return start.startswith(wider.prefix)
    if wider.regex is None:
        return False
    if match.path is not None and match.path.regex == wider.regex:
        return True
    return wider.regex in (".*", "/.*") or (whole and _matches(wider.regex, start))


def _path_start(match: Match) -> tuple[str, bool]:
    """What every path that ``match`` matches begins with, and whether it is the whole path."""
    if match.path is not None and match.path.exact is not None:
        return match.path.exact, True
    if match.path is not None and match.path.prefix is not None:
        return match.path.prefix, False
    if match.grpc is not None:
        return _grpc_start(match.grpc), match.grpc.service is not None and match.grpc.method is not None
    return "/", False  # bar `OPTIONS *`, which no client's URL can ask for


def _grpc_start(grpc: GrpcMatch) -> str:
    return "/" if grpc.service is None else f"/{grpc.service}/{grpc.method or ''}"


def _is_grpc_path(path: str, grpc: GrpcMatch) -> bool:
    parts = path.split("/")
    return len(parts) == 3 and grpc.service in (None, parts[1]) and grpc.method in (None, parts[2])


def _grpc_covers(wider: GrpcMatch, grpc: GrpcMatch | None) -> bool:
    return grpc is not None and wider.service in (None, grpc.service) and wider.method in (None, grpc.method)


def _values_cover(wider: dict[str, StringMatch] | None, narrower: dict[str, StringMatch] | None) -> bool:
    have = narrower or {}
    return all(key in have and _value_covers(wanted, have[key]) for key, wanted in (wider or {}).items())


def _value_covers(wider: StringMatch, match: StringMatch) -> bool:
    if wider.present is not None or match.present is not None:
        # Every comparison but `present: false` asks for a value.
        return wider.present is not None and wider.present is (match.present is not False)
    if match.exact is not None:
        text = match.exact
        return (
            wider.exact == text
            or (wider.prefix is not None and text.startswith(wider.prefix))
            or (wider.suffix is not None and text.endswith(wider.suffix))
            or (wider.regex is not None and _matches(wider.regex, text))
        )
    if wider.prefix is not None:
        return match.prefix is not None and match.prefix.startswith(wider.prefix)
    if wider.suffix is not None:
        return match.suffix is not None and match.suffix.endswith(wider.suffix)
    return wider.regex is not None and wider.regex == match.regex


def _matches(regex: str, text: str) -> bool:
    try:
        return compile_regex(regex).fullmatch(text) is not None
    except ValueError:
        return False  # reported on its own
