"""What `resilmesh top` shows, without a terminal: figures of two readings, rows, keys, lines."""

from __future__ import annotations

import contextlib
import os
from typing import Any

import pytest

import resilmesh
from resilmesh.testing import ManualClock
from resilmesh.top.figures import Figures, figures
from resilmesh.top.terminal import has_colours, keys
from resilmesh.top.view import COLUMNS, View, data, screen, table

POLICY = """
apiVersion: resilmesh/v1
mesh: {workload: checkout}
services:
- name: ledger
  retryBudget: {percent: 20}
  circuitBreaker: {failureRateThreshold: 50, minimumNumberOfCalls: 10, slidingWindow: {size: 10}}
  concurrency: {maxRequests: 10}
  rateLimit: {requests: 1000, per: 1s}
  endpoints: [{address: "10.0.1.11:8080"}]
  routes: [{name: book}]
- name: auth
"""


@pytest.fixture
def readings() -> tuple[dict[str, Any], dict[str, Any]]:
    """Before and after ten seconds in which half of 20 calls failed, while before none of 100 had."""
    clock = ManualClock()
    mesh = resilmesh.Mesh.from_text(POLICY, clock=clock)
    failing = False

    @mesh.guard("ledger", route="book")
    def book(at: int) -> None:
        clock.advance(0.5)
        if failing and at % 2:
            raise OSError("refused")

    for at in range(100):
        book(at)
    before = mesh.telemetry.document()
    failing = True
    for at in range(20):
        with contextlib.suppress(OSError, resilmesh.CircuitOpen):
            book(at)
    return before, mesh.telemetry.document()


def test_figures_are_those_between_two_readings(readings: tuple[dict[str, Any], dict[str, Any]]) -> None:
    before, after = readings
    ledger = figures(after, before).services[0]
    more = after["snapshot"]["services"]["ledger"]["routes"]["book"]["calls"] - 100
    assert ledger.values["rate"] == pytest.approx(more / (after["seconds"] - before["seconds"]))
    assert 40 <= float(ledger.values["errors"] or 0) <= 60
    assert float(ledger.values["p50"] or 0) == pytest.approx(0.5, rel=0.1)
    assert ledger.values["circuit"] == after["snapshot"]["services"]["ledger"]["circuitBreakers"]["*"]["state"] == "OPEN"
    assert figures(before).services[0].values["errors"] == 0
    assert figures(before).services[0].values["rate"] == pytest.approx(2.0)


def test_a_program_that_began_anew_is_counted_from_its_beginning(readings: tuple[dict[str, Any], dict[str, Any]]) -> None:
    before, after = readings
    found = figures({**before, "pid": 1}, {**after, "pid": 2})
    assert found.restarted
    assert found.seconds == before["seconds"]
    assert figures(before, after).restarted  # the same pid, and fewer seconds


def shown(found: Figures | None, view: View, width: int = 150, height: int = 20, problem: str | None = None) -> list[str]:
    return [line.text for line in screen(found, view, width, height, where="127.0.0.1:9901", problem=problem)]


def test_enter_goes_down_to_a_routes_counters_and_back(readings: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found, view = figures(readings[1], readings[0]), View()
    assert "workload checkout" in shown(found, view)[0]
    assert [row.name for row in view.rows(found)] == ["auth", "ledger"]
    view.press("j", found)
    view.press("enter", found)
    names = [row.name for row in view.rows(found)]
    assert names[-1] == "10.0.1.11:8080"
    assert "book" in names
    for _ in range(names.index("book")):
        view.press("down", found)
    view.press("enter", found)
    assert view.path == ["ledger", "book"]
    assert any(line.startswith("calls ") for line in shown(found, view))
    view.press("back", found)
    view.press("back", found)
    assert view.path == []
    view.press("q", found)
    assert view.ended


def test_sorting_takes_the_next_column_and_turns_round(readings: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found, view = figures(readings[1], readings[0]), View()
    view.press("s", found)
    assert [row.name for row in view.rows(found)] == ["ledger", "auth"]
    view.press("r", found)
    assert [row.name for row in view.rows(found)] == ["auth", "ledger"]
    for _ in COLUMNS:
        view.press("s", found)
    assert view.sort == -1


@pytest.mark.parametrize("size", [(1, 1), (20, 3), (80, 24), (300, 100)])
@pytest.mark.parametrize("path", [[], ["ledger"], ["ledger", "book"], ["gone"], ["ledger", "gone"]])
def test_a_screen_fits_into_its_terminal(readings: tuple[dict[str, Any], dict[str, Any]], size: tuple[int, int], path: list[str]) -> None:
    lines = shown(figures(readings[1]), View(path=path), *size, problem="nobody answers")
    assert 1 <= len(lines) <= size[1]
    assert all(len(line) <= size[0] for line in lines)


def test_what_a_terminal_would_obey_is_not_shown(readings: tuple[dict[str, Any], dict[str, Any]]) -> None:
    readings[1]["snapshot"].update(refused=1, lastRefusal="\x1b[2J bad")
    assert "\x1b" not in "".join(shown(figures(readings[1]), View()))
    assert "\x1b" not in "".join(table(figures(readings[1]), "x"))


def test_an_address_that_is_away_is_told() -> None:
    assert any("nobody answers; trying again" in line for line in shown(None, View(), problem="nobody answers"))
    assert any("quit" in line for line in shown(None, View(help=True)))


def test_a_table_and_json_have_every_service_route_and_endpoint(readings: tuple[dict[str, Any], dict[str, Any]]) -> None:
    found = figures(readings[1], readings[0])
    text = "\n".join(table(found, "x"))
    assert all(word in text for word in ("ledger", "  book", "  @10.0.1.11:8080", "OPEN"))
    ledger = data(found)["services"][0]
    assert [route["name"] for route in ledger["routes"] if route["name"] == "book"] == ["book"]
    assert ledger["endpoints"][0]["name"] == "10.0.1.11:8080"
    assert ledger["budget"] is not None


def test_keys_are_read_from_what_a_terminal_sends() -> None:
    assert keys(b"j\x1b[A\x1bOB\r\x7f?\x1b") == ["j", "up", "down", "enter", "back", "?", "back"]
    assert keys(b"\x1b[15~q") == ["q"]


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert has_colours()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not has_colours()
