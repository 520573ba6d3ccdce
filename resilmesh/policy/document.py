"""From text to plain data that knows where it was written.

Reads YAML 1.2's core schema (``yes`` and ``off`` are text, ``0o17`` is octal, no dates, no sexagesimals) and
with it JSON. What a policy does not need is refused: anchors, aliases, merge keys, tags, several documents,
duplicate keys, NaN. It walks the parser's events itself, because PyYAML's own composer resolves aliases,
lets the last of duplicate keys win, recurses without bound, and forgets where keys stood.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import yaml

from resilmesh.errors import PolicyError
from resilmesh.policy import codes
from resilmesh.policy.codes import Code, Diagnostic

#: Where a value stands: ``("services", 0, "routes", 1, "timeout")``.
Path = tuple[str | int, ...]

MAX_BYTES = 8 * 1024 * 1024
MAX_DEPTH = 64
#: Keys and values: about twenty for a route, so this is a hundred thousand routes and ten seconds.
MAX_VALUES = 3_000_000
MAX_MISTAKES = 1000
# Longer than any 64-bit number or double in full precision; int() is quadratic in the length.
_MAX_DIGITS = 64

# libyaml's parser where PyYAML was built with it, as all of its wheels are; the pure one is ten times slower.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: What libyaml ends a line at.
_LINE_END = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_INTEGER = re.compile(r"[-+]?[0-9]+", re.ASCII)
_RADIX = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+", re.ASCII)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", re.ASCII)
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None, "true": True, "True": True, "TRUE": True,
          "false": False, "False": False, "FALSE": False}


class Spot:
    """Where one value begins, where its key does, and the spots inside it."""

    __slots__ = ("broken", "children", "column", "key_column", "key_line", "line")

    def __init__(self, line: int, column: int) -> None:
        self.line = self.key_line = line
        self.column = self.key_column = column
        self.children: dict[str, Spot] | list[Spot] | None = None
        #: The value could not be read (an alias, a tag); what the model says of it would only confuse.
        self.broken = False


class Places:
    """The places of everything in a policy's text. Without a text (a policy built in code) all are (0, 0)."""

    def __init__(self, root: Spot | None = None) -> None:
        self._root = root

    def line_column(self, path: Path) -> tuple[int, int]:
        """Where the value at ``path`` begins; for a block or list, where its key does. The nearest known place otherwise."""
        spot = self._spots(path)[-1][1]
        if spot is None:
            return 0, 0
        return (spot.line, spot.column) if spot.children is None else (spot.key_line, spot.key_column)

    def key_line_column(self, path: Path) -> tuple[int, int]:
        """Where the key at the end of ``path`` begins."""
        spot = self._spots(path)[-1][1]
        return (0, 0) if spot is None else (spot.key_line, spot.key_column)

    def broken(self, path: Path) -> bool:
        """Whether something on the way to ``path`` could not be read."""
        return any(spot is not None and spot.broken for _, spot in self._spots(path))

    def written(self, path: Path) -> Path:
        """The part of ``path`` that the text has: without what a shorthand stands for, and without what is missing."""
        return tuple(part for part, spot in self._spots(path)[1:] if spot is not None)

    def _spots(self, path: Path) -> list[tuple[str | int, Spot | None]]:
        """Each part of ``path`` that was written and its spot, from the root, which counts as a part."""
        spot = self._root
        found: list[tuple[str | int, Spot | None]] = [("", spot)]
        if spot is None:
            return found
        for part in path:
            children = spot.children
            if isinstance(part, int):
                if not isinstance(children, list):
                    continue  # a single value written where the model has a list: `match: {...}`
                below = children[part] if part < len(children) else None
            else:
                below = children.get(part) if isinstance(children, dict) else None
            if below is None:
                break
            spot = below
            found.append((part, spot))
        return found


@dataclass(frozen=True, slots=True)
class Document:
    """What a text says, and the mistakes that did not keep it from being read."""

    data: Any
    places: Places
    mistakes: list[Diagnostic]


def read(text: str | bytes, source: str) -> Document:
    """Read one YAML or JSON document. Raises ``PolicyError`` when there is nothing to go on with."""
    return _Reader(_decoded(text, source), source).document()


def _refuse(source: str, code: Code, message: str, hint: str = "", line: int = 1, column: int = 1) -> PolicyError:
    return PolicyError([Diagnostic(source, line, column, code.code, message, hint)])


