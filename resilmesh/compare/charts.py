"""Charts over time as SVG: one panel for each plane and measure, all panels of a measure on the same axes.

Colours and patterns are classes of ``page.css``, so that light, dark and print each have their own; a pattern says the same
as a colour. A panel is an image to a screen reader, described in words; pointing at a bucket shows its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from resilmesh.compare.markup import Markup, element, join
from resilmesh.compare.timeline import Timeline

_WIDTH, _HEIGHT = 260, 118
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 4, 13, 18
_STRIP = 13
#: How many looks ``page.css`` has for reasons of one kind.
LOOKS = 4


@dataclass(frozen=True, slots=True)
class Axes:
    """What the panels of one measure share. ``end`` in seconds; a logarithmic axis begins at ``low``."""

    end: float
    high: float
    unit: str
    low: float = 0.0
    logarithmic: bool = False

    def x(self, seconds: float) -> float:
        return _LEFT + seconds / self.end * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = value / self.high
        if self.logarithmic:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return _HEIGHT - _BOTTOM - min(share, 1.0) * (_HEIGHT - _BOTTOM - _TOP)

    @property
    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return nice_ticks(self.high, 4)
        powers = range(round(math.log10(self.low)), round(math.log10(self.high)) + 1)
        return [10.0 ** power for power in powers]


def linear(timelines: Iterable[Timeline], highest: float, unit: str) -> Axes:
    """An axis from nought to a round number above ``highest``."""
    ticks = nice_ticks(highest or 1.0, 4)
    step = ticks[1] - ticks[0]
    return Axes(max(each.end for each in timelines), math.ceil((highest or 1.0) / step) * step, unit)


def logarithmic(timelines: Iterable[Timeline], values: Sequence[float], unit: str) -> Axes:
    """An axis from the power of ten below the least to the one above the greatest."""
    low, high = (10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values)))) if values else (1.0, 10.0)
    return Axes(max(each.end for each in timelines), high if high > low else low * 10, unit, low, logarithmic=True)


def nice_ticks(highest: float, about: int) -> list[float]:
    """Round numbers from 0 to at most ``highest``, about so many."""
    rough = highest / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)
    return [step * number for number in range(math.floor(highest / step + 1e-9) + 1)]


def look(names: Iterable[str]) -> dict[str, str]:
    """A class of the style sheet for each reason: rejections look like rejections, failures like failures, services like neither."""
    found: dict[str, str] = {}
    used = {"rejected": 0, "failed": 0}
    for name in sorted(names):
        kind = name.partition(":")[0]
        kind = kind if kind in used else "failed"
        found[name] = f"{kind}-{used[kind] % LOOKS + 1}"
        used[kind] += 1
    return found


# ------------------------------------------------------------------------------------------- panels


def calls_panel(run: Timeline, axes: Axes, looks: Mapping[str, str], marks: Mapping[str, int], described: str) -> Markup:
    """What became of the calls that were due, per second, one upon another."""
    layers = [("succeeded", run.succeeded), *((looks[name], values) for name, values in run.errors.items())]
    areas = join(*(_area(run, axes, base, top, kind) for kind, base, top in _stacked(layers)))
    return _panel(run, axes, areas, marks, described, _hints(run))


def requests_panel(run: Timeline, axes: Axes, marks: Mapping[str, int], described: str) -> Markup:
    """Requests that reached the services, per second, by endpoint one upon another, under the calls that were due."""
    layers = [(f"endpoint-{place % LOOKS + 1}", values) for place, values in enumerate(run.requests.values())]
    areas = join(*(_area(run, axes, base, top, kind) for kind, base, top in _stacked(layers)))
    return _panel(run, axes, join(areas, element("path", d=_steps(run, axes, run.due), class_="due")), marks, described)


def latency_panel(run: Timeline, axes: Axes, marks: Mapping[str, int], described: str) -> Markup:
    """p50 and p99 of the successful calls; a gap is a bucket without one."""
    return _panel(run, axes, join(*(_line(run, axes, run.latency[name], name) for name in ("p99", "p50"))), marks, described)


def state_panel(run: Timeline, axes: Axes, circuits: int, endpoints: Sequence[str], described: str) -> Markup:
    """A strip for each process's circuit, then for each endpoint by its number; one that this plane lacks stays empty."""
    height = (circuits + len(endpoints)) * _STRIP + _BOTTOM + 2
    rows: list[tuple[str, list[str] | None]] = [
        (f"circ. {place + 1}", [f"circuit-{state.lower()}" for state in run.circuit[place]] if place < len(run.circuit) else None)
        for place in range(circuits)
    ]
    rows += [
        (f"ep. {place}", ["ejected" if held else "present" for held in run.ejected[name]] if name in run.ejected else None)
        for place, name in enumerate(endpoints, 1)
    ]
    drawn = []
    for place, (label, kinds) in enumerate(rows):
        top = place * _STRIP + 2
        drawn.append(element("text", label, x=_LEFT - 4, y=top + 8.5, class_="label", text_anchor="end"))
        drawn.append(_absent(top) if kinds is None else _strip(run, axes, top, kinds))
    return element(
        "svg", *drawn, _seconds(axes, height - _BOTTOM), viewBox=f"0 0 {_WIDTH} {height}", role="img", aria_label=described, class_="panel",
    )


