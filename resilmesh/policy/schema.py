"""The policy's JSON Schema (2020-12), for editors and for validation elsewhere. The reference page is made from it too.

It accepts what the loader accepts, shorthands and ``x-`` keys included. It says less than the loader in places:
whether names are unique, whether a subset exists.
"""

from __future__ import annotations

from typing import Any

from resilmesh.policy.model import Policy
from resilmesh.units import format_duration

_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema() -> dict[str, Any]:
    """The schema, made from the model. Each property carries ``x-envoy`` and, where they apply, ``x-unit``, ``x-source``
    and ``x-scope``."""
    schema = Policy.model_json_schema(by_alias=True)
    _adjust(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "resilmesh policy", **schema}


def _adjust(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _adjust(item)
        return
    if not isinstance(node, dict):
        return
    if isinstance(node.get("title"), str):
        del node["title"]  # pydantic's echo of the key
    if node.get("additionalProperties") is False:
        node["patternProperties"] = {"^x-": {"description": "A note of your own; ignored."}}
    for bound in _BOUNDS.keys() & node.keys():
        # pydantic could not place these; of a duration, which is text here, `field()` tells them in words of our own.
        value = node.pop(bound)
        if node.get("type") in ("integer", "number"):
            node[_BOUNDS[bound]] = value
    if node.get("x-unit") == "duration" and isinstance(node.get("default"), int | float):
        node["default"] = format_duration(node["default"])
    for key, below in node.items():
        if key in ("properties", "$defs", "patternProperties"):
            for item in below.values():
                _adjust(item)
        elif key != "default":
            _adjust(below)
