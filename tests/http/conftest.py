"""Every case runs on httpx and httpx2, blocking, under asyncio and under trio, unless it says otherwise."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType

import pytest
from anyio.from_thread import start_blocking_portal
from http_driver import Driver
from http_service import Service

RUNTIMES = ("sync", "asyncio", "trio")


@pytest.fixture(params=["httpx", "httpx2"])
def library(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


@pytest.fixture(params=RUNTIMES)
def driver(request: pytest.FixtureRequest, library: ModuleType) -> Iterator[Driver]:
    if request.param == "sync":
        yield Driver(library, "sync", lambda function, *args, **options: function(*args, **options))
        return
    with start_blocking_portal(request.param) as portal:
        yield Driver(library, request.param, portal.call)


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()


@pytest.fixture
def other() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()