def patterns() -> Markup:
    """What the classes fill with, once for the page: plain, hatched, dotted, crossed."""
    shapes = {
        1: (), 2: (element("path", d="M0 6L6 0", class_="ink"),), 3: (element("circle", cx=3, cy=3, r=1.4, class_="dot"),),
        4: (element("path", d="M0 0L6 6M0 6L6 0", class_="ink"),),
    }
    made = [
        element(
            "pattern", element("rect", width=6, height=6, class_=f"fill-{kind}"), *shape,
            id=f"pattern-{kind}-{number}", width=6, height=6, patternUnits="userSpaceOnUse",
        )
        for kind in ("rejected", "failed", "endpoint") for number, shape in shapes.items()
    ]
    half_open = element(
        "pattern", element("rect", width=6, height=6, class_="fill-half"), element("path", d="M0 6L6 0", class_="ink"),
        id="pattern-half-open", width=6, height=6, patternUnits="userSpaceOnUse",
    )
    return element("svg", element("defs", *made, half_open), width=0, height=0, aria_hidden="true", class_="patterns")


def swatch(kind: str) -> Markup:
    """A sample of a class for a legend."""
    line = kind in ("p50", "p99", "due")
    shape = element("path", d="M0 6H22", class_=kind) if line else element("rect", width=22, height=12, class_=kind)
    return element("svg", shape, viewBox="0 0 22 12", width=22, height=12, aria_hidden="true")


# ------------------------------------------------------------------------------------------- their parts


def _panel(
    run: Timeline, axes: Axes, drawn: Markup, marks: Mapping[str, int], described: str, hints: Sequence[str] = (),
) -> Markup:
    floor = _HEIGHT - _BOTTOM
    grid = join(*(
        join(
            element("path", d=f"M{_LEFT} {axes.y(tick):.1f}H{_WIDTH - _RIGHT}", class_="grid"),
            element("text", _tick(tick), x=_LEFT - 4, y=axes.y(tick) + 3.5, class_="label", text_anchor="end"),
        )
        for tick in axes.ticks
    ))
    return element(
        "svg", _periods(run, axes), grid, drawn, _marked(run, axes, marks), _seconds(axes, floor),
        *(
            element(
                "rect", element("title", hint), x=axes.x(place * run.bucket), y=_TOP, class_="hint",
                width=axes.x(run.bucket) - _LEFT, height=floor - _TOP,
            )
            for place, hint in enumerate(hints)
        ),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=described, class_="panel",
    )


def _stacked(layers: Sequence[tuple[str, Sequence[float]]]) -> list[tuple[str, list[float], list[float]]]:
    found, base = [], [0.0] * (len(layers[0][1]) if layers else 0)
    for kind, values in layers:
        top = [below + value for below, value in zip(base, values, strict=True)]
        if any(values):
            found.append((kind, base, top))
        base = top
    return found


def _area(run: Timeline, axes: Axes, base: Sequence[float], top: Sequence[float], kind: str) -> Markup:
    back = "".join(
        f"H{axes.x((place + 1) * run.bucket):.1f}V{axes.y(base[place]):.1f}H{axes.x(place * run.bucket):.1f}"
        for place in reversed(range(run.count))
    )
    return element("path", d=f"{_steps(run, axes, top)}{back}Z", class_=kind)


def _steps(run: Timeline, axes: Axes, values: Sequence[float]) -> str:
    path = "".join(f"V{axes.y(value):.1f}H{axes.x((place + 1) * run.bucket):.1f}" for place, value in enumerate(values))
    return f"M{_LEFT} {axes.y(values[0]) if values else axes.y(0):.1f}{path}"


