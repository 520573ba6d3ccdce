"""``@mesh.guard("ledger")``: a policy around a function, a method, a coroutine function or a generator function.

The first attempt of a call is inlined in the wrappers, because nearly every call has no other; what an outcome
means is the engine's business there as everywhere. Everything after it runs in the common loops.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypedDict, TypeVar, cast

from resilmesh.drive.context import DEADLINE, unset
from resilmesh.drive.exchange import CoroutineExchange, FunctionExchange
from resilmesh.drive.forms import Kind, kind_of
from resilmesh.drive.judging import Failures, Judge, Types
from resilmesh.engine.call import RAISE, RETURN, SEND, Call
from resilmesh.engine.plan import INFINITY, Plan
from resilmesh.engine.verdict import OK
from resilmesh.errors import UnknownService

if TYPE_CHECKING:
    from tenacity.retry import RetryBaseT
    from tenacity.stop import StopBaseT
    from tenacity.wait import WaitBaseT

    from resilmesh.clock import Clock
    from resilmesh.drive.strategies import Strategies
    from resilmesh.engine.compile import Table

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("resilmesh")


class BlockOptions(TypedDict, total=False):
    """What ``attempts`` takes by name."""

    route: str | None
    """A route of the service, by its name."""
    failures: Failures | None
    """Exception types, or a predicate over the exception raised or the result returned, that count as failure.

    By default every ``Exception``; anything else is a success. A stream's items are no result: only its exceptions are judged.
    """
    ignore: Types
    """Exception types that are not counted at all."""
    idempotent: bool | None
    """Whether a failed call may be repeated; by default what the policy says, and ``False`` where it says nothing."""
    stop: StopBaseT | None
    """When to give up, in place of ``retries.maxRetries``: one of tenacity's ``stop`` objects."""
    wait: WaitBaseT | None
    """How long to wait before the next attempt, in place of ``retries.backoff``: one of tenacity's ``wait`` objects."""
    retry: RetryBaseT | None
    """Which outcomes are repeated, in place of ``retries.retryOn``: one of tenacity's ``retry`` objects."""


class Options(BlockOptions, total=False):
    """What ``guard`` takes by name."""

    fallback: Callable[[Any], Any] | None
    """Stands in for a call that was rejected, cut off, or failed: given the exception that the caller would get, or the
    result that is judged a failure, it returns what the caller gets. For a coroutine function it may be one itself; for a
    generator function it returns the items."""


#: What users of tenacity pass to it, and what there is in its place.
_ELSEWHERE = {
    "before": "subscribe to the event attempt_started",
    "after": "subscribe to the event attempt_ended",
    "before_sleep": "subscribe to the event backoff",
    "reraise": "the last outcome always reaches the caller as it is",
    "retry_error_cls": "the last outcome always reaches the caller as it is",
    "retry_error_callback": "fallback= stands in for a failed call",
    "sleep": "the mesh's clock sleeps: Mesh.from_file(path, clock=...)",
    "enabled": "the policy's mode switches a service off",
    "name": "the service has one",
}


