"""Threads and forks: counters without a lock lose nothing, limits hold, and a child begins with nothing in flight.

On a build with the GIL an update with no call between load and store loses nothing; these tests keep watch over that.
"""

from __future__ import annotations

import os
import sys
import threading
from contextlib import contextmanager

import pytest
from driver import BREAKER, ENDPOINTS, NOTHING, OK, OPEN, RETRIES, S503, World

from resilmesh.engine.call import RAISE, RETURN, SEND, WAIT
from resilmesh.engine.verdict import Verdict
from resilmesh.state.budget import RetryBudget
from resilmesh.state.ratelimit import RateLimit
from resilmesh.state.window import CountWindow, TimeWindow


@pytest.fixture(autouse=True)
def _switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(count, work):
    """Run ``work(number)`` on so many threads at once; a failure in any is a failure of the test."""
    ready, failures = threading.Barrier(count), []

    def begin(number):
        ready.wait()
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


THREADS, CALLS = 8, 12_000


@contextmanager
def counting_entries(gate_limit):
    """How many are inside at once, and the most that ever were."""
    lock, inside = threading.Lock(), {"now": 0, "most": 0}

    @contextmanager
    def entry():
        with lock:
            inside["now"] += 1
            inside["most"] = max(inside["most"], inside["now"])
        yield
        with lock:
            inside["now"] -= 1

    yield entry, inside
    assert inside["most"] <= gate_limit


