"""``for attempt in mesh.attempts("svc"): with attempt: ...``, in every way in which such a loop is left."""

from __future__ import annotations

import gc
import logging
import warnings
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import resilmesh
from resilmesh import CircuitOpen, ConcurrencyExceeded, DeadlineExceeded, InjectedFault, RateLimited
from resilmesh.drive.context import deadline
from resilmesh.testing import ManualClock
from tests.drive.guarding import RETRY, circuit, idle, listen, mesh_of, stats

pytestmark = [pytest.mark.anyio, pytest.mark.filterwarnings("ignore:`for` over mesh.attempts:RuntimeWarning")]


class Trouble(Exception):
    pass


#: Runs a block under attempts: ``await run(mesh, block, **arguments)``; the block is given the attempt's number.
Runner = Callable[..., Awaitable[Any]]


async def run_blocking(mesh: resilmesh.Mesh, block: Callable[[int], Any], **arguments: Any) -> Any:
    for attempt in mesh.attempts("svc", **arguments):
        with attempt:
            result = block(attempt.number)
    return result


async def run_awaiting(mesh: resilmesh.Mesh, block: Callable[[int], Any], **arguments: Any) -> Any:
    async for attempt in mesh.attempts("svc", **arguments):
        async with attempt:
            await anyio.lowlevel.checkpoint()
            result = block(attempt.number)
    return result


async def run_returning(mesh: resilmesh.Mesh, block: Callable[[int], Any], **arguments: Any) -> Any:
    for attempt in mesh.attempts("svc", **arguments):
        with attempt:
            return block(attempt.number)
    raise AssertionError("a loop ends in its block")


async def run_returning_awaiting(mesh: resilmesh.Mesh, block: Callable[[int], Any], **arguments: Any) -> Any:
    async for attempt in mesh.attempts("svc", **arguments):
        with attempt:
            await anyio.lowlevel.checkpoint()
            return block(attempt.number)
    raise AssertionError("a loop ends in its block")


@pytest.fixture(
    params=[run_blocking, run_awaiting, run_returning, run_returning_awaiting], ids=["for", "async for", "return", "async return"],
)
def run(request: pytest.FixtureRequest) -> Runner:
    runner: Runner = request.param
    return runner


def failing(*numbers: int) -> Callable[[int], str]:
    """A block that fails at these attempts."""
    def block(number: int) -> str:
        if number in numbers:
            raise Trouble(number)
        return f"result of {number}"

    return block


async def test_a_block_that_works_runs_once(run: Runner) -> None:
    mesh = mesh_of(timeout="9s", concurrency="{maxRequests: 1}")
    assert await run(mesh, failing()) == "result of 1"
    assert (stats(mesh)["succeeded"], idle(mesh), deadline()) == (1, True, float("inf"))


async def test_a_block_that_fails_runs_again(run: Runner) -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY)
    assert await run(mesh, failing(1, 2)) == "result of 3"
    assert (stats(mesh)["retries"], stats(mesh)["succeeded"], idle(mesh)) == (2, 1, True)


async def test_the_last_exception_leaves_the_loop(run: Runner) -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY)
    with pytest.raises(Trouble, match="3") as caught:
        await run(mesh, failing(1, 2, 3))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    assert (stats(mesh)["failed"], idle(mesh)) == (1, True)


async def test_without_leave_to_repeat_nothing_is_repeated(run: Runner) -> None:
    mesh = mesh_of(clock=ManualClock(), retries="{maxRetries: 2, retryOn: [5xx]}")
    with pytest.raises(Trouble, match="1"):
        await run(mesh, failing(1), idempotent=False)


async def test_arguments_mean_what_they_mean_for_guard(run: Runner) -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY, circuitBreaker="{consecutiveFailures: 1}")
    with pytest.raises(Trouble):
        await run(mesh, failing(1), failures=KeyError)
    with pytest.raises(Trouble):
        await run(mesh, failing(1), ignore=Trouble)
    with pytest.raises(Trouble):
        await run(mesh, failing(1), failures=lambda error: isinstance(error, KeyError))
    assert (circuit(mesh)["state"], stats(mesh)["succeeded"], stats(mesh)["ignored"]) == ("CLOSED", 2, 1)