def _no_option(name: str) -> str:
    """What to say of an option that there is none of."""
    if name in _ELSEWHERE:
        return f"{name}= of tenacity's is not taken: {_ELSEWHERE[name]}"
    from difflib import get_close_matches  # which only a mistake needs

    names = [*BlockOptions.__annotations__, "fallback"]
    close = get_close_matches(name, names, 1)
    return f"there is no {name}=" + (f": did you mean {close[0]}=?" if close else f"; there are {', '.join(names)}")


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
        "_idempotent", "_route", "_service", "_table", "fallback", "idempotent", "judge", "judges_results", "now", "plan", "source",
        "strategies",
    )

    def __init__(
        self, source: Source, service: str, *, route: str | None = None, failures: Failures | None = None, ignore: Types = (),
        idempotent: bool | None = None, stop: StopBaseT | None = None, wait: WaitBaseT | None = None, retry: RetryBaseT | None = None,
        fallback: Callable[[Any], Any] | None = None, **others: Any,
    ) -> None:
        if not isinstance(service, str):
            raise TypeError(f"the first argument is the service's name, as in guard('ledger'), not {service!r}")
        for name in others:
            raise TypeError(_no_option(name))
        if idempotent is not None and not isinstance(idempotent, bool):
            raise TypeError(f"idempotent is True, False or None, not {idempotent!r}")  # "no" would be taken for yes
        if fallback is not None and not callable(fallback):
            raise TypeError(f"fallback is a function of the exception or the result, not {fallback!r}")
        self.source = source
        self._service = service
        self._route = route
        self._idempotent = idempotent
        self.judge = Judge(failures, ignore)
        self.strategies: Strategies | None = None
        if stop is not None or wait is not None or retry is not None:
            from resilmesh.drive.strategies import Strategies

            self.strategies = Strategies(stop, wait, retry)
        #: Whether a result may be a failure, or have to be repeated.
        self.judges_results = self.judge.judges_results or (self.strategies is not None and self.strategies.judges_results)
        self.fallback = fallback
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
            if plan is not None and plan.retry_idempotent is None and (plan.retries is not None or self.strategies is not None):
                self._doubt()
        self.now = self.source.clock.monotonic
        self.plan, self.idempotent, self._table = plan, may_repeat, table

    def _doubt(self) -> None:
        name, doubted = (self._service, self._route), self.source.doubted
        if name not in doubted:
            doubted.add(name)
            log.warning(
                "%s: %s, but nothing says that what is guarded may be repeated, so it is not; "
                "pass idempotent=True or idempotent=False, or set retries.idempotent",
                self._service if self._route is None else f"{self._service}/{self._route}",
                "the policy has retries" if self.strategies is None else "the guard has stop, wait or retry",
            )

    def call(self) -> Call | None:
        """A new call under the current policy; ``None`` under mode OFF."""
        table = self.source.table
        if table is not self._table:
            self.refresh(table)
        plan = self.plan
        return None if plan is None else Call(plan, self.idempotent, True, DEADLINE.get())

    # ------------------------------------------------------------------------------------------ wrapping

    def __call__(self, function: F) -> F:
        """Wrap a function, keeping its signature and type."""
        import inspect  # costs 10 ms, which a program that guards nothing need not pay

        given: Any = function
        if not callable(given) and not isinstance(given, classmethod | staticmethod):
            raise TypeError(f"guard wraps functions, not {type(given).__name__}")
        kind = kind_of(function)
        if self.fallback is not None and kind in ("PLAIN", "GENERATOR") and kind_of(self.fallback) not in ("PLAIN", "GENERATOR"):
            raise TypeError("the fallback of what is not awaited cannot be awaited either: pass a plain function")
        wrap = self.wrap(kind)
        if inspect.isfunction(function):
            return cast(F, functools.wraps(function)(wrap(function)))

        import wrapt  # for anything else that can be called: classmethod, staticmethod, functools.partial, an instance with __call__

        def enter(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return wrap(wrapped)(*args, **kwargs)

        return cast(F, wrapt.FunctionWrapper(function, enter))

    def wrap(self, kind: Kind) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """What wraps a function of that kind."""
        return {
            "PLAIN": self._wrap_sync, "COROUTINE": self._wrap_async, "GENERATOR": self._wrap_generator,
            "ASYNC_GENERATOR": self._wrap_async_generator,
        }[kind]

    def _wrap_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        from resilmesh.drive.streams import Stream

        return lambda *args, **kwargs: Stream(self, function, args, kwargs)

    def _wrap_async_generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        from resilmesh.drive.async_streams import AsyncStream

        return lambda *args, **kwargs: AsyncStream(self, function, args, kwargs)

    def _wrap_sync(self, function: Callable[..., Any]) -> Callable[..., Any]:
        guard, source, judges_results, falls_back = self, self.source, self.judges_results, self.fallback is not None

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
                if step is RAISE and not falls_back:
                    raise call.take_error()  # rejected, before anything else happened
                if step is not SEND or call.injected is not None or judges_results:
                    exchange = FunctionExchange(guard, function, args, kwargs)
                else:
                    token = None if plan.timeout is None else DEADLINE.set(call.deadline)
                    try:
                        result = function(*args, **kwargs)
                    except BaseException as error:
                        exchange = FunctionExchange(guard, function, args, kwargs)
                        again = exchange.failed(call, error)
                        if again is None:
                            exchange.give(call, RETURN, error)
                            raise
                        step = again
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
        guard, source, judges_results, falls_back = self, self.source, self.judges_results, self.fallback is not None

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
                if step is RAISE and not falls_back:
                    raise call.take_error()  # rejected, before anything else happened
                if step is not SEND or call.injected is not None or judges_results:
                    exchange = CoroutineExchange(guard, function, args, kwargs)
                else:
                    token = limited = None
                    try:
                        if plan.timeout is not None:
                            token = DEADLINE.set(call.deadline)
                        if call.headers_by != INFINITY:
                            limited = source.clock.limit(call.headers_by - began)
                        result = await function(*args, **kwargs)
                    except BaseException as error:
                        exchange = CoroutineExchange(guard, function, args, kwargs)
                        again = exchange.failed(call, error, limited)
                        if again is None:
                            exchange.give(call, RETURN, error)
                            raise
                        step = again
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


def unknown(table: Table, service: str, route: str | None) -> str:
    """Why a name was not found, and what there is."""
    names = sorted(table.by_name)
    if service not in table.by_name:
        return f"the policy has no service {service!r}; it has {', '.join(names) if names else 'none'}"
    routes = list(table.served(table.by_name[service]).route_names)
    return f"service {service!r} has no route {route!r}; it has {', '.join(routes) if routes else 'none'}"
