"""Several workers' snapshots as one: what is counted is added up, of a state the worst is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

#: Not added up: of several workers the smallest, the largest; the first where it is neither.
_SMALLEST = frozenset(("revision", "expiresIn"))
_LARGEST = frozenset(("opensFor", "failureRate", "consecutiveFailures", "consecutive5xx", "slowStartShare"))
_SAME = frozenset(("bounds", "per", "percent", "ttl", "minRetriesPerSecond", "successRate", "localOriginSuccessRate", "labels"))
#: From bad to good.
_STATES = ("FORCED_OPEN", "OPEN", "HALF_OPEN", "METRICS_ONLY", "FORCED_CLOSED", "CLOSED")


def merged(snapshots: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One snapshot of ``mesh.snapshot()``'s shape."""
    if len(snapshots) == 1:
        return dict(snapshots[0])
    found: dict[str, Any] = {}
    for snapshot in snapshots:
        for key in snapshot:
            if key not in found:
                found[key] = _of(key, [each[key] for each in snapshots if key in each])
    return found


def _of(key: str, values: list[Any]) -> Any:
    values = [value for value in values if value is not None]
    if not values:
        return None
    first = values[0]
    if key == "state":
        return min(values, key=_STATES.index)
    if isinstance(first, Mapping) and key not in _SAME:
        return merged(values)
    if isinstance(first, bool):
        return any(values)
    if key in _SAME or isinstance(first, str | Mapping):
        return first
    if key in _SMALLEST:
        return min(values)
    if key in _LARGEST:
        return max(values)
    if isinstance(first, list):
        return _lists(key, values)
    return round(sum(values), 6) if isinstance(first, float) else sum(values)


def _lists(key: str, values: list[list[Any]]) -> list[Any]:
    if key == "outcomes":
        kept: dict[tuple[Any, ...], dict[str, Any]] = {}
        for outcome in (each for value in values for each in value):
            known = kept.setdefault((outcome["of"], outcome["status"], outcome["error"]), {**outcome, "attempts": 0, "seconds": 0.0})
            known["attempts"] += outcome["attempts"]
            known["seconds"] = round(known["seconds"] + outcome["seconds"], 6)
        return list(kept.values())
    if all(isinstance(each, int) for value in values for each in value):
        return [sum(column) for column in zip(*values, strict=True)]
    return values[0]
