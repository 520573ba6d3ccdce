"""pytest's side, found by its entry point ``resilmesh``: two fixtures, and a check that a test leaves nothing in flight.

The check looks after the meshes that a test makes, its function-scoped fixtures included, when these have been torn down. What a
test that failed has left is not reported. Other words, in the ini file or as a marker:

    mesh_leaks = auto                    the meshes that the test made
    mesh_leaks = all                     also those that were there before, if they were idle when the test began
    mesh_leaks = off                     none
    @pytest.mark.mesh_leaks("off")       for one test, class or module

While no mesh is made it does nothing. It holds what a mesh remembers, not the mesh, so that what a test shows of the life of
a mesh stays true.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pytest

from resilmesh import mesh as meshes
from resilmesh.mesh import Mesh

if TYPE_CHECKING:
    from resilmesh.policy.model import Policy
    from resilmesh.testing.clock import ManualClock

Which = Literal["auto", "all", "off"]
_WORDS = ("auto", "all", "off")

#: What is left, and how to end it. ``{}`` is the number.
_REMEDIES = {
    "forgotten": (
        "responses, or loops of attempts, that were forgotten before their end: {}. "
        "Write `with client.stream(...)`, call `response.close()`, or let the loop end"
    ),
    "calls": "calls that have not ended: {}. Read or close the response; await or cancel the task; join the thread",
    "slots": "slots of the concurrency limit that are held, by calls that have not ended: {}",
    "queued": "calls that wait in the queue of the concurrency limit: {}. Free a slot, or cancel the task",
    "probes": "probes of the half-open circuit that are out, with calls that have not ended: {}",
    "injection": "injections that are active: {}. Leave the block of `with mesh.inject(...)`",
}


#: Real seconds for what ends by itself, on a thread of its own: a mirrored copy that nobody waits for.
_MOMENT = 0.5


# ------------------------------------------------------------------------------------------------ fixtures


@pytest.fixture
def mesh_clock() -> ManualClock:
    """The clock of the meshes that ``make_mesh`` makes in this test: it stands still, and sleeping moves it."""
    from resilmesh.testing.clock import ManualClock

    return ManualClock()


@pytest.fixture
def make_mesh(mesh_clock: ManualClock) -> Iterator[Callable[..., Mesh]]:
    """Makes a mesh of a policy: its text, the path of its file, or a model; on ``mesh_clock``, with ``seed=0``, and closed at the end.

    Further arguments are those of ``Mesh.from_text``.
    """
    made: list[Mesh] = []

    def make(policy: str | os.PathLike[str] | Policy, **settings: Any) -> Mesh:
        settings = {"clock": mesh_clock, "seed": 0, **settings}
        if isinstance(policy, str) and ("\n" in policy or "{" in policy):
            mesh = Mesh.from_text(policy, **settings)
        elif isinstance(policy, str | os.PathLike):
            mesh = Mesh.from_file(policy, **{"reload_interval": None, **settings})
        else:
            mesh = Mesh.from_policy(policy, **settings)
        made.append(mesh)
        return mesh

    yield make
    for mesh in made:
        mesh.close()


# ------------------------------------------------------------------------------------------- what is left


class _Watched:
    """What a mesh remembers."""

    def __init__(self, mesh: Mesh) -> None:
        self._clock, self._hub, self._store = mesh.clock, mesh._hub, mesh._store
        self._mesh = weakref.ref(mesh)

    def left(self) -> list[tuple[str, str, int]]:
        """Service or service/route, what is in flight there, and how many."""
        now = self._clock.monotonic()
        found: dict[tuple[str, str], int] = {}

        def add(service: str, route: str | None, what: str, number: int) -> None:
            if number > 0:
                where = service if route in (None, "*") else f"{service}/{route}"
                found[where, what] = found.get((where, what), 0) + number

        for call in list(self._hub.orphans):
            add(call.plan.service, call.plan.route, "forgotten", 1)
        self._hub.drain(now)
        for (_, service, route, _), stats in self._store.of_kind("stats"):
            add(service, route, "calls", stats.in_flight)
        for (_, service, route, _), gate in self._store.of_kind("concurrency"):
            add(service, route, "slots", gate.in_flight)
            add(service, route, "queued", len(gate.queue))
        for (_, service, route, _), breaker in self._store.of_kind("circuitBreaker"):
            add(service, route, "probes", breaker.snapshot(now)["probesOut"])
        mesh = self._mesh()
        for injection in () if mesh is None else mesh._injections:
            add(injection.service, injection.route, "injection", 1)
        return [(where, what, number) for (where, what), number in found.items()]


class _Watch:
    """The meshes of one test."""

    def __init__(self, which: Which) -> None:
        self._which = which
        self._own: list[_Watched] = []
        self._others: list[_Watched] = []
        #: Fixtures of a wider scope than the test that are being set up.
        self.wider = 0
        #: The test has failed for another reason.
        self.failed = False

    def made(self, mesh: Mesh) -> None:
        if not self.wider:
            self._own.append(_Watched(mesh))

    def begin(self) -> None:
        """The fixtures are set up, the test begins."""
        if self._which == "all":
            mine = {id(each._hub) for each in self._own}
            others = [_Watched(mesh) for mesh in list(meshes._meshes) if id(mesh._hub) not in mine]
            self._others = [each for each in others if not each.left()]

    def _left(self) -> list[tuple[str, str, int]]:
        return [each for watched in (*self._own, *self._others) for each in watched.left()]

    def complaint(self) -> str | None:
        """What is in flight where nothing was, and how to end it."""
        until = time.monotonic() + _MOMENT
        while (left := self._left()) and time.monotonic() < until and all(what != "forgotten" for _, what, _ in left):
            time.sleep(0.01)
        if not left:
            return None
        lines = [f"  {where}: {_REMEDIES[what].format(number)}" for where, what, number in left]
        return "\n".join([
            "this test has left something in flight:", *lines, 'If that is meant: @pytest.mark.mesh_leaks("off")',
        ])


#: The tests that are being run: one, or more where a test runs pytest in its own process.
_running: list[_Watch] = []


# ---------------------------------------------------------------------------------------------------- hooks


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("mesh_leaks", "which meshes a test must leave with nothing in flight: auto (those it made), all, off", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", 'mesh_leaks(which): "auto", "all" or "off": which meshes must have nothing in flight after the test')
    _word(config.getini("mesh_leaks"), "the ini option")


def _word(word: Any, whose: str) -> Which:
    if word not in _WORDS:
        raise pytest.UsageError(f"mesh_leaks: {whose} says {word!r}; it must be one of {', '.join(_WORDS)}")
    which: Which = word
    return which


def _which(item: pytest.Item) -> Which:
    marker = item.get_closest_marker("mesh_leaks")
    if marker is None:
        return _word(item.config.getini("mesh_leaks"), "the ini option")
    return _word(marker.args[0] if marker.args else "all", f"the marker of {item.nodeid}")


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    which = _which(item)
    if which == "off":
        return (yield)
    watch = _Watch(which)
    _running.append(watch)
    meshes.made.append(watch.made)
    try:
        return (yield)
    finally:
        meshes.made.remove(watch.made)
        _running.remove(watch)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
    watch = _running[-1] if _running and fixturedef.scope != "function" else None
    if watch is None:
        return (yield)
    watch.wider += 1
    try:
        return (yield)
    finally:
        watch.wider -= 1


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    if not _running or _which(item) == "off":
        return (yield)
    _running[-1].begin()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if _running and _which(item) != "off":
        _running[-1].failed |= report.failed
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    result = yield
    if _running and _which(item) != "off" and not _running[-1].failed:
        complaint = _running[-1].complaint()
        if complaint is not None:
            pytest.fail(complaint, pytrace=False)
    return result
