"""Every key of a policy with values that it must refuse, made from the model: a new key has its cases the day it is there.

The messages they earn are committed in ``testdata/fields``, a file a block; ``python -m tests.policy.field_cases`` writes them,
and the difference is for a person to read. A case is one value put in the place of HERE in the policy at the top of its part.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resilmesh.errors import PolicyError
from resilmesh.policy.codes import Diagnostic
from resilmesh.policy.load import load_text
from resilmesh.policy.schema import json_schema
from resilmesh.units import format_duration, parse_duration

FIELDS = Path(__file__).parent / "testdata" / "fields"
HERE = "HERE"

Schema = dict[str, Any]

#: Something that may stand where the schema asks for text of a shape. Tried in turn; the first that the pattern takes.
_TEXTS = ("a", "/a", "x-a", "A", "a:1", "a.test", "1s", "request.headers[a]", "spiffe://a.test/ns/a", "10.0.0.0/8", "resilmesh/v1",
          "unix:/a")
_SHAPELESS = "\u202e \x7f~"


@dataclass(frozen=True)
class Case:
    """A value that the key at ``path`` of a policy must refuse."""

    block: str
    key: str
    why: str
    value: Any
    policy: str

    @property
    def written(self) -> str:
        return json.dumps(self.value)

    @property
    def text(self) -> str:
        return self.policy.replace(f'"{HERE}"', self.written)

    def found(self) -> list[Diagnostic]:
        try:
            load_text(self.text, "f")
        except PolicyError as error:
            return list(error.diagnostics)
        return []


def cases() -> list[Case]:
    """All of them, by block and key, in the order of the model."""
    return [
        Case(block, key, why, value, json.dumps(_within(block, {**_smallest(block), key: HERE})))
        for block in _BLOCKS for key, schema in _properties(block).items() for why, value in _refused(schema)
    ]


def keys() -> set[tuple[str, str]]:
    """Every block and key of the model."""
    return {(block, key) for block in _BLOCKS for key in _properties(block)}


# ------------------------------------------------------------------------------------- what is refused


def _refused(schema: Schema) -> Iterator[tuple[str, Any]]:
    """Values of another kind, out of bounds in each direction, and null where nothing can be unset."""
    shapes = list(_shapes(schema))
    kinds = {_kind(each) for each in shapes}
    if "null" not in kinds:
        yield "null", None
    for kind, value in (("boolean", True), ("string", "?"), ("integer", 7), ("number", 0.5), ("array", [[]]), ("object", {"?": 1})):
        taken = kinds & {kind, *(("number",) if kind == "integer" else ())}
        inside = kind == "array" and any("$ref" not in each and _kind(each) in ("string", "integer", "number") for each in shapes)
        if not taken and not (kind == "string" and "duration" in kinds):
            yield f"kind: {'list' if kind == 'array' else 'block' if kind == 'object' else kind}", value
        elif inside:
            continue
    for shape in shapes:
        yield from _beyond(shape, {**schema, **shape})


def _beyond(shape: Schema, bounds: Schema) -> Iterator[tuple[str, Any]]:
    kind = _kind(shape)
    if kind == "duration":
        yield from _durations(bounds)
    elif kind in ("integer", "number"):
        yield from _numbers(kind, bounds)
    elif kind == "string":
        yield from _texts(shape)
    elif kind == "array":
        if shape.get("minItems"):
            yield "empty", []
        yield from ((f"an item, {why}", [value]) for why, value in _of_item(shape["items"]))
    elif kind == "object" and "$ref" not in shape:
        if shape.get("minProperties"):
            yield "empty", {}
        yield from _map(shape)
    elif "$ref" in shape:
        yield "unknown key", {**_smallest(_named(shape)), "zzz": 1}
        if required := _DEFINITIONS[_named(shape)].get("required"):
            yield "without " + " and ".join(required), {}


def _durations(bounds: Schema) -> Iterator[tuple[str, Any]]:
    yield from (("no unit", "5"), ("negative", "-1s"), ("unit unknown", "1 week"), ("too long", "366d"))
    if "x-exclusive-minimum" in bounds:
        yield "below", bounds["x-exclusive-minimum"]
    if "x-minimum" in bounds:
        yield "below", format_duration(parse_duration(bounds["x-minimum"]) / 2)
    if "x-maximum" in bounds:
        yield "above", format_duration(parse_duration(bounds["x-maximum"]) + 1)


def _numbers(kind: str, bounds: Schema) -> Iterator[tuple[str, Any]]:
    if "exclusiveMinimum" in bounds:
        yield "below", bounds["exclusiveMinimum"]
    elif "minimum" in bounds:
        yield "below", bounds["minimum"] - 1
    if "maximum" in bounds:
        yield "above", bounds["maximum"] + 1
    yield "far below", -(2**63)
    yield "far above", 10**30
    if kind == "number":
        yield "just above", math.nextafter(bounds["maximum"], math.inf)


def _texts(shape: Schema) -> Iterator[tuple[str, Any]]:
    if "enum" in shape or "const" in shape:
        known = shape.get("enum") or [shape["const"]]
        yield "misspelt", f"{known[0]}s"
        yield "other case", known[0].swapcase()
        yield "empty", ""
        return
    if "pattern" in shape:
        yield "malformed", _SHAPELESS
    if shape.get("minLength") or ("pattern" in shape and not _matches("", shape)):
        yield "empty", ""
    if "maxLength" in shape:
        yield "too long", _text(shape) + "a" * shape["maxLength"]


def _of_item(schema: Schema) -> Iterator[tuple[str, Any]]:
    kinds = {_kind(each) for each in _shapes(schema)}
    yield from ((f"kind: {kind}", value) for kind, value in (("null", None), ("list", []), ("boolean", True)) if kind not in kinds)
    for shape in _shapes(schema):
        yield from _beyond(shape, shape)


def _map(shape: Schema) -> Iterator[tuple[str, Any]]:
    names = shape.get("propertyNames", {})
    pattern, below = next(iter(shape.get("patternProperties", ())), None), _value(shape)
    good, value = _text({"pattern": pattern} if pattern else {}), _valid(below)
    if pattern is not None:
        yield "a key, malformed", {_SHAPELESS: value}
    if names.get("minLength"):
        yield "a key, empty", {"": value}
    if "maxLength" in names:
        yield "a key, too long", {"a" * (names["maxLength"] + 1): value}
    yield from ((f"a value, {why}", {good: refused}) for why, refused in _of_item(below))


# --------------------------------------------------------------------------------------- what is taken

_SCHEMA: Schema = json_schema()
_DEFINITIONS: dict[str, Schema] = {"Policy": _SCHEMA, **_SCHEMA["$defs"]}


def _properties(block: str) -> Schema:
    found: Schema = _DEFINITIONS[block]["properties"]
    return found


def _shapes(schema: Schema) -> Iterator[Schema]:
    """The alternatives of a schema."""
    for each in schema.get("anyOf", [schema]):
        yield from _shapes(each) if "anyOf" in each else [each]


def _kind(schema: Schema) -> str:
    if "$ref" in schema:
        return "object"
    if "examples" in schema:
        return "duration"
    return str(schema.get("type", "string"))


def _named(schema: Schema) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _value(shape: Schema) -> Schema:
    """What the values of a free map are; nothing for any other shape."""
    found: Schema = next(iter(shape.get("patternProperties", {}).values()), shape.get("additionalProperties"))
    return found or {}


def _valid(schema: Schema) -> Any:
    """The smallest value that a schema takes."""
    shape = next(each for each in _shapes(schema) if _kind(each) != "null")
    if "$ref" in shape:
        return _smallest(_named(shape))
    if "enum" in shape or "const" in shape:
        return shape.get("const") or shape["enum"][0]
    kind = _kind(shape)
    if kind == "array":
        return [_valid(shape["items"])]
    if kind == "object":
        return {"a": _valid(_value(shape))}
    return {"duration": "1s", "boolean": True, "string": _text(shape)}.get(kind, shape.get("minimum", 1))


def _text(shape: Schema) -> str:
    return next(each for each in _TEXTS if _matches(each, shape))


def _matches(text: str, shape: Schema) -> bool:
    return len(text) >= shape.get("minLength", 0) and re.search(shape.get("pattern") or "", text) is not None


def _smallest(block: str) -> dict[str, Any]:
    return {key: _valid(_properties(block)[key]) for key in _DEFINITIONS[block].get("required", ())}


def _within(block: str, value: Any) -> Any:
    """A policy with ``value`` for the one block of that name, at the first place that can hold it."""
    while block != "Policy":
        owner, key, shape = _OWNERS[block]
        if _kind(shape) == "array":
            value = [value]
        elif "$ref" not in shape:
            value = {_text({"pattern": next(iter(shape.get("patternProperties", {"": None})))}): value}
        block, value = owner, {**_smallest(owner), key: value}
    return value


def _owners() -> dict[str, tuple[str, str, Schema]]:
    """The first block that holds each block, the key, and the shape it has there. In the order of the model."""
    found: dict[str, tuple[str, str, Schema]] = {}
    waiting = ["Policy"]
    while waiting:
        owner = waiting.pop(0)
        for key, schema in _properties(owner).items():
            for shape in _shapes(schema):
                for each in _shapes(shape.get("items") or _value(shape) or shape):
                    if "$ref" in each and (name := _named(each)) not in found:
                        found[name] = (owner, key, shape)
                        waiting.append(name)
    return found


_OWNERS = _owners()
_BLOCKS = ["Policy", *_OWNERS]


# ------------------------------------------------------------------------------------------ the files


def files() -> dict[str, str]:
    """What ``testdata/fields`` holds: by block, every policy, value and message."""
    parts: dict[str, list[str]] = {}
    policy = ""
    for case in cases():
        lines = parts.setdefault(case.block, [])
        if case.policy != policy:
            policy = case.policy
            lines += ["", f"# {case.key}", policy.replace(f'"{HERE}"', HERE)]
        shown = case.written if len(case.written) <= 100 else case.written[:60] + f" ... {len(case.written)} characters"
        lines.append(f"  {case.why}: {shown}")
        lines += [f"    {str(each)[2:]}" for each in case.found()] or ["    TAKEN"]
    return {block: "\n".join(lines[1:]) + "\n" for block, lines in parts.items()}


if __name__ == "__main__":
    FIELDS.mkdir(exist_ok=True)
    for path in FIELDS.glob("*.txt"):
        path.unlink()
    for block, lines in files().items():
        (FIELDS / f"{block}.txt").write_text(lines, encoding="utf-8")