async def test_a_predicate_that_raises_holds_nothing(run: Runner) -> None:
    def predicate(error: Any) -> bool:
        raise LookupError

    mesh = mesh_of(concurrency="{maxRequests: 1}")
    with pytest.raises(LookupError):
        await run(mesh, failing(1), failures=predicate)
    assert idle(mesh)


async def test_a_rejection_is_raised_by_the_loop(run: Runner) -> None:
    mesh = mesh_of(rateLimit="{requests: 1, per: 1h}")
    await run(mesh, failing())
    with pytest.raises(RateLimited):
        await run(mesh, failing())
    assert idle(mesh)


async def test_a_circuit_that_opens_gives_the_last_exception(run: Runner) -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY, circuitBreaker="{consecutiveFailures: 2, waitDurationInOpenState: 9s}")
    with pytest.raises(Trouble, match="2"):
        await run(mesh, failing(1, 2, 3))
    with pytest.raises(CircuitOpen):
        await run(mesh, failing())
    assert stats(mesh)["retriesRefused"] == {"circuit": 1}


async def test_a_circuit_that_opens_in_the_backoff_gives_the_last_exception(run: Runner) -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, retries=RETRY, circuitBreaker="{consecutiveFailures: 2, waitDurationInOpenState: 9s}")
    fail_beside = mesh.guard("svc", idempotent=False)(failing(1))

    def block(number: int) -> None:
        raise Trouble(number)

    events = listen(mesh)

    def open_it(event: resilmesh.Event) -> None:
        if event.name == "backoff":
            unsubscribe()
            with pytest.raises(Trouble):
                fail_beside(1)

    unsubscribe = mesh.subscribe(open_it)
    with pytest.raises(Trouble, match="1"):
        await run(mesh, block)
    assert [event.detail for event in events if event.name == "retry_refused"][-1] == {"reason": "circuit"}
    assert idle(mesh)


async def test_faults_of_attempts_take_the_blocks_place(run: Runner) -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY, fault="{abort: {httpStatus: 503}, scope: ATTEMPT}")
    ran = []
    with pytest.raises(InjectedFault) as caught:
        await run(mesh, ran.append)
    assert (ran, caught.value.attempts, stats(mesh)["faults"], idle(mesh)) == ([], 3, {"abort": 3}, True)


async def test_faults_of_calls_are_raised_by_the_loop(run: Runner) -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY, fault="{abort: {httpStatus: 418}}")
    with pytest.raises(InjectedFault) as caught:
        await run(mesh, failing())
    assert (caught.value.status, stats(mesh)["faults"]) == (418, {"abort": 1})


async def test_half_of_the_attempts_are_drilled_and_the_others_run(run: Runner) -> None:
    mesh = mesh_of(
        clock=ManualClock(), retries="{maxRetries: 60, retryOn: [5xx], idempotent: true}",
        fault="{abort: {httpStatus: 503, percent: 50}, scope: ATTEMPT}",
    )
    numbers = [await run(mesh, int) for _ in range(20)]
    assert {1, 2, 3} <= set(numbers)
    assert stats(mesh)["faults"] == {"abort": sum(numbers) - 20}


async def test_mode_off_runs_the_block_once(run: Runner) -> None:
    mesh = mesh_of(mesh="{mode: OFF}", retries=RETRY)
    assert await run(mesh, failing()) == "result of 1"
    with pytest.raises(Trouble):
        await run(mesh, failing(1))


async def test_an_exception_is_freed_without_the_garbage_collector(run: Runner) -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY, timeout="9s")
    references = []

    def block(number: int) -> None:
        try:
            raise Trouble
        except Trouble as error:
            references.append(weakref.ref(error))
            raise

    gc.collect()
    gc.disable()
    try:
        for kind in ({}, {"idempotent": False}):
            with suppress(Trouble):
                await run(mesh, block, **kind)
        assert [reference() for reference in references] == [None] * 4
    finally:
        gc.enable()


