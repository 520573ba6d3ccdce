"""tenacity's ``stop``, ``wait`` and ``retry`` objects as a part of a call's policy.

Each takes the place of its counterpart in the policy's ``retries`` block, where there is one: ``retry`` that of
``retryOn``, ``stop`` that of ``maxRetries``, ``wait`` that of ``backoff``. They are asked in tenacity's order, once an
attempt has failed (and for each result if ``retry`` looks at results), and what they decide travels in the ``Answer``:
the engine has the last word, which is the deadline, the circuit and the retry budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from resilmesh.engine.backoff import backoff
from resilmesh.engine.plan import RetryPlan
from resilmesh.engine.verdict import ASKED_FOR, Answer, Verdict

if TYPE_CHECKING:
    from tenacity import RetryCallState
    from tenacity.retry import RetryBaseT
    from tenacity.stop import StopBaseT
    from tenacity.wait import WaitBaseT

    from resilmesh.engine.call import Call

#: What holds where the policy has no ``retries`` block: the defaults of one, and every failure is retried.
_NO_BLOCK = RetryPlan(
    max_retries=1, words=-1, statuses=frozenset(), per_try_timeout=None, base=0.025, longest=0.25, retry_after_max=None,
)


class Strategies:
    """``stop``, ``wait`` and ``retry`` of one guard; ``None``: as the policy says. Raises ``TypeError`` for anything else."""

    __slots__ = ("_retry", "_retrying", "_stop", "_wait", "judges_results")

    def __init__(self, stop: StopBaseT | None, wait: WaitBaseT | None, retry: RetryBaseT | None) -> None:
        tenacity = _tenacity()
        for name, given, kind in (
            ("stop", stop, tenacity.stop.stop_base), ("wait", wait, tenacity.wait.wait_base), ("retry", retry, tenacity.retry_base),
        ):
            _check(tenacity, name, given, kind)
        self._stop = stop
        self._wait = wait
        self._retry = retry
        #: What a strategy finds as ``retry_state.retry_object``; it runs nothing.
        self._retrying = tenacity.Retrying(**{
            name: given for name, given in (("stop", stop), ("wait", wait), ("retry", retry)) if given is not None
        })
        #: Whether a result may have to be repeated, too.
        self.judges_results = retry is not None and _looks_at_results(tenacity, retry)

    def begin(self, call: Call, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> RetryCallState:
        """What the strategies of one call are shown, and keep their memory in."""
        state: RetryCallState = _tenacity().RetryCallState(self._retrying, function, args, kwargs)
        state.start_time = call.began
        return state

    def decide(self, state: RetryCallState, call: Call, now: float, answer: Answer, error: BaseException | None, value: Any) -> Answer:
        """The answer with what the strategies say to it: whether it is repeated, and after how many seconds."""
        tenacity = _tenacity()
        state.attempt_number, state.outcome_timestamp, state.next_action = call.number, now, None
        state.outcome = outcome = tenacity.Future(call.number)
        if error is None:
            outcome.set_result(value)
        else:
            outcome.set_exception(error)
        retries = call.plan.retries or _NO_BLOCK
        try:
            if not (isinstance(error, tenacity.TryAgain) or self._wants(state, retries, answer)):
                return _said(answer, again=False)
            state.upcoming_sleep = self._seconds(state, call, retries)
            if call.number > retries.max_retries if self._stop is None else self._stop(state):
                return _said(answer, again=False)
            state.next_action = tenacity.RetryAction(state.upcoming_sleep)
            state.idle_for += state.upcoming_sleep
            return _said(answer, again=True, seconds=state.upcoming_sleep)
        finally:
            # As tenacity before the next attempt. Kept, it would make a cycle with the exception's traceback, too.
            state.outcome = None
            del error, outcome

    def _wants(self, state: RetryCallState, retries: RetryPlan, answer: Answer) -> bool:
        if self._retry is not None:
            return bool(self._retry(state))
        if retries is _NO_BLOCK:
            return answer.verdict is Verdict.FAILURE
        return bool(answer.words & retries.words or answer.status in retries.statuses)

    def _seconds(self, state: RetryCallState, call: Call, retries: RetryPlan) -> float:
        if self._wait is None:
            return backoff(call.number, retries.base, retries.longest, call.plan.rng.random())
        return max(0.0, float(self._wait(state)))  # not a number is 0, too


def _said(answer: Answer, *, again: bool, seconds: float | None = None) -> Answer:
    return Answer(
        answer.verdict, answer.words | ASKED_FOR if again else answer.words, answer.status, timed_out=answer.timed_out,
        injected=answer.injected, again=again, backoff=seconds,
    )


def _tenacity() -> Any:
    try:
        import tenacity
    except ImportError as error:
        raise ImportError("stop, wait and retry are tenacity's objects, and tenacity is missing: install resilmesh[tenacity]") from error
    return tenacity


def _check(tenacity: Any, name: str, given: object, kind: type) -> None:
    """Whether it may be asked: an object of tenacity, or a function of the state, that is not awaited."""
    if given is None:
        return
    import inspect

    if isinstance(given, type) or not callable(given):
        hint = ": tenacity.retry_if_exception_type makes one of an exception" if name == "retry" else ""
        raise TypeError(f"{name} is a {name} object of tenacity, or a function of its retry state, not {given!r}{hint}")
    if isinstance(given, tenacity.BaseRetrying):
        raise TypeError(f"{name} is one of tenacity's strategies: pass the {name} of the {type(given).__name__}, not all of it")
    strategies = (tenacity.stop.stop_base, tenacity.wait.wait_base, tenacity.retry_base)
    if isinstance(given, strategies) and not isinstance(given, kind):
        raise TypeError(f"{type(given).__name__} is none of tenacity's {name} objects")
    if inspect.iscoroutinefunction(given) or inspect.iscoroutinefunction(type(given).__call__):
        raise TypeError(f"{name} is asked without awaiting: pass one of tenacity's own strategies, not one of tenacity.asyncio")


def _looks_at_results(tenacity: Any, retry: Any) -> bool:
    """Whether it may want a result repeated; what is not known to leave results alone is asked for each."""
    if isinstance(retry, tenacity.retry_any):
        return any(_looks_at_results(tenacity, each) for each in retry.retries)
    if isinstance(retry, tenacity.retry_all):
        return all(_looks_at_results(tenacity, each) for each in retry.retries)
    exceptions_only = (tenacity.retry_if_exception, tenacity.retry_if_exception_cause_type, type(tenacity.retry_never))
    asked = cast(Callable[..., bool], type(retry).__call__)
    return all(asked is not each.__call__ for each in exceptions_only)