def _line(run: Timeline, axes: Axes, values: Sequence[float | None], kind: str) -> Markup:
    """A line through the middle of each bucket, broken where there is nothing; a value all alone is a short dash."""
    path, drawing = "", False
    for place, value in enumerate(values):
        if value is None:
            drawing = False
            continue
        x, y = axes.x((place + 0.5) * run.bucket), axes.y(value)
        alone = not drawing and (place + 1 == len(values) or values[place + 1] is None)
        path += f"M{x - 1.5:.1f} {y:.1f}h3" if alone else f"{'L' if drawing else 'M'}{x:.1f} {y:.1f}"
        drawing = True
    return element("path", d=path or "M0 0", class_=kind)


def _strip(run: Timeline, axes: Axes, top: float, kinds: Sequence[str]) -> Markup:
    """Equal neighbours are one piece."""
    pieces, start = [], 0
    for place in range(1, len(kinds) + 1):
        if place == len(kinds) or kinds[place] != kinds[start]:
            left, right = axes.x(start * run.bucket), axes.x(place * run.bucket)
            state = kinds[start].removeprefix("circuit-").replace("_", "-")
            words = f"{start * run.bucket:.1f} to {place * run.bucket:.1f} s: {state}"
            pieces.append(element(
                "rect", element("title", words), x=left, y=top, width=right - left, height=_STRIP - 3, class_=_strip_class(kinds[start]),
            ))
            start = place
    return join(*pieces)


def _strip_class(kind: str) -> str:
    known = {"circuit-closed", "circuit-half_open", "circuit-open", "ejected", "present"}
    return kind if kind in known else "circuit-other"


def _absent(top: float) -> Markup:
    return element("text", "has none", x=_LEFT + 2, y=top + 8.5, class_="label")


def _seconds(axes: Axes, floor: float) -> Markup:
    ticks = nice_ticks(axes.end, 5)
    return join(
        element("path", d=f"M{_LEFT} {floor:.1f}H{_WIDTH - _RIGHT}", class_="axis"),
        *(
            element(
                "text", _tick(tick) + (" s" if tick == ticks[-1] else ""), x=min(axes.x(tick), _WIDTH - 10), y=floor + 12, class_="label",
                text_anchor="middle",
            )
            for tick in ticks
        ),
    )


def _periods(run: Timeline, axes: Axes) -> Markup:
    """What begins and ends is a shade."""
    begun: dict[str, float] = {}
    shades = []
    for mark in run.marks:
        name, _, word = mark.what.rpartition(" ")
        if word == "begins":
            begun[name] = mark.at
        elif word == "ends" and name in begun:
            left = axes.x(begun.pop(name))
            shades.append(element(
                "rect", x=left, y=_TOP, width=axes.x(min(mark.at, axes.end)) - left, height=_HEIGHT - _BOTTOM - _TOP, class_="period"))
    return join(*shades)


def _marked(run: Timeline, axes: Axes, marks: Mapping[str, int]) -> Markup:
    """A numbered line for each mark; the numbers are explained below the chart. Marks at the same place share one."""
    places: dict[int, list[int]] = {}
    for mark in run.marks:
        if mark.at <= axes.end:
            places.setdefault(round(axes.x(mark.at)), []).append(marks[mark.what])
    return join(*(
        join(
            element("path", d=f"M{x} {_TOP}V{_HEIGHT - _BOTTOM}", class_="mark"),
            element("text", ",".join(map(str, dict.fromkeys(numbers))), x=x, y=_TOP - 3, class_="label mark-number", text_anchor="middle"),
        )
        for x, numbers in places.items()
    ))


def _hints(run: Timeline) -> list[str]:
    """What a pointer shows: the numbers of a bucket."""
    hints = []
    for place in range(run.count):
        parts = [f"{place * run.bucket:.1f} s: {run.succeeded[place]:.0f} succeeded per second"]
        parts += [f"{values[place]:.0f} {name}" for name, values in run.errors.items() if values[place]]
        p50, p99 = run.latency["p50"][place], run.latency["p99"][place]
        if p50 is not None and p99 is not None:
            parts.append(f"latency p50 {p50:.2f} ms, p99 {p99:.2f} ms")
        hints.append("; ".join(parts))
    return hints


def _tick(value: float) -> str:
    return f"{value:g}" if value < 10_000 else f"{value / 1000:g}k"