@pytest.mark.parametrize("window", [TimeWindow(3600.0), CountWindow(10**6)], ids=["time", "count"])
def test_a_window_loses_no_call(window):
    def work(number):
        for each in range(CALLS):
            if each % 10:
                window.success(1000.0)
            else:
                window.record(1000.0, failed=True, slow=True)

    together(THREADS, work)
    assert (window.calls, window.failures, window.slow) == (THREADS * CALLS, THREADS * CALLS // 10, THREADS * CALLS // 10)


def test_a_small_count_window_never_disagrees_with_its_ring():
    window = CountWindow(3)

    def work(number):
        for each in range(CALLS):
            window.record(1000.0, failed=(each + number) % 3 == 0, slow=each % 2 == 0)
            window.success(1000.0)

    together(THREADS, work)
    assert window.calls == 3
    assert window.failures == sum(byte & 1 for byte in window._ring)
    assert window.slow == sum(byte >> 1 for byte in window._ring)


def test_a_bucket_gives_out_each_token_once():
    limit, taken = RateLimit(1, 3600.0, 20_000), [0] * THREADS

    def work(number):
        for _ in range(CALLS):
            taken[number] += limit.take(1000.0)

    together(THREADS, work)
    assert sum(taken) == 20_000


def test_a_budget_pays_no_retry_twice():
    budget, paid = RetryBudget(10, 0, 3600.0), [0] * THREADS

    def work(number):
        for _ in range(CALLS):
            budget.deposit(1000.0)
            paid[number] += budget.withdraw(1000.0)

    together(THREADS, work)
    assert sum(paid) <= THREADS * CALLS // 10
    assert sum(paid) + budget.balance(1000.0) == pytest.approx(THREADS * CALLS / 10)


STACK = BREAKER.replace("size: 4", "type: TIME_BASED, size: 3600s") + ENDPOINTS + RETRIES + "retryBudget: {ttl: 3600s}\n"


def test_calls_on_many_threads_add_up():
    world = World(STACK + "concurrency: {maxRequests: 100}\nrateLimit: {requests: 10000000}\ntimeout: 10s\n", observed=False)

    def work(number):
        for each in range(CALLS // 2):
            call = world.call()
            assert call.start(1000.0) is SEND
            if each % 7 == 0:
                call.abandon(1000.0)
            elif each % 3 == 0:
                call.answered(1000.0, 1, OPEN)
                call.ended(1000.0, 1, Verdict.SUCCESS)
            else:
                assert call.answered(1000.0, 1, OK) is RETURN

    together(THREADS, work)
    each = range(CALLS // 2)
    assert world.held() == NOTHING
    assert world.stats()["calls"] == THREADS * len(each)
    assert world.stats()["abandoned"] == THREADS * sum(number % 7 == 0 for number in each)
    assert world.stats()["succeeded"] == THREADS * sum(number % 7 != 0 for number in each)
    assert world.plan().breaker.window.calls == world.stats()["succeeded"]
    assert sum(endpoint.requests for endpoint in world.plan().endpoints) == THREADS * len(each)


def test_half_open_admits_what_is_permitted_with_32_threads():
    world = World(BREAKER, observed=False)
    for _ in range(20):
        world.trip()
        world.clock.advance(10)
        admitted = [0] * 32
        calls = []

        def work(number, admitted=admitted, calls=calls):
            call = world.call()
            if call.start(world.now) is SEND:
                admitted[number] = 1
                calls.append(call)

        together(32, work)
        assert sum(admitted) == 2
        for call in calls:
            call.answered(world.now, 1, OK)
        assert world.plan().breaker.state == "CLOSED"


def test_concurrency_never_exceeds_its_limit_and_loses_no_slot():
    world = World("concurrency: {maxRequests: 3, maxPending: 100}\n", observed=False)
    with counting_entries(3) as (entry, _):
        def work(number):
            for each in range(600):
                call = world.call()
                step = call.start(1000.0)
                while step is WAIT:
                    woken = threading.Event()
                    call.lend(woken.set)
                    if each % 10 == 9:
                        break  # goes away while it waits, or was just granted
                    assert woken.wait(20), "a waiter was never woken"
                    step = call.woke(1000.0)
                if step is SEND:
                    with entry():
                        pass
                    call.answered(1000.0, 1, OK)
                else:
                    call.abandon(1000.0)

        together(16, work)
    assert world.held() == NOTHING
    assert world.stats()["calls"] == 16 * 600


def test_calls_abandoned_by_other_threads_lose_nothing():
    """One thread performs calls, its shadow abandons whichever is current, at any line of the engine."""
    world = World(BREAKER + ENDPOINTS + RETRIES + "concurrency: {maxRequests: 4, maxPending: 4}\n", observed=False)
    current = [world.call() for _ in range(3)]
    stop = threading.Event()

    def perform(number):
        for each in range(5000):
            call = current[number] = world.call()
            step = call.start(1000.0)
            if step is SEND:
                call.answered(1000.0, 1, (OK, OPEN, S503)[each % 3])
                call.ended(1000.0, 1, Verdict.SUCCESS)
            call.abandon(1000.0)

    def work(number):
        if number < 3:
            try:
                perform(number)
            finally:
                stop.set()
        else:
            while not stop.is_set():
                current[number - 3].abandon(1000.0)

    together(6, work)
    assert world.held() == NOTHING
    assert world.stats()["inFlight"] == 0


def test_reloads_in_the_middle_lose_nothing():
    world = World("concurrency: {maxRequests: 5, maxPending: 50}\n", observed=False)
    stop = threading.Event()

    def work(number):
        if number == 0:
            for limit in [*range(1, 12), 5] * 2:
                world.apply(f"concurrency: {{maxRequests: {limit}, maxPending: 50}}\n" + BREAKER)
            stop.set()
            return
        while not stop.is_set():
            call = world.call()
            step = call.start(1000.0)
            while step is WAIT:
                woken = threading.Event()
                call.lend(woken.set)
                assert woken.wait(20)
                step = call.woke(1000.0)
            assert step is SEND
            call.answered(1000.0, 1, OK)

    together(6, work)
    assert world.held() == NOTHING


# ------------------------------------------------------------------------------------------------------- fork


def in_child(check):
    """Fork, run ``check`` in the child, and return what it printed; a child that hangs is a failure."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, repr(check()).encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    timer = threading.Timer(20, os.kill, (child, 9))
    timer.start()
    said = b"".join(iter(lambda: os.read(reader, 65536), b""))
    os.close(reader)
    _, code = os.waitpid(child, 0)
    timer.cancel()
    assert code == 0, "the child hung"
    return said.decode()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_begins_with_nothing_in_flight_and_does_not_hang():
    world = World(BREAKER + ENDPOINTS + "concurrency: {maxRequests: 8, maxPending: 8}\nretryBudget: {}\n", observed=False)
    stop, mine = threading.Event(), world.flying()

    def work():
        while not stop.is_set():
            call = world.call()
            if call.start(world.now) is SEND:
                call.answered(world.now, 1, S503 if call.endpoint.requests % 50 == 0 else OK)
            call.abandon(world.now)
            world.mesh.snapshot()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()

    def check():
        held = world.held()
        mine.answered(world.now, 1, OK)  # began in the parent: the child drops it
        mine.abandon(world.now)
        world.clock.advance(1000)
        ran = [world.run(OK).step is RETURN for _ in range(4)]
        return held == NOTHING, world.held() == NOTHING, all(ran), world.stats()["inFlight"]

    try:
        said = [in_child(check) for _ in range(15)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert said == ["(True, True, True, 0)"] * 15
    mine.answered(world.now, 1, OK)
    assert world.held() == NOTHING


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_forgets_waiters_and_probes():
    world = World(BREAKER + "concurrency: {maxRequests: 2, maxPending: 5}\n", observed=False)
    world.trip()
    world.clock.advance(10)
    probes = [world.flying(), world.flying()]
    waiting, step = world.start()
    assert step is WAIT

    def check():
        steps = waiting.woke(world.now), world.start()[1], world.start()[1]
        return steps, world.held()["probes"], len(world.gate().queue)

    assert in_child(check) == repr(((RAISE, SEND, SEND), 2, 0))
    for probe in probes:
        probe.answered(world.now, 1, OK)
    assert waiting.woke(world.now) is SEND
    assert world.plan().breaker.state == "CLOSED"
