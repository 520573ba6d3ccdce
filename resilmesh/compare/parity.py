"""How faithful Envoy's version of a policy is, key by key: from the model's own mappings and the translation's notes.

Everything here is read from the policies' text, so that a report which was written elsewhere can be shown again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from resilmesh.envoy.notes import notes_on
from resilmesh.errors import PolicyError
from resilmesh.policy.fields import Block, in_envoy
from resilmesh.policy.load import load_text
from resilmesh.policy.model import Service


@dataclass(slots=True)
class Row:
    """One key. ``difference`` is empty for an exact one; ``used_by`` are the scenarios that use it, in their order."""

    key: str
    fidelity: str
    envoy: str
    difference: str
    used_by: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Parity:
    """``rows`` in the order of their keys; ``unreadable`` says of which scenarios the policy cannot be read, and why."""

    rows: list[Row]
    unreadable: dict[str, str]


def parity(policies: Mapping[str, str]) -> Parity:
    """Of the policies' texts, by the name of the scenario that uses each."""
    rows: dict[tuple[str, str], Row] = {}
    unreadable: dict[str, str] = {}
    for name, text in policies.items():
        try:
            found = list(_rows(text))
        except PolicyError as error:
            unreadable[name] = str(error)
            continue
        for row in found:
            kept = rows.setdefault((row.key, row.difference), row)
            if name not in kept.used_by:
                kept.used_by.append(name)
    return Parity([rows[key] for key in sorted(rows)], unreadable)


def _rows(text: str) -> Iterator[Row]:
    policy = load_text(text).policy
    yield from _in_block(policy, "", any(service.protocol == "GRPC" for service in policy.services))
    for note in notes_on(policy):
        # Those of a single field are rows already, with the same words.
        yield Row(note.block, note.fidelity, "", note.message)


def _in_block(block: Block, prefix: str, grpc: bool) -> Iterator[Row]:
    if isinstance(block, Service):
        grpc = block.protocol == "GRPC"
    for name, info in type(block).model_fields.items():
        if name not in block.model_fields_set:
            continue
        value = getattr(block, name)
        metadata: Any = info.json_schema_extra
        envoy = metadata["x-envoy"]
        key = prefix + (info.alias or name)
        if envoy["fidelity"] != "neutral" and value is not None:
            fidelity, difference = in_envoy(metadata, value, grpc=grpc)
            yield Row(key, fidelity, envoy["field"], difference)
        yield from _below(value, _prefix(key), grpc)


def _below(value: object, prefix: str, grpc: bool) -> Iterator[Row]:
    if isinstance(value, Block):
        yield from _in_block(value, prefix, grpc)
    elif isinstance(value, list):
        for each in value:
            yield from _below(each, prefix, grpc)


def _prefix(key: str) -> str:
    """Keys of the levels are called as the reference calls them: ``retries.maxRetries``, wherever the block stands."""
    return "" if key in ("mesh", "defaults", "services", "routes") else key + "."
