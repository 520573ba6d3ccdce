"""``with mesh.inject("inventory", status=503): ...``: a fault for as long as a block, or a function, runs.

The faults of the moment are handed to the compiler, which makes a new table of the same policy over the same state. So a
call in flight keeps what it began with, and undoing a fault is making the table without it, whatever the order.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from resilmesh.drive.guard import unknown
from resilmesh.engine.fault import Fault
from resilmesh.errors import UnknownService
from resilmesh.units import format_duration, parse_duration

if TYPE_CHECKING:
    from resilmesh.engine.compile import Table
    from resilmesh.mesh import Mesh

F = TypeVar("F", bound=Callable[..., Any])
Scope = Literal["CALL", "ATTEMPT"]


class Injection:
    """One fault of ``Mesh.inject``. A context manager, in sync and async code alike, and a decorator; each use is a fault of its own."""

    def __init__(
        self, mesh: Mesh, service: str, *, route: str | None, status: int | None, delay: float | str | None, percent: float, scope: Scope,
    ) -> None:
        self._mesh = mesh
        self.service = service
        #: ``None``: every route of the service, and what no route matches.
        self.route = route
        self.scope = _one_of_the_scopes(scope)
        share = _within("percent", percent, 0, 100) / 100
        seconds = 0.0 if delay is None else _within("delay", parse_duration(delay) if isinstance(delay, str) else delay, 0, 3600)
        if status is None and not seconds:
            raise TypeError("inject needs a status= (200-599), a delay= (seconds, or text such as '300ms'), or both")
        if status is not None and (not isinstance(status, int) or isinstance(status, bool) or not 200 <= status <= 599):
            raise ValueError(f"status is an HTTP status from 200 to 599, not {status!r}")
        #: What the engine draws from.
        self.fault = Fault(abort_status=status, abort_grpc=None, abort_share=share, delay=seconds, delay_share=share)
        self._active = False
        self._check()

    def applies_to(self, service: str, route: str | None) -> bool:
        """Whether the plan of a route (``None``: of what no route matches) has this fault."""
        return self.service == service and self.route in (None, route)

    def shown(self) -> dict[str, Any]:
        """The fault in plain data, as ``Mesh.snapshot`` and the events have it. ``delay`` is in seconds."""
        fault = self.fault
        return {
            "service": self.service, "route": self.route, "status": fault.abort_status, "delay": fault.delay or None,
            "percent": fault.abort_share * 100, "scope": self.scope,
        }

    def __repr__(self) -> str:
        fault, where = self.fault, self.service if self.route is None else f"{self.service}/{self.route}"
        what = [f"status {fault.abort_status}"] if fault.abort_status is not None else []
        what += [f"delay {format_duration(fault.delay)}"] if fault.delay else []
        return f"<Injection into {where}: {', '.join(what)}, {fault.abort_share * 100:g} %, scope {self.scope}>"

    def _check(self) -> None:
        """Raises ``UnknownService``, or ``ValueError`` when no mode of the target lets a fault act."""
        table = self._mesh.table
        if not table.named(self.service, self.route)[0]:
            raise UnknownService(unknown(table, self.service, self.route))
        plans = [table.named(self.service, self.route)[1]] if self.route is not None else table.served(table.by_name[self.service]).plans
        if not any(plan is not None and plan.mode == "ENFORCE" for plan in plans):
            raise ValueError(f"cannot inject into {self.service if self.route is None else f'{self.service}/{self.route}'}: "
                             f"{_standing_in_the_way(table, self.service, self.route)}, under which no fault acts")

    # ------------------------------------------------------------------------------------------- the block

    def __enter__(self) -> Self:
        if self._active:
            raise RuntimeError(f"{self!r} is active already: make another by mesh.inject(...)")
        self._check()
        self._active = True
        self._mesh._begin_injection(self)
        return self

    def __exit__(self, *error: object) -> None:
        self._mesh._end_injection(self)
        self._active = False

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *error: object) -> None:
        self.__exit__()

    # ------------------------------------------------------------------------------------------- the decorator

    def __call__(self, function: F) -> F:
        """Have the fault during each call of a function or coroutine function. Raises ``TypeError`` for a generator function."""
        wrapper: Any
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"inject cannot wrap the generator function {function.__qualname__}: write `with mesh.inject(...):` inside it")
        if inspect.iscoroutinefunction(function):
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self._another():
                    return await function(*args, **kwargs)
        else:
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                with self._another():
                    return function(*args, **kwargs)
        return cast(F, functools.wraps(function)(wrapper))

    def _another(self) -> Injection:
        """The same fault again, because two calls of a decorated function may overlap."""
        fault = self.fault
        return Injection(
            self._mesh, self.service, route=self.route, status=fault.abort_status, delay=fault.delay or None,
            percent=fault.abort_share * 100, scope=self.scope,
        )


def _standing_in_the_way(table: Table, service: str, route: str | None) -> str:
    """Which level's mode keeps faults from acting."""
    policy = table.policy
    found = policy.services[table.by_name[service]]
    levels = [("the mesh", policy.mesh.mode), (f"the service {service!r}", found.mode)]
    levels += [(f"the route {each.name!r}", each.mode) for each in found.routes or () if route in (None, each.name)]
    return next((f"{level} has mode {mode}" for level, mode in levels if mode in ("OFF", "OBSERVE")), "it has another mode than ENFORCE")


def _one_of_the_scopes(scope: Any) -> Scope:
    if scope == "CALL" or scope == "ATTEMPT":
        found: Scope = scope
        return found
    raise ValueError(f"scope is 'CALL' or 'ATTEMPT', not {scope!r}")


def _within(name: str, value: Any, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise TypeError(f"{name} is a number from {least:g} to {most:g}, not {value!r}")
    if not least <= value <= most:
        raise ValueError(f"{name} is a number from {least:g} to {most:g}, not {value!r}")
    return float(value)
