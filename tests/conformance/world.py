"""Plays a scenario through one driver and writes down what happened. Nothing here depends on which driver it is.

To add a driver, write one class with ``call``: make one call, ask ``world.happen`` at each attempt what it turns out to be,
and say what the caller got. A driver that blocks passes ``world.happen`` to ``plainly``.
"""

from __future__ import annotations

import re
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import Any, Protocol, TypeVar

import resilmesh
from resilmesh.testing import ManualClock
from resilmesh.testing.trace import told
from tests.conformance.scenarios import Scenario

T = TypeVar("T")


class Gone(BaseException):
    """The caller is cancelled, in whichever way a driver's callers are."""


class Driver(Protocol):
    #: What ``Scenario.needs`` may ask for.
    can: frozenset[str]
    #: "plain", "asyncio" or "trio".
    runtime: str
    #: Seconds from a limit to the end of an attempt that hangs.
    late: float = 0

    def blocks(self, scenario: Scenario) -> dict[str, str]:
        """The policy of ``svc``, in the words of the protocol that it is called with."""
        return scenario.blocks

    async def call(self, world: World, outcomes: list[str]) -> str:
        """Make one call of ``svc``; what its caller got, in the words of ``Scenario.results``."""

    async def close(self) -> None:
        """The world ends."""


def plainly(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits nothing real."""
    try:
        coroutine.send(None)
    except StopIteration as result:
        value: T = result.value
        return value
    raise AssertionError("a driver that blocks has awaited something")


class World:
    """One mesh, one clock and the story so far."""

    def __init__(self, scenario: Scenario, driver: Driver) -> None:
        self.scenario = scenario
        self.driver = driver
        self.clock = ManualClock()
        self.mesh = resilmesh.Mesh.from_text(_policy(scenario, driver.blocks(scenario)), clock=self.clock, seed=1)
        self.mesh.subscribe(self._hear)
        self.results: list[str] = []
        self.story: list[str] = []
        #: The time of each event, in seconds from the beginning.
        self.times: list[float] = []
        self._words: list[str] = []
        self._began = self.clock.monotonic()

    def _hear(self, event: resilmesh.Event) -> None:
        self._words.append(_told(event))
        self.times.append(event.at - self._began)

    async def play(self) -> None:
        for line in self.scenario.calls:
            self._words.clear()
            await self._one(line)
            if not line.startswith("+"):
                self.story.append(", ".join(self._words))
        await self.driver.close()

    async def happen(self, outcomes: list[str]) -> str:
        """An attempt is made: the word for what it turns out to be, after what comes before and meanwhile."""
        outcome = outcomes.pop(0)
        meanwhile = re.fullmatch(r"\((.*)\) ?(.*)", outcome)
        if meanwhile:
            for line in meanwhile[1].split("|"):
                await self._one(line)
            outcome = meanwhile[2] or "ok"
        later = re.fullmatch(r"(\d+)s (.*)", outcome)
        if later:
            self.clock.advance(int(later[1]))
            outcome = later[2]
        return outcome

    async def _one(self, line: str) -> None:
        if line.startswith("+"):
            self.clock.advance(float(line[1:-1]))
            return
        within = re.fullmatch(r"within ([\d.]+)s (.*)", line)
        inherited = resilmesh.deadline(float(within[1]), self.clock) if within else nullcontext()
        outcomes = [each.strip() for each in (within[2] if within else line).split(",") if each.strip() != "-"]
        with inherited:
            self.results.append(await self.driver.call(self, outcomes))
        assert outcomes == [], "every outcome was asked for"


def _policy(scenario: Scenario, blocks: dict[str, str]) -> str:
    lines = ["apiVersion: resilmesh/v1", *([f"mesh: {scenario.mesh}"] if scenario.mesh else []), "services:", "- name: svc"]
    return "\n".join([*lines, "  hosts: [svc.test]", *(f"  {name}: {value}" for name, value in blocks.items()), ""])


def _told(event: resilmesh.Event) -> str:
    """An event in a few words: a ``Trace``'s, without what differs from protocol to protocol, and with where an attempt begins."""
    detail = event.detail
    match event.name:
        case "call_started":
            return "started"
        case "attempt_started":
            return f"try {event.attempt}"
        case "attempt_ended":
            return str(detail["verdict"])
        case "call_ended":
            return f"end {detail['verdict']}"
        case "backoff":
            return f"backoff {int(detail['seconds'])}s"
        case "fault_injected":
            return f"fault {detail['scope']} {'delay' if 'delay' in detail else 'abort'}"
    line = told(event)
    assert line is not None
    return line
