"""pydantic's complaints in our own words: a place in the file, a code, what is wrong, what to write instead."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from resilmesh.policy import codes
from resilmesh.policy.codes import Code, Diagnostic
from resilmesh.policy.document import Path, Places, shorten
from resilmesh.policy.fields import SHAPES, Block, camel_case
from resilmesh.policy.model import Defaults, MeshBlock, Policy, Route, Service
from resilmesh.units import format_duration

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

#: What the same thing is called elsewhere (Istio, Envoy, gRPC, resilience4j), for suggestions.
_FOREIGN = {
    "attempts": "maxRetries", "maxAttempts": "maxRetries", "numRetries": "maxRetries", "retryPolicy": "retries", "retry": "retries",
    "httpReqTimeout": "timeout", "tokens": "requests", "maxTokens": "burst", "fillInterval": "per", "uri": "path", "authority": "host",
    "consecutiveErrors": "consecutive5xxErrors", "consecutive5xx": "consecutive5xxErrors",
    "consecutiveGatewayFailure": "consecutiveGatewayErrors", "consecutiveLocalOriginFailure": "consecutiveLocalOriginFailures",
    "minHealthPercent": "panicThreshold", "slidingWindowSize": "slidingWindow", "slidingWindowType": "slidingWindow",
    "maxConcurrentCalls": "maxRequests", "maxWaitDuration": "maxPendingWait", "bulkhead": "concurrency", "connectionPool": "concurrency",
    "simple": "policy", "percentage": "percent", "value": "percent", "destination": "subset", "domains": "hosts", "host": "hosts",
    "trafficPolicy": "loadBalancer", "mtlsMode": "mtls", "rateLimits": "rateLimit", "limits": "rateLimit",
}
_LEVELS: tuple[tuple[str, type[Block]], ...] = (
    ("the file itself", Policy), ("'mesh'", MeshBlock), ("'defaults'", Defaults), ("a service", Service), ("a route", Route),
)
_WANTED = {
    "int_type": "a whole number", "int_from_float": "a whole number", "int_parsing": "a whole number", "float_type": "a number",
    "string_type": "text", "bool_type": "true or false", "list_type": "a list", "dict_type": "a block of keys and values",
    "text": "text, or a block of keys and values",
    "model_type": "a block of keys and values", "model_attributes_type": "a block of keys and values",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"), "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"), "less_than_equal": ("le", "at most"),
}


#: Above this pydantic's list would take gigabytes. A file with so many is no policy.
_MAX_ERRORS = 20_000


def diagnose(error: ValidationError, places: Places, source: str) -> list[Diagnostic]:
    """One diagnostic for each mistake, bar those that only follow from text that could not be read."""
    if (count := error.error_count()) > _MAX_ERRORS:
        return [Diagnostic(source, 1, 1, codes.MORE.code, f"{count} mistakes, too many to list", "is this a policy?")]
    return [
        _diagnostic(each, places, source)
        for each in error.errors(include_url=False, include_context=True)
        if not places.broken(each["loc"])
    ]


def _diagnostic(error: ErrorDetails, places: Places, source: str) -> Diagnostic:
    kind, path = error["type"], error["loc"]
    place = places.key_line_column if kind == "extra_forbidden" or path[-1:] == ("[key]",) else places.line_column
    code, message, hint = _words(kind, path, places.written, error["input"], error.get("ctx") or {})
    return Diagnostic(source, *place(path), code.code, message, hint)


def _words(
    kind: str, path: Path, written: Callable[[Path], Path], value: Any, context: dict[str, Any],
) -> tuple[Code, str, str]:
    """``path`` is the model's; ``written`` turns it into the file's, which differs where a shorthand was used."""
    name = _name(written(path))
    if kind == "extra_forbidden":
        return codes.UNKNOWN_KEY, f"unknown key {shorten(str(path[-1]))!r}{_within(written(path[:-1]))}", _known_key(path)
    if kind == "missing":
        field = _field(path)
        fixed = typing.get_args(field.annotation) if field and typing.get_origin(field.annotation) is typing.Literal else ()
        remedy = f"write '{path[-1]}: {fixed[0]}'" if len(fixed) == 1 else _first_sentence(field.description if field else "")
        return codes.MISSING_KEY, f"{path[-1]!r} is missing{_within(written(path[:-1]))}", remedy
    if kind == "duration":
        return codes.DURATION, f"{name}: {context.get('problem') or 'a duration is text with a unit, not ' + _shown(value)}", (
            "" if "problem" in context else "such as '250ms' or '1m30s'")
    if kind in ("literal_error", "word"):
        known = context["words"] if kind == "word" else re.findall(r"'([^']*)'", context["expected"])
        return codes.UNKNOWN_WORD, f"{name}: {_shown(value)} is not known", _known_word(value, known)
    if kind in _BOUNDS:
        key, words = _BOUNDS[kind]
        bound = _amount(context[key], path)
        return codes.OUT_OF_BOUNDS, f"{name}: {_amount(value, path)} is out of bounds", f"{words} {bound}"
    if kind == "bounds":
        return codes.OUT_OF_BOUNDS, f"{name}: {_shown(value)} is out of bounds", context["bounds"]
    if kind in ("too_short", "string_too_short"):
        field = _field(path)
        optional = kind == "too_short" and field is not None and not field.is_required()
        return codes.OUT_OF_BOUNDS, f"{name} must not be empty", "leave the key out" if optional else ""
    if kind == "string_too_long":
        return codes.OUT_OF_BOUNDS, f"{name} is too long", f"at most {context['max_length']} characters"
    if kind == "string_pattern_mismatch":
        words = SHAPES[context["pattern"]]
        other = value.upper() if words.startswith("a method") else value.lower() if words.startswith("a header name") else ""
        meant = 0 < len(other) <= 60 and re.fullmatch(context["pattern"], other) is not None
        return codes.MALFORMED, f"{name}: {_shown(value)} is malformed", f"write {other!r}" if meant else words
    if kind == "network":
        return codes.BAD_NETWORK, f"{name}: {shorten(context['problem'], 120)}", ""
    wanted = context.get("wanted") or _WANTED.get(kind, "another value")
    return codes.WRONG_TYPE, f"{name} must be {wanted}, not {_shown(value)}", _type_hint(kind, value)


# ------------------------------------------------------------------------------------------------ words


def _name(path: Path) -> str:
    """What the user calls this place: ``timeout``, ``retryOn[2]``, ``headers['x-user']``."""
    parts = [part for part in path if part != "[key]"]
    start = max((index for index, part in enumerate(parts) if isinstance(part, str)), default=0)
    if start and _is_free_map(tuple(parts[:start])):
        return f"{parts[start - 1]}[{shorten(str(parts[start]))!r}]"
    return "".join(f"[{part}]" if isinstance(part, int) else part for part in parts[start:]) or "the policy"


def _within(path: Path) -> str:
    return f" in {_name(path)}" if path else ""


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return repr(shorten(value))
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a block"
    return shorten(str(value))


def _amount(value: Any, path: Path) -> str:
    """A number with the unit of its field. Bounds of durations are seconds in the model."""
    unit = _unit(path)
    if unit == "duration":
        return format_duration(value) if isinstance(value, int | float) else _shown(value)
    # A number that is rounded to its own bound would be called out of bounds and within.
    number = f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else _shown(value)
    return f"{number} {unit}" if unit else number


def _type_hint(kind: str, value: Any) -> str:
    if kind in ("string_type", "text") and isinstance(value, int | float):
        return "put it in quotes"
    if kind == "bool_type" and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "true", "false"):
        return f"write {'true' if value.lower() in ('yes', 'on', 'true') else 'false'}, without quotes"
    if kind.startswith(("int", "float")) and isinstance(value, str) and re.fullmatch(r"[0-9.]{1,20} ?%?", value):
        return "write the number without quotes" + (" and without %" if value.endswith("%") else "")
    return ""


def _known_key(path: Path) -> str:
    """What the user may have meant by an unknown key."""
    key = str(path[-1])
    model = _model(path[:-1])
    if model is None:
        return ""
    known = _aliases(model)
    if (meant := _closest(key, known, camel_case(key.replace("-", "_")), _FOREIGN.get(camel_case(key), ""))) is not None:
        return f"did you mean {meant!r}?"
    if elsewhere := [level for level, block in _LEVELS if key in _aliases(block)]:
        return f"{key!r} may stand in {' or '.join(elsewhere)}"
    return "known keys: " + ", ".join(known)


def _known_word(value: Any, known: list[str]) -> str:
    if isinstance(value, str) and (meant := _closest(value, known, value.upper(), value.lower().replace("_", "-"))) is not None:
        return f"did you mean {meant!r}?"
    return "one of " + ", ".join(known) if len(known) > 1 else f"write {known[0]!r}"


def _closest(word: str, known: Iterable[str], *guesses: str) -> str | None:
    known = list(known)
    for guess in guesses:
        if guess in known:
            return guess
    lowered = {each.lower(): each for each in known}
    close = difflib.get_close_matches(word.lower()[:64], lowered, n=1, cutoff=0.7)
    return lowered[close[0]] if close else None


def _first_sentence(text: str | None) -> str:
    return (text or "").split(". ")[0].rstrip(".")


# -------------------------------------------------------------------------- the model behind a path


def _aliases(model: type[Block]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in model.model_fields.items()}


def _steps(path: Path) -> tuple[type[Block] | None, FieldInfo | None, bool]:
    """Follow ``path`` down the model: the block at its end if there is one, its last field, and whether that is a free map."""
    model: type[Block] | None = Policy
    field: FieldInfo | None = None
    free_map = False
    for part in path:
        if isinstance(part, int) or part == "[key]":
            continue
        if free_map:
            free_map = False  # the key of a free map: what follows is within its value
            continue
        field = _aliases(model).get(part) if model is not None else None
        annotation = field.annotation if field is not None else None
        free_map = _find(annotation, lambda kind: typing.get_origin(kind) is dict) is not None
        model = _find(annotation, lambda kind: isinstance(kind, type) and issubclass(kind, Block))
    return (None if free_map else model), field, free_map


def _find(annotation: Any, wanted: Callable[[Any], bool]) -> Any:
    """The first type within ``annotation`` that is ``wanted``."""
    if wanted(annotation):
        return annotation
    return next((found for each in typing.get_args(annotation) if (found := _find(each, wanted)) is not None), None)


def _model(path: Path) -> type[Block] | None:
    return _steps(path)[0]


def _field(path: Path) -> FieldInfo | None:
    return _steps(path)[1]


def _is_free_map(path: Path) -> bool:
    return _steps(path)[2]


def _unit(path: Path) -> str:
    field = _field(path)
    extra = field.json_schema_extra if field is not None else None
    return str(extra.get("x-unit", "")) if isinstance(extra, dict) else ""
