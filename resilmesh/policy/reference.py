"""The reference pages of the policy file and of its diagnostics, in Markdown, made from the model and the table of codes."""

from __future__ import annotations

import re
from typing import Any

from resilmesh.policy.codes import CODES
from resilmesh.policy.fields import SHAPES
from resilmesh.policy.schema import json_schema

_NOTE = "<!-- Made by `resilmesh schema {option}`. Do not edit: change the model, and make it again. -->"
_LEVELS = (("MeshBlock", "mesh"), ("Defaults", "defaults"), ("Service", "service"), ("Route", "route"), ("Inbound", "inbound"))
#: Keys that carry other levels, or only name them: no blocks, and so not in the table of blocks.
_STRUCTURE = {"name", "routes", "workload", "authorization", "mtls", "trustedProxies"}
_DURATION_BOUNDS = (
    ("x-minimum", "at least"), ("x-exclusive-minimum", "more than"), ("x-maximum", "at most"), ("x-exclusive-maximum", "less than"),
)
_DURATION = r"^([0-9]+(\.[0-9]+)?(us|ms|s|m|h|d))+$"

_POLICY_INTRO = """\
# The policy file

YAML or JSON, UTF-8, at most 8 MiB. Keys are camelCase. A key that begins with `x-` is ignored; any other unknown key is an
error. `yes`, `no`, `on` and `off` are text, as in YAML 1.2. Anchors, aliases, merge keys, tags, duplicate keys and a second
document are refused. A **duration** is text with units (us, ms, s, m, h, d), such as `250ms` or `1m30s`; a **percent** is a
number from 0 to 100. `resilmesh check` finds mistakes; their codes are in [diagnostics](diagnostics.md).

The nearest block wins whole: a route's replaces the service's, that the one of `defaults`. `null` unsets a block that would be
inherited. Only `mode` takes the weakest of all levels. `resilmesh explain` shows what applies to a request, and why.

Under *In Envoy*: **exact** behaves the same in both; **approximate** differs as stated; **library-only** has no counterpart;
a dash means that the key only shapes the translation. *Not enforced yet* marks what is validated but refused: a policy that
uses it must not look as if it protected anything.
"""
_DIAGNOSTICS_INTRO = """\
# Diagnostics

`resilmesh check` and everything else that reads a policy report every mistake at once, each as
`file:line:column: CODE message (hint)`. A code keeps its meaning for ever. Codes that begin with RM4 are warnings, which
`resilmesh check` lets pass unless `--strict` is given; all others are errors, and a policy with an error is refused as a whole.
"""
_GROUPS = (
    ("RM0", "The text cannot be read"), ("RM1", "It does not fit the model"), ("RM2", "It contradicts itself"),
    ("RM4", "Warnings"),
)


def policy_reference() -> str:
    """The page of every key: what it means, its value and bounds, its default and where that comes from, what it is in Envoy."""
    return _Page().text()


def diagnostics_reference() -> str:
    """The page of every diagnostic code."""
    lines = [_NOTE.format(option="--diagnostics"), "", _DIAGNOSTICS_INTRO]
    for prefix, title in _GROUPS:
        lines += [f"## {title}", "", "| Code | Mistake | What it means | What to do |", "| --- | --- | --- | --- |"]
        lines += [
            f"| {row.code} | {row.title} | {row.meaning} | {row.remedy} |" for row in CODES.values() if row.code.startswith(prefix)
        ]
        lines.append("")
    return "\n".join(lines)


