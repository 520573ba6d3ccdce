"""Draws docs/pictures from the code's own tables: ``python -m tests.docs.pictures``, or ``make pictures``.

    circuit.svg        the transition table in the docstring of resilmesh/state/breaker.py
    order.svg          the table at the top of docs/explanation/order.md, which is the order of the lines of ``Call.start``
    architecture.svg   the import contract in pyproject.toml, and the headings of docs/architecture.md

Each picture has a background of its own and follows the reader's scheme, light or dark, so it can be read on any page.
"""

from __future__ import annotations

import importlib
import re
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from resilmesh.state import breaker

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"

_STYLE = """\
<style>
  text { font: 14px system-ui, sans-serif; fill: #1f2933 }
  .strong { font-weight: 600 }
  .small { font-size: 12px; fill: #52606d }
  .paper { fill: #ffffff }
  .box { fill: #eef3f8; stroke: #7b8794 }
  .one { fill: #e3f1ff } .two { fill: #e6f6ec } .three { fill: #fff4e0 }
  .line { stroke: #52606d; stroke-width: 1.5; fill: none }
  .tip { fill: #52606d }
  @media (prefers-color-scheme: dark) {
    text { fill: #e4e7eb } .small { fill: #aab4bf } .paper { fill: #1b2027 }
    .box { fill: #28313b; stroke: #8794a1 } .one { fill: #1d3348 } .two { fill: #1e3a2b } .three { fill: #43351c }
    .line { stroke: #aab4bf } .tip { fill: #aab4bf }
  }
</style>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto-start-reverse">
  <path class="tip" d="M0,0 L10,5 L0,10 z"/></marker></defs>"""


def svg(title: str, width: int, height: int, parts: list[str]) -> str:
    """A whole picture; ``title`` is what a screen reader says."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>", _STYLE, f'<rect class="paper" width="{width}" height="{height}" rx="8"/>', *parts, "</svg>", "",
    ])


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """One line of text, whose baseline is at ``y``."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def lines(x: float, y: float, words: list[str], anchor: str = "start") -> list[str]:
    """Small text, a line below another."""
    return [text(x, y + 16 * number, each, "small", anchor) for number, each in enumerate(words)]


def box(x: float, y: float, width: float, height: float, kind: str = "") -> str:
    """A rectangle with round corners."""
    return f'<rect class="box {kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6"/>'


def arrow(path: str) -> str:
    """A line with a tip at its end, by SVG's path commands."""
    return f'<path class="line" d="{path}" marker-end="url(#tip)"/>'


# ------------------------------------------------------------------------------------------- the circuit


class Transition(NamedTuple):
    """One row of the breaker's table. ``who``: who may call in state ``old``; only its first row says so."""

    old: str
    event: str
    new: str
    who: str


def transitions() -> list[Transition]:
    """The first table of the breaker's docstring. A line that begins with neither a state nor an event's end goes on with the last."""
    table = (breaker.__doc__ or "").split("\n\n")[1].splitlines()
    starts = [table[0].index(word) for word in ("state", "event", "next", "who")]
    found: list[Transition] = []
    for line in table[1:]:
        old, event, new, who = (line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True))
        if new:
            found.append(Transition(old or found[-1].old, event, new, who))
        else:
            found[-1] = found[-1]._replace(event=f"{found[-1].event} {event}", who=f"{found[-1].who} {who}".strip())
    return found


#: Where each state stands: the left upper corner.
_AT = {"CLOSED": (30, 60), "OPEN": (560, 60), "HALF_OPEN": (280, 270)}
#: The way of each arrow, where its words begin, and how long their lines may be.
_WAYS = {
    ("CLOSED", "OPEN"): ("M230,90 H556", (393, 56), "middle", 46),
    ("OPEN", "HALF_OPEN"): ("M690,122 V312 H484", (702, 214), "start", 26),
    ("HALF_OPEN", "OPEN"): ("M440,268 V205 Q440,180 465,170 L592,125", (452, 214), "start", 24),
    ("HALF_OPEN", "CLOSED"): ("M278,300 H110 V126", (122, 214), "start", 26),
}


