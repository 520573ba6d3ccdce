"""What kind of function something that can be called is, however it is wrapped."""

from __future__ import annotations

from functools import partial
from types import FunctionType, MethodType
from typing import Any, Final, Literal

Kind = Literal["PLAIN", "COROUTINE", "GENERATOR", "ASYNC_GENERATOR"]

#: ``inspect.CO_*``, which would cost an import of 10 ms. A code object has one of them at most.
_FLAGS: Final = 0x20 | 0x80 | 0x200
_KINDS: Final[dict[int, Kind]] = {0x20: "GENERATOR", 0x80: "COROUTINE", 0x200: "ASYNC_GENERATOR"}


def kind_of(function: Any) -> Kind:
    """What a call of ``function`` gives."""
    plain = function.__func__ if type(function) is MethodType else function
    if type(plain) is FunctionType:
        flag = plain.__code__.co_flags & _FLAGS
        if flag:
            return _KINDS[flag]
        if not plain.__dict__:  # nobody marked it as a coroutine function
            return "PLAIN"
    import inspect

    called = called_by(function)
    if inspect.isgeneratorfunction(called):
        return "GENERATOR"
    if inspect.isasyncgenfunction(called):
        return "ASYNC_GENERATOR"
    return "COROUTINE" if inspect.iscoroutinefunction(called) else "PLAIN"


def called_by(function: Any) -> Any:
    """What runs when ``function`` is called: the function inside of a method, a partial, or an object with ``__call__``."""
    import inspect

    while isinstance(function, classmethod | staticmethod | partial):
        function = function.func if isinstance(function, partial) else function.__func__
    if inspect.isroutine(function) or inspect.isclass(function) or inspect.iscoroutinefunction(function):
        return function
    return getattr(type(function), "__call__", function)  # noqa: B004  # what it is, not whether it is there
