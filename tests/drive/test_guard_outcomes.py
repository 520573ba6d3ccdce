"""What counts as failure, what is repeated, and what the caller gets."""

from __future__ import annotations

import functools
import gc
import logging
import traceback
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import resilmesh
from resilmesh import CircuitOpen, ConcurrencyExceeded, DeadlineExceeded, InjectedFault, RateLimited
from resilmesh.testing import ManualClock
from tests.drive.guarding import RETRY, circuit, idle, listen, mesh_of, stats

BREAKER = "{consecutiveFailures: 1, waitDurationInOpenState: 1s}"

#: Calls a function under the guard's arguments: ``await call(mesh, function, **arguments)``.
Caller = Callable[..., Awaitable[Any]]


async def call_blocking(mesh: resilmesh.Mesh, function: Callable[[], Any], **arguments: Any) -> Any:
    return mesh.guard("svc", **arguments)(function)()


async def call_awaiting(mesh: resilmesh.Mesh, function: Callable[[], Any], **arguments: Any) -> Any:
    async def awaited() -> Any:
        return function()

    return await mesh.guard("svc", **arguments)(awaited)()


@pytest.fixture(params=[call_blocking, call_awaiting], ids=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Caller:
    caller: Caller = request.param
    return caller


class Scripted:
    """Gives one result after the other; raises those that are exceptions, and makes those that are classes of them."""

    def __init__(self, *results: Any) -> None:
        self.results = list(results)
        self.asked = 0

    def __call__(self) -> Any:
        result = self.results[min(self.asked, len(self.results) - 1)]
        self.asked += 1
        if isinstance(result, BaseException) or (isinstance(result, type) and issubclass(result, BaseException)):
            raise result
        return result


class Trouble(Exception):
    """A failure of the test's own; unlike a built-in exception it can be referred to weakly."""


class MoreTrouble(Trouble):
    pass


class Elsewhere(BaseException):
    """No Exception, like gevent's Timeout."""


pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(("failures", "raised", "opens"), [
    (None, Trouble(), True),
    (None, KeyError(), True),
    (Trouble, MoreTrouble(), True),
    (Trouble, KeyError(), False),
    ((KeyError, Trouble), MoreTrouble(), True),
    ((), Trouble(), False),
    (lambda outcome: isinstance(outcome, KeyError), KeyError(), True),
    (lambda outcome: isinstance(outcome, KeyError), Trouble(), False),
    (BaseException, Trouble(), True),
    (Elsewhere, Elsewhere(), True),
    (BaseException, Elsewhere(), False),
    ((BaseException,), Elsewhere(), False),
    (None, Elsewhere(), False),
    (Trouble, Elsewhere(), False),
])
async def test_which_exceptions_are_failures(call: Caller, failures: Any, raised: BaseException, opens: bool) -> None:
    mesh = mesh_of(circuitBreaker=BREAKER)
    with pytest.raises(type(raised)) as caught:
        await call(mesh, Scripted(raised), failures=failures)
    assert caught.value is raised
    assert circuit(mesh)["state"] == ("OPEN" if opens else "CLOSED")
    shown = stats(mesh)
    abandoned = isinstance(raised, Elsewhere) and not opens
    assert (shown["failed"], shown["succeeded"], shown["abandoned"]) == (opens, not opens and not abandoned, abandoned)
    assert idle(mesh)


@pytest.mark.parametrize("ignore", [Trouble, (KeyError, Trouble), Elsewhere])
async def test_ignored_exceptions_are_not_counted(call: Caller, ignore: Any) -> None:
    raised = Elsewhere() if ignore is Elsewhere else MoreTrouble()
    mesh = mesh_of(circuitBreaker=BREAKER, retries=RETRY)
    function = Scripted(raised)
    with pytest.raises(type(raised)):
        await call(mesh, function, ignore=ignore, failures=(Trouble, Elsewhere))
    assert (function.asked, stats(mesh)["ignored"], circuit(mesh)["calls"], idle(mesh)) == (1, 1, 0, True)


async def test_a_predicate_judges_results_too(call: Caller) -> None:
    mesh = mesh_of(clock=ManualClock(), retries=RETRY, timeout="9s")
    function = Scripted(None, None, "found")
    assert await call(mesh, function, failures=lambda outcome: outcome is None) == "found"
    assert (function.asked, stats(mesh)["retries"]) == (3, 2)
    assert await call(mesh, Scripted(None), failures=lambda outcome: outcome is None) is None, "exhausted: the result is given as it is"
    assert (stats(mesh)["succeeded"], stats(mesh)["failed"], idle(mesh)) == (1, 1, True)


@pytest.mark.parametrize("result", ["a result", Trouble("an exception")])
async def test_a_predicate_that_raises_is_the_callers_error_and_holds_nothing(call: Caller, result: Any) -> None:
    def predicate(outcome: Any) -> bool:
        raise LookupError(f"cannot judge {outcome}")

    mesh = mesh_of(circuitBreaker=BREAKER, concurrency="{maxRequests: 1}", timeout="9s")
    for _ in range(2):
        with pytest.raises(LookupError, match="cannot judge"):
            await call(mesh, Scripted(result), failures=predicate)
    assert (stats(mesh)["abandoned"], circuit(mesh)["state"], idle(mesh)) == (2, "CLOSED", True)


@pytest.mark.parametrize(("argument", "policy_says", "asked"), [
    (None, None, 1), (None, False, 1), (None, True, 3), (True, False, 3), (False, True, 1), (True, None, 3), (False, None, 1),
])
async def test_what_may_have_happened_is_repeated_only_if_it_may_be(
    call: Caller, argument: bool | None, policy_says: bool | None, asked: int,
) -> None:
    own = "" if policy_says is None else f", idempotent: {str(policy_says).lower()}"
    mesh = mesh_of(clock=ManualClock(), retries="{maxRetries: 2, retryOn: [5xx]" + own + "}")
    function = Scripted(Trouble())
    with pytest.raises(Trouble):
        await call(mesh, function, idempotent=argument)
    assert function.asked == asked


@pytest.mark.parametrize(("argument", "policy_says", "warned"), [
    (None, None, 1), (None, True, 0), (None, False, 0), (True, None, 0), (False, None, 0),
])
async def test_nobody_said_whether_it_may_be_repeated(
    caplog: pytest.LogCaptureFixture, call: Caller, argument: bool | None, policy_says: bool | None, warned: int,
) -> None:
    own = "" if policy_says is None else f", idempotent: {str(policy_says).lower()}"
    mesh = mesh_of(retries="{retryOn: [5xx]" + own + "}")
    with caplog.at_level(logging.WARNING, "resilmesh"):
        for _ in range(2):
            await call(mesh, Scripted(1), idempotent=argument)
    assert [record.getMessage().startswith("svc: the policy has retries, but nothing says") for record in caplog.records] == [True] * warned


@pytest.mark.parametrize(("retry_on", "raised", "asked"), [
    ("connect-failure", ConnectionRefusedError(), 2), ("connect-failure", ConnectionResetError(), 1), ("reset", Trouble(), 2),
    ("gateway-error", Trouble(), 2), ("5xx", Trouble(), 2), ("refused-stream", Trouble(), 1), ("429", Trouble(), 1),
])
async def test_the_words_that_a_failed_function_answers_to(call: Caller, retry_on: str, raised: Exception, asked: int) -> None:
    mesh = mesh_of(clock=ManualClock(), retries=f"{{maxRetries: 1, retryOn: [{retry_on}], idempotent: true}}")
    function = Scripted(raised)
    with pytest.raises(type(raised)):
        await call(mesh, function)
    assert function.asked == asked


async def test_the_last_of_several_exceptions_leaves_without_the_others(call: Caller) -> None:
    errors = [Trouble("first"), Trouble("second"), Trouble("third")]
    mesh = mesh_of(clock=ManualClock(), retries=RETRY)
    with pytest.raises(Trouble) as caught:
        await call(mesh, Scripted(*errors))
    assert caught.value is errors[2]
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


async def test_an_exceptions_own_cause_and_context_stay(call: Caller) -> None:
    def fail() -> None:
        try:
            raise KeyError("context")
        except KeyError:
            raise Trouble from cause

    cause = LookupError("cause")
    with pytest.raises(Trouble) as caught:
        await call(mesh_of(clock=ManualClock(), retries=RETRY), fail)
    assert caught.value.__cause__ is cause
    assert isinstance(caught.value.__context__, KeyError)
    assert caught.value.__context__.__context__ is None


@pytest.mark.parametrize("retries", ["null", RETRY])
async def test_a_traceback_ends_in_the_users_own_line(call: Caller, retries: str) -> None:
    def deep() -> None:
        raise Trouble  # the line that is looked for

    with pytest.raises(Trouble) as caught:
        await call(mesh_of(clock=ManualClock(), retries=retries), deep)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert (frames[-1].name, frames[-1].line) == ("deep", "raise Trouble  # the line that is looked for")
    ours = [frame for frame in frames if "/resilmesh/" in frame.filename]
    assert len(ours) <= (1 if retries == "null" else 4), [frame.name for frame in ours]


#: Every way in which a guarded call ends with an exception: the policy, the function, what the last of three calls raises.
ENDINGS = [
    pytest.param({}, Scripted(Trouble), Trouble, id="raised"),
    pytest.param({"retries": RETRY}, Scripted(Trouble, MoreTrouble), MoreTrouble, id="raised again"),
    pytest.param({"timeout": "1s", "retries": RETRY}, Scripted(Trouble), Trouble, id="with a deadline"),
    pytest.param({"rateLimit": "{requests: 1, per: 1h}"}, Scripted(1), RateLimited, id="rejected"),
    pytest.param({"circuitBreaker": BREAKER}, Scripted(Trouble), CircuitOpen, id="circuit open"),
    pytest.param({"fault": "{abort: {httpStatus: 500}}"}, Scripted(1), InjectedFault, id="injected in the call"),
    pytest.param({"fault": "{abort: {httpStatus: 500}, scope: ATTEMPT}"}, Scripted(1), InjectedFault, id="injected in the attempt"),
]


@pytest.mark.parametrize(("blocks", "function", "kind"), ENDINGS)
async def test_an_exception_is_freed_without_the_garbage_collector(
    call: Caller, blocks: dict[str, str], function: Scripted, kind: type[Exception],
) -> None:
    mesh = mesh_of(clock=ManualClock(), **blocks)
    freed = []
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            try:
                await call(mesh, Scripted(*function.results))
            except Exception as error:
                freed.append((type(error), weakref.ref(error)))
        assert freed[-1][0] is kind
        assert [reference() for _, reference in freed] == [None] * len(freed)
    finally:
        gc.enable()


async def test_a_callers_arguments_are_freed_too(call: Caller) -> None:
    class Big:
        pass

    def fail(held: Big) -> None:
        raise Trouble

    big = Big()
    reference = weakref.ref(big)
    mesh = mesh_of(clock=ManualClock(), retries=RETRY)
    gc.collect()
    gc.disable()
    try:
        try:
            await call(mesh, functools.partial(fail, big))
        except Trouble:
            del big
        assert reference() is None
    finally:
        gc.enable()


async def test_a_rejection_names_everything(call: Caller) -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, circuitBreaker="{consecutiveFailures: 1, waitDurationInOpenState: 30s}")
    with pytest.raises(Trouble):
        await call(mesh, Scripted(Trouble()))
    clock.advance(10)
    function = Scripted(1)
    with pytest.raises(CircuitOpen, match="svc: the circuit is open; retry after 20s") as caught:
        await call(mesh, function)
    error = caught.value
    assert (error.service, error.route, error.attempts, error.retry_after, function.asked) == ("svc", None, 0, 20.0, 0)


