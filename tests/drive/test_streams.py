"""Generator functions as streams: one call, that begins with the first item asked for and ends with the generator."""

from __future__ import annotations

import contextlib
import gc
import inspect
import weakref
from collections.abc import Generator, Iterator
from functools import partial
from typing import Any

import pytest

import resilmesh
from resilmesh import CircuitOpen, ConcurrencyExceeded, DeadlineExceeded, InjectedFault, Mesh
from resilmesh.drive.context import deadline
from resilmesh.testing import ManualClock
from tests.drive.guarding import RETRY, circuit, idle, listen, mesh_of, stats


class Trouble(Exception):
    pass


def rows(*items: Any) -> Generator[Any, Any, str]:
    """Gives the items, raises those that are exceptions, and answers what is sent."""
    for item in items:
        if isinstance(item, BaseException):
            raise item
        sent = yield item
        while sent is not None:
            sent = yield f"sent {sent}"
    return "done"


def guarded(mesh: Mesh, **options: Any) -> Any:
    return mesh.guard("svc", **options)(rows)


def told(mesh: Mesh) -> dict[str, int]:
    """The endings that were counted."""
    counted = stats(mesh)
    return {name: counted[name] for name in ("succeeded", "failed", "ignored", "abandoned") if counted[name]}


def test_nothing_happens_before_the_first_item() -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")
    streams = [guarded(mesh)(1, 2) for _ in range(3)]
    assert stats(mesh)["calls"] == 0
    assert next(streams[0]) == 1
    assert (stats(mesh)["calls"], stats(mesh)["inFlight"]) == (1, 1)
    with pytest.raises(ConcurrencyExceeded):
        next(streams[1])
    with pytest.raises(StopIteration):
        next(streams[1])
    assert (list(streams[0]), told(mesh), idle(mesh)) == ([2], {"succeeded": 1}, True)
    assert list(streams[2]) == [1, 2]


def test_wrong_arguments_are_said_at_once() -> None:
    @mesh_of().guard("svc")
    def one(item: int) -> Iterator[int]:
        yield item

    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        one()  # type: ignore[call-arg]  # the point


def test_what_a_generator_is_sent_thrown_and_gives_back() -> None:
    mesh = mesh_of()
    stream = guarded(mesh)("a", "b")
    assert isinstance(stream, Generator)
    assert iter(stream) is stream
    with pytest.raises(TypeError, match="can't send non-None value to a just-started generator"):
        stream.send(1)
    assert [next(stream), stream.send("x"), next(stream)] == ["a", "sent x", "b"]
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value == "done"
    with pytest.raises(StopIteration) as after:
        stream.send("late")
    assert after.value.value is None
    with pytest.raises(Trouble):
        stream.throw(Trouble())
    stream.close()
    assert told(mesh) == {"succeeded": 1}


def test_yield_from_gets_the_value() -> None:
    mesh = mesh_of()

    def outer() -> Iterator[Any]:
        result = yield from guarded(mesh)(1)
        yield result

    assert list(outer()) == [1, "done"]


@pytest.mark.parametrize("way", ["instance", "class", "class and value", "with a traceback"])
def test_every_way_to_throw(way: str) -> None:
    seen = []

    @mesh_of().guard("svc")
    def patient() -> Iterator[Any]:
        try:
            yield 1
        except Trouble as error:
            seen.append(error)
            yield "caught"

    stream: Any = patient()
    next(stream)
    given: dict[str, tuple[Any, ...]] = {
        "instance": (Trouble(3),), "class": (Trouble,), "class and value": (Trouble, 3), "with a traceback": (Trouble, Trouble(3), None),
    }
    assert stream.throw(*given[way]) == "caught"
    assert seen[0].args == (() if way == "class" else (3,))
    stream.close()


def test_what_cannot_be_thrown() -> None:
    stream = guarded(mesh_of())(1)
    with pytest.raises(TypeError, match="exceptions must be classes or instances deriving from BaseException, not str"):
        stream.throw("trouble")
    with pytest.raises(TypeError, match="instance exception may not have a separate value"):
        stream.throw(Trouble(), 1)
    assert list(stream) == [1]


