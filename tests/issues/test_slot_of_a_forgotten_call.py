"""A slot that a forgotten response holds was only found by the next call; a waiter without a deadline waited for ever."""

import threading

import resilmesh
from resilmesh.engine.call import SEND, Call

POLICY = """
apiVersion: resilmesh/v1
services:
- {name: ledger, concurrency: {maxRequests: 1, maxPending: 1}}
"""


def test_a_waiter_finds_it() -> None:
    mesh = resilmesh.Mesh.from_text(POLICY)
    plan = mesh.table.named("ledger", None)[1]
    assert plan is not None
    forgotten = Call(plan)
    assert forgotten.start(mesh.clock.monotonic()) is SEND
    done = []
    waiter = threading.Thread(target=mesh.guard("ledger")(lambda: done.append(True)), daemon=True)
    waiter.start()
    while not mesh.snapshot()["services"]["ledger"]["concurrency"]["*"]["pending"]:
        waiter.join(0.001)
    forgotten.orphan()
    waiter.join(10)
    assert done == [True]
    assert mesh.snapshot()["inFlight"] == 0


def test_an_observer_subscribed_twice_is_dropped_once() -> None:
    mesh = resilmesh.Mesh.from_text(POLICY)
    seen: list[str] = []

    def observer(event: resilmesh.Event) -> None:
        seen.append(event.name)

    first, second = mesh.subscribe(observer), mesh.subscribe(observer)
    first()
    first()
    mesh.guard("ledger")(lambda: None)()
    assert seen.count("call_started") == 1
    second()
    mesh.guard("ledger")(lambda: None)()
    assert seen.count("call_started") == 1
