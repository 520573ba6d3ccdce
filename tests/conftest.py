"""What every test begins with: no mesh of the process, whatever an earlier test configured. What one that was late gets:
another chance."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

from resilmesh import DeadlineExceeded, mesh
from tests.timing import Late

# What is called over TLS here proves its name by a certificate of its own test, so a client need not trust anybody; by
# default each would read the hundred and forty certificates of the public authorities first, for some 20 ms.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("certificate.pem"))

#: How often a test is run again at most.
AGAIN = 2

_late = pytest.StashKey[bool]()


def pytest_runtest_setup(item: pytest.Item) -> None:
    mesh.default.mesh = None
    mesh.default._guarded.clear()
    item.stash[_late] = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    try:
        yield
    except (Late, DeadlineExceeded):  # the latter: a call that should have been in time for its policy
        item.stash[_late] = True
        raise
    except RuntimeError as error:
        item.stash[_late] = _of_another_test(error)
        raise


def _of_another_test(error: RuntimeError) -> bool:
    """grpc.aio has one poller for all event loops, and hands what happens to the loop that asked: when that was an earlier test's,
    which is closed, the loop that runs now is told so. A call that was cancelled may end that late."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    return str(error) == "Event loop is closed" and any("cygrpc/aio" in file for file in files)


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """As pytest's own, but for the other chance: fixtures and all, and nothing is said of the run that does not count."""
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for left in reversed(range(1 + AGAIN)):
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
        if not (left and item.stash[_late]):
            break
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