async def test_another_services_rejection_says_nothing_about_this_one(call: Caller) -> None:
    mesh = mesh_of(circuitBreaker=BREAKER)
    with pytest.raises(ConcurrencyExceeded):
        await call(mesh, Scripted(ConcurrencyExceeded("elsewhere")))
    assert (circuit(mesh)["state"], stats(mesh)["ignored"]) == ("CLOSED", 1)


@pytest.mark.parametrize(("status", "asked", "opens"), [(503, 0, True), (404, 0, False), (429, 0, False)])
async def test_an_injected_attempt_stands_in_for_the_function(call: Caller, status: int, asked: int, opens: bool) -> None:
    mesh = mesh_of(
        clock=ManualClock(), circuitBreaker="{consecutiveFailures: 2}", retries=RETRY,
        fault=f"{{abort: {{httpStatus: {status}}}, scope: ATTEMPT}}",
    )
    function = Scripted(1)
    with pytest.raises(InjectedFault) as caught:
        await call(mesh, function)
    assert (caught.value.status, caught.value.service, function.asked) == (status, "svc", asked)
    assert (circuit(mesh)["state"] == "OPEN") is opens, "a drill exercises the circuit"
    assert idle(mesh)


async def test_an_injected_call_never_reaches_function_or_circuit(call: Caller) -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, circuitBreaker=BREAKER, fault="{abort: {httpStatus: 503}, delay: {fixedDelay: 2s}}")
    function = Scripted(1)
    with pytest.raises(InjectedFault) as caught:
        await call(mesh, function)
    assert (caught.value.attempts, function.asked, clock.sleeps, circuit(mesh)["state"]) == (0, 0, [2.0], "CLOSED")


