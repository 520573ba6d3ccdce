"""Identities that a SPIFFE agent pushes: a real implementation of its API on a unix socket, which also stops, lies and comes back."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from resilmesh import Mesh
from resilmesh.identity import IdentityError
from resilmesh.identity.workload_api import WorkloadApiSource
from tests.identity.pki import HOUR, WEB, Authority, now
from tests.identity.workload_api_service import Agent, response_of

ROOT, PARTNER = Authority(), Authority(trust_domain="partner.example")
OTHER = "spiffe://shop.example/ns/prod/sa/other"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path / "agent.sock")
    agent.response = response_of(ROOT.issue(WEB))
    agent.start()
    yield agent
    agent.stop()


def until(true: Callable[[], object], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
    return bool(true())


def listening(agent: Agent) -> WorkloadApiSource:
    return WorkloadApiSource(agent.address, look=0.05)


def test_the_first_svid_and_every_bundle(agent: Agent) -> None:
    agent.response = response_of(ROOT.issue(WEB), ROOT.issue(OTHER), federated=(PARTNER,))
    source = listening(agent)
    assert str(source.current().svid.id) == WEB
    assert sorted(source.current().bundles) == ["partner.example", "shop.example"]
    source.close()
    source.close()


def test_what_is_pushed_is_put_in_force(agent: Agent) -> None:
    source = listening(agent)
    for number in range(1, 4):
        agent.push(response_of(ROOT.issue(WEB)))
        assert until(lambda number=number: source.rotations == number)
    source.close()


def torn() -> object:
    response = response_of(ROOT.issue(WEB))
    response.svids[0].x509_svid_key = b"torn"
    return response


@pytest.mark.parametrize("response", [
    response_of(ROOT.issue(WEB, begins=now() - 2 * HOUR, ends=now() - HOUR)), torn(), response_of(), response_of(ROOT.issue(dns=["web"])),
], ids=["expired", "a torn key", "nothing", "no SPIFFE ID"])
def test_what_cannot_be_used_is_refused_and_the_old_stays(agent: Agent, response: object) -> None:
    source = listening(agent)
    before = source.current()
    agent.push(response)
    assert until(lambda: source.refusals >= 1)
    assert source.snapshot(time.time())["problem"]
    assert source.current() is before
    agent.push(response_of(ROOT.issue(WEB)))
    assert until(lambda: source.rotations >= 1)
    source.close()


def test_an_agent_that_stops_and_comes_back(agent: Agent) -> None:
    source = listening(agent)
    agent.stop()
    agent.response = response_of(ROOT.issue(WEB))
    agent.start()
    assert until(lambda: source.rotations == 1)
    source.close()


def test_one_that_refuses_for_a_while(agent: Agent) -> None:
    """SPIRE says PERMISSION_DENIED to a workload that it does not know."""
    source = listening(agent)
    agent.error = grpc.StatusCode.PERMISSION_DENIED
    agent.stop()
    agent.start()
    assert until(lambda: source.refusals >= 1)
    agent.error, agent.response = None, response_of(ROOT.issue(WEB))
    assert until(lambda: source.rotations == 1)
    source.close()


def test_nobody_there(tmp_path: Path, agent: Agent) -> None:
    with pytest.raises(IdentityError, match=r"has given no identity within 0\.05 s: .*does not exist"):
        WorkloadApiSource(f"unix://{tmp_path}/nobody.sock", timeout=0.05)
    agent.response = None
    with pytest.raises(IdentityError, match="is the agent running, and is this workload registered with it"):
        WorkloadApiSource(agent.address, timeout=0.05)
    agent.error = grpc.StatusCode.PERMISSION_DENIED
    with pytest.raises(IdentityError, match="PERMISSION_DENIED"):
        WorkloadApiSource(agent.address, timeout=0.5)


def test_nothing_is_left_of_one_that_is_closed_or_forgotten(agent: Agent) -> None:
    before = set(threading.enumerate())
    listening(agent).close()
    source = listening(agent)
    del source
    gc.collect()
    ours = ("resilmesh-identity", "watch_target")
    assert until(lambda: not [each for each in set(threading.enumerate()) - before if any(name in each.name for name in ours)])


def test_from_the_policy(agent: Agent) -> None:
    with Mesh.from_text(f"apiVersion: resilmesh/v1\nmesh: {{identity: {{workloadApi: '{agent.address}'}}}}\n") as mesh:
        assert mesh.identity is not None
        assert str(mesh.identity.svid.id) == WEB
    with Mesh.from_text("apiVersion: resilmesh/v1", identity=agent.address) as mesh:
        assert mesh.snapshot()["identity"]["spiffeId"] == WEB
