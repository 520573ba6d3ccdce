"""Deadlines of coroutine functions, in real time: exact, inherited, and told apart from everybody else's cancellation."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from contextlib import AbstractContextManager
from contextvars import ContextVar

import anyio
import pytest
import trio

import resilmesh
from resilmesh import DeadlineExceeded
from resilmesh.drive.context import deadline
from tests.drive.guarding import RETRY, circuit, idle, mesh_of, stats
from tests.timing import in_time, lasts

#: Seconds that a limit may be late; and where a single one is looked at, on a machine with other things to do.
LATE, BUSY = 0.02, 0.25

pytestmark = pytest.mark.anyio


def takes(seconds: float) -> AbstractContextManager[None]:
    return lasts(seconds - 0.002, seconds + BUSY)


async def test_the_deadline_is_exact() -> None:
    guarded, late = mesh_of(timeout="20ms").guard("svc")(anyio.sleep_forever), []
    for _ in range(10):
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await guarded()
        late.append(time.monotonic() - began - 0.02)
    assert min(late) >= -0.002
    in_time(statistics.median(late), LATE)


async def test_the_deadline_ends_the_call_in_its_own_name() -> None:
    mesh = mesh_of(timeout="50ms", circuitBreaker="{consecutiveFailures: 2}")
    guarded = mesh.guard("svc")(anyio.sleep_forever)
    for _ in range(2):
        with takes(0.05), pytest.raises(DeadlineExceeded, match="svc: no answer within the timeout of 50ms") as caught:
            await guarded()
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.attempts == 1
    assert (stats(mesh)["failed"], circuit(mesh)["state"], idle(mesh)) == (2, "OPEN", True)


async def test_each_try_has_its_own_limit_and_all_of_them_the_deadline() -> None:
    retries = "{maxRetries: 5, perTryTimeout: 50ms, retryOn: [5xx], backoff: {base: 1ms, max: 1ms}, idempotent: true}"
    mesh = mesh_of(timeout="120ms", retries=retries)
    began: list[float] = []

    async def hang() -> None:
        began.append(time.monotonic())
        await anyio.sleep_forever()

    with takes(0.12), pytest.raises(DeadlineExceeded, match="timeout of 120ms") as caught:
        await mesh.guard("svc")(hang)()
    assert caught.value.attempts == len(began) == 3
    for sooner, later in itertools.pairwise(began):
        in_time(later - sooner, 0.052 + BUSY, least=0.048)
    assert idle(mesh)


async def test_the_last_try_says_that_it_was_one() -> None:
    mesh = mesh_of(retries="{maxRetries: 1, perTryTimeout: 20ms, retryOn: [5xx], backoff: {base: 1ms}, idempotent: true}")
    with pytest.raises(DeadlineExceeded, match="no response within the perTryTimeout of 20ms") as caught:
        await mesh.guard("svc")(anyio.sleep_forever)()
    assert caught.value.attempts == 2


async def test_a_second_try_may_answer() -> None:
    mesh = mesh_of(retries="{maxRetries: 1, perTryTimeout: 20ms, retryOn: [5xx], backoff: {base: 1ms}, idempotent: true}")
    tries = 0

    @mesh.guard("svc")
    async def slow_at_first() -> str:
        nonlocal tries
        tries += 1
        if tries == 1:
            await anyio.sleep_forever()
        return "answer"

    assert await slow_at_first() == "answer"
    assert (stats(mesh)["retries"], stats(mesh)["attemptsByVerdict"]) == (1, {"FAILURE": 1})


async def test_a_function_that_does_not_let_itself_be_cancelled_is_believed() -> None:
    mesh = mesh_of(timeout="10ms")
    cancelled = anyio.get_cancelled_exc_class()

    @mesh.guard("svc")
    async def stubborn() -> str:
        try:
            await anyio.sleep_forever()
        except cancelled:
            return "late, but here"

    assert await stubborn() == "late, but here"
    await anyio.sleep(0.002)  # nothing of the limit strikes later
    assert (stats(mesh)["succeeded"], idle(mesh)) == (1, True)


async def test_a_function_that_fails_while_it_is_cancelled_gives_its_own_exception() -> None:
    mesh = mesh_of(timeout="10ms")
    cancelled = anyio.get_cancelled_exc_class()

    @mesh.guard("svc")
    async def fails_in_cleanup() -> None:
        try:
            await anyio.sleep_forever()
        except cancelled:
            raise LookupError("while cleaning up") from None

    with pytest.raises(LookupError, match="while cleaning up"):
        await fails_in_cleanup()
    await anyio.sleep(0.002)
    assert (stats(mesh)["failed"], idle(mesh)) == (1, True)


@pytest.mark.parametrize("retries", ["null", RETRY])
async def test_a_group_of_tasks_that_also_failed_shows_the_failure(retries: str) -> None:
    mesh = mesh_of(timeout="10ms", retries=retries)
    cancelled = anyio.get_cancelled_exc_class()

    async def fails_in_cleanup() -> None:
        try:
            await anyio.sleep_forever()
        except cancelled:
            raise LookupError("while cleaning up") from None

    @mesh.guard("svc")
    async def group() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fails_in_cleanup)
            tasks.start_soon(anyio.sleep_forever)

    with pytest.raises(ExceptionGroup) as caught:
        await group()
    assert [type(each) for each in caught.value.exceptions] == [LookupError]
    await anyio.sleep(0.002)
    assert (stats(mesh)["failed"], idle(mesh)) == (1, True)


async def test_a_group_of_tasks_ends_with_its_guard() -> None:
    mesh = mesh_of(timeout="20ms")
    ended = []

    async def task(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(number)

    @mesh.guard("svc")
    async def group() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(task, number)

    with takes(0.02), pytest.raises(DeadlineExceeded):
        await group()
    assert sorted(ended) == [0, 1, 2]


async def test_an_inherited_deadline_cuts_and_is_nobodys_failure() -> None:
    mesh = mesh_of(timeout="10s", circuitBreaker="{consecutiveFailures: 1}", retries=RETRY)
    with resilmesh.deadline(0.03), takes(0.03), pytest.raises(DeadlineExceeded, match="deadline that this call inherited has passed"):
        await mesh.guard("svc")(anyio.sleep_forever)()
    assert (stats(mesh)["ignored"], circuit(mesh)["state"], stats(mesh)["attemptsByVerdict"]) == (1, "CLOSED", {"IGNORED": 1})
    assert idle(mesh)


async def test_a_deadline_is_inherited_by_everything_below() -> None:
    outer, inner = mesh_of(timeout="30ms"), mesh_of(timeout="10s", circuitBreaker="{consecutiveFailures: 1}")
    seen = []

    @inner.guard("svc")
    async def below() -> None:
        seen.append(deadline())
        await anyio.sleep_forever()

    @outer.guard("svc")
    async def above() -> None:
        seen.append(deadline())
        await below()

    with takes(0.03), pytest.raises(DeadlineExceeded):
        await above()
    assert seen[0] == seen[1] < time.monotonic()
    assert deadline() == float("inf"), "and nothing of it is left behind"
    assert (stats(outer)["failed"], circuit(inner)["state"], idle(outer), idle(inner)) == (1, "CLOSED", True, True)


async def test_the_sooner_of_two_deadlines_holds() -> None:
    with resilmesh.deadline(10) as outer, resilmesh.deadline(20) as same:
        assert outer == same == deadline()
        with resilmesh.deadline(5) as sooner:
            assert deadline() == sooner < outer
        assert deadline() == outer
    assert deadline() == float("inf")


VARIABLE: ContextVar[str] = ContextVar("variable", default="unset")


async def test_context_variables_pass_both_ways() -> None:
    mesh = mesh_of(timeout="1s", retries=RETRY)

    @mesh.guard("svc")
    async def look() -> str:
        seen = VARIABLE.get()
        VARIABLE.set("set within")
        return seen

    VARIABLE.set("set outside")
    assert await look() == "set outside"
    assert VARIABLE.get() == "set within", "as if the function had been called without a guard"
    assert deadline() == float("inf")


async def test_deadlines_end_in_the_order_of_their_time() -> None:
    meshes = {seconds: mesh_of(timeout=f"{round(seconds * 1000)}ms") for seconds in (0.09, 0.03, 0.06)}
    ended = []

    async def run(seconds: float) -> None:
        with takes(seconds), pytest.raises(DeadlineExceeded):
            await meshes[seconds].guard("svc")(anyio.sleep_forever)()
        ended.append(seconds)

    async with anyio.create_task_group() as tasks:
        for seconds in meshes:
            tasks.start_soon(run, seconds)
    assert ended == [0.03, 0.06, 0.09]


# ------------------------------------------------------------------------------- cancellation by the caller


@pytest.mark.parametrize("own", ["1s", "null"])
async def test_a_cancelled_call_is_abandoned(own: str) -> None:
    mesh = mesh_of(timeout=own, concurrency="{maxRequests: 1}", circuitBreaker="{consecutiveFailures: 1}", retries=RETRY)
    guarded = mesh.guard("svc")(anyio.sleep_forever)
    with anyio.move_on_after(0.01) as scope:
        await guarded()
    assert scope.cancelled_caught
    assert (stats(mesh)["abandoned"], circuit(mesh)["state"], idle(mesh)) == (1, "CLOSED", True)


async def test_a_caller_cancelled_in_the_queue_leaves_it() -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1, maxPending: 1, maxPendingWait: 10s}", timeout="20s")
    guarded = mesh.guard("svc")(anyio.sleep_forever)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(guarded)
        await anyio.wait_all_tasks_blocked()
        with anyio.move_on_after(0.01) as scope:
            await guarded()
        assert scope.cancelled_caught
        assert mesh.snapshot()["services"]["svc"]["concurrency"]["*"]["pending"] == 0
        tasks.cancel_scope.cancel()
    assert idle(mesh)


async def test_a_caller_cancelled_in_the_backoff_is_abandoned() -> None:
    retries = "{maxRetries: 1, retryOn: [5xx], backoff: {base: 100s, max: 100s}, idempotent: true}"
    mesh = mesh_of(retries=retries, concurrency="{maxRequests: 1}")

    @mesh.guard("svc")
    async def fail() -> None:
        raise LookupError

    with anyio.move_on_after(0.01) as scope:
        await fail()
    assert scope.cancelled_caught
    assert (stats(mesh)["abandoned"], idle(mesh)) == (1, True)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
class TestAsyncio:
    """What only asyncio's counting of cancellations can get wrong."""

    async def test_an_outer_timeout_stays_an_outer_timeout(self) -> None:
        mesh = mesh_of(timeout="1s")
        with takes(0.03), pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.03):
                await mesh.guard("svc")(anyio.sleep_forever)()
        assert not isinstance(caught.value, DeadlineExceeded)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert (stats(mesh)["abandoned"], idle(mesh)) == (1, True)

    async def test_an_inner_timeout_is_the_functions_own_failure(self) -> None:
        mesh = mesh_of(timeout="1s")

        @mesh.guard("svc")
        async def impatient() -> None:
            async with asyncio.timeout(0.01):
                await anyio.sleep_forever()

        with pytest.raises(TimeoutError) as caught:
            await impatient()
        assert not isinstance(caught.value, DeadlineExceeded)
        assert stats(mesh)["failed"] == 1

    async def test_both_at_once_go_to_the_outer_one(self) -> None:
        """The limit's and the caller's cancellation arrive before the function sees either."""
        mesh = mesh_of(timeout="10ms", retries=RETRY)
        task = asyncio.create_task(mesh.guard("svc")(anyio.sleep_forever)())
        await asyncio.sleep(0)
        time.sleep(0.02)  # noqa: ASYNC251  # both are due in the same turn of the loop
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert (stats(mesh)["failed"], idle(mesh)) == (0, True)

    async def test_a_limit_leaves_the_count_as_it_was(self) -> None:
        mesh = mesh_of(timeout="10ms")
        guarded = mesh.guard("svc")(anyio.sleep_forever)
        counts = []

        async def cancelled_before() -> None:
            task = asyncio.current_task()
            assert task is not None
            try:
                await anyio.sleep_forever()
            except asyncio.CancelledError:
                counts.append(task.cancelling())
                with pytest.raises(DeadlineExceeded):
                    await guarded()
                counts.append(task.cancelling())
                raise

        task = asyncio.create_task(cancelled_before())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert counts == [1, 1]
        assert idle(mesh)

    async def test_a_task_group_around_it_is_not_confused(self) -> None:
        mesh = mesh_of(timeout="10ms")
        guarded = mesh.guard("svc")(anyio.sleep_forever)
        outcomes = []

        async def survivor() -> None:
            with pytest.raises(DeadlineExceeded):
                await guarded()
            outcomes.append("cut")

        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(survivor())
        assert outcomes == ["cut"] * 3

    async def test_waiting_for_it_with_wait_for(self) -> None:
        mesh = mesh_of(timeout="1s")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(mesh.guard("svc")(anyio.sleep_forever)(), 0.01)
        assert (stats(mesh)["abandoned"], idle(mesh)) == (1, True)

    async def test_cancelled_at_every_step_it_holds_nothing(self) -> None:
        """The task is cancelled after 0, 1, 2, ... turns of the loop: in the queue, in an attempt, in a backoff, between them."""
        mesh = mesh_of(
            timeout="5s", concurrency="{maxRequests: 1, maxPending: 1, maxPendingWait: 5s}",
            retries="{maxRetries: 2, retryOn: [5xx], backoff: {base: 1ms, max: 1ms}, idempotent: true}",
        )

        @mesh.guard("svc")
        async def fail() -> None:
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            raise LookupError

        @mesh.guard("svc")
        async def hold(turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        finished = 0
        for turns in range(60):
            holder = asyncio.create_task(hold(3))
            await asyncio.sleep(0)
            task = asyncio.create_task(fail())
            for _ in range(turns):
                await asyncio.sleep(0)
                if turns > 20:
                    time.sleep(0.0002)  # noqa: ASYNC251  # turns are faster than a backoff
            task.cancel()
            outcome = (await asyncio.gather(task, holder, return_exceptions=True))[0]
            assert isinstance(outcome, asyncio.CancelledError | LookupError)
            finished += isinstance(outcome, LookupError)
            assert idle(mesh), turns
        assert 0 < finished < 60, "some were cancelled in the midst, some had ended"
        await hold(0)


@pytest.mark.parametrize("anyio_backend", ["trio"])
class TestTrio:
    """What only trio's scopes can get wrong."""

    async def test_an_outer_scope_stays_an_outer_scope(self) -> None:
        mesh = mesh_of(timeout="1s")
        with trio.move_on_after(0.02) as scope:
            await mesh.guard("svc")(anyio.sleep_forever)()
        assert scope.cancelled_caught
        assert (stats(mesh)["abandoned"], idle(mesh)) == (1, True)

    async def test_an_outer_scope_that_is_due_too_wins(self) -> None:
        mesh = mesh_of(timeout="10ms")
        with trio.move_on_after(0.01) as scope:
            scope.cancel()
            await mesh.guard("svc")(anyio.sleep_forever)()
        assert scope.cancelled_caught
        assert (stats(mesh)["failed"], idle(mesh)) == (0, True)

    async def test_a_shielded_function_ends_when_it_likes(self) -> None:
        mesh = mesh_of(timeout="10ms")

        @mesh.guard("svc")
        async def shielded() -> str:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.03)
            return "done"

        assert await shielded() == "done"

    async def test_a_scope_within_is_the_functions_own(self) -> None:
        mesh = mesh_of(timeout="1s")

        @mesh.guard("svc")
        async def impatient() -> str:
            with trio.move_on_after(0.01):
                await trio.sleep_forever()
            return "gave up"

        assert await impatient() == "gave up"

    async def test_a_nursery_that_is_cancelled_and_fails_is_abandoned(self) -> None:
        """Part of the group is the caller's cancellation: the whole is the caller going away."""
        mesh = mesh_of(timeout="1s", circuitBreaker="{consecutiveFailures: 1}")

        async def fails_in_cleanup() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise LookupError

        @mesh.guard("svc")
        async def group() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fails_in_cleanup)
                nursery.start_soon(trio.sleep_forever)

        with pytest.raises(ExceptionGroup) as caught, trio.move_on_after(0.01):
            await group()
        assert [type(each) for each in caught.value.exceptions] == [LookupError]
        assert idle(mesh)


async def test_many_limits_strike_no_one_else() -> None:
    """Neighbours with short limits do not touch the tasks beside them."""
    short, long = mesh_of(timeout="5ms"), mesh_of(timeout="10s")
    ended = []

    async def cut() -> None:
        with pytest.raises(DeadlineExceeded):
            await short.guard("svc")(anyio.sleep_forever)()

    async def whole(number: int) -> None:
        await long.guard("svc")(anyio.sleep)(0.03)
        ended.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(40):
            tasks.start_soon(cut)
            tasks.start_soon(whole, number)
    assert sorted(ended) == list(range(40))
    assert idle(short)
    assert idle(long)
