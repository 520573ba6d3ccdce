"""What is on the screen, as lines of text, and what the keys do to it. It knows no terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from resilmesh.top.figures import Figures, Row, Value


class Line(NamedTuple):
    """A line, and how it is to look: ``""``, ``title``, ``selected`` or ``bad``."""

    text: str
    style: str = ""


def rate(value: Value) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def duration(value: Value) -> str:
    """Three digits, such as 212ms."""
    if not isinstance(value, int | float):
        return str(value)
    if math.isinf(value):
        return ">max"
    return f"{value:.2f}s" if value >= 1 else f"{value * 1e3:.3g}ms" if value >= 1e-3 else f"{value * 1e6:.0f}us"


#: Key of a value, its heading, its width, and how it is written.
COLUMNS: tuple[tuple[str, str, int, Callable[[Value], str]], ...] = (
    ("rate", "calls/s", 9, rate), ("errors", "err%", 6, rate), ("p50", "p50", 8, duration), ("p99", "p99", 8, duration),
    ("inFlight", "flight", 7, str), ("rejected", "rej/s", 7, rate), ("circuit", "circuit", 13, str), ("ejected", "eject", 6, str),
    ("retries", "retry/s", 8, rate), ("retriesRefused", "refus/s", 8, rate), ("tokens", "tokens", 8, rate), ("queue", "queue", 6, str),
    ("budget", "budget", 8, rate),
)
_NAME_WIDTH = 28
HELP = (
    "up/k down/j   move", "Enter         a service's routes and endpoints; a route's counters", "Esc/Backspace back",
    "s             sort by the next column", "r             the other way round", "p             pause, and go on", "q             quit",
    "?             this, and back",
    "Rates, errors and quantiles are of the time between two readings; of the first one, since the program began.",
)


@dataclass
class View:
    """Where the user is: which level, which row, which order."""

    path: list[str] = field(default_factory=list)
    selected: int = 0
    sort: int = -1
    reverse: bool = False
    paused: bool = False
    help: bool = False
    ended: bool = False

    def press(self, key: str, found: Figures | None) -> None:
        """One key: up, down, enter, back, or a letter."""
        rows = self.rows(found) if found is not None else []
        if key == "q":
            self.ended = True
        elif key == "?":
            self.help = not self.help
        elif key == "p":
            self.paused = not self.paused
        elif key == "r":
            self.reverse = not self.reverse
        elif key == "s":
            self.sort = self.sort + 1 if self.sort + 1 < len(COLUMNS) else -1
        elif key in ("up", "k", "down", "j"):
            self.selected = max(0, min(len(rows) - 1, self.selected + (-1 if key in ("up", "k") else 1)))
        elif key == "enter" and rows:
            row = rows[min(self.selected, len(rows) - 1)]
            if row.kind != "endpoint":
                self.path, self.selected = [*self.path, row.name], 0
        elif key == "back":
            self.help, self.path, self.selected = False, self.path[:-1] if not self.help else self.path, 0

    def rows(self, found: Figures) -> list[Row]:
        """Those of the level, in order. Of a single route, and of what is gone, none."""
        if not self.path:
            rows: Sequence[Row] = found.services
        elif len(self.path) == 1:
            rows = next((service.children for service in found.services if service.name == self.path[0]), ())
        else:
            return []
        if self.sort < 0:
            return sorted(rows, key=lambda row: (row.kind == "endpoint", row.name), reverse=self.reverse)
        key = COLUMNS[self.sort][0]
        return sorted(rows, key=lambda row: _order(row.values.get(key)), reverse=not self.reverse)

    def route(self, found: Figures) -> Row | None:
        """The one whose counters are shown."""
        service = next((each for each in found.services if each.name == self.path[0]), None)
        routes = () if service is None else service.children
        return next((each for each in routes if each.kind == "route" and each.name == self.path[1]), None)


def _order(value: Value) -> tuple[bool, float, str]:
    return (value is not None, value if isinstance(value, int | float) else 0.0, str(value))


# -------------------------------------------------------------------------------------------------- lines


def screen(found: Figures | None, view: View, width: int, height: int, *, where: str, problem: str | None = None) -> list[Line]:
    """At most ``height`` lines of at most ``width`` characters."""
    lines = [Line(text, "title") for text in _head(found, view, where)]
    if problem is not None:
        lines.append(Line(f"{problem}; trying again", "bad"))
    body, cursor = _body(found, view)
    # As much of the body as fits, with the selected row in it; the heading of the columns stays.
    heading, rest = body[:1], body[1:]
    room = max(1, height - len(lines) - len(heading) - 1)
    top = max(0, min(cursor - room + 1, len(rest) - room)) if cursor >= room else 0
    lines += [*heading, *rest[top:top + room]]
    foot = "Enter in  Esc back  s sort  r reverse  p pause  ? help  q quit"
    shown = [*lines[:max(0, height - 1)], Line(foot, "title")]
    return [Line(clean(line.text)[:width], line.style) for line in shown[-height:]]


def clean(text: str) -> str:
    """Without characters that a terminal would obey."""
    return "".join(each if each.isprintable() else "?" for each in text)


def header(found: Figures, where: str) -> list[str]:
    """What is known of the program as a whole."""
    known = found.header
    parts = [
        f"resilmesh top {where}", f"workload {known['workload'] or '-'}", f"revision {known['revision']}", f"mode {known['mode']}",
        f"up {_span(known['uptime'])}", f"workers {known['workers']}", f"in flight {known['inFlight']}",
    ]
    if known["certificateExpiresIn"] is not None:
        parts.append(f"certificate {_span(known['certificateExpiresIn'])}")
    lines = ["  ".join(parts)]
    if known["refused"]:
        lines.append(f"{known['refused']} policies refused; the last: {known['lastRefusal']}")
    return lines


def _head(found: Figures | None, view: View, where: str) -> list[str]:
    if found is None:
        return [f"resilmesh top {where}"]
    lines = header(found, where)
    notes = ["of the last %.1f s" % found.seconds]  # noqa: UP031  # a number alone
    notes += ["PAUSED"] if view.paused else []
    notes += ["the program began anew"] if found.restarted else []
    order = "name" if view.sort < 0 else COLUMNS[view.sort][1]
    notes.append(f"by {order}{', reversed' if view.reverse else ''}")
    return [*lines, " > ".join(["services", *view.path]) + "   " + ", ".join(notes)]


def _body(found: Figures | None, view: View) -> tuple[list[Line], int]:
    """The lines below the head, the first of which is their heading, and the place of the selected one among the others."""
    if view.help:
        return [Line("keys", "title"), *map(Line, HELP)], 0
    if found is None:
        return [], 0
    if len(view.path) > 1:
        return _counters(view.route(found)), view.selected
    rows = view.rows(found)
    view.selected = max(0, min(view.selected, len(rows) - 1))
    lines = [Line(heading(), "title")]
    for at, row in enumerate(rows):
        lines.append(Line(cells(row), "selected" if at == view.selected else "bad" if _is_bad(row) else ""))
    return (lines if rows else [*lines, Line("nothing yet")]), view.selected


def _counters(route: Row | None) -> list[Line]:
    if route is None:
        return [Line("counter"), Line("the route is gone")]
    lines = [Line(f"{'counter':<34}{'since it began':>16}{'a second':>12}", "title")]
    return lines + [Line(f"{name:<34}{total:>16,}{each:>12.1f}") for name, (total, each) in route.counters.items()]


def heading() -> str:
    return f"{'name':<{_NAME_WIDTH}}" + "".join(f"{words:>{width}}" for _, words, width, _ in COLUMNS)


def cells(row: Row, indent: int = 0) -> str:
    """A row of the table. What has no value has a dash."""
    name = " " * indent + (f"@{row.name}" if row.kind == "endpoint" else row.name)
    shown = name if len(name) < _NAME_WIDTH else name[:_NAME_WIDTH - 2] + "~"
    texts = ("-" if row.values.get(key) is None else write(row.values[key]) for key, _, _, write in COLUMNS)
    return f"{shown:<{_NAME_WIDTH}}" + "".join(f"{text:>{width}}" for text, (_, _, width, _) in zip(texts, COLUMNS, strict=True))


def _is_bad(row: Row) -> bool:
    return row.values.get("circuit") in ("OPEN", "FORCED_OPEN", "HALF_OPEN") or bool(row.values.get("ejected"))


def table(found: Figures, where: str) -> list[str]:
    """Everything at once, for a pipe."""
    lines = [*header(found, where), heading()]
    for service in found.services:
        lines += [cells(service), *(cells(row, 2) for row in service.children)]
    return [clean(line) for line in lines]


def data(found: Figures) -> dict[str, Any]:
    """The same for ``--json``."""
    services = [_data(row) for row in found.services]
    return {**found.header, "seconds": round(found.seconds, 3), "restarted": found.restarted, "services": services}


def _data(row: Row) -> dict[str, Any]:
    values = {key: None if isinstance(value, float) and math.isinf(value) else value for key, value in row.values.items()}
    routes = [_data(each) for each in row.children if each.kind == "route"]
    endpoints = [_data(each) for each in row.children if each.kind == "endpoint"]
    return {"name": row.name, **values, **({"routes": routes, "endpoints": endpoints} if row.kind == "service" else {})}


def _span(seconds: float) -> str:
    whole = int(seconds)
    if whole < 120:
        return f"{whole}s"
    return f"{whole // 60}m" if whole < 7200 else f"{whole // 3600}h" if whole < 172800 else f"{whole // 86400}d"
