"""A guarded function's exception was held by a frame of its own traceback: only the garbage collector freed it."""

from __future__ import annotations

import gc
import weakref

import pytest

from tests.drive.guarding import RETRY, mesh_of


class Trouble(Exception):
    pass


@pytest.mark.parametrize("retries", ["null", RETRY])
def test_it_is_freed_when_its_handler_ends(retries: str) -> None:
    references = []

    @mesh_of(retries=retries).guard("svc")
    def fail() -> None:
        raise Trouble

    gc.collect()
    gc.disable()
    try:
        try:
            fail()
        except Trouble as error:
            references.append(weakref.ref(error))
        assert references[0]() is None
    finally:
        gc.enable()
