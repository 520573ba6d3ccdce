"""Whatever is done to a stream, it answers as the bare generator does, and holds nothing when it is over."""

from __future__ import annotations

import inspect
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from resilmesh.testing import ManualClock
from tests.drive.guarding import idle, mesh_of


class Trouble(Exception):
    pass


#: What a generator does, one after the other; what it is sent or thrown may change the rest.
PLANS = st.lists(st.sampled_from(["yield", "raise", "return", "catch", "cleanup fails", "interrupt"]), max_size=6)


def act(plan: list[str]) -> Generator[Any, Any, str]:
    for number, word in enumerate(plan):
        if word == "raise":
            raise Trouble(number)
        if word == "interrupt":
            raise KeyboardInterrupt
        if word == "return":
            return f"returned {number}"
        try:
            sent = yield number
            if sent is not None:
                yield f"sent {sent}"
        except Trouble as error:
            if word != "catch":
                raise
            yield f"caught {error}"
        finally:
            if word == "cleanup fails":
                raise LookupError(number)
    return "done"


async def act_async(plan: list[str]) -> AsyncGenerator[Any, Any]:
    for number, word in enumerate(plan):
        await anyio.lowlevel.checkpoint()
        if word == "raise":
            raise Trouble(number)
        if word == "interrupt":
            raise KeyboardInterrupt
        if word == "return":
            return
        try:
            sent = yield number
            if sent is not None:
                yield f"sent {sent}"
        except Trouble as error:
            if word != "catch":
                raise
            yield f"caught {error}"
        finally:
            if word == "cleanup fails":
                raise LookupError(number)


def outcome(do: Callable[[], Any]) -> Any:
    try:
        return do()
    except BaseException as error:
        return type(error), error.args


class Machine(RuleBasedStateMachine):
    """A bare generator and a guarded one, side by side."""

    stream: Any = None

    @precondition(lambda self: self.stream is None)
    @rule(plan=PLANS)
    def begin(self, plan: list[str]) -> None:
        self.mesh = mesh_of(clock=ManualClock(), concurrency="{maxRequests: 1}", timeout="9s", circuitBreaker="{consecutiveFailures: 1}")
        self.bare: Any = act(plan)
        self.stream = self.mesh.guard("svc")(act)(plan)

    def both(self, do: Callable[[Any], Any]) -> None:
        expected = outcome(lambda: do(self.bare))
        assert outcome(lambda: do(self.stream)) == expected

    @precondition(lambda self: self.stream is not None)
    @rule()
    def next(self) -> None:
        self.both(next)

    @precondition(lambda self: self.stream is not None)
    @rule(value=st.sampled_from([None, 1, 2]))
    def send(self, value: int | None) -> None:
        self.both(lambda each: each.send(value))

    @precondition(lambda self: self.stream is not None)
    @rule(error=st.sampled_from([Trouble, ValueError, StopIteration, KeyboardInterrupt, GeneratorExit]))
    def throw(self, error: type[BaseException]) -> None:
        self.both(lambda each: each.throw(error("thrown")))

    @precondition(lambda self: self.stream is not None)
    @rule()
    def close(self) -> None:
        self.both(lambda each: each.close())

    @precondition(lambda self: self.stream is not None)
    @rule()
    def forget(self) -> None:
        outcome(self.bare.close)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "unraisablehook", lambda raised: None)  # a cleanup may fail: Python tells that, in a bare generator too
            self.stream = None
        assert idle(self.mesh)

    @invariant()
    def exactly_what_is_open_is_held(self) -> None:
        if self.stream is not None:
            is_open = inspect.getgeneratorstate(self.bare) == inspect.GEN_SUSPENDED
            assert (self.mesh.snapshot()["inFlight"], idle(self.mesh)) == (int(is_open), not is_open)

    def teardown(self) -> None:
        if self.stream is not None:
            self.forget()


Machine.TestCase.settings = settings(max_examples=100, stateful_step_count=12, deadline=None)
test_a_stream_answers_as_its_generator_does = Machine.TestCase

OPERATIONS = st.lists(st.sampled_from(["next", "send", "throw", "cancel", "close"]), max_size=6)


async def perform(stream: Any, operation: str) -> Any:
    """One operation, and what came of it."""
    with anyio.CancelScope() as scope:
        if operation == "cancel":
            scope.cancel()
        try:
            match operation:
                case "send":
                    return await stream.asend(1)
                case "throw":
                    return await stream.athrow(Trouble("thrown"))
                case "close":
                    return await stream.aclose()
                case _:
                    return await anext(stream)
        except (Exception, KeyboardInterrupt) as error:
            return type(error), error.args
    return "cancelled"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=60, deadline=None)
@given(plan=PLANS, operations=OPERATIONS)
def test_an_asynchronous_stream_too(backend: str, plan: list[str], operations: list[str]) -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}", timeout="9s", circuitBreaker="{consecutiveFailures: 1}")

    async def side_by_side() -> None:
        bare, stream = act_async(plan), mesh.guard("svc")(act_async)(plan)
        for operation in operations:
            if operation == "throw" and bare.ag_frame is None:
                continue  # CPython swallows it, a stream raises it as a generator does
            expected = await perform(bare, operation)
            assert await perform(stream, operation) == expected, operation
            if bare.ag_frame is None:
                assert idle(mesh)
        await perform(bare, "close")
        await perform(stream, "close")

    anyio.run(side_by_side, backend=backend)
    assert idle(mesh)
