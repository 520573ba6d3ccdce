"""Writes down the public names, as ``public_api.txt`` beside this file holds them: ``python -m tests.project.public_api``.

One line a name: what it is called with and what it gives, as the source says it; public members of a class are indented below it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import resilmesh

SNAPSHOT = Path(__file__).with_name("public_api.txt")
MODULES = ("resilmesh", "resilmesh.http", "resilmesh.testing", "resilmesh_grpc")


def describe() -> str:
    """The public API as text."""
    return "\n".join(line for name in MODULES for line in _module(name)) + "\n"


def _module(name: str) -> list[str]:
    module = importlib.import_module(name)
    lines = [f"# {name}"]
    for public in names(module):
        lines += _thing(f"{name}.{public}", getattr(module, public))
    return [*lines, ""]


def names(module: ModuleType) -> list[str]:
    """What ``__all__`` lists, or else what the module itself defines."""
    if hasattr(module, "__all__"):
        return sorted(module.__all__)
    return sorted(name for name, value in vars(module).items() if name[0] != "_" and getattr(value, "__module__", "") == module.__name__)


def _thing(name: str, value: object) -> list[str]:
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        members = {member: what for member, what in vars(value).items() if member[0] != "_"}
        maker = next(base for base in value.__mro__ if "__init__" in vars(base))
        if inspect.isfunction(value.__init__) and (maker is value or maker.__name__ not in resilmesh.__all__):
            members["__init__"] = value.__init__  # a public base class shows its own
        return [f"class {name}({bases})" if bases else f"class {name}",
                *(f"    {line}" for member in sorted(members) for line in _member(member, members[member]))]
    if callable(value):
        return [f"def {name}{signature(value)}"]
    return [f"{name}: {type(value).__name__}"]


def _member(name: str, value: object) -> list[str]:
    match value:
        case property():
            return [f"{name} (property)"]
        case classmethod():
            return [f"{name}{signature(value.__func__)} (class method)"]
        case staticmethod():
            return [f"{name}{signature(value.__func__)} (static method)"]
        case _ if inspect.isfunction(value):
            return [f"{'async ' if inspect.iscoroutinefunction(value) else ''}{name}{signature(value)}"]
        case _:
            return []


class _Shown:
    """A text that represents itself."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def signature(value: Callable[..., object]) -> str:
    """As the source has it: annotations are strings there (PEP 563), and an object's address says nothing."""
    found = inspect.signature(value)
    parameters = [
        each.replace(annotation=_annotation(each.annotation), default=_default(each.default)) for each in found.parameters.values()
    ]
    return str(found.replace(parameters=parameters, return_annotation=_annotation(found.return_annotation)))


def _annotation(value: object) -> object:
    return _Shown(value) if isinstance(value, str) else value


def _default(value: object) -> object:
    return _Shown(f"<{type(value).__name__}>") if " at 0x" in repr(value) else value


if __name__ == "__main__":
    SNAPSHOT.write_text(describe())
