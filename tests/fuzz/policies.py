"""Targets that end in a policy: whatever the text, a ``PolicyError`` that can be read, or a policy that works."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from resilmesh import Mesh
from resilmesh.envoy.translate import translate
from resilmesh.errors import PolicyError
from resilmesh.policy import document
from resilmesh.policy.check import check
from resilmesh.policy.codes import BAD_IDENTITY, CODES, NO_IDENTITY, Diagnostic
from resilmesh.policy.load import Loaded, load_text
from resilmesh.policy.model import Policy
from resilmesh.testing import ManualClock
from tests.fuzz.draws import Draws

ROOT = Path(__file__).parents[2]
#: Where policies lie that use everything, valid or not.
SEEDS = ("tests/policy/testdata/**/*.yaml", "tests/envoy/policies/*.yaml", "resilmesh/compare/policies/*.yaml")
#: Numbers, words and shapes at the edge of what a key may hold.
EDGES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 100, 101, 599, 600, 2**31, 2**63, 0.5, 99.99, 1e-9, 1e300, "", "a", "*", "/", "0s", "1us", "1ms", "1s",
    "365d", "366d", "GET", "5xx", "GRPC", "HTTP2", "OFF", "OBSERVE", "ROUTE", "SERVICE", "ATTEMPT", "TIME_BASED", "(", "a|b", "\u00e9",
    "\u202e", "127.0.0.1:1", "[::1]:80", "*.a.b", "a:65535", [], {}, [[]], {"exact": "a"}, {"regex": ".*"}, {"present": True},
)


def text(data: bytes) -> None:
    """Bytes as a policy's file."""
    judge(data)


def tree(data: bytes) -> None:
    """A policy of the seeds, with some of its values replaced by others that stood under the same key, or by edges."""
    draws = Draws(data)
    policy = draws.pick(_seeds())
    for _ in range(1 + draws.below(6)):
        policy = _mutated(policy, draws)
    judge(json.dumps(policy).encode())


def judge(data: bytes) -> None:
    """Everything that is promised of a policy's text."""
    try:
        loaded = load_text(data, "f")
    except PolicyError as error:
        _readable(error.diagnostics, in_order=True)
        _refused_while_running(data)
        return
    diagnostics = check(loaded)
    _readable(diagnostics)
    _round_trips(loaded)
    if any(each.severity == "error" for each in diagnostics):
        _refused_while_running(data)
    else:
        _works(data, loaded)


def _readable(diagnostics: Any, *, in_order: bool = False) -> None:
    assert diagnostics or not in_order, "refused without a reason"
    assert len(diagnostics) <= document.MAX_MISTAKES + 1
    for each in diagnostics:
        assert isinstance(each, Diagnostic)
        assert each.code in CODES
        assert each.severity == CODES[each.code].severity
        assert each.line >= 1
        assert each.column >= 1
        shown = str(each)
        assert shown.isprintable(), f"not printable: {shown!r}"
        assert len(shown) < 2000
        shown.encode()
    places = [(each.line, each.column) for each in diagnostics]
    assert not in_order or places == sorted(places)


def _round_trips(loaded: Loaded) -> None:
    dumped = loaded.policy.model_dump(mode="json", by_alias=True, exclude_unset=True)
    again = load_text(json.dumps(dumped))
    assert again.policy == loaded.policy, f"{loaded.policy!r} became {again.policy!r}"
    assert Policy.model_validate(dumped, by_alias=True, by_name=False) == loaded.policy


def _works(data: bytes, loaded: Loaded) -> None:
    json.dumps(translate(loaded.policy).bootstrap, allow_nan=False)
    with _running() as mesh:
        try:
            mesh.apply_text(data)
        except PolicyError as error:
            # What a policy asks of this machine may not be here; nothing else may be wrong with it now.
            if {each.code for each in error.diagnostics} <= {NO_IDENTITY.code, BAD_IDENTITY.code}:
                return
            raise
        json.dumps(mesh.snapshot())
        for service in loaded.policy.services:
            for host in service.hosts or ():
                mesh.table.find("GET", host.partition(":")[0], 80, "/a?b=c", {"x-a": "b"})
            for route in (None, *(each.name for each in service.routes or ())):
                assert mesh.table.named(service.name, route)[0]


def _refused_while_running(data: bytes) -> None:
    with _running() as mesh:
        table = mesh.table
        try:
            mesh.apply_text(data)
        except PolicyError:
            assert mesh.table is table
            assert mesh.snapshot()["refused"] == 1
        else:
            raise AssertionError("load or check refused what a running mesh took")


def _running() -> Mesh:
    return Mesh.from_text("apiVersion: resilmesh/v1\nservices: [{name: a, hosts: [a]}]", clock=ManualClock(), seed=1)


# ------------------------------------------------------------------------------------------------ trees


@cache
def seed_texts() -> tuple[bytes, ...]:
    return tuple(path.read_bytes() for pattern in SEEDS for path in sorted(ROOT.glob(pattern)))


@cache
def _seeds() -> tuple[Any, ...]:
    """The trees of every seed that can be loaded."""
    trees = []
    for each in seed_texts():
        try:
            load_text(each)
        except PolicyError:
            continue
        trees.append(document.read(each, "f").data)
    assert trees
    return tuple(trees)


@cache
def _by_key() -> dict[str, list[Any]]:
    """Everything that stands under a key somewhere in the seeds."""
    found: dict[str, list[Any]] = {}
    for seed in _seeds():
        for path in _paths(seed):
            if path and isinstance(path[-1], str):
                found.setdefault(path[-1], []).append(_at(seed, path))
    return found


def _mutated(policy: Any, draws: Draws) -> Any:
    path = draws.pick(_paths(policy))
    action, key = draws.below(8), path[-1] if path else None
    if action < 4 and isinstance(key, str) and key in _by_key():
        return _changed(policy, path, draws.pick(_by_key()[key]))
    if action < 6:
        value = _at(policy, path)
        if isinstance(value, dict):
            known = sorted(_by_key())
            added = draws.pick(known)
            return _changed(policy, path, {**value, added: draws.pick(_by_key()[added])})
        if isinstance(value, list) and value:
            return _changed(policy, path, [*value, draws.pick(value)])
        return _changed(policy, path, draws.text() if isinstance(value, str) else draws.below(65_536))
    return _changed(policy, path, draws.pick(EDGES))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(below for key, item in items for below in _paths(item, (*path, key)))]


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


def _changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    if isinstance(value, list):
        return [_changed(item, path[1:], new) if index == path[0] else item for index, item in enumerate(value)]
    return {key: _changed(item, path[1:], new) if key == path[0] else item for key, item in value.items()}