@pytest.mark.mesh_leaks("off")  # the outer loop is left on purpose
async def test_a_rejection_is_freed_too(run: Runner) -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")
    references = []
    gc.collect()
    gc.disable()
    try:
        for _ in mesh.attempts("svc"):
            try:
                await run(mesh, failing())
            except ConcurrencyExceeded as error:
                references.append(weakref.ref(error))
            break
        assert references[0]() is None
    finally:
        gc.enable()


async def test_the_block_knows_its_deadline(run: Runner) -> None:
    clock = ManualClock(start=100)
    mesh = mesh_of(clock=clock, timeout="9s", retries=RETRY)
    seen = []

    def block(number: int) -> None:
        seen.append(deadline())
        if number == 1:
            clock.advance(1)
            raise Trouble

    await run(mesh, block)
    assert seen == [109, 109]


async def test_attempts_may_be_kept_and_used_for_many_calls() -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY)
    attempts = mesh.attempts("svc")
    for _ in range(3):
        for attempt in attempts:
            with attempt:
                if attempt.number == 1:
                    raise Trouble
    assert (stats(mesh)["calls"], stats(mesh)["succeeded"], stats(mesh)["retries"]) == (3, 3, 3)


async def test_an_attempt_tells_what_made_it_fail() -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY)
    told = []
    for attempt in mesh.attempts("svc"):
        with attempt:
            if attempt.number < 3:
                raise Trouble(attempt.number)
        told.append((attempt.number, repr(attempt.error)))
    assert told == [(1, "Trouble(1)"), (2, "Trouble(2)"), (3, "None")]


# ---------------------------------------------------------------------------------- loops left in other ways


async def loops(mesh: resilmesh.Mesh, kind: str) -> AsyncIterator[Any]:
    if kind == "for":
        for attempt in mesh.attempts("svc"):
            yield attempt
    else:
        async for attempt in mesh.attempts("svc"):
            yield attempt


@pytest.mark.parametrize("kind", ["for", "async for"])
class TestLeft:
    async def test_break_within_the_block_is_a_success(self, kind: str) -> None:
        mesh = mesh_of(concurrency="{maxRequests: 1}", timeout="9s")
        if kind == "for":
            for attempt in mesh.attempts("svc"):
                with attempt:
                    break
        else:
            async for attempt in mesh.attempts("svc"):
                async with attempt:
                    break
        assert (stats(mesh)["succeeded"], idle(mesh)) == (1, True)

    async def test_break_before_the_block_abandons_the_call(self, kind: str) -> None:
        mesh = mesh_of(concurrency="{maxRequests: 1}", timeout="9s")
        if kind == "for":
            for _ in mesh.attempts("svc"):
                break
        else:
            async for _ in mesh.attempts("svc"):
                break
        assert (stats(mesh)["abandoned"], idle(mesh)) == (1, True)

    async def test_an_exception_before_the_block_abandons_the_call(self, kind: str) -> None:
        mesh = mesh_of(concurrency="{maxRequests: 1}", retries=RETRY)
        with pytest.raises(Trouble):  # noqa: PT012  # the loop is the statement
            if kind == "for":
                for _ in mesh.attempts("svc"):
                    raise Trouble
            else:
                async for _ in mesh.attempts("svc"):
                    raise Trouble
        assert (stats(mesh)["abandoned"], stats(mesh)["failed"], idle(mesh)) == (1, 0, True)

    async def test_a_block_that_was_not_entered_is_an_error(self, kind: str) -> None:
        mesh = mesh_of(concurrency="{maxRequests: 1}", retries=RETRY)
        with pytest.raises(RuntimeError, match="an attempt was not entered: write `with attempt:`"):  # noqa: PT012  # the loop is the statement
            if kind == "for":
                for _ in mesh.attempts("svc"):
                    pass
            else:
                async for _ in mesh.attempts("svc"):
                    pass
        assert idle(mesh)

    async def test_an_iterator_that_is_over_stays_so(self, kind: str) -> None:
        mesh = mesh_of()
        if kind == "for":
            loop = iter(mesh.attempts("svc"))
            with next(loop):
                pass
            for _ in range(3):
                with pytest.raises(StopIteration):
                    next(loop)
        else:
            later = aiter(mesh.attempts("svc"))
            async with await anext(later):
                pass
            for _ in range(3):
                with pytest.raises(StopAsyncIteration):
                    await anext(later)
        assert stats(mesh)["calls"] == 1

    async def test_a_generator_around_it_may_be_dropped(self, kind: str) -> None:
        mesh = mesh_of(concurrency="{maxRequests: 1}")
        around = loops(mesh, kind)
        async for _ in around:
            break
        await around.aclose()  # type: ignore[attr-defined]  # a generator
        gc.collect()
        assert idle(mesh)


