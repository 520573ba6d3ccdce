"""Makes the generated parts of docs/reference from the code: ``python -m tests.docs.reference``; part of ``make reference``.

A page has its parts between ``<!-- made: NAME -->`` and ``<!-- end -->``; the text around them is written by hand. ``PARTS`` says what
makes each. The policy file and the diagnostics, which the library can print itself, come from ``resilmesh schema``.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import resilmesh
from resilmesh import errors
from resilmesh.cli import VERBS
from resilmesh.engine.events import EVENTS
from resilmesh.telemetry.catalogue import METRICS, SPANS
from resilmesh.telemetry.prometheus import prometheus_name
from tests.project.public_api import names, signature

PAGES = Path(__file__).resolve().parents[2] / "docs" / "reference"
PART = re.compile(r"(<!-- made: ([a-z -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """A page with its generated parts made anew."""
    return PART.sub(lambda part: f"{part[1]}\n{PARTS[part[2]]().strip()}\n\n{part[3]}", text)


# ------------------------------------------------------------------------------------------ events, errors


def events(of: str) -> str:
    """The table of the events of a call, of a service, and so on."""
    rows = [f"| `{each.name}` | {each.when} | {each.detail} |" for each in EVENTS if each.of == of]
    return "\n".join(["| Name | When | `detail` |", "| --- | --- | --- |", *rows])


def metrics() -> str:
    """The table of every metric."""
    rows = []
    for each in METRICS:
        prometheus = prometheus_name(each) + ("_total" if each.kind == "counter" else "")
        attributes = ", ".join(f"`{name}`" for name in each.attributes)
        rows.append(f"| `{each.name}` | `{prometheus}` | {each.kind}, {each.unit} | {each.told} | {attributes} |")
    return "\n".join(["| Name | In Prometheus | Kind, unit | What | Attributes |", "| --- | --- | --- | --- | --- |", *rows])


def spans() -> str:
    """The table of every kind of span."""
    def listed(names: tuple[str, ...]) -> str:
        return ", ".join(f"`{name}`" for name in names)

    rows = [f"| {each.kind} | {each.name} | {each.when} | {listed(each.attributes)} | {listed(each.events)} |" for each in SPANS]
    return "\n".join(["| Kind | Name | When | Attributes | Events |", "| --- | --- | --- | --- | --- |", *rows])


def error_tree() -> str:
    """Every exception below its base class."""

    def below(kind: type[BaseException], depth: int) -> Iterator[str]:
        also = [base.__name__ for base in kind.__bases__[1:]]
        yield f"{'  ' * depth}{kind.__name__}{f'    also a {also[0]}' if also else ''}"
        for each in errors.__dict__.values():
            if inspect.isclass(each) and each.__bases__[0] is kind:
                yield from below(each, depth + 1)

    return "\n".join(["```text", *below(resilmesh.ResilmeshError, 0), "```"])


def error_table() -> str:
    """What each decision about a call means, and the response that it is under ``localReplies: RESPOND``."""
    lines = ["| Error | Means | Under `localReplies: RESPOND` | Envoy's flag |", "| --- | --- | --- | --- |"]
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.CallError) and kind not in (errors.CallError, errors.Rejected):
            status, body, flag, _ = kind.reply
            lines.append(f"| `{name}` | {_prose(kind)} | {status}{f', `{body}`' if body else ', no body'} | {flag} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------- command line


def command_line() -> str:
    """Every verb with its words, as argparse has them."""
    os.environ["COLUMNS"] = "100"
    sections = []
    for verb, module, line in VERBS:
        parser = argparse.ArgumentParser(prog=f"resilmesh {verb}", description=f"{line[0].upper()}{line[1:]}.")
        importlib.import_module(f"resilmesh.cli.{module}").add(parser)
        sections.append(f"## `resilmesh {verb}`\n\n{parser.description}\n\n{_usage(parser)}\n\n{_words(parser)}")
    return "\n\n".join(sections)


def _usage(parser: argparse.ArgumentParser) -> str:
    """Versions of Python break this line in different places, so it is broken nowhere."""
    return f"```text\n{' '.join(parser.format_usage().split())}\n```"


def _words(parser: argparse.ArgumentParser) -> str:
    lines = ["| Word | Meaning |", "| --- | --- |"]
    for action in parser._actions:  # argparse has no public list of them
        if isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                lines += [f"| `{name}` | {below.description or ''} |", *_words(below).splitlines()[2:]]
            continue
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        takes = "" if not action.option_strings or action.nargs == 0 else f" {_metavar(action)}"
        meaning = (action.help or "").replace("%(default)s", str(action.default)).replace("|", "\\|")
        lines.append(f"| `{names}{takes}` | {meaning} |")
    return "\n".join(lines)


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return str(action.metavar or action.dest.upper())


# ----------------------------------------------------------------------------------------------- the API


def api(module_name: str) -> str:
    """The public names of a module: signature, docstring, and the public members of a class likewise."""
    module = importlib.import_module(module_name)
    return "\n\n".join(_entry(name, getattr(module, name)) for name in names(module) if not inspect.ismodule(getattr(module, name)))


def _entry(name: str, thing: Any) -> str:
    if not callable(thing) or not hasattr(thing, "__name__"):
        return f"### `{name}`\n\n{_shape(thing)}"
    parts = [f"### `{name}`", _code(_declared(name, thing)), _doc(thing)]
    if inspect.isclass(thing):
        parts += [_member(member, value) for member, value in vars(thing).items() if member[0] != "_" and _public(value)]
    return "\n\n".join(filter(None, parts))


def _public(value: Any) -> bool:
    return isinstance(value, (property, classmethod, staticmethod)) or inspect.isfunction(value)


def _member(name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"**`{name}`**\n\n{_doc(value.fget)}"
    kind = {classmethod: "@classmethod\n", staticmethod: "@staticmethod\n"}.get(type(value), "")
    function = value.__func__ if kind else value
    return f"{_code(kind + _declared(name, function))}\n\n{_doc(function)}"


def _declared(name: str, thing: Any) -> str:
    if inspect.isclass(thing):
        bases = ", ".join(base.__name__ for base in thing.__bases__ if base is not object)
        heading = f"class {name}({bases})" if bases else f"class {name}"
        if issubclass(thing, BaseException) or not inspect.isfunction(thing.__init__):
            return heading
        return heading + "\n" + name + signature(thing.__init__).replace("(self, ", "(").replace("(self)", "()").replace(" -> None", "")
    asynchronous = "async " if inspect.iscoroutinefunction(thing) else ""
    return f"{asynchronous}def {name}{signature(thing)}"


def _code(text: str) -> str:
    return f"```text\n{text}\n```"


def _doc(thing: Any) -> str:
    """A docstring in Markdown: its indented examples are code, and its double quotes single ones."""
    lines = (inspect.getdoc(thing) or "").splitlines()
    out: list[str] = []
    fenced = False
    for line in lines:
        code = line.startswith("    ") or (fenced and not line)
        if code != fenced:
            out += ["```text"] if code else ["```", ""] if out[-1] else _closed(out)
            fenced = code
        out.append(line.removeprefix("    ") if code else line.replace("``", "`"))
    return "\n".join([*out, "```"] if fenced else out)


def _closed(out: list[str]) -> list[str]:
    """The blank lines before the end of a block of code stand behind it."""
    while not out[-1]:
        out.pop()
    return ["```", ""]


def _prose(thing: Any) -> str:
    return " ".join(_doc(thing).split()).replace("|", "\\|")


def _shape(value: Any) -> str:
    return f"`{value!r}`" if " at 0x" not in repr(value) else f"A `{type(value).__name__}`."


PARTS: dict[str, Callable[[], str]] = {
    "events of a call": lambda: events("call"),
    "events of a service": lambda: events("service"),
    "events of the policy": lambda: events("policy"),
    "events of the identity": lambda: events("identity"),
    "events of requests that arrive": lambda: events("inbound"),
    "metrics": metrics,
    "spans": spans,
    "error tree": error_tree,
    "error table": error_table,
    "command line": command_line,
    "api": lambda: api("resilmesh"),
    "api http": lambda: api("resilmesh.http"),
    "api testing": lambda: api("resilmesh.testing"),
}


if __name__ == "__main__":
    for page in sorted(PAGES.glob("*.md")):
        page.write_text(filled(page.read_text()))
