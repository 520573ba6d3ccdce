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
from resilmesh.drive.context import DEADLINE, unset
from resilmesh.engine.call import RAISE, RETURN, SEND, Call, Step
from resilmesh.engine.plan import INFINITY, Plan
from resilmesh.engine.verdict import NO_VERDICT, OK, Answer, Verdict, mask, of_status
from resilmesh.errors import InjectedFault, Rejected, UnknownService

if TYPE_CHECKING:
    from resilmesh.clock import Clock, Limit
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

    @property
    def doubted(self) -> set[tuple[str, str | None]]:
        """Names of which was said already that nobody said whether they may be repeated."""


class Guard:
    """One service (and route) as a function's callers see it. Shared by every call of the function."""

    __slots__ = (
        "_failures", "_idempotent", "_ignore", "_judges_results", "_route", "_service", "_table", "idempotent", "now", "plan", "source",
    )

    def __init__(
        self, source: Source, service: str, *, route: str | None = None, failures: Failures | None = None, ignore: Types = (),
        idempotent: bool | None = None,
    ) -> None:
        if failures is not None and not _are_types(failures) and not callable(failures):
            raise TypeError(f"failures is an exception type, a tuple of them, or a predicate, not {failures!r}")
        if not _are_types(ignore):
            raise TypeError(f"ignore is an exception type or a tuple of them, not {ignore!r}")
        self.source = source
        self._service = service
        self._route = route
        self._failures = _without_everything(failures)
        self._judges_results = failures is not None and not _are_types(failures)
        self._ignore = ignore
        self._idempotent = idempotent
        self._table: Table | None = None
        #: The current plan, ``None`` under mode OFF; and whether a call may be repeated.
        self.plan: Plan | None = None
        self.idempotent = False
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
            if plan is not None and plan.retries is not None and plan.retry_idempotent is None:
                self._doubt()
        self.now = self.source.clock.monotonic
        self.plan, self.idempotent, self._table = plan, may_repeat, table

    def _doubt(self) -> None:
        name, doubted = (self._service, self._route), self.source.doubted
        if name not in doubted:
            doubted.add(name)
            log.warning(
                "%s: the policy has retries, but nothing says that what is guarded may be repeated, so it is not; "
                "pass idempotent=True or idempotent=False, or set retries.idempotent",
                self._service if self._route is None else f"{self._service}/{self._route}",
            )

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
        """What an attempt is that a fault answers in place of the function."""
        status = call.injected or 503
        error = InjectedFault(
            f"an injected fault aborted this attempt with status {status}", service=self._service,
            route=self._route, attempts=call.number,
        )
        error.status = status
        verdict, words = of_status(status)
        return error, Answer(verdict, words | (_FAILED_WORDS if verdict is Verdict.FAILURE else 0), status, injected=True)

    # ------------------------------------------------------------------------------------------ wrapping

    def __call__(self, function: F) -> F:
        """Wrap a function, keeping its signature and type."""
        import inspect  # costs 10 ms, which a program that guards nothing need not pay

        called = _called(function)
        if inspect.isgeneratorfunction(called) or inspect.isasyncgenfunction(called):
            raise TypeError(
                f"guard cannot wrap the generator function {getattr(called, '__qualname__', called)}: nothing runs until it is iterated. "
                "Guard the function that does the call, or use `mesh.attempts`"
            )
        if inspect.isfunction(function):
            wrapper = self._wrap_async(function) if inspect.iscoroutinefunction(function) else self._wrap_sync(function)
            return cast(F, functools.wraps(function)(wrapper))
        return cast(F, self._wrap_object(function, self._wrap_async if inspect.iscoroutinefunction(called) else self._wrap_sync))

    def _wrap_object(self, function: Any, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Any:
        """Anything else that can be called: classmethod, staticmethod, functools.partial, an instance with __call__."""
        import wrapt

        if not callable(function) and not isinstance(function, classmethod | staticmethod):
            raise TypeError(f"guard wraps functions, not {type(function).__name__}")

        def enter(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return wrap(wrapped)(*args, **kwargs)

        return wrapt.FunctionWrapper(function, enter)

    def _wrap_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        guard, source, judges_results = self, self.source, self._judges_results

        def guarded(*args: Any, **kwargs: Any) -> Any:
            table = source.table
            if table is not guard._table:
                guard.refresh(table)
            plan = guard.plan
            if plan is None:
                return function(*args, **kwargs)
            now = guard.now
            outer = DEADLINE.get()
            call = Call(plan, guard.idempotent, True, outer)
            try:
                step = call.start(now())
                if step is RAISE:
                    raise call.take_error()  # rejected, before anything else happened
                if step is not SEND or call.injected is not None or judges_results:
                    exchange = _Exchange(guard, function, args, kwargs)
                else:
                    token = None if plan.timeout is None else DEADLINE.set(call.deadline)
                    try:
                        result = function(*args, **kwargs)
                    except BaseException as error:
                        exchange = _Exchange(guard, function, args, kwargs)
                        step = exchange.failed(call, error, None)
                        if step is RETURN:
                            exchange.pass_on(error)
                            raise
                    else:
                        call.answered(now(), 1, OK)
                        return result
                    finally:
                        if token is not None:
                            DEADLINE.reset(token)
                return exchange.run(call, step)
            except BaseException:
                call.abandon(now())  # which does nothing to a call that is over
                DEADLINE.set(outer)  # an interrupt may have come before its token was stored
                raise

        return guarded

    def _wrap_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        guard, source, judges_results = self, self.source, self._judges_results

        async def guarded(*args: Any, **kwargs: Any) -> Any:
            table = source.table
            if table is not guard._table:
                guard.refresh(table)
            plan = guard.plan
            if plan is None:
                return await function(*args, **kwargs)
            now = guard.now
            call = Call(plan, guard.idempotent, True, DEADLINE.get())
            try:
                began = now()
                step = call.start(began)
                if step is RAISE:
                    raise call.take_error()  # rejected, before anything else happened
                if step is not SEND or call.injected is not None or judges_results:
                    exchange = _AsyncExchange(guard, function, args, kwargs)
                else:
                    token = limited = None
                    try:
                        if plan.timeout is not None:
                            token = DEADLINE.set(call.deadline)
                        if call.headers_by != INFINITY:
                            limited = source.clock.limit(call.headers_by - began)
                        result = await function(*args, **kwargs)
                    except BaseException as error:
                        exchange = _AsyncExchange(guard, function, args, kwargs)
                        step = exchange.failed(call, error, limited)
                        if step is RETURN:
                            exchange.pass_on(error)
                            raise
                    else:
                        if limited is not None:
                            limited.stop(None)
                        call.answered(now(), 1, OK)
                        return result
                    finally:
                        if token is not None:
                            unset(token)
                return await exchange.run(call, step)
            except BaseException:
                call.abandon(now())  # which does nothing to a call that is over
                raise

        return guarded


def _called(function: Any) -> Any:
    """What runs when ``function`` is called: the function inside of a method, a partial, or an object with ``__call__``."""
    import inspect

    while isinstance(function, classmethod | staticmethod | functools.partial):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    if inspect.isroutine(function) or inspect.isclass(function) or inspect.iscoroutinefunction(function):
        return function
    return getattr(type(function), "__call__", function)  # noqa: B004  # what it is, not whether it is there


def _without_everything(failures: Failures | None) -> Failures | None:
    """``BaseException`` means every Exception: a cancellation or a KeyboardInterrupt is no outcome, unless it is named."""
    if failures is BaseException:
        return Exception
    if isinstance(failures, tuple):
        return tuple(Exception if each is BaseException else each for each in failures)
    return failures


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

    def failed(self, call: Call, error: BaseException, limited: Limit | None) -> Step:
        """The inlined first attempt raised. RETURN: to be passed on."""
        answer = self.classify(error, limited)
        if answer is None:
            return RETURN
        now = self._guard.now()
        # Our own limit has passed, whatever the clock of a test says.
        return call.answered(max(now, call.headers_by) if answer is _TIMED_OUT else now, call.number, answer)

    def classify(self, error: BaseException, limited: Limit | None) -> Answer | None:
        """What an attempt is that raised, which may be a limit's doing; ``None``: the caller is going away."""
        left = error if limited is None else limited.stop(error)
        self._error = error if left is None else left
        return _TIMED_OUT if left is None else self._guard.of_error(left)

    def pass_on(self, error: BaseException) -> None:
        """Before ``raise``: raises what a limit left of ``error`` where that is another exception."""
        left, self._error = self._error, None
        try:
            if left is not None and left is not error:
                raise left
        finally:
            del left, error  # no cycle: see outcome

    def injected(self, call: Call) -> Answer:
        self._error, answer = self._guard.of_fault(call)
        return answer

    def returned(self, value: Any) -> Answer:
        self._value, self._error = value, None
        return self._guard.of_result(value)

    def outcome(self, call: Call, step: Step) -> Any:
        """Give the user what the call came to."""
        last, self._error = self._error, None
        error, call.error = (call.error, None) if step is RAISE else (last, call.error)
        try:
            if error is None:
                return self._value
            if error is not last:
                error.__cause__ = last
            raise error
        finally:
            # The traceback of an exception holds this frame: holding the exception here would make a cycle.
            del last, error


class _Exchange(_Attempted):
    """Attempts of a plain function. It cannot be interrupted: a deadline is looked at between attempts."""

    __slots__ = ()

    def run(self, call: Call, step: Step) -> Any:
        return self.outcome(call, sync.proceed(call, step, self, self._guard.source.clock))

    def send(self, call: Call) -> Answer:
        if call.injected is not None:
            return self.injected(call)
        outer = DEADLINE.get()
        try:
            DEADLINE.set(call.deadline)
            value = self._function(*self._args, **self._kwargs)
        except BaseException as error:
            answer = self.classify(error, None)
            if answer is None:
                self.pass_on(error)
                raise
            return answer
        finally:
            DEADLINE.set(outer)
        return self.returned(value)

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
        limited = None
        try:
            if call.headers_by != INFINITY:
                limited = self._guard.source.clock.limit(call.headers_by - self._guard.now())
            value = await self._function(*self._args, **self._kwargs)
        except BaseException as error:
            answer = self.classify(error, limited)
            if answer is None:
                self.pass_on(error)
                raise
            return answer
        else:
            if limited is not None:
                limited.stop(None)
        finally:
            unset(token)
        return self.returned(value)

    async def set_aside(self) -> None:
        """A value or an exception needs no room."""