def _decoded(text: str | bytes, source: str) -> str:
    if len(text) > MAX_BYTES:
        raise _refuse(source, codes.TOO_LARGE, f"the policy is larger than {MAX_BYTES // 1024 ** 2} MiB", "split it by workload")
    text = _from_bytes(text, source) if isinstance(text, bytes) else text.removeprefix("\ufeff")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        line, column = _line_column(text, error.start)
        raise _refuse(source, codes.NOT_UTF8, "a lone surrogate is not a character", "", line, column) from None
    if (index := text.find("\0")) >= 0:
        raise _refuse(source, codes.NOT_UTF8, "the policy is binary: it has a NUL byte", "save it as UTF-8", *_line_column(text, index))
    return text


def _from_bytes(raw: bytes, source: str) -> str:
    for name, marks in (("UTF-32", (b"\xff\xfe\0\0", b"\0\0\xfe\xff")), ("UTF-16", (b"\xff\xfe", b"\xfe\xff"))):
        if raw.startswith(marks):
            raise _refuse(source, codes.NOT_UTF8, f"the policy is {name}", "save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start].decode()
        where = _line_column(before, len(before))
        raise _refuse(source, codes.NOT_UTF8, f"byte 0x{raw[error.start]:02x} is not UTF-8", "save it as UTF-8", *where) from None


def _line_column(text: str, index: int) -> tuple[int, int]:
    lines, begins = 1, 0
    for each in _LINE_END.finditer(text, 0, index):
        lines, begins = lines + 1, each.end()
    return lines, index - begins + 1


class _Stop(Exception):
    """Nothing behind this place can be read."""


class _Reader:
    """Walks the events of one text, building data and spots side by side."""

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._mistakes: list[Diagnostic] = []
        self._values = 0

    def document(self) -> Document:
        try:
            self._loader = _Loader(self._text)
            self._next = self._loader.get_event
            return self._document()
        except _Stop:
            pass
        except yaml.reader.ReaderError as error:
            self._note_unreadable_character(error)
        except yaml.MarkedYAMLError as error:
            self._note_syntax(error)
        raise PolicyError(sorted(self._mistakes, key=lambda each: (each.line, each.column)))

    def _document(self) -> Document:
        self._next()  # the stream's start
        if isinstance(self._next(), yaml.StreamEndEvent):
            raise _refuse(self._source, codes.EMPTY, "the policy is empty", "begin with 'apiVersion: resilmesh/v1'")
        data, spot = self._node(self._next(), 0)
        self._next()  # the document's end
        following = self._next()
        if not isinstance(following, yaml.StreamEndEvent):
            self._note(codes.SEVERAL_DOCUMENTS, following.start_mark, "a second document begins here", "use one file a policy")
            raise _Stop
        if data is None and not spot.broken:
            raise _refuse(self._source, codes.EMPTY, "the policy is empty", "begin with 'apiVersion: resilmesh/v1'")
        return Document(data, Places(spot), self._mistakes)

    def _note(self, code: Code, mark: Any, message: str, hint: str = "") -> None:
        line, column = mark.line + 1, mark.column + 1
        self._mistakes.append(Diagnostic(self._source, line, column, code.code, message, hint))
        if len(self._mistakes) == MAX_MISTAKES:
            self._mistakes.append(Diagnostic(self._source, line, column, codes.MORE.code, "and nothing behind this place was read"))
            raise _Stop

    # ------------------------------------------------------------------------------------------- nodes

    def _node(self, event: Any, depth: int) -> tuple[Any, Spot]:
        mark = event.start_mark
        self._values += 1
        if self._values > MAX_VALUES:
            self._note(codes.TOO_LARGE, mark, f"the policy has more than {MAX_VALUES} values", "split it by workload")
            raise _Stop
        spot = Spot(mark.line + 1, mark.column + 1)
        kind = type(event)
        if kind is yaml.AliasEvent:
            spot.broken = True
            self._note(codes.ALIAS, mark, f"alias *{shorten(event.anchor)} is refused", "write the value out, or put it into 'defaults'")
            return None, spot
        if event.anchor is not None:
            self._note(codes.ALIAS, mark, f"anchor &{shorten(event.anchor)} is refused", "values are written where they apply")
        if event.tag is not None:
            spot.broken = True
            self._note(codes.TAG, mark, f"tag {shorten(event.tag.replace('tag:yaml.org,2002:', '!!'))} is refused", "remove it")
        if kind is yaml.ScalarEvent:
            return (event.value if event.style else self._plain(event, spot)), spot
        if depth == MAX_DEPTH:
            self._note(codes.TOO_DEEP, mark, f"nested deeper than {MAX_DEPTH} levels")
            raise _Stop
        return (self._mapping(spot, depth + 1) if kind is yaml.MappingStartEvent else self._sequence(spot, depth + 1)), spot

    def _sequence(self, spot: Spot, depth: int) -> list[Any]:
        items: list[Any] = []
        children: list[Spot] = []
        spot.children = children
        while type(event := self._next()) is not yaml.SequenceEndEvent:
            item, below = self._node(event, depth)
            items.append(item)
            children.append(below)
        return items

    def _mapping(self, spot: Spot, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        children: dict[str, Spot] = {}
        spot.children = children
        while type(event := self._next()) is not yaml.MappingEndEvent:
            key, at = self._node(event, depth)
            noted = len(self._mistakes)
            value, below = self._node(self._next(), depth)
            below.key_line, below.key_column = at.line, at.column
            if not isinstance(key, str):
                if not at.broken:
                    self._note(codes.BAD_KEY, event.start_mark, f"a key must be text, not {_described(key)}", "put it in quotes")
            elif key == "<<" and not event.style:
                del self._mistakes[noted:]  # the alias that follows is the same mistake
                self._note(codes.ALIAS, event.start_mark, "merge key << is refused", "write the keys out, or put them into 'defaults'")
            elif key in mapping:
                first = children[key].key_line
                self._note(codes.DUPLICATE_KEY, event.start_mark, f"duplicate key {shorten(key)!r}", f"it stands in line {first} already")
            else:
                mapping[key] = value
                children[key] = below
        return mapping

    def _plain(self, event: Any, spot: Spot) -> Any:
        """A scalar without quotes, by YAML 1.2's core schema."""
        text: str = event.value
        if text[:1].isalpha() or not text[:1]:
            return _WORDS.get(text, text)
        if _INTEGER.fullmatch(text):
            if len(text) <= _MAX_DIGITS:
                return int(text)
        elif _RADIX.fullmatch(text):
            if len(text) <= _MAX_DIGITS:
                return int(text, 0)
        elif _FLOAT.fullmatch(text):
            if math.isfinite(number := float(text)):
                return number
        elif not _NOT_FINITE.fullmatch(text):
            return _WORDS.get(text, text)
        spot.broken = True
        self._note(codes.NOT_FINITE, event.start_mark, f"{shorten(text)} is not a finite number")
        return None

    # ------------------------------------------------------------------------------------------ errors

    def _note_unreadable_character(self, error: Any) -> None:
        # The position counts bytes of the UTF-8 form with libyaml, characters with the pure parser.
        position = error.position
        if hasattr(yaml, "CSafeLoader"):
            position = len(self._text.encode()[:position].decode(errors="ignore"))
        line, column = _line_column(self._text, position)
        character = error.character if isinstance(error.character, int) else ord(str(error.character)[:1] or " ")
        self._mistakes.append(Diagnostic(
            self._source, line, column, codes.SYNTAX.code, f"character U+{character:04X} is not allowed in YAML", "remove it or escape it",
        ))

    def _note_syntax(self, error: yaml.MarkedYAMLError) -> None:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)
        problem = error.problem or error.context or "not YAML"
        hint = ""
        if "cannot start any token" in problem:
            current = self._text.split("\n")[line - 1: line]
            hint = "indent with spaces, not with tabs" if current and "\t" in current[0] else "quote text that begins with this character"
        elif error.context and error.problem:
            start = error.context_mark
            hint = error.context + (f" that began in line {start.line + 1}" if start is not None and start.line + 1 != line else "")
        self._mistakes.append(Diagnostic(self._source, line, column, codes.SYNTAX.code, f"not YAML: {problem}", hint))


def _described(key: Any) -> str:
    if isinstance(key, dict):
        return "a block"
    if isinstance(key, list):
        return "a list"
    return {"None": "null", "True": "true", "False": "false"}.get(str(key)) or repr(key)


def shorten(text: str, limit: int = 60) -> str:
    """``text`` cut to ``limit`` characters, for a message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
