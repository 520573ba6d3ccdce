"""``@mesh.guard("ledger")``: a policy around a function, a method or a coroutine function.

The first attempt of a call is inlined in the wrappers, because nearly every call has no other; what an outcome
means is the engine's business there as everywhere. Everything after it runs in the common loops.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from resilmesh.drive import aio, sync
from resilmesh.drive.context import DEADLINE
from resilmesh.engine.call import RAISE, RETURN, SEND, Call, Step
from resilmesh.engine.plan import INFINITY, Plan
from resilmesh.engine.verdict import NO_VERDICT, OK, Answer, Verdict, mask, of_status
from resilmesh.errors import InjectedFault, Rejected, UnknownService

if TYPE_CHECKING:
    from resilmesh.clock import Clock
    from resilmesh.engine.compile import Table

F = TypeVar("F", bound=Callable[..., Any])
Types = type[BaseException] | tuple[type[BaseException], ...]
#: Exception types, or a predicate over the exception that was raised or the result that was returned.
Failures = Types | Callable[[Any], bool]

log = logging.getLogger("resilmesh")

_FAILED_WORDS = mask("5xx", "gateway-error", "reset")
_FAILED = Answer(Verdict.FAILURE, _FAILED_WORDS)
_NOT_CONNECTED = Answer(Verdict.FAILURE, _FAILED_WORDS | mask("connect-failure"))
_TIMED_OUT = Answer(Verdict.FAILURE, _FAILED_WORDS, timed_out=True)


class Source(Protocol):
    """Where a guard finds the current policy: a Mesh, or the process's default one."""

    @property
    def table(self) -> Table: ...

    @property
    def clock(self) -> Clock: ...