def circuit() -> str:
    """The three states and what leads from one to another."""
    table, parts = transitions(), []
    for each in table:
        path, (x, y), anchor, width = _WAYS[each.old, each.new]
        words = textwrap.wrap(each.event, width)
        parts += [arrow(path), *lines(x, y, words, anchor)]
    who = {each.old: each.who for each in reversed(table) if each.who}
    for state, (x, y) in _AT.items():
        parts += [box(x, y, 200, 62), text(x + 100, y + 26, state, "strong", "middle")]
        parts += [text(x + 100, y + 46, f"{who[state]} may call" if " " not in who[state] else who[state], "small", "middle")]
    return svg("The states of a circuit, and what leads from one to the next", 900, 360, parts)


# --------------------------------------------------------------------------------------------- the order


class Decision(NamedTuple):
    """One row of the order: its level, its name, what it does."""

    level: str
    name: str
    does: str


def decisions() -> list[Decision]:
    """The first block of docs/explanation/order.md, in three columns; a name that is too long for the second has no third."""
    page = (ROOT / "docs" / "explanation" / "order.md").read_text()
    found: list[Decision] = []
    for line in page.split("```text\n", 1)[1].split("```", 1)[0].splitlines():
        level, name, does = line[:16].strip(), line[16:37].strip(), line[37:].strip()
        if line[36:37].strip():
            name, does = f"{name}{line[37:]}", ""
        found.append(Decision(level or found[-1].level, name, does))
    return found


def order() -> str:
    """Every decision about a call, from above to below."""
    parts, y, kinds = [], 24.0, iter(("one", "two", "three"))
    table = decisions()
    middles: dict[str, float] = {}
    for level in dict.fromkeys(each.level for each in table):
        rows = [each for each in table if each.level == level]
        height = 30 * len(rows) + 12
        parts += [box(150, y, 660, height, next(kinds)), text(20, y + 25, level, "strong")]
        for number, each in enumerate(rows):
            middles[each.name] = y + 21 + 30 * number
            parts += [text(170, y + 26 + 30 * number, each.name), text(370, y + 26 + 30 * number, each.does, "small")]
        middles[level] = y + 12
        y += height + 16
    retry, again = middles["retry?"], middles["attempt level"]
    parts += [arrow(f"M810,{retry:g} H840 V{again:g} H813"), text(846, (retry + again) / 2, "a retry", "small")]
    return svg("The order of the decisions about a call", 900, int(y + 8), parts)


# ------------------------------------------------------------------------------------- the architecture


def floors() -> Iterator[tuple[str, str]]:
    """Every floor of the import contract from above: its modules, and what docs/architecture.md says that it does."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    headings = re.findall(r"^### (`.+)$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE)
    does = {}
    for heading in headings:
        for module in re.findall(r"`(\w+)/?`", heading):
            does[module] = heading.partition(": ")[2]
    for layer in contract["layers"]:
        modules = [name.strip().removeprefix("resilmesh.") for name in layer.split("|")]
        yield " · ".join(modules), does.get(modules[0]) or _first_words(layer.split("|")[0].strip())


def _first_words(module: str) -> str:
    """What a module that the page gives no heading to says of itself, up to the first colon."""
    return (importlib.import_module(module).__doc__ or "").partition(":")[0].replace("`", "")


def architecture() -> str:
    """The floors of the code. Imports go down."""
    parts, table = [], list(floors())
    for number, (modules, does) in enumerate(table):
        kind = ("two", "one", "three")[min(2, number * 3 // len(table))]
        y = 24 + 40 * number
        parts += [box(70, y, 670, 34, kind), text(90, y + 22, modules, "strong"), text(370, y + 22, does, "small")]
    height = 24 + 40 * len(table) + 16
    parts += [arrow(f"M40,24 V{height - 28}"), f'<g transform="rotate(-90 26 {height / 2:g})">',
              text(26, height / 2, "imports only go down", "small", "middle"), "</g>"]
    return svg("The floors of the code: a floor imports only from those below it", 760, height, parts)


#: File name and what draws it.
ALL = {"circuit.svg": circuit, "order.svg": order, "architecture.svg": architecture}

if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, draw in ALL.items():
        (PICTURES / name).write_text(draw())
