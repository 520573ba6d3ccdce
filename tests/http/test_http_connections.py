"""Our pool of HTTP/1.1 connections: who gets which, who waits, and what is closed."""

from __future__ import annotations

import gc
import threading
import time
from types import ModuleType
from typing import Any

import anyio
import pytest
from http_driver import Driver, mesh_of, policy
from http_service import Service, answer, raw
from hypothesis import given
from hypothesis import strategies as st

from resilmesh import DeadlineExceeded, Mesh
from resilmesh.http import AsyncTransport, Transport, connections
from resilmesh.http.connections import Connections, Waiter
from tests.timing import lasts

URL = "http://svc.test/things"
A, B = "http://a", "http://b"


class Line:
    """A connection as httpcore shows it, without a socket."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.state = "new"

    def can_handle_request(self, origin: str) -> bool:
        return self.origin == origin

    def is_idle(self) -> bool:
        return self.state in ("idle", "expired")

    def is_closed(self) -> bool:
        return self.state == "closed"

    def has_expired(self) -> bool:
        return self.state == "expired"


def shelf(most: int = 3, idle: int = 3) -> Connections:
    return Connections(Line, None, max_connections=most, max_keepalive_connections=idle)


def answered(kept: Connections, line: Any) -> None:
    line.state = "idle"
    kept.give_back(line)


# ------------------------------------------------------------------------------------------ without sockets


def test_the_newest_idle_one_goes_first() -> None:
    kept = shelf()
    one, two = kept.take(A), kept.take(A)
    answered(kept, one)
    answered(kept, two)
    assert kept.take(A) is two
    assert kept.take(A) is one
    assert not kept.doomed


def test_no_more_are_open_than_max_connections_whatever_their_origin() -> None:
    kept = shelf(most=2)
    one, two = kept.take(A), kept.take(B)
    assert kept.take(A) is None
    answered(kept, one)
    answered(kept, two)
    three, four = kept.take("http://c"), kept.take("http://c")
    assert list(kept.doomed) == [one, two], "the oldest of another origin gives way"
    assert {three, four}.isdisjoint((one, two))
    assert kept.take("http://c") is None


def test_another_origin_gives_way_only_when_it_must() -> None:
    kept = shelf(most=2)
    one = kept.take(A)
    answered(kept, one)
    kept.take(B)
    assert kept.take(A) is one
    assert not kept.doomed


def test_the_oldest_idle_ones_above_the_limit_are_closed() -> None:
    kept = shelf(idle=1)
    one, two = kept.take(A), kept.take(A)
    answered(kept, one)
    answered(kept, two)
    assert list(kept.doomed) == [one]
    assert kept.take(A) is two
    none_kept = shelf(idle=0)
    line = none_kept.take(A)
    answered(none_kept, line)
    assert list(none_kept.doomed) == [line]
    assert none_kept.is_unused()


def test_what_expired_is_not_lent() -> None:
    kept = shelf()
    one = kept.take(A)
    answered(kept, one)
    one.state = "expired"
    assert kept.take(A) is not one
    assert list(kept.doomed) == [one]


def test_idle_ones_that_expired_are_swept_when_a_second_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(connections, "monotonic", lambda: now)
    kept = shelf()
    one, two, three = kept.take(A), kept.take(A), kept.take(A)
    for line in (one, two, three):
        answered(kept, line)
    one.state = "expired"
    answered(kept, kept.take(A))
    assert not kept.doomed
    now = 101.0
    answered(kept, kept.take(A))
    assert list(kept.doomed) == [one]
    assert [kept.take(A), kept.take(A)] == [three, two], "the order is kept"


def test_who_waits_is_served_in_order_and_before_a_newcomer() -> None:
    kept, woken = shelf(most=1), []
    line = kept.take(A)
    first, second = (kept.get_in_line(origin, lambda origin=origin: woken.append(origin)) for origin in (A, B))
    answered(kept, line)
    assert woken == [A]
    assert kept.take(A) is None
    assert kept.leave_line(first) is line
    answered(kept, line)
    assert woken == [A, B]
    assert kept.leave_line(second) is not line
    assert list(kept.doomed) == [line]


def test_who_is_given_nothing_leaves_the_line() -> None:
    kept = shelf(most=1)
    line = kept.take(A)
    gone, there = kept.get_in_line(A, bool), kept.get_in_line(A, bool)
    assert kept.leave_line(gone) is None
    line.state = "closed"
    kept.give_back(line)
    assert gone.connection is None
    assert there.connection is not None
    assert not kept.doomed, "it is closed already"


def test_what_came_free_before_somebody_got_in_line_is_not_overlooked() -> None:
    kept = shelf(most=1)
    answered(kept, kept.take(A))
    assert kept.get_in_line(A, bool).connection is not None


def test_after_a_close_nothing_comes_back() -> None:
    kept = shelf()
    lent, idle = kept.take(A), kept.take(A)
    answered(kept, idle)
    kept.doom_all()
    assert set(kept.doomed) == {lent, idle}
    answered(kept, lent)
    assert kept.is_unused()
    assert kept.take(A) not in (lent, idle)


@given(st.lists(st.tuples(st.sampled_from(["take", "wait", "leave", "answer", "break", "expire"]), st.integers(0, 5)), max_size=60))
def test_whatever_happens_the_limits_hold_and_nobody_waits_without_need(steps: list[tuple[str, int]]) -> None:
    kept = shelf(most=3, idle=2)
    lent: list[Any] = []
    line: list[Waiter] = []
    for step, which in steps:
        origin = (A, B)[which % 2]
        if step == "take":
            taken = kept.take(origin)
            lent += [taken] if taken else []
        elif step == "wait":
            line.append(kept.get_in_line(origin, bool))
        elif step == "leave" and line:
            came = kept.leave_line(line.pop(which % len(line)))
            lent += [came] if came else []
        elif step in ("answer", "break") and lent:
            gone = lent.pop(which % len(lent))
            gone.state = "idle" if step == "answer" else "broken"
            kept.give_back(gone)
        elif step == "expire" and kept._idle:
            kept._idle[which % len(kept._idle)].state = "expired"
        lent += [each.connection for each in line if each.connection]
        served = [each.connection is not None for each in line]
        assert served == sorted(served, reverse=True), "first come, first served"
        line = [each for each in line if each.connection is None]
        assert len(lent) == len(set(lent)), "one request each"
        assert len(kept._open) <= 3
        assert len(kept._idle) <= 2
        assert set(lent) | set(kept._idle) == kept._open
        assert not line or len(lent) == 3
        assert len(kept._waiting) == len(line)


# --------------------------------------------------------------------------------------------- with sockets


def test_calls_one_after_the_other_share_a_connection(driver: Driver, service: Service) -> None:
    with driver.client(transport=driver.transport(mesh_of(service, timeout="5s"))) as client:
        for _ in range(5):
            client.get(URL)
    assert service.connections == 1


def test_a_connection_that_the_service_closed_is_not_used(driver: Driver, service: Service) -> None:
    with driver.client(transport=driver.transport(mesh_of(service, timeout="5s"))) as client:
        service.script = [raw(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")]
        client.get(URL)
        with lasts(0, 1):
            while service.open_connections:
                pass
        time.sleep(0.01)  # its FIN arrives
        assert client.post(URL).status_code == 200
    assert service.connections == 2


def test_a_connection_expires(driver: Driver, service: Service) -> None:
    limits = driver.library.Limits(keepalive_expiry=0.01)
    with driver.client(transport=driver.transport(mesh_of(service, timeout="5s"), limits=limits)) as client:
        client.get(URL)
        time.sleep(0.02)
        client.get(URL)
    assert service.connections == 2


def test_hosts_of_one_service_share_the_limit(driver: Driver, service: Service) -> None:
    mesh = Mesh.from_text(policy(service, timeout="5s").replace("[svc.test]", "[svc.test, other.test]"))
    with driver.client(transport=driver.transport(mesh, limits=driver.library.Limits(max_connections=1))) as client:
        for _ in range(2):
            client.get(URL)
            client.get("http://other.test/")
        assert [each.headers["host"] for each in service.seen] == ["svc.test", "other.test"] * 2
        assert service.connections == 4


def test_a_body_that_breaks_off_gives_its_connection_back(driver: Driver, service: Service) -> None:
    limits = driver.library.Limits(max_connections=1)
    with driver.client(transport=driver.transport(mesh_of(service, timeout="5s"), limits=limits), timeout=1) as client:
        service.script = [raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")]
        broken = client.open("GET", URL)
        with pytest.raises(driver.library.RemoteProtocolError):
            client.read(broken)
        assert client.get(URL).text == "ok", "the broken response was not closed by the user"


def test_a_response_that_is_forgotten_gives_its_connection_back(library: ModuleType, service: Service) -> None:
    service.script = [answer(200, b"x" * 1000)]
    transport = Transport(mesh_of(service, timeout="5s"), limits=library.Limits(max_connections=1))
    with library.Client(transport=transport, timeout=0.5) as client:
        client.send(client.build_request("GET", URL), stream=True)
        gc.collect()
        assert client.get(URL).text == "ok"


def test_threads_share_few_connections(library: ModuleType, service: Service) -> None:
    transport = Transport(mesh_of(service, timeout="20s"), limits=library.Limits(max_connections=3))
    bodies: list[str] = []
    with library.Client(transport=transport, timeout=20) as client:

        def work() -> None:
            bodies.extend(client.get(URL).text for _ in range(40))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [lane] = transport._lanes._lanes.values()
        assert lane.inner._pool.is_unused()
    assert bodies == ["ok"] * 320
    assert service.connections <= 3


@pytest.mark.parametrize("runtime", ["asyncio", "trio"])
def test_tasks_share_few_connections_in_the_order_they_came(library: ModuleType, service: Service, runtime: str) -> None:
    service.otherwise = answer(delay=0.002)
    ended: list[int] = []

    async def main() -> None:
        transport = AsyncTransport(mesh_of(service, timeout="20s"), limits=library.Limits(max_connections=4))
        async with library.AsyncClient(transport=transport, timeout=20) as client:

            async def work(number: int) -> None:
                await client.get(f"{URL}/{number}")
                ended.append(number)

            for _ in range(2):
                async with anyio.create_task_group() as group:
                    for number in range(32):
                        group.start_soon(work, number)

    anyio.run(main, backend=runtime)
    assert service.connections == 4
    assert sorted(ended) == sorted([*range(32)] * 2)
    if runtime == "asyncio":  # trio starts tasks in random order
        order = [int(each.target.rpartition("/")[2]) for each in service.seen[:32]]
        assert all(abs(place - number) <= 4 for place, number in enumerate(order)), order


@pytest.mark.parametrize("when", ["in line", "as the connection comes"])
@pytest.mark.parametrize("runtime", ["asyncio", "trio"])
def test_who_is_cancelled_in_line_takes_no_connection_along(library: ModuleType, service: Service, runtime: str, when: str) -> None:
    async def main() -> None:
        transport = AsyncTransport(mesh_of(service, timeout="5s"), limits=library.Limits(max_connections=1))
        async with library.AsyncClient(transport=transport, timeout=5) as client, anyio.create_task_group() as group:
            first = await client.send(client.build_request("GET", URL), stream=True)
            [lane] = transport._lanes._lanes.values()
            kept = lane.inner._pool
            scope = anyio.CancelScope()

            async def wait() -> None:
                with scope:
                    await client.get(URL)

            group.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            assert len(kept._waiting) == 1
            if when == "in line":
                scope.cancel()
                await anyio.wait_all_tasks_blocked()
                assert not kept._waiting
            await first.aread()
            scope.cancel()
            assert (await client.get(URL)).text == "ok"
            assert kept.is_unused()

    anyio.run(main, backend=runtime)


@pytest.mark.parametrize("runtime", ["asyncio", "trio"])
def test_the_wait_in_line_ends_with_the_attempt(library: ModuleType, service: Service, runtime: str) -> None:
    async def main() -> None:
        mesh = mesh_of(service, timeout="5s", retries="{maxRetries: 0, perTryTimeout: 100ms, retryOn: [5xx]}")
        transport = AsyncTransport(mesh, limits=library.Limits(max_connections=1))
        async with library.AsyncClient(transport=transport, timeout=5) as client:
            first = await client.send(client.build_request("GET", URL), stream=True)
            with lasts(0.09, 1), pytest.raises(DeadlineExceeded):
                await client.get(URL)
            with lasts(0, 1), pytest.raises(library.PoolTimeout):
                await client.get(URL, timeout=library.Timeout(5, pool=0.01))
            await first.aread()
            assert (await client.get(URL)).text == "ok"

    anyio.run(main, backend=runtime)
