"""Every claim of the model about Envoy is held by a case: what is `exact` agrees, what is `approximate` differs as it says."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from sidebyside import owner

from resilmesh.policy.fields import Block
from resilmesh.policy.model import Policy


def _blocks(annotation: Any) -> Iterator[type[Block]]:
    if isinstance(annotation, type) and issubclass(annotation, Block):
        yield annotation
    for each in get_args(annotation):
        yield from _blocks(each)


def _fidelities(block: type[Block], found: dict[str, str]) -> dict[str, str]:
    """The fidelity of every field, by ``Block.field``."""
    for name, info in block.model_fields.items():
        metadata: Any = info.json_schema_extra
        where = owner(block, name)
        if where not in found:
            found[where] = metadata["x-envoy"]["fidelity"]
            for below in _blocks(info.annotation):
                _fidelities(below, found)
    return found


def _over_grpc(block: type[Block], found: set[str]) -> set[str]:
    """The fields that differ where the service speaks gRPC."""
    for name, info in block.model_fields.items():
        metadata: Any = info.json_schema_extra
        if metadata["x-envoy"].get("over_grpc"):
            found.add(owner(block, name))
        for below in _blocks(info.annotation):
            _over_grpc(below, found)
    return found


def _cases() -> Iterator[tuple[str, frozenset[str]]]:
    for path in Path(__file__).parent.glob("test_parity_*.py"):
        for name, test in vars(importlib.import_module(path.stem)).items():
            if name.startswith("test_"):
                yield name, getattr(test, "covers", frozenset())


def test_every_claim_has_a_case() -> None:
    claims = _fidelities(Policy, {})
    cases = list(_cases())
    agree = {field for name, fields in cases for field in fields if "difference" not in name}
    differ = {field for name, fields in cases for field in fields if "difference" in name}
    assert {field for field, fidelity in claims.items() if fidelity == "exact"} - agree == set()
    assert {field for field, fidelity in claims.items() if fidelity == "approximate"} - differ == set()
    assert (agree | differ) - set(claims) == set(), "a case names a field that the model does not have"


def test_every_difference_over_grpc_has_a_case() -> None:
    tests = vars(importlib.import_module("test_parity_grpc"))
    differ = {field for name, test in tests.items() if "difference" in name for field in getattr(test, "covers", ())}
    assert _over_grpc(Policy, set()) - differ == set()