def test_closing_is_a_success_like_a_response_that_is_closed_early() -> None:
    mesh, cleaned = mesh_of(concurrency="{maxRequests: 1}"), []

    @mesh.guard("svc")
    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            cleaned.append(deadline())

    stream: Any = endless()
    next(stream)
    stream.close()
    stream.close()
    assert (cleaned, told(mesh), idle(mesh)) == ([float("inf")], {"succeeded": 1}, True)
    unused: Any = endless()
    unused.close()
    assert (list(unused), stats(mesh)["calls"]) == ([], 1)


def test_a_generator_that_fails_when_it_is_closed() -> None:
    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}")

    @mesh.guard("svc")
    def clumsy() -> Iterator[int]:
        try:
            yield 1
        finally:
            raise Trouble

    stream: Any = clumsy()
    next(stream)
    with pytest.raises(Trouble):
        stream.close()
    assert (circuit(mesh)["state"], idle(mesh)) == ("OPEN", True)


def test_what_the_caller_throws_is_nobodys_fault() -> None:
    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}")
    session = contextlib.contextmanager(guarded(mesh))
    with pytest.raises(Trouble), session("session") as opened:  # noqa: PT012  # the block is what is tested
        assert opened == "session"
        raise Trouble
    assert (told(mesh), circuit(mesh)["state"], idle(mesh)) == ({"ignored": 1}, "CLOSED", True)
    fresh = guarded(mesh)(1)
    with pytest.raises(Trouble):
        fresh.throw(Trouble())
    assert (list(fresh), stats(mesh)["calls"]) == ([], 1)


def test_a_failure_before_the_first_item_is_retried_and_one_after_it_is_not() -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY, circuitBreaker="{consecutiveFailures: 4}")
    events = listen(mesh)
    runs: list[int] = []

    @mesh.guard("svc")
    def flaky() -> Iterator[int]:
        runs.append(len(runs))
        if len(runs) < 3:
            raise Trouble
        yield 1
        raise Trouble("broken off")

    stream = flaky()
    assert (next(stream), runs) == (1, [0, 1, 2])
    with pytest.raises(Trouble, match="broken off") as caught:
        next(stream)
    failures = [each.detail["verdict"] for each in events if each.name == "attempt_ended"]
    assert (runs, stats(mesh)["retries"], failures, idle(mesh)) == ([0, 1, 2], 2, ["FAILURE", "FAILURE", "SUCCESS"], True)
    assert (told(mesh), circuit(mesh)["consecutiveFailures"]) == ({"failed": 1}, 3)
    assert caught.value.__cause__ is None


def test_an_empty_stream_and_one_that_fails_at_once() -> None:
    mesh = mesh_of()
    with pytest.raises(StopIteration) as end:
        next(guarded(mesh)())
    assert (end.value.value, told(mesh)) == ("done", {"succeeded": 1})
    with pytest.raises(Trouble):
        next(guarded(mesh)(Trouble()))
    assert (told(mesh), idle(mesh)) == ({"succeeded": 1, "failed": 1}, True)


def test_failures_and_ignore_judge_what_a_stream_raises() -> None:
    mesh = mesh_of()
    for options, verdict in (({"failures": KeyError}, "succeeded"), ({"ignore": Trouble}, "ignored"), ({}, "failed")):
        before = stats(mesh)[verdict]
        stream = guarded(mesh, **options)(1, Trouble())
        next(stream)
        with pytest.raises(Trouble):
            next(stream)
        assert stats(mesh)[verdict] == before + 1


def test_a_predicate_that_raises_holds_nothing() -> None:
    def predicate(error: Any) -> bool:
        raise LookupError

    mesh = mesh_of(concurrency="{maxRequests: 1}")
    stream = guarded(mesh, failures=predicate)(1, Trouble())
    assert next(stream) == 1
    with pytest.raises(LookupError):
        next(stream)
    assert idle(mesh)


