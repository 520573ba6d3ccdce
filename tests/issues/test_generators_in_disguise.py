"""A generator function inside of a classmethod was taken for a function, inside of a partial it was refused with an AttributeError."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.drive.guarding import idle, mesh_of, stats


def rows(*arguments: Any) -> Iterator[int]:
    yield 1
    yield 2


@pytest.mark.parametrize("form", ["classmethod", "staticmethod", "partial"])
def test_it_is_guarded_as_a_generator(form: str) -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")
    guarded: Any = mesh.guard("svc")({"classmethod": classmethod, "staticmethod": staticmethod, "partial": functools.partial}[form](rows))
    stream = type("Owner", (), {"rows": guarded})().rows() if form != "partial" else guarded()
    assert (stats(mesh)["calls"], next(stream), idle(mesh)) == (0, 1, False)
    assert (list(stream), stats(mesh)["succeeded"], idle(mesh)) == ([2], 1, True)
