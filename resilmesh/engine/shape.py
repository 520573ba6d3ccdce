"""What a policy changes on the way: the headers of request and response, and the path and host of the request.

Pure: lists in, lists out, nothing in place. A call is shaped once, and its retries send the same.

    headers   remove, then set, then add, as in Envoy; a value is sent as it is written, as UTF-8
    path      what the route's path condition matched is replaced: all of an exact path or a regex, the prefix of a prefix,
              the first slash where there is no condition; or every find of a regular expression. The query stays
    host      the Host header. The connection goes where it would have gone, and TLS proves the host that the caller wrote
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from resilmesh.engine.match import Headers, Predicate, bytewise, condition
from resilmesh.policy.regex import compile_regex

if TYPE_CHECKING:
    from resilmesh.policy.model import HeaderOperations, PathRegexRewrite
    from resilmesh.policy.model import Rewrite as RewriteBlock
    from resilmesh.policy.resolve import Effective

#: Header names and values, as they are sent.
Raw = Sequence[tuple[bytes, bytes]]
#: What a path may hold as it is. A client refuses the others, or sends them escaped.
_URL_CHARACTERS = frozenset(map(chr, range(0x21, 0x7F))).difference('"#<>`{}')


class HeaderEdit:
    """The changes to the headers of one direction."""

    __slots__ = ("_dropped", "_put")

    def __init__(self, operations: HeaderOperations) -> None:
        replaced = operations.set or {}
        self._dropped = frozenset(name.encode() for name in (*(operations.remove or ()), *replaced))
        self._put = [(name.encode(), value.encode()) for each in (replaced, operations.add or {}) for name, value in each.items()]

    def __call__(self, headers: Raw) -> list[tuple[bytes, bytes]]:
        """The headers as they go on."""
        dropped = self._dropped
        return [pair for pair in headers if pair[0].lower() not in dropped] + self._put


class PathRewrite:
    """Another path in place of what a route's conditions matched. ``cases``: a condition and how much it matched (``None``: all)."""

    __slots__ = ("_by", "_cases")

    def __init__(self, by: str, cases: Sequence[tuple[Predicate | None, int | None]]) -> None:
        self._by = _sendable(bytewise(by))
        self._cases = tuple(cases)

    def __call__(self, method: str, target: str, headers: Headers) -> str:
        """The target, path and query, as it goes on."""
        path, mark, query = target.partition("?")
        for holds, length in self._cases:
            if holds is None or holds(method, path, query, headers):
                return self._by + ("" if length is None else path[length:]) + mark + query
        return target


class RegexRewrite:
    """Another text in place of every find in the path."""

    __slots__ = ("_parts", "_pattern")

    def __init__(self, block: PathRegexRewrite) -> None:
        self._pattern = compile_regex(bytewise(block.match))
        #: Texts, and numbers of groups.
        self._parts = [
            part if part[0] != "\\" else "\\" if part[1] == "\\" else int(part[1])
            for part in re.split(r"(\\[0-9\\])", bytewise(block.rewrite)) if part
        ]

    def __call__(self, method: str, target: str, headers: Headers) -> str:
        """The target, path and query, as it goes on."""
        path, mark, query = target.partition("?")
        found = _sendable(self._replaced(path))
        return (found if found.startswith("/") else "/" + found) + mark + query

    def _replaced(self, path: str) -> str:
        # As RE2's GlobalReplace, which Envoy uses: Python's `sub` also finds the empty text right behind another find.
        pieces: list[str] = []
        end = -1
        for match in self._pattern.finditer(path):
            if match.end() > end:
                pieces += path[max(end, 0):match.start()], self._expand(match)
                end = match.end()
        return "".join(pieces) + path[max(end, 0):]

    def _expand(self, match: re.Match[str]) -> str:
        return "".join(part if isinstance(part, str) else match[part] or "" for part in self._parts)


class Shape:
    """Everything that one plan changes; ``None`` for what it does not."""

    __slots__ = ("host", "request", "response", "target")

    def __init__(
        self, request: HeaderEdit | None = None, response: HeaderEdit | None = None,
        target: Callable[[str, str, Headers], str] | None = None, host: str | None = None,
    ) -> None:
        self.request = request
        self.response = response
        self.target = target
        self.host = host


def shape(blocks: Effective) -> Shape | None:
    """What the blocks of a route change; ``None``: nothing."""
    headers, rewrite = blocks.headers, blocks.rewrite
    if headers is None and rewrite is None:
        return None
    request, response = (None, None) if headers is None else (headers.request, headers.response)
    return Shape(
        request=None if request is None else HeaderEdit(request),
        response=None if response is None else HeaderEdit(response),
        target=None if rewrite is None else _target(blocks, rewrite),
        host=None if rewrite is None else rewrite.host,
    )


def _target(blocks: Effective, rewrite: RewriteBlock) -> PathRewrite | RegexRewrite | None:
    if rewrite.path_regex is not None:
        return RegexRewrite(rewrite.path_regex)
    if rewrite.path is None:
        return None
    matches = None if blocks.route is None else blocks.route.match
    if matches is None:
        return PathRewrite(rewrite.path, [(None, 1)])
    cases: list[tuple[Predicate | None, int | None]] = []
    for match in matches:
        length = 1 if match.path is None else None if match.path.prefix is None else len(bytewise(match.path.prefix))
        cases.append((condition(match), length))
    return PathRewrite(rewrite.path, cases)


def _sendable(path: str) -> str:
    """A path, a character for each byte, in the characters that may be sent."""
    return path if _URL_CHARACTERS.issuperset(path) else quote(path.encode("latin-1"), safe="".join(_URL_CHARACTERS))


def shadow(host: str) -> str:
    """The Host of a mirrored copy: ``-shadow`` behind the name, as in Envoy."""
    name, colon, port = host.rpartition(":")
    if colon and port.isdigit() and (":" not in name or name.endswith("]")):
        return f"{name}-shadow:{port}"
    return f"{host}-shadow"
