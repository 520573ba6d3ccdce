"""What the outcome of a function means: the one table from a result or an exception to an ``Answer``.

    it returned                                SUCCESS, unless ``failures`` is a predicate that says otherwise
    an exception in ``ignore``                 IGNORED
    an exception in ``failures``               FAILURE; by default every Exception, bar a rejection by another service's policy
    any other Exception                        SUCCESS: the service answered
    any other BaseException                    no outcome: the caller is going away
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from resilmesh.engine.call import Call
from resilmesh.engine.verdict import NO_VERDICT, OK, Answer, Verdict, mask
from resilmesh.errors import InjectedFault, Rejected

Types = type[BaseException] | tuple[type[BaseException], ...]
#: Exception types, or a predicate over the exception that was raised or the result that was returned.
Failures = Types | Callable[[Any], bool]

_FAILED_WORDS = mask("5xx", "gateway-error", "reset")
_FAILED = Answer(Verdict.FAILURE, _FAILED_WORDS)
_NOT_CONNECTED = Answer(Verdict.FAILURE, _FAILED_WORDS | mask("connect-failure"))
#: The policy's own limit ended the attempt.
TIMED_OUT = Answer(Verdict.FAILURE, _FAILED_WORDS, timed_out=True)


class Judge:
    """``failures`` and ``ignore`` of one guard. Raises ``TypeError`` for what is neither a type nor a predicate."""

    __slots__ = ("_failures", "_ignore", "judges_results")

    def __init__(self, failures: Failures | None, ignore: Types) -> None:
        if failures is not None and not _are_types(failures) and not callable(failures):
            raise TypeError(f"failures is an exception type, a tuple of them, or a predicate, not {failures!r}")
        if not _are_types(ignore):
            raise TypeError(f"ignore is an exception type or a tuple of them, not {ignore!r}")
        self._failures = _without_everything(failures)
        self._ignore = ignore
        #: Whether a result may be a failure, too.
        self.judges_results = failures is not None and not _are_types(failures)

    def of_result(self, result: Any) -> Answer:
        """What a returned value is."""
        if self.judges_results and cast(Callable[[Any], bool], self._failures)(result):
            return _FAILED
        return OK

    def of_error(self, error: BaseException) -> Answer | None:
        """What an exception is; ``None`` when it is no outcome but the caller going away."""
        if self._ignore and isinstance(error, self._ignore):
            return NO_VERDICT
        failures = self._failures
        if failures is None:
            if not isinstance(error, Exception):
                return None
            # Another service's policy refused it: nothing was learned about this one.
            if isinstance(error, Rejected):
                return NO_VERDICT
        elif _are_types(failures):
            if not isinstance(error, cast(Types, failures)):
                return OK if isinstance(error, Exception) else None
        elif not isinstance(error, Exception):
            return None
        elif not cast(Callable[[Any], bool], failures)(error):
            return OK
        return _NOT_CONNECTED if isinstance(error, ConnectionRefusedError) else _FAILED


def of_fault(call: Call) -> tuple[InjectedFault, Answer]:
    """What an attempt is that a fault answers in place of the function."""
    status, plan = call.injected or 503, call.plan
    error = InjectedFault(
        f"an injected fault aborted this attempt with status {status}", service=plan.service, route=plan.route, attempts=call.number,
    )
    error.status = status
    verdict, words = plan.verdict_of(status)
    return error, Answer(verdict, words | (_FAILED_WORDS if verdict is Verdict.FAILURE else 0), status, injected=True)


def _without_everything(failures: Failures | None) -> Failures | None:
    """``BaseException`` means every Exception: a cancellation or a KeyboardInterrupt is no outcome, unless it is named."""
    if failures is BaseException:
        return Exception
    if isinstance(failures, tuple):
        return tuple(Exception if each is BaseException else each for each in failures)
    return failures


def _are_types(failures: object) -> bool:
    return isinstance(failures, type) or (isinstance(failures, tuple) and all(isinstance(each, type) for each in failures))
