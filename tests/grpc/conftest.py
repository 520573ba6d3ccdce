"""A service for the cases that need one, which is stopped before anybody asks what is left of the case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.grpc.grpc_driver import nothing_left
from tests.grpc.grpc_service import GrpcService


@pytest.fixture
def clean() -> Iterator[None]:
    """Of the case nothing is left: see ``nothing_left``."""
    with nothing_left():
        yield


@pytest.fixture
def service(clean: None) -> Iterator[GrpcService]:
    with GrpcService() as service:
        yield service


@pytest.fixture
def other(clean: None) -> Iterator[GrpcService]:
    with GrpcService(name="other") as service:
        yield service


@pytest.fixture
def anyio_backend() -> str:
    """grpc.aio runs on asyncio only."""
    return "asyncio"
