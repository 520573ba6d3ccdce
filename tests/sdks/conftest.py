"""Every case runs with the blocking and with the asynchronous client of its SDK."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
from anyio.from_thread import start_blocking_portal
from sdk_driver import Runtime

from tests.http.http_service import Service


@pytest.fixture(params=["sync", "async"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    if request.param == "sync":
        yield Runtime(True, lambda function, *args, **named: function(*args, **named))
        return
    with start_blocking_portal("asyncio") as portal:
        yield Runtime(False, lambda function, *args, **named: portal.call(partial(function, *args, **named)))


@pytest.fixture
def service() -> Iterator[Service]:
    service = Service()
    yield service
    service.stop()