def test_an_interrupt_abandons() -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")
    for items in ((KeyboardInterrupt(),), (1, KeyboardInterrupt())):
        with pytest.raises(KeyboardInterrupt):
            list(guarded(mesh)(*items))
    assert (told(mesh), idle(mesh)) == ({"abandoned": 2}, True)


def test_a_forgotten_stream_gives_back_what_it_held() -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")
    for _ in range(3):
        assert next(guarded(mesh)(1, 2)) == 1
        gc.collect()
    assert (told(mesh), idle(mesh)) == ({"abandoned": 3}, True)


def test_the_deadline_covers_the_whole_stream() -> None:
    clock, cleaned = ManualClock(start=100), []
    mesh = mesh_of(clock=clock, timeout="2s", concurrency="{maxRequests: 1}")

    @mesh.guard("svc")
    def slow() -> Iterator[float]:
        try:
            while True:
                clock.advance(0.75)
                yield deadline()
        finally:
            cleaned.append(1)

    stream = slow()
    assert ([next(stream), next(stream), next(stream)], deadline()) == ([102.0] * 3, float("inf"))
    with pytest.raises(DeadlineExceeded, match="the stream did not end within the timeout of 2s") as caught:
        next(stream)
    assert (caught.value.service, caught.value.attempts, cleaned, told(mesh), idle(mesh)) == ("svc", 1, [1], {"failed": 1}, True)
    assert list(stream) == []


def test_an_inherited_deadline_is_not_the_streams_failure() -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, timeout="9s", circuitBreaker="{consecutiveFailures: 1}")
    stream = guarded(mesh)(1, 2, 3)
    with resilmesh.deadline(1, clock):
        next(stream)
    assert next(stream) == 2
    clock.advance(1)
    with pytest.raises(DeadlineExceeded, match="within the deadline that this call inherited"):
        next(stream)
    assert (told(mesh), circuit(mesh)["state"]) == ({"ignored": 1}, "CLOSED")


def test_a_deadline_that_the_generator_sets_stays_inside_of_it() -> None:
    clock = ManualClock(start=100)
    mesh = mesh_of(clock=clock, timeout="9s")

    @mesh.guard("svc")
    def nested() -> Iterator[float]:
        yield deadline()
        with resilmesh.deadline(1, clock):
            yield deadline()
            yield deadline()
        yield deadline()

    seen = [(inside, deadline()) for inside in nested()]
    assert seen == [(each, float("inf")) for each in (109, 101, 101, 109)]


def test_a_cleanup_that_fails_at_the_deadline_is_told_as_its_cause() -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, timeout="1s")

    @mesh.guard("svc")
    def clumsy(error: BaseException) -> Iterator[int]:
        try:
            yield 1
        finally:
            raise error

    stream = clumsy(Trouble())
    next(stream)
    clock.advance(1)
    with pytest.raises(DeadlineExceeded) as caught:
        next(stream)
    assert isinstance(caught.value.__cause__, Trouble)
    stream = clumsy(KeyboardInterrupt())
    next(stream)
    clock.advance(1)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert idle(mesh)


def test_a_generator_that_asks_for_its_own_next_item() -> None:
    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}")
    streams: list[Any] = []

    @mesh.guard("svc")
    def itself() -> Iterator[Any]:
        for way in (partial(next, streams[0]), streams[0].close, partial(streams[0].throw, Trouble)):
            with pytest.raises(ValueError, match="generator already executing"):
                way()
        yield 1

    streams.append(itself())
    assert (list(streams[0]), told(mesh), idle(mesh)) == ([1], {"succeeded": 1}, True)


def test_rejections_and_faults_come_with_the_first_item() -> None:
    mesh = mesh_of(
        clock=ManualClock(), retries=RETRY, fault="{abort: {httpStatus: 503}, scope: ATTEMPT}", circuitBreaker="{consecutiveFailures: 3}",
    )
    stream = guarded(mesh)(1)
    with pytest.raises(InjectedFault) as caught:
        next(stream)
    assert caught.value.attempts == 3
    with pytest.raises(CircuitOpen):
        next(guarded(mesh)(1))
    assert idle(mesh)


