"""The path of a request that arrives, in the one form that rules are held against and that the application gets.

    what arrives                                    what becomes of it
    a scheme and a host before it                   taken off; `*` (of OPTIONS) stays
    an escape of a letter, a digit, `-._~`          decoded; every other one stays, in capitals
    `.` and `..` segments, escaped or not           resolved
    `//`                                            one slash
    `..` above the root                             refused
    `/` or `\\` escaped, a backslash                refused: some decode it before they look at segments, others after
    NUL and other controls, escaped or not          refused
    an escaped `%` before two hexadecimal digits    refused: escaped twice
    a `%` that begins no escape                     refused
    escapes that are no UTF-8, or an overlong form  refused
    any character beyond ASCII                      refused
    `..;x`, `.;x`, `;x` as a segment                refused: a servlet takes the parameter off, and what is left climbs
    a `#`                                           refused: no client sends one

What is refused is answered 400. Case is kept: paths have it. A path in this form stays as it is when it is normalised again.
"""

from __future__ import annotations

import re

#: Escapes of them are decoded (RFC 3986, section 6.2.2.2).
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PLAIN = re.compile(r"(?:/(?!\.)[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+/?|/")
_FORBIDDEN = re.compile(r"[^\x21-\x7e]|[\\#]")
_ESCAPE = re.compile(r"%(..?)?", re.DOTALL)
_TWICE = re.compile(r"%25[0-9A-Fa-f]{2}")
_HEXADECIMAL = re.compile(r"[0-9A-Fa-f]{2}")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")


class HostilePath(ValueError):
    """A path that is understood in more than one way. Its text is the reason."""


def normalise(target: str) -> str:
    """The path of a request's target, without the query. Raises ``HostilePath``."""
    path = target.partition("?")[0]
    if _PLAIN.fullmatch(path):
        return path  # nearly every one
    absolute = _ABSOLUTE.match(path)
    if absolute is not None:
        path = path[absolute.end() :] or "/"
    if path == "*":
        return path
    if not path.startswith("/"):
        raise HostilePath("it does not begin with a slash")
    found = _FORBIDDEN.search(path)
    if found is not None:
        raise HostilePath(f"the character {found[0]!a} stands in it")
    unescaped = _unescaped(path)
    # Not before: of `%25%32%66` it is only then to be seen.
    if _TWICE.search(unescaped):
        raise HostilePath("an escape in it is escaped again")
    return _merged(_resolved(unescaped))


def _unescaped(path: str) -> str:
    if "%" not in path:
        return path

    def one(found: re.Match[str]) -> str:
        digits = found[1] or ""
        if not _HEXADECIMAL.fullmatch(digits):
            raise HostilePath("a % in it begins no escape")
        number = int(digits, 16)
        character = chr(number)
        if character in "/\\":
            raise HostilePath(f"a {'slash' if character == '/' else 'backslash'} in it is escaped")
        if number < 0x20 or number == 0x7F:
            raise HostilePath(f"the control character {character!a} stands in it, escaped")
        return character if character in _UNRESERVED else f"%{digits.upper()}"

    made = _ESCAPE.sub(one, path)
    _check_utf8(path)
    return made


def _check_utf8(path: str) -> None:
    from urllib.parse import unquote_to_bytes

    try:
        unquote_to_bytes(path).decode()
    except UnicodeDecodeError:
        raise HostilePath("its escapes are no UTF-8") from None


def _resolved(path: str) -> str:
    """Without dot segments (RFC 3986, section 5.2.4)."""
    made: list[str] = []
    segments = path.split("/")[1:]
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        name, parameter, _ = segment.partition(";")
        if parameter and name in ("", ".", ".."):
            raise HostilePath("a segment of it is nothing, or a dot segment, with a parameter")
        if segment == "..":
            if not made:
                raise HostilePath("it climbs above the root")
            made.pop()
        elif segment != ".":
            made.append(segment)
            continue
        if last:
            made.append("")
    return "/" + "/".join(made)


def _merged(path: str) -> str:
    return re.sub("/{2,}", "/", path)