class _Page:
    def __init__(self) -> None:
        schema = json_schema()
        self._blocks: dict[str, dict[str, Any]] = {"Policy": schema, **schema["$defs"]}
        #: Name of a block's class in the model to its heading, in the order of the page.
        self._titles: dict[str, str] = {}
        self._visit("Policy", "The file")

    def text(self) -> str:
        sections = [self._section(name) for name in self._titles]
        return "\n".join([_NOTE.format(option="--reference"), "", _POLICY_INTRO, self._table_of_blocks(), *sections])

    def _visit(self, name: str, title: str) -> None:
        if name in self._titles:
            return
        self._titles[name] = title
        level = name == "Policy" or name in dict(_LEVELS)
        for key, field in self._blocks[name]["properties"].items():
            for below, suffix in _references(field):
                self._visit(below, key + suffix if level else f"{title}.{key}{suffix}")

    # ------------------------------------------------------------------------------- the table of blocks

    def _table_of_blocks(self) -> str:
        keys: dict[str, list[tuple[str, dict[str, Any]]]] = {}
        for name, level in _LEVELS:
            for key, field in self._blocks[name]["properties"].items():
                if key not in _STRUCTURE:
                    keys.setdefault(key, []).append((level, field))
        lines = [
            "## Blocks: where they may stand, who shares their state", "",
            "| Block | Where | State is shared by | Default | In Envoy |", "| --- | --- | --- | --- | --- |",
        ]
        for key, places in keys.items():
            field = places[0][1]
            where = ", ".join(level for level, _ in places)
            scope = field.get("x-scope", "-")
            lines.append(_row(self._linked(key, field), where, scope, _default(field), _envoy(field)))
        return "\n".join(lines) + "\n"

    def _linked(self, key: str, field: dict[str, Any]) -> str:
        below = next((name for name, _ in _references(field)), None)
        return f"`{key}`" if below is None else f"[`{key}`](#{_anchor(self._titles[below])})"

    # ------------------------------------------------------------------------------------------ sections

    def _section(self, name: str) -> str:
        block = self._blocks[name]
        lines = [f"## {_heading(self._titles[name])}", "", block["description"].replace("``", "`"), ""]
        lines += ["| Key | Value | Default | Meaning | In Envoy |", "| --- | --- | --- | --- | --- |"]
        required = block.get("required", [])
        for key, field in block["properties"].items():
            meaning = field["description"]
            default = "**required**" if key in required else _default(field)
            lines.append(_row(f"`{key}`", self._value(field), default, meaning, _envoy(field)))
        return "\n".join(lines) + "\n"

    def _value(self, field: dict[str, Any]) -> str:
        text, unit = self._type(field), field.get("x-unit", "")
        bounds = [f"{words} {field[key]}" for key, words in _DURATION_BOUNDS if key in field]
        if unit not in ("", "duration", "percent"):
            text = text.replace("whole number", f"whole number of {unit}")
        return ", ".join([text, *bounds])

    def _type(self, form: dict[str, Any]) -> str:
        if "anyOf" in form:
            return " or ".join(dict.fromkeys("null" if each.get("type") == "null" else self._type(each) for each in form["anyOf"]))
        if "$ref" in form:
            name = form["$ref"].rpartition("/")[2]
            return f"[block](#{_anchor(self._titles[name])})"
        if "const" in form:
            return f"`{form['const']}`"
        if "enum" in form:
            return " or ".join(f"`{word}`" for word in form["enum"])
        match form["type"]:
            case "array":
                return f"list of {self._type(form['items'])}"
            case "object":
                values = form.get("additionalProperties") or next(iter(form["patternProperties"].values()))
                return f"keys, each with {self._type(values)}"
            case "string":
                return _text(form)
            case "boolean":
                return "true or false"
            case kind:
                return _number(form, "whole number" if kind == "integer" else "number")


def _references(form: dict[str, Any], suffix: str = "") -> list[tuple[str, str]]:
    """The blocks that a value holds, each with what follows its key in a heading: nothing, ``[]`` or ``.*``."""
    if "$ref" in form:
        return [(form["$ref"].rpartition("/")[2], suffix)]
    inner = [(each, suffix) for each in form.get("anyOf", ())]
    if "items" in form:
        inner.append((form["items"], suffix + "[]"))
    if form.get("type") == "object":
        maps = [form.get("additionalProperties"), *form.get("patternProperties", {}).values()]
        inner += [(each, suffix + ".*") for each in maps if isinstance(each, dict)]
    return [found for each, mark in inner for found in _references(each, mark)]


def _text(form: dict[str, Any]) -> str:
    pattern = form.get("pattern")
    if pattern == _DURATION:
        return "duration"
    return f"text: {SHAPES[pattern]}" if pattern in SHAPES else "text"


def _number(form: dict[str, Any], kind: str) -> str:
    low, above, high = form.get("minimum"), form.get("exclusiveMinimum"), form.get("maximum")
    if (low, high) == (0, 100) and kind == "number":
        return "percent" if above is None else f"percent above {above:g}"
    bounds = [f"{words} {value:g}" for words, value in (("at least", low), ("more than", above)) if value is not None]
    if low is not None and high is not None:
        bounds = [f"{low} to {high}"]
    elif high is not None:
        bounds.append(f"at most {high:g}")
    return ", ".join([kind, *bounds])


def _default(field: dict[str, Any]) -> str:
    source = f" ({field['x-source']})" if "x-source" in field else ""
    if "default" not in field:
        return f"its own{source}" if "$ref" in field or "anyOf" in field else f"none{source}"
    value = field["default"]
    if value is None:
        return f"-{source}"
    return f"`{value:g}`{source}" if isinstance(value, float) else f"`{str(value).lower() if isinstance(value, bool) else value}`{source}"


def _envoy(field: dict[str, Any]) -> str:
    mapping = field["x-envoy"]
    if mapping["fidelity"] == "neutral":
        return "-"
    name = f" `{mapping['field']}`" if mapping["field"] else ""
    difference = f". {mapping['difference']}" if mapping["difference"] else ""
    exact = " or ".join(f"`{value}`" for value in mapping.get("exact_for", ()))
    over_http = (f"exact for {exact}, otherwise " if exact else "") + f"{mapping['fidelity']}{name}{difference}"
    if "over_grpc" not in mapping:
        return over_http
    over_grpc = f"approximate. {mapping['over_grpc']}" if mapping["over_grpc"] else "exact."
    return f"{over_http.removesuffix('.')}. **Over gRPC** {over_grpc}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _heading(title: str) -> str:
    return title if title == "The file" else f"`{title}`"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")
