"""A generator function inside of a classmethod was accepted, inside of a partial it was refused with an AttributeError."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest

from tests.drive.guarding import mesh_of


def rows(*arguments: Any) -> Iterator[int]:
    yield 1


@pytest.mark.parametrize("generator", [classmethod(rows), staticmethod(rows), functools.partial(rows)])
def test_it_is_refused_as_a_generator(generator: Any) -> None:
    with pytest.raises(TypeError, match="guard cannot wrap the generator function rows"):
        mesh_of().guard("svc")(generator)
