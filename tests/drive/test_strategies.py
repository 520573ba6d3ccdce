"""tenacity's stop, wait and retry objects on a guard: as tenacity itself decides, under the policy's deadline, budget and circuit."""

from __future__ import annotations

import gc
import logging
import random
import subprocess
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio.lowlevel
import pytest
import tenacity
import tenacity.asyncio

from resilmesh import DeadlineExceeded, InjectedFault
from resilmesh.testing import ManualClock
from tests.drive.guarding import circuit, idle, mesh_of, stats


class Trouble(Exception):
    pass


class Other(Trouble):
    pass


#: What a function comes to at one attempt after the other; the last stays.
OUTCOMES: dict[str, list[Any]] = {
    "fails once": [Trouble("1"), "ok"],
    "fails for ever": [Trouble("1"), Other("2"), Trouble("3")],
    "pending": ["PENDING", "PENDING", "PENDING", "PENDING", "ok"],
    "mixed": ["PENDING", Trouble("2"), "PENDING", Other("4"), "ok"],
    "caused": [Other("1"), Trouble("2"), "PENDING"],
    "asks again": [tenacity.TryAgain(), tenacity.TryAgain(), "ok"],
    "works": ["ok"],
}


def pending(value: Any) -> bool:
    return bool(value == "PENDING")


STRATEGIES: dict[str, Callable[[], dict[str, Any]]] = {
    "attempts": lambda: {"stop": tenacity.stop_after_attempt(3)},
    "any stop": lambda: {"stop": tenacity.stop_after_attempt(9) | tenacity.stop_after_delay(10), "wait": tenacity.wait_fixed(3)},
    "all stops": lambda: {"stop": tenacity.stop_after_attempt(2) & tenacity.stop_after_delay(5), "wait": tenacity.wait_fixed(2)},
    "before the delay": lambda: {"stop": tenacity.stop_before_delay(5), "wait": tenacity.wait_fixed(2)},
    "exponential": lambda: {"stop": tenacity.stop_after_attempt(5), "wait": tenacity.wait_exponential(multiplier=2, max=5)},
    "jitter": lambda: {"stop": tenacity.stop_after_attempt(5), "wait": tenacity.wait_exponential_jitter(initial=1, max=9)},
    "random": lambda: {"stop": tenacity.stop_after_attempt(4), "wait": tenacity.wait_random_exponential(max=7)},
    "sum": lambda: {"stop": tenacity.stop_after_attempt(4), "wait": tenacity.wait_fixed(1) + tenacity.wait_random(0, 2)},
    "chain": lambda: {"stop": tenacity.stop_after_attempt(4), "wait": tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(4))},
    "incrementing": lambda: {"stop": tenacity.stop_after_attempt(4), "wait": tenacity.wait_incrementing(1, 2)},
    "by type": lambda: {"stop": tenacity.stop_after_attempt(4), "retry": tenacity.retry_if_exception_type(Other)},
    "not by type": lambda: {"stop": tenacity.stop_after_attempt(4), "retry": tenacity.retry_if_not_exception_type(Other)},
    "unless type": lambda: {"stop": tenacity.stop_after_attempt(4), "retry": tenacity.retry_unless_exception_type(Other)},
    "by message": lambda: {"stop": tenacity.stop_after_attempt(4), "retry": tenacity.retry_if_exception_message(match="[13]")},
    "by result": lambda: {"stop": tenacity.stop_after_attempt(4), "retry": tenacity.retry_if_result(pending)},
    "not by result": lambda: {"stop": tenacity.stop_after_attempt(4), "retry": tenacity.retry_if_not_result(lambda value: value == "ok")},
    "any": lambda: {
        "stop": tenacity.stop_after_attempt(9),
        "retry": tenacity.retry_any(tenacity.retry_if_result(pending), tenacity.retry_if_exception_type(Trouble)),
    },
    "or": lambda: {
        "stop": tenacity.stop_after_attempt(9), "retry": tenacity.retry_if_result(pending) | tenacity.retry_if_exception_type(Other),
    },
    "all": lambda: {
        "stop": tenacity.stop_after_attempt(9),
        "retry": tenacity.retry_all(tenacity.retry_if_exception_type(Trouble), tenacity.retry_if_not_exception_type(Other)),
    },
    "always": lambda: {"stop": tenacity.stop_after_attempt(3), "retry": tenacity.retry_always},
    "never": lambda: {"stop": tenacity.stop_after_attempt(3), "retry": tenacity.retry_never},
    "functions": lambda: {
        "stop": lambda state: state.attempt_number >= 3 or state.idle_for > 5,
        "wait": lambda state: 1 + state.attempt_number,
        "retry": lambda state: state.outcome.failed or state.outcome.result() == "PENDING",
    },
}