def test_a_probe_ends_with_the_first_item() -> None:
    clock = ManualClock()
    breaker = "{consecutiveFailures: 1, waitDurationInOpenState: 1s, permittedNumberOfCallsInHalfOpenState: 1}"
    mesh = mesh_of(clock=clock, circuitBreaker=breaker)
    with pytest.raises(Trouble):
        next(guarded(mesh)(Trouble()))
    clock.advance(1)
    stream = guarded(mesh)(1, 2)
    next(stream)
    assert circuit(mesh)["state"] == "CLOSED"
    assert (list(stream), idle(mesh)) == ([2], True)


def test_modes() -> None:
    off, observed = mesh_of(mesh="{mode: OFF}", timeout="1s"), mesh_of(mesh="{mode: OBSERVE}", rateLimit="{requests: 1, per: 1h}")
    assert list(guarded(off)(1, 2)) == [1, 2]
    stream = guarded(off)(1, Trouble())
    assert (next(stream), off.snapshot()["inFlight"]) == (1, 0)
    with pytest.raises(Trouble):
        next(stream)
    assert list(stream) == []
    assert [list(guarded(observed)(1, 2)) for _ in range(2)] == [[1, 2]] * 2
    assert (stats(observed)["wouldReject"], told(observed), idle(observed)) == ({"RateLimited": 1}, {"succeeded": 2}, True)


def test_the_story_of_a_stream() -> None:
    mesh = mesh_of()
    events = listen(mesh)
    stream = guarded(mesh)(1, 2)
    next(stream)
    assert [event.name for event in events] == ["call_started", "attempt_started", "attempt_ended"]
    list(stream)
    assert [event.name for event in events[3:]] == ["call_ended"]


def test_a_fallback_gives_the_items_in_place_of_a_stream_that_did_not_begin() -> None:
    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}")
    feed = guarded(mesh, fallback=lambda error: ["kept", type(error).__name__])
    assert list(feed(Trouble())) == ["kept", "Trouble"]
    assert list(feed(1)) == ["kept", "CircuitOpen"]
    assert (stats(mesh)["fallbacks"], idle(mesh)) == ({"FAILURE": 1, "REJECTED": 1}, True)


def test_after_the_first_item_there_is_no_fallback() -> None:
    mesh = mesh_of()
    stream = guarded(mesh, fallback=lambda error: [])(1, Trouble())
    assert next(stream) == 1
    with pytest.raises(Trouble):
        next(stream)
    assert stats(mesh)["fallbacks"] == {}


@pytest.mark.parametrize("first", [True, False])
def test_the_arguments_and_the_exception_are_let_go(first: bool) -> None:
    references: list[Any] = []

    @mesh_of(clock=ManualClock(), retries=RETRY).guard("svc")
    def failing(first: bool, argument: BaseException) -> Iterator[int]:
        references.append(weakref.ref(argument))
        if not first:
            yield 1
        try:
            raise Trouble
        except Trouble as error:
            references.append(weakref.ref(error))
            raise

    gc.collect()
    gc.disable()
    try:
        with contextlib.suppress(Trouble):
            list(failing(first, Trouble()))
        assert {reference() for reference in references} == {None}
    finally:
        gc.enable()


def test_every_form_of_a_generator_function() -> None:
    mesh = mesh_of()
    guard = mesh.guard("svc")

    class Owner:
        @guard
        def method(self, item: int) -> Iterator[int]:
            yield item

        @guard
        @classmethod
        def of_class(cls, item: int) -> Iterator[int]:
            yield item

        @staticmethod
        @guard
        def static(item: int) -> Iterator[int]:
            yield item

        def __call__(self, item: int) -> Iterator[int]:
            yield item

    owner = Owner()
    forms: list[Any] = [
        owner.method, Owner.of_class, owner.of_class, Owner.static, guard(partial(rows)), guard(owner), guard(owner.__call__),
    ]
    assert [list(form(7)) for form in forms] == [[7]] * len(forms)
    assert (stats(mesh)["succeeded"], idle(mesh)) == (len(forms), True)
    assert inspect.signature(owner.method).parameters.keys() == {"item"}
    assert Owner.method.__name__ == "method"