class Guard:
    """One service (and route) as a function's callers see it. Shared by every call of the function."""

    __slots__ = (
        "_failures", "_idempotent", "_ignore", "_judges_results", "_route", "_service", "_table", "idempotent", "now", "plan", "simple", "source",
    )

    def __init__(
        self, source: Source, service: str, *, route: str | None = None, failures: Failures | None = None, ignore: Types = (),
        idempotent: bool | None = None,
    ) -> None:
        self.source = source
        self._service = service
        self._route = route
        self._failures = failures
        self._judges_results = failures is not None and not _are_types(failures)
        self._ignore = ignore
        self._idempotent = idempotent
        self._table: Table | None = None
        #: The current plan, ``None`` under mode OFF; and whether a call may be repeated.
        self.plan: Plan | None = None
        self.idempotent = False
        #: The wrappers may make the first attempt themselves: no result to judge, no fault to inject.
        self.simple = False
        self.now: Callable[[], float]

    # ------------------------------------------------------------------------------------------ the plan

    def refresh(self, table: Table) -> None:
        """Look the plan up in a new table."""
        known, plan = table.named(self._service, self._route)
        if not known:
            raise UnknownService(unknown(table, self._service, self._route))
        may_repeat = self._idempotent
        if may_repeat is None:
            may_repeat = bool(plan is not None and plan.retry_idempotent)
            if plan is not None and plan.retries is not None and plan.retry_idempotent is None and self._table is None:
                log.warning(
                    "%s: the policy has retries, but nothing says that this function may be repeated; "
                    "pass idempotent=True or idempotent=False to guard, or set retries.idempotent",
                    self._service,
                )
        self.simple = not self._judges_results and (plan is None or plan.drill is None)
        self.now = self.source.clock.monotonic
        self.plan, self.idempotent, self._table = plan, may_repeat, table

    def call(self) -> Call | None:
        """A new call under the current policy; ``None`` under mode OFF."""
        table = self.source.table
        if table is not self._table:
            self.refresh(table)
        plan = self.plan
        return None if plan is None else Call(plan, self.idempotent, True, DEADLINE.get())

    # ------------------------------------------------------------------------------------ classification

    def of_result(self, result: Any) -> Answer:
        """What a returned value is."""
        if self._judges_results and cast(Callable[[Any], bool], self._failures)(result):
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

    def of_fault(self, call: Call) -> tuple[InjectedFault, Answer]:
        """What an attempt is that the policy's fault answers in place of the function."""
        status = call.injected or 503
        error = InjectedFault(
            f"{self._service}: the policy's fault aborted this attempt with status {status}", service=self._service,
            route=self._route, attempts=call.number,
        )
        error.status = status
        verdict, words = of_status(status)
        return error, Answer(verdict, words | (_FAILED_WORDS if verdict is Verdict.FAILURE else 0), status, injected=True)

    # ------------------------------------------------------------------------------------------ wrapping

    def __call__(self, function: F) -> F:
        """Wrap a function, keeping its signature and type."""
        import inspect  # costs 10 ms, which a program that guards nothing need not pay

        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                f"guard cannot wrap the generator function {function.__qualname__}: nothing runs until it is iterated. "
                "Guard the function that does the call, or use `mesh.attempts`"
            )
        if inspect.isfunction(function):
            wrapper = self._wrap_async(function) if inspect.iscoroutinefunction(function) else self._wrap_sync(function)
            return cast(F, functools.wraps(function)(wrapper))
        return cast(F, self._wrap_object(function))

    def _wrap_object(self, function: Any) -> Any:
        """Anything else that can be called: classmethod, staticmethod, functools.partial, an instance with __call__."""
        import inspect

        import wrapt

        inner = getattr(function, "__func__", function)
        awaits = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(getattr(inner, "__call__", None))  # noqa: B004  # its kind is asked for, not whether it exists
        wrap = self._wrap_async if awaits else self._wrap_sync
        if not callable(function) and not isinstance(function, classmethod | staticmethod):
            raise TypeError(f"guard wraps functions, not {type(function).__name__}")

        def enter(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return wrap(wrapped)(*args, **kwargs)

        return wrapt.FunctionWrapper(function, enter)

    def _wrap_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        guard, source = self, self.source

        def guarded(*args: Any, **kwargs: Any) -> Any:
            table = source.table
            if table is not guard._table:
                guard.refresh(table)
            plan = guard.plan
            if plan is None:
                return function(*args, **kwargs)
            now = guard.now
            call = Call(plan, guard.idempotent, True, DEADLINE.get())
            token = None
            try:
                step = call.start(now())
                if step is SEND and guard.simple:
                    if plan.timeout is not None:
                        token = DEADLINE.set(call.deadline)
                    result = function(*args, **kwargs)
                    call.answered(now(), 1, OK)
                    return result
                exchange = _Exchange(guard, function, args, kwargs)
            except BaseException as error:
                exchange = _Exchange(guard, function, args, kwargs)
                step = exchange.failed(call, error, timed_out=False)
                if step is RETURN:
                    raise
            finally:
                if token is not None:
                    DEADLINE.reset(token)
            return exchange.run(call, step)

        return guarded

    def _wrap_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        from resilmesh.drive.runtime import limit  # brings asyncio, which sync programs do without

        guard, source = self, self.source

        async def guarded(*args: Any, **kwargs: Any) -> Any:
            table = source.table
            if table is not guard._table:
                guard.refresh(table)
            plan = guard.plan
            if plan is None:
                return await function(*args, **kwargs)
            now = guard.now
            call = Call(plan, guard.idempotent, True, DEADLINE.get())
            token = limited = None
            try:
                began = now()
                step = call.start(began)
                if step is SEND and guard.simple:
                    if plan.timeout is not None:
                        token = DEADLINE.set(call.deadline)
                    if call.headers_by != INFINITY:
                        limited = limit(call.headers_by - began)
                    result = await function(*args, **kwargs)
                    if limited is not None:
                        limited.stop(None)
                    call.answered(now(), 1, OK)
                    return result
                exchange = _AsyncExchange(guard, function, args, kwargs)
            except BaseException as error:
                exchange = _AsyncExchange(guard, function, args, kwargs)
                step = exchange.failed(call, error, timed_out=limited is not None and limited.stop(error))
                if step is RETURN:
                    raise
            finally:
                if token is not None:
                    DEADLINE.reset(token)
            return await exchange.run(call, step)

        return guarded


def _are_types(failures: object) -> bool:
    return isinstance(failures, type) or (isinstance(failures, tuple) and all(isinstance(each, type) for each in failures))


def unknown(table: Table, service: str, route: str | None) -> str:
    """Why a name was not found, and what there is."""
    names = sorted(table.by_name)
    if service not in table.by_name:
        return f"the policy has no service {service!r}; it has {', '.join(names) if names else 'none'}"
    routes = [each.name for each in table.policy.services[table.by_name[service]].routes or ()]
    return f"service {service!r} has no route {route!r}; it has {', '.join(routes) if routes else 'none'}"


class _Attempted:
    """The last outcome of a function, and what it means."""

    __slots__ = ("_args", "_error", "_function", "_guard", "_kwargs", "_value")

    def __init__(self, guard: Guard, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._guard = guard
        self._function = function
        self._args = args
        self._kwargs = kwargs
        self._value: Any = None
        self._error: BaseException | None = None

    def failed(self, call: Call, error: BaseException, *, timed_out: bool) -> Step:
        """The inlined first attempt raised, which may be a limit's doing."""
        self._error = error
        answer = _TIMED_OUT if timed_out else self._guard.of_error(error)
        now = self._guard.now()
        if answer is None:
            call.abandon(now)
            return RETURN
        return call.answered(now, call.number, answer)

    def classify(self, error: BaseException) -> Answer | None:
        self._error = error
        return self._guard.of_error(error)

    def injected(self, call: Call) -> Answer:
        self._error, answer = self._guard.of_fault(call)
        return answer

    def returned(self, value: Any) -> Answer:
        self._value, self._error = value, None
        return self._guard.of_result(value)

    def outcome(self, call: Call, step: Step) -> Any:
        """Give the user what the call came to."""
        if step is RAISE:
            assert call.error is not None
            raise call.error from self._error
        if self._error is not None:
            raise self._error
        return self._value


class _Exchange(_Attempted):
    """Attempts of a plain function. It cannot be interrupted: a deadline is looked at between attempts."""

    __slots__ = ()

    def run(self, call: Call, step: Step) -> Any:
        return self.outcome(call, sync.proceed(call, step, self, self._guard.source.clock))

    def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call)
        token = DEADLINE.set(call.deadline)
        try:
            return self.returned(self._function(*self._args, **self._kwargs))
        except BaseException as error:
            answer = self.classify(error)
            if answer is None:
                raise
            return answer
        finally:
            DEADLINE.reset(token)

    def set_aside(self) -> None:
        """A value or an exception needs no room."""


class _AsyncExchange(_Attempted):
    """Attempts of a coroutine function, each ended when its time is over."""

    __slots__ = ()

    async def run(self, call: Call, step: Step) -> Any:
        return self.outcome(call, await aio.proceed(call, step, self, self._guard.source.clock))

    async def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call)
        token = DEADLINE.set(call.deadline)
        try:
            if call.headers_by == INFINITY:
                return self.returned(await self._function(*self._args, **self._kwargs))
            return await self._limited(call)
        except BaseException as error:
            answer = self.classify(error)
            if answer is None:
                raise
            return answer
        finally:
            DEADLINE.reset(token)

    async def _limited(self, call: Call) -> Answer:
        from resilmesh.drive.runtime import limit

        limited = limit(call.headers_by - self._guard.now())
        try:
            value = await self._function(*self._args, **self._kwargs)
        except BaseException as error:
            if limited.stop(error):
                self._error = error
                return _TIMED_OUT
            raise
        limited.stop(None)
        return self.returned(value)

    async def set_aside(self) -> None:
        """A value or an exception needs no room."""