def test_a_generator_left_unfinished_leaks_nothing() -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")

    def results() -> Iterator[int]:
        for attempt in mesh.attempts("svc"):
            with attempt:
                yield attempt.number

    for _ in range(3):
        assert next(results()) == 1
        gc.collect()
    assert (stats(mesh)["abandoned"], idle(mesh)) == (3, True)


async def test_a_loop_that_hangs_is_cut_at_its_deadline() -> None:
    mesh = mesh_of(timeout="20ms")
    with pytest.raises(DeadlineExceeded, match="timeout of 20ms"):  # noqa: PT012  # the loop is the statement
        async for attempt in mesh.attempts("svc"):
            async with attempt:
                await anyio.sleep_forever()
    assert (stats(mesh)["failed"], idle(mesh), deadline()) == (1, True, float("inf"))


async def test_a_try_that_hangs_is_cut_and_made_again() -> None:
    mesh = mesh_of(retries="{maxRetries: 1, perTryTimeout: 20ms, retryOn: [5xx], backoff: {base: 1ms}, idempotent: true}")
    numbers = []
    async for attempt in mesh.attempts("svc"):
        with attempt:
            numbers.append(attempt.number)
            if attempt.number == 1:
                await anyio.sleep_forever()
    assert (numbers, idle(mesh)) == ([1, 2], True)


async def test_a_cancelled_block_abandons_the_call() -> None:
    mesh = mesh_of(timeout="9s", retries=RETRY, concurrency="{maxRequests: 1}")
    with anyio.move_on_after(0.01) as scope:
        async for attempt in mesh.attempts("svc"):
            async with attempt:
                await anyio.sleep_forever()
    assert (scope.cancelled_caught, stats(mesh)["abandoned"], idle(mesh)) == (True, 1, True)


async def test_a_cancelled_backoff_abandons_the_call() -> None:
    mesh = mesh_of(retries="{maxRetries: 1, retryOn: [5xx], backoff: {base: 100s, max: 100s}, idempotent: true}")
    with anyio.move_on_after(0.01) as scope:
        async for attempt in mesh.attempts("svc"):
            with attempt:
                raise Trouble
    assert (scope.cancelled_caught, stats(mesh)["abandoned"], idle(mesh)) == (True, 1, True)


async def test_a_doubt_about_repeating_is_said_once(caplog: pytest.LogCaptureFixture, run: Runner) -> None:
    mesh = mesh_of(retries="{retryOn: [5xx]}")
    with caplog.at_level(logging.WARNING, "resilmesh"):
        for _ in range(5):
            await run(mesh, failing())
    assert [record.getMessage().startswith("svc: the policy has retries, but nothing says") for record in caplog.records] == [True]


async def test_a_blocking_loop_in_a_coroutine_is_told_before_it_waits() -> None:
    mesh = mesh_of(retries=RETRY, concurrency="{maxRequests: 1}")
    await run_blocking(mesh, failing())  # which waits for nothing
    with pytest.warns(RuntimeWarning, match="blocks the event loop while it waits: write `async for`") as told:
        assert await run_blocking(mesh, failing(1)) == "result of 2"
    assert (len(told), told[0].filename, idle(mesh)) == (1, __file__, True)
    with warnings.catch_warnings(action="error"):
        assert await anyio.to_thread.run_sync(lambda: plain_loop(mesh)) == 2


def test_a_blocking_loop_elsewhere_is_as_it_should_be() -> None:
    with warnings.catch_warnings(action="error"):
        assert plain_loop(mesh_of(retries=RETRY)) == 2


def plain_loop(mesh: resilmesh.Mesh) -> int:
    for attempt in mesh.attempts("svc"):
        with attempt:
            if attempt.number == 1:
                raise Trouble
    return attempt.number
