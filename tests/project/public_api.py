"""Writes down the public names, as ``public_api.txt`` beside this file holds them: ``python -m tests.project.public_api``.

One line a name: what it is called with and what it gives, as the source says it; public members of a class are indented below it.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

SNAPSHOT = Path(__file__).with_name("public_api.txt")
MODULES = ("resilmesh", "resilmesh.http", "resilmesh.testing", "resilmesh.errors")


def describe() -> str:
    """The public API as text."""
    return "\n".join(line for name in MODULES for line in _module(name)) + "\n"


def _module(name: str) -> list[str]:
    module = importlib.import_module(name)
    lines = [f"# {name}"]
    for public in sorted(module.__all__):
        lines += _thing(f"{name}.{public}", getattr(module, public))
    return [*lines, ""]


def _thing(name: str, value: object) -> list[str]:
    if inspect.isclass(value):
        bases = ", ".join(base.__name__ for base in value.__bases__ if base is not object)
        lines = [f"class {name}({bases})" if bases else f"class {name}"]
        members = [(member, vars(value)[member]) for member in sorted(vars(value)) if not member.startswith("_") or member == "__init__"]
        return lines + [f"    {line}" for member, what in members for line in _member(member, what)]
    if callable(value):
        return [f"def {name}{_signature(value)}"]
    return [f"{name}: {type(value).__name__}"]


def _member(name: str, value: object) -> list[str]:
    match value:
        case property():
            return [f"{name} (property)"]
        case classmethod():
            return [f"{name}{_signature(value.__func__)} (class method)"]
        case staticmethod():
            return [f"{name}{_signature(value.__func__)} (static method)"]
        case _ if inspect.isfunction(value):
            return [f"{name}{_signature(value)}"]
        case _:
            return []


def _signature(value: object) -> str:
    # Annotations are strings in the source (PEP 563): shown without their quotes.
    return str(inspect.signature(value)).replace("'", "")  # type: ignore[arg-type]  # callers pass callables


if __name__ == "__main__":
    SNAPSHOT.write_text(describe())
