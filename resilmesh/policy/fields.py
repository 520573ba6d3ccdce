"""How the model documents itself: one ``field()`` per field, one ``Envoy`` per mapping.

The reference page, the JSON Schema, ``resilmesh check``, the Envoy translator and the comparison's
report all read what is written here, so that no two of them can disagree.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from resilmesh.units import format_duration, parse_duration

Fidelity = Literal["exact", "approximate", "library-only", "neutral"]


@dataclass(frozen=True, slots=True)
class Envoy:
    """What a field becomes in Envoy: how faithful, in which Envoy field, and what differs.

    ``neutral`` marks what shapes the translation without being a behaviour of its own (names, labels).
    ``exact_for`` are values for which there is no difference. ``over_grpc`` is what differs, in place of ``difference``, where the
    service speaks gRPC: nothing if it is empty; ``None``: the same as over HTTP.
    """

    fidelity: Fidelity
    field: str = ""
    difference: str = ""
    exact_for: tuple[str | int, ...] = ()
    over_grpc: str | None = None


def maps_to(field_of_envoy: str, *, over_grpc: str | None = None) -> Envoy:
    return Envoy("exact", field_of_envoy, over_grpc=over_grpc)


def approximates(
    field_of_envoy: str, difference: str, *, exact_for: tuple[str | int, ...] = (), over_grpc: str | None = None,
) -> Envoy:
    return Envoy("approximate", field_of_envoy, difference, exact_for, over_grpc)


def library_only(reason: str, *, exact_for: tuple[str | int, ...] = ()) -> Envoy:
    return Envoy("library-only", "", reason, exact_for)


NEUTRAL = Envoy("neutral")


def in_envoy(field_metadata: Any, value: Any, *, grpc: bool) -> tuple[Fidelity, str]:
    """How faithful Envoy is to this value of a field, and what differs. ``grpc``: where the service speaks it."""
    mapping = field_metadata["x-envoy"]
    fidelity: Fidelity = mapping["fidelity"]
    difference: str = mapping["difference"]
    if grpc and "over_grpc" in mapping:
        difference = mapping["over_grpc"]
        fidelity = "approximate" if difference else "exact"
    return ("exact", "") if value in mapping.get("exact_for", ()) else (fidelity, difference)


#: Where a block may stand. "The nearest wins whole": a route's block replaces the service's.
Level = Literal["mesh", "defaults", "service", "route", "inbound"]


_DURATION_BOUNDS = {"ge": "x-minimum", "gt": "x-exclusive-minimum", "le": "x-maximum", "lt": "x-exclusive-maximum"}


def field(
    doc: str,
    default: Any = ...,
    *,
    envoy: Envoy = NEUTRAL,
    unit: str = "",
    source: str = "",
    scope: str = "",
    factory: Any = None,
    **bounds: Any,
) -> Any:
    """A documented field.

    ``unit`` is what a number counts, ``source`` where a default or bound comes from, ``scope`` what shares
    the block's state. ``bounds`` are pydantic's (``ge``, ``le``, ``min_length``, ...).
    """
    extra: dict[str, Any] = {"x-envoy": {"fidelity": envoy.fidelity, "field": envoy.field, "difference": envoy.difference}}
    if envoy.exact_for:
        extra["x-envoy"]["exact_for"] = list(envoy.exact_for)
    if envoy.over_grpc is not None:
        extra["x-envoy"]["over_grpc"] = envoy.over_grpc
    extra |= {key: value for key, value in (("x-unit", unit), ("x-source", source), ("x-scope", scope)) if value}
    if unit == "duration":
        # JSON Schema cannot bound text that is a duration, so the bounds are told in words of our own.
        extra |= {_DURATION_BOUNDS[bound]: format_duration(seconds) for bound, seconds in bounds.items()}
    if factory is not None:
        return Field(default_factory=factory, description=doc, json_schema_extra=extra, **bounds)
    return Field(default, description=doc, json_schema_extra=extra, **bounds)


def camel_case(name: str) -> str:
    """The key in the file of an attribute: ``consecutive_5xx_errors`` is ``consecutive5xxErrors``, ``from_`` is ``from``."""
    first, *others = name.split("_")
    return first + "".join(word[:1].upper() + word[1:] for word in others)


class Block(BaseModel):
    """Base of every block: unknown keys are errors, values are immutable, YAML keys are camelCase."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=camel_case, populate_by_name=True, strict=True, allow_inf_nan=False,
        protected_namespaces=(),
        # Without it every block builds a validator of its own, which only the whole policy needs.
        defer_build=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _without_extensions(cls, value: Any) -> Any:
        """Keys that begin with ``x-`` are the user's own notes."""
        if isinstance(value, dict) and any(isinstance(key, str) and key.startswith("x-") for key in value):
            return {key: item for key, item in value.items() if not (isinstance(key, str) and key.startswith("x-"))}
        return value


#: What a pattern asks for, in words, for error messages and the reference.
SHAPES: dict[str, str] = {}


def shaped(words: str, pattern: str, **bounds: Any) -> Any:
    """Constraints of a text that must match ``pattern``, which ``words`` puts in words."""
    SHAPES[pattern] = words
    return Field(pattern=pattern, **bounds)


class Shorthand:
    """A shorter way to write a value. ``expand`` turns it into the long form and leaves a long form alone.

    ``short`` is the JSON Schema of the short form; without it the short form is one item of a list.
    """

    def __init__(self, expand: Callable[[Any], Any], short: dict[str, Any] | None = None) -> None:
        self.expand = expand
        self.short = short

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.expand, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        long = handler(schema)
        return {"anyOf": [self.short or long["items"], long]}


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) or value is None else [value]


#: A single value may stand for a list of one.
LISTED = Shorthand(_listed)


def shorthand_for(key: str, short: dict[str, Any] | None = None) -> Shorthand:
    """A bare text is short for a block with this one ``key``."""
    def expand(value: Any) -> Any:
        if isinstance(value, dict | Block):
            return value
        if isinstance(value, str):
            return {key: value}
        raise PydanticCustomError("text", "text or a block")

    return Shorthand(expand, short or {"type": "string"})


def _duration(value: Any) -> Any:
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise PydanticCustomError("duration", "a duration is text with a unit, such as '250ms'")
    try:
        return parse_duration(value if isinstance(value, str) else f"{value!r}")
    except ValueError as error:
        raise PydanticCustomError("duration", "{problem}", {"problem": str(error)}) from None


#: Seconds in the model, a string with a unit in the file.
Duration = Annotated[
    float,
    BeforeValidator(_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^([0-9]+(\.[0-9]+)?(us|ms|s|m|h|d))+$", "examples": ["250ms", "1m30s"]}),
]


def _whole_as_float(value: Any) -> Any:
    # Strict mode would refuse the integer 50 for a float field; a percent is written either way.
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


#: 0 to 100, fractions allowed.
Percent = Annotated[float, Field(ge=0, le=100), BeforeValidator(_whole_as_float)]
#: A number, with or without a fraction.
Number = Annotated[float, BeforeValidator(_whole_as_float)]

#: What metrics, errors and `mesh.guard` call something.
Name = Annotated[str, shaped(
    "letters and digits, with . _ - between them, at most 253", r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$", max_length=253,
)]
Labels = dict[Annotated[str, Field(min_length=1, max_length=253)], Annotated[str, Field(max_length=253)]]
