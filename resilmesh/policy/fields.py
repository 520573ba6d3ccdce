"""How the model documents itself: one ``field()`` per field, one ``Envoy`` per mapping.

The reference page, the JSON Schema, ``resilmesh check``, the Envoy translator and the comparison's
report all read what is written here, so that no two of them can disagree.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema
from pydantic.alias_generators import to_camel

from resilmesh.units import format_duration, parse_duration

Fidelity = Literal["exact", "approximate", "library-only", "neutral"]


@dataclass(frozen=True, slots=True)
class Envoy:
    """What a field becomes in Envoy: how faithful, in which Envoy field, and what differs.

    ``neutral`` marks what shapes the translation without being a behaviour of its own (names, labels).
    """

    fidelity: Fidelity
    field: str = ""
    difference: str = ""


def maps_to(field_of_envoy: str) -> Envoy:
    return Envoy("exact", field_of_envoy)


def approximates(field_of_envoy: str, difference: str) -> Envoy:
    return Envoy("approximate", field_of_envoy, difference)


def library_only(reason: str) -> Envoy:
    return Envoy("library-only", "", reason)


NEUTRAL = Envoy("neutral")

#: Where a block may stand. "The nearest wins whole": a route's block replaces the service's.
Level = Literal["mesh", "defaults", "service", "route", "inbound"]


def field(
    doc: str,
    default: Any = ...,
    *,
    envoy: Envoy = NEUTRAL,
    unit: str = "",
    source: str = "",
    scope: str = "",
    later: bool = False,
    factory: Any = None,
    **bounds: Any,
) -> Any:
    """A documented field.

    ``unit`` is what a number counts, ``source`` where a default or bound comes from, ``scope`` what shares
    the block's state, ``later=True`` marks a block that is validated but not enforced yet (a policy that
    uses it is refused). ``bounds`` are pydantic's (``ge``, ``le``, ``min_length``, ...).
    """
    extra: dict[str, Any] = {"x-envoy": {"fidelity": envoy.fidelity, "field": envoy.field, "difference": envoy.difference}}
    for key, value in (("x-unit", unit), ("x-source", source), ("x-scope", scope)):
        if value:
            extra[key] = value
    if later:
        extra["x-not-enforced-yet"] = True
    if factory is not None:
        return Field(default_factory=factory, description=doc, json_schema_extra=extra, **bounds)
    return Field(default, description=doc, json_schema_extra=extra, **bounds)


class Block(BaseModel):
    """Base of every block: unknown keys are errors, values are immutable, YAML keys are camelCase."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True, strict=True, allow_inf_nan=False,
        protected_namespaces=(),
    )


def _duration(value: Any) -> Any:
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a duration is a string with a unit, such as '250ms'")
    raise ValueError(f"{value!r} has no unit: write '{value}s' or '{value}ms'")


#: Seconds in the model, a string with a unit in the file.
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^(\d+(\.\d+)?(us|ms|s|m|h|d))+$", "examples": ["250ms", "1m30s"]}),
]


def _percent(value: Any) -> Any:
    # Strict mode would refuse the integer 50 for a float field; a percent is written either way.
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


#: 0 to 100, fractions allowed.
Percent = Annotated[float, BeforeValidator(_percent), Field(ge=0, le=100)]