async def test_observe_computes_and_does_not_act(call: Caller) -> None:
    mesh = mesh_of(
        clock=ManualClock(), mesh="{mode: OBSERVE}", rateLimit="{requests: 1, per: 1h}", retries=RETRY, timeout="1ms",
        fault="{abort: {httpStatus: 503}}",
    )
    assert [await call(mesh, Scripted(1)) for _ in range(3)] == [1, 1, 1]
    failing = Scripted(Trouble())
    with pytest.raises(Trouble):
        await call(mesh, failing)
    assert (failing.asked, stats(mesh)["wouldReject"], stats(mesh)["retries"], idle(mesh)) == (1, {"RateLimited": 3}, 0, True)


async def test_events_tell_the_whole_story(call: Caller) -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, retries=RETRY)
    events = listen(mesh)
    await call(mesh, Scripted(Trouble(), 1))
    assert [(event.name, event.attempt, event.detail.get("verdict")) for event in events] == [
        ("call_started", 0, None), ("attempt_started", 1, None), ("attempt_ended", 1, "FAILURE"), ("backoff", 1, None),
        ("attempt_started", 2, None), ("attempt_ended", 2, "SUCCESS"), ("call_ended", 2, "SUCCESS"),
    ]
    assert len({event.call for event in events}) == 1
    assert {(event.service, event.route) for event in events} == {("svc", None)}


async def test_a_slow_function_is_given_its_result_but_no_further_attempt(call: Caller) -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, timeout="1s", retries=RETRY)

    def slow() -> str:
        clock.advance(5)
        return "late"

    def slow_failure() -> None:
        clock.advance(5)
        raise Trouble

    assert await call(mesh, slow) == "late"
    with pytest.raises(Trouble):
        await call(mesh, slow_failure)
    assert stats(mesh)["retriesRefused"] == {"deadline": 1}


async def test_a_deadline_that_has_passed_lets_nothing_begin(call: Caller) -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, circuitBreaker=BREAKER)
    function = Scripted(1)
    with resilmesh.deadline(1.0, clock):
        clock.advance(1.0)
        with pytest.raises(DeadlineExceeded, match="the deadline that this call inherited has passed") as caught:
            await call(mesh, function)
    assert (caught.value.attempts, function.asked, stats(mesh)["ignored"]) == (0, 0, 1)
    assert isinstance(caught.value, TimeoutError)
