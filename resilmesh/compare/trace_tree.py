"""Spans as trees, and a tree as text for somebody who was not there.

    trace 5b8aa5a2d2c872e8321cf37308d69df2: 61.3 ms, 3 spans of 2 services (shop, stock), from 2026-11-24 13:40:01.123 UTC
        begins        took
        0.0 ms     61.3 ms  GET /orders [shop, server]
        1.1 ms     20.2 ms    GET [shop, client] ERROR
                                http.response.status_code=503
       21.4 ms              * resilmesh.backoff seconds=0.025
       46.6 ms     14.0 ms    GET [shop, client]
                                http.request.resend_count=1 http.response.status_code=200
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from resilmesh.compare.otlp import Span, SpanEvent

#: Attributes of a span that a reader needs; besides, everything of our own. The names that end in a dot are beginnings.
_TOLD = (
    "resilmesh.", "http.request.resend_count", "retry.count", "http.response.status_code", "http.status_code", "rpc.response.status_code",
    "rpc.grpc.status_code", "grpc.status_code", "error.type", "response_flags", "server.address", "server.port", "upstream_address",
    "upstream_cluster",
)
_LONGEST_VALUE = 200
_COLUMN = 12


@dataclass(frozen=True, slots=True)
class Node:
    """A span and those below it, by their beginning. ``orphan``: it has a parent, which never came."""

    span: Span
    orphan: bool = False
    children: list[Node] = field(default_factory=list)

    def walk(self) -> Iterator[tuple[int, Node]]:
        """It and all below it, each with its depth, from 0 on, in the order of a tree that is read from above."""
        left = [(0, self)]
        while left:
            depth, node = left.pop()
            yield depth, node
            left += [(depth + 1, child) for child in reversed(node.children)]


def traces(spans: Iterable[Span]) -> dict[str, list[Node]]:
    """By trace the nodes that are below no other, in the order of their beginning: one, if all has come."""
    by_trace: dict[str, list[Span]] = {}
    for span in spans:
        by_trace.setdefault(span.trace_id, []).append(span)
    return {trace_id: _roots(sorted(each, key=_start)) for trace_id, each in by_trace.items()}


def render(trace_id: str, roots: list[Node]) -> str:
    """A trace as text: one line a span, with when it began (since the first) and how long it took, its events among its children."""
    spans = [node.span for root in roots for _, node in root.walk()]
    if not spans:
        return f"trace {trace_id}: nothing came of it"
    begins, ends = min(map(_start, spans)), max(span.end for span in spans)
    services = list(dict.fromkeys(_printable(span.service) for span in spans))
    when = datetime.datetime.fromtimestamp(begins, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    lines = [
        f"trace {trace_id}: {_duration(ends - begins)}, {_count(len(spans), 'span')} of {_count(len(services), 'service')} "
        f"({', '.join(services)}), from {when} UTC",
        f"{'begins':>{_COLUMN}}{'took':>{_COLUMN}}",
    ]
    for root in roots:
        lines += _lines(root, begins)
    return "\n".join(line.rstrip() for line in lines)


def _roots(spans: list[Span]) -> list[Node]:
    ids = {span.span_id for span in spans}
    nodes = [Node(span, orphan=bool(span.parent_id) and span.parent_id not in ids) for span in spans]
    # Two spans may have one id where a protocol has client and server share it: what is below is below the earlier.
    by_id = {node.span.span_id: node for node in reversed(nodes)}
    roots: list[Node] = []
    for node in nodes:
        parent = by_id.get(node.span.parent_id)
        (roots if parent is None else parent.children).append(node)
    reached = {id(node) for root in roots for _, node in root.walk()}
    # Whose parents go round in a circle is below nothing, and must be seen all the same.
    for node in nodes:
        if id(node) not in reached:
            node.children.clear()
            roots.append(node)
    return roots


def _lines(root: Node, begins: float) -> Iterator[str]:
    left: list[tuple[int, Node | SpanEvent]] = [(0, root)]
    while left:
        depth, each = left.pop()
        if isinstance(each, SpanEvent):
            words = " ".join([_printable(each.name), *_pairs(each.attributes.items())])
            yield f"{_duration(each.at - begins):>{_COLUMN}}{'':{_COLUMN}}{'  ' * depth}* {words}"
            continue
        span = each.span
        margin = f"{'':{2 * _COLUMN}}{'  ' * (depth + 3)}"
        yield f"{_duration(span.start - begins):>{_COLUMN}}{_duration(span.seconds):>{_COLUMN}}{'  ' * (depth + 1)}{_words(span)}"
        told = list(_pairs((name, value) for name, value in span.attributes.items() if _is_told(name)))
        if told:
            yield margin + " ".join(told)
        if each.orphan:
            yield f"{margin}(its parent, span {span.parent_id}, never came)"
        below: list[Node | SpanEvent] = sorted(
            [*span.events, *each.children], key=lambda one: one.at if isinstance(one, SpanEvent) else one.span.start)
        left += [(depth + 1, one) for one in reversed(below)]


def _words(span: Span) -> str:
    words = f"{_printable(span.name)} [{_printable(span.service)}, {span.kind.lower()}]"
    return words if span.status == "UNSET" else f"{words} {span.status} {_printable(span.message)}"


def _is_told(name: str) -> bool:
    return name in _TOLD or name.startswith(_TOLD[0])


def _pairs(attributes: Iterable[tuple[str, Any]]) -> Iterator[str]:
    for name, value in attributes:
        yield f"{_printable(name)}={_printable(str(value))}"


def _printable(text: str) -> str:
    """What came from the network, without what would move the cursor of a terminal, or fill its window."""
    short = text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in short)


def _duration(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if abs(seconds) < 100 else f"{seconds:.1f} s"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _start(span: Span) -> float:
    return span.start