class Function:
    """Comes to one outcome after the other, and takes a second each time."""

    def __init__(self, outcomes: list[Any], clock: ManualClock) -> None:
        self.outcomes = [type(each)(*each.args) if isinstance(each, BaseException) else each for each in outcomes]
        self.clock = clock
        self.runs = 0

    def __call__(self) -> Any:
        outcome = self.outcomes[min(self.runs, len(self.outcomes) - 1)]
        self.runs += 1
        self.clock.advance(1)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def result(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except tenacity.RetryError as error:
        last = error.last_attempt
        return repr(last.exception()) if last.failed else last.result()
    except Exception as error:
        return repr(error)


def by_tenacity(outcomes: list[Any], strategies: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    clock = ManualClock()
    function = Function(outcomes, clock)
    monkeypatch.setattr("tenacity.time.monotonic", clock.monotonic)
    random.seed(3)
    last = result(lambda: tenacity.Retrying(sleep=clock.sleep, **strategies)(function))
    return last, function.runs, [pytest.approx(each) for each in clock.sleeps if each]


@pytest.mark.parametrize("strategies", STRATEGIES)
@pytest.mark.parametrize("outcomes", OUTCOMES)
def test_they_decide_as_in_tenacity(strategies: str, outcomes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = STRATEGIES[strategies]()
    given.setdefault("wait", tenacity.wait_none())
    expected = by_tenacity(OUTCOMES[outcomes], given, monkeypatch)
    monkeypatch.undo()
    clock = ManualClock()
    function, mesh = Function(OUTCOMES[outcomes], clock), mesh_of(clock=clock)
    random.seed(3)
    last = result(mesh.guard("svc", idempotent=True, **given)(function))
    assert (last, function.runs, clock.sleeps) == expected
    assert (stats(mesh)["retries"], idle(mesh)) == (function.runs - 1, True)


def test_the_state_is_tenacitys_own_by_the_meshs_clock() -> None:
    clock, seen = ManualClock(start=50), []
    mesh = mesh_of(clock=clock)

    def stop(state: tenacity.RetryCallState) -> bool:
        assert state.outcome is not None
        seen.append((
            state.attempt_number, str(state.outcome.exception()), state.seconds_since_start, state.idle_for, state.upcoming_sleep,
            state.next_action, state.args, state.kwargs, state.fn, state.start_time,
        ))
        return state.attempt_number == 3

    def function(first: int, *, second: int) -> None:
        clock.advance(1)
        raise Trouble(len(seen))

    with pytest.raises(Trouble, match="2"):
        mesh.guard("svc", idempotent=True, stop=stop, wait=tenacity.wait_fixed(2))(function)(7, second=8)
    rest = (2, None, (7,), {"second": 8}, function, 50.0)
    assert seen == [(1, "0", 1.0, 0.0, *rest), (2, "1", 4.0, 2.0, *rest), (3, "2", 7.0, 4.0, *rest)]
    states: list[tenacity.RetryCallState] = []
    with pytest.raises(Trouble):
        mesh.guard("svc", idempotent=True, stop=lambda state: bool(states.append(state)) or len(states) > 1)(function)(1, second=2)
    assert states[0] is states[1]
    assert isinstance(states[0].retry_object, tenacity.Retrying)
    assert isinstance(states[0].next_action, tenacity.RetryAction) is False


def test_without_their_counterparts_the_policy_decides() -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, retries="{maxRetries: 3, retryOn: [connect-failure], backoff: {base: 1s, max: 1s}, idempotent: true}")
    refused, failing = Function([ConnectionRefusedError()], clock), Function([Trouble()], clock)
    for function, runs in ((refused, 4), (failing, 1)):
        with suppress(Exception):
            mesh.guard("svc", wait=tenacity.wait_fixed(5))(function)()
        assert function.runs == runs
    assert clock.sleeps == [5, 5, 5]
    failing.runs = 0
    with suppress(Trouble):
        mesh.guard("svc", retry=tenacity.retry_if_exception_type())(failing)()
    assert (failing.runs, all(0 <= each < 1 for each in clock.sleeps[3:]), len(clock.sleeps)) == (4, True, 6)


def test_without_a_retries_block_there_is_one_retry() -> None:
    clock = ManualClock()
    function = Function([Trouble()], clock)
    with suppress(Trouble):
        mesh_of(clock=clock).guard("svc", idempotent=True, wait=tenacity.wait_fixed(1))(function)()
    assert (function.runs, clock.sleeps) == (2, [1])


def test_no_retries_are_none() -> None:
    clock = ManualClock()
    function = Function([Trouble()], clock)
    mesh = mesh_of(clock=clock, retries="{maxRetries: 0, retryOn: [5xx]}")
    with pytest.raises(Trouble):
        mesh.guard("svc", idempotent=True, stop=tenacity.stop_after_attempt(9))(function)()
    assert function.runs == 1


def test_nothing_is_repeated_without_leave(caplog: pytest.LogCaptureFixture) -> None:
    clock, asked = ManualClock(), []
    mesh = mesh_of(clock=clock)
    function = Function([Trouble()], clock)
    options: dict[str, Any] = {"stop": tenacity.stop_after_attempt(3), "retry": lambda state: asked.append(state) or True}
    with caplog.at_level(logging.WARNING, "resilmesh"):
        for idempotent in (None, False):
            with pytest.raises(Trouble):
                mesh.guard("svc", idempotent=idempotent, **options)(function)()
    assert (function.runs, asked) == (2, [])
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["svc: the guard has stop"]


@pytest.mark.parametrize(("blocks", "reason"), [
    ({"timeout": "3s"}, "deadline"),
    ({"circuitBreaker": "{consecutiveFailures: 1}"}, "circuit"),
    ({"retryBudget": "{percent: 0, minRetriesPerSecond: 0}"}, "budget"),
])
def test_the_policy_has_the_last_word(blocks: dict[str, str], reason: str) -> None:
    clock = ManualClock()
    function, mesh = Function([Trouble()], clock), mesh_of(clock=clock, retries="{retryOn: [5xx]}", **blocks)
    with pytest.raises(Trouble):
        mesh.guard("svc", idempotent=True, stop=tenacity.stop_never, wait=tenacity.wait_fixed(5))(function)()
    assert (function.runs, stats(mesh)["retriesRefused"], clock.sleeps) == (1, {reason: 1}, [])


def test_a_result_that_is_repeated_is_still_a_success() -> None:
    clock = ManualClock()
    function, mesh = Function(["PENDING"], clock), mesh_of(clock=clock, circuitBreaker="{consecutiveFailures: 1}")
    guarded = mesh.guard("svc", idempotent=True, stop=tenacity.stop_after_attempt(3), retry=tenacity.retry_if_result(pending))(function)
    assert (guarded(), function.runs, circuit(mesh)["state"], stats(mesh)["succeeded"]) == ("PENDING", 3, "CLOSED", 1)


def test_a_result_judged_a_failure_and_repeated() -> None:
    clock = ManualClock()
    function, mesh = Function(["PENDING"], clock), mesh_of(clock=clock)
    guarded = mesh.guard(
        "svc", idempotent=True, failures=pending, stop=tenacity.stop_after_attempt(2), retry=tenacity.retry_if_result(pending),
    )(function)
    assert (guarded(), function.runs, stats(mesh)["failed"]) == ("PENDING", 2, 1)


def test_they_are_asked_after_failures_only() -> None:
    asked = []
    mesh = mesh_of(clock=ManualClock())
    on_error = tenacity.retry_if_exception(lambda error: bool(asked.append(error)) or True)
    for retry in (on_error, tenacity.retry_any(on_error, tenacity.retry_if_exception_type()), on_error & tenacity.retry_if_result(pending)):
        guard = mesh.guard("svc", idempotent=True, retry=retry, stop=lambda state: bool(asked.append(state)) or True)
        assert (guard(lambda: "ok")(), guard.judges_results, asked) == ("ok", False, [])  # type: ignore[attr-defined]  # a Guard


def test_faults_and_modes() -> None:
    clock = ManualClock()
    drilled = mesh_of(clock=clock, fault="{abort: {httpStatus: 503}, scope: ATTEMPT}")
    retry = tenacity.retry_if_exception_type(InjectedFault)
    with pytest.raises(InjectedFault) as caught:
        drilled.guard("svc", idempotent=True, retry=retry, stop=tenacity.stop_after_attempt(4))(lambda: None)()
    assert caught.value.attempts == 4
    for mode in ("OBSERVE", "OFF"):
        function, mesh = Function([Trouble()], clock), mesh_of(clock=clock, mesh=f"{{mode: {mode}}}")
        with pytest.raises(Trouble):
            mesh.guard("svc", idempotent=True, stop=tenacity.stop_after_attempt(4))(function)()
        assert function.runs == 1


def test_blocks_of_code_and_streams_take_them_too() -> None:
    clock = ManualClock()
    mesh, runs = mesh_of(clock=clock), 0
    options: dict[str, Any] = {"idempotent": True, "stop": tenacity.stop_after_attempt(3), "wait": tenacity.wait_fixed(2)}
    with pytest.raises(Trouble, match="3"):  # noqa: PT012  # the loop is the statement
        for attempt in mesh.attempts("svc", **options):
            with attempt:
                runs += 1
                raise Trouble(runs)
    assert clock.sleeps == [2, 2]

    @mesh.guard("svc", **options)
    def stream() -> Any:
        nonlocal runs
        runs += 1
        if runs < 6:
            raise Trouble
        yield "item"

    assert (list(stream()), clock.sleeps) == (["item"], [2, 2, 2, 2])


@pytest.mark.anyio
async def test_a_coroutine_function_and_its_limit() -> None:
    seen = []
    mesh = mesh_of(retries="{maxRetries: 9, perTryTimeout: 10ms, retryOn: [connect-failure]}")

    def retry(state: tenacity.RetryCallState) -> bool:
        assert state.outcome is not None
        seen.append(type(state.outcome.exception()))
        return True

    @mesh.guard("svc", idempotent=True, retry=retry, stop=tenacity.stop_after_attempt(3), wait=tenacity.wait_none())
    async def hanging() -> None:
        if len(seen) == 1:
            raise Trouble
        await anyio.sleep_forever()

    with pytest.raises(DeadlineExceeded, match="perTryTimeout of 10ms"):
        await hanging()
    assert (seen, idle(mesh)) == ([DeadlineExceeded, Trouble, DeadlineExceeded], True)


def test_a_strategy_that_raises_holds_nothing() -> None:
    def broken(state: tenacity.RetryCallState) -> bool:
        raise LookupError

    mesh = mesh_of(clock=ManualClock(), concurrency="{maxRequests: 1}")
    for name in ("stop", "wait", "retry"):
        options: dict[str, Any] = {name: broken}
        with pytest.raises(LookupError):
            mesh.guard("svc", idempotent=True, **options)(Function([Trouble()], ManualClock()))()
        assert idle(mesh)


@pytest.mark.parametrize("nonsense", [-5, float("nan")])
def test_a_wait_that_is_none(nonsense: float) -> None:
    clock = ManualClock()
    function = Function([Trouble(), "ok"], clock)
    assert mesh_of(clock=clock).guard("svc", idempotent=True, wait=lambda state: nonsense)(function)() == "ok"
    assert sum(clock.sleeps) == 0


@pytest.mark.parametrize(("options", "said"), [
    ({"before_sleep": print}, "before_sleep= of tenacity's is not taken: subscribe to the event backoff"),
    ({"reraise": True}, "reraise= of tenacity's is not taken: the last outcome always reaches the caller as it is"),
    ({"retry_error_cls": KeyError}, "retry_error_cls= .* the last outcome always reaches the caller"),
    ({"retry_error_callback": print}, "retry_error_callback= .* fallback="),
    ({"before": print}, "attempt_started"), ({"after": print}, "attempt_ended"), ({"sleep": print}, "clock"),
    ({"nonsense": 1}, "there is no nonsense="),
    ({"retry": ConnectionError}, "retry is a retry object of tenacity.*retry_if_exception_type makes one"),
    ({"stop": 3}, "stop is a stop object of tenacity"), ({"wait": 3}, "wait is a wait object of tenacity"),
    ({"stop": tenacity.stop_after_attempt}, "stop is a stop object of tenacity"),
    ({"stop": tenacity.wait_fixed(1)}, "wait_fixed is none of tenacity's stop objects"),
    ({"retry": tenacity.Retrying()}, "pass the retry of the Retrying, not all of it"),
    ({"retry": tenacity.asyncio.retry_if_result(anyio.sleep)}, "retry is asked without awaiting"),  # type: ignore[arg-type]  # any coroutine function
])
def test_what_is_not_accepted(options: dict[str, Any], said: str) -> None:
    mesh = mesh_of()
    for take in (mesh.guard, mesh.attempts):
        with pytest.raises(TypeError, match=said):
            take("svc", **options)


def test_what_was_raised_is_let_go() -> None:
    clock, references = ManualClock(), []

    def function() -> None:
        try:
            raise Trouble
        except Trouble as error:
            references.append(weakref.ref(error))
            raise

    mesh = mesh_of(clock=clock)
    gc.collect()
    gc.disable()
    try:
        with suppress(Trouble):
            mesh.guard("svc", idempotent=True, stop=tenacity.stop_after_attempt(3))(function)()
        assert [reference() for reference in references] == [None] * 3
    finally:
        gc.enable()


def test_tenacity_is_imported_when_it_is_needed() -> None:
    program = (
        "import resilmesh, sys; mesh = resilmesh.Mesh.from_text('apiVersion: resilmesh/v1\\nservices: [{name: svc}]'); "
        "mesh.guard('svc', idempotent=True)(len)([]); assert 'tenacity' not in sys.modules; sys.modules['tenacity'] = None\n"
        "try: mesh.guard('svc', stop=len)\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert "install resilmesh[tenacity]" in done.stdout
