"""One meaning: every scenario through every driver tells the same story, event for event."""

from __future__ import annotations

import anyio
import pytest

from tests.conformance.drivers import DRIVERS, EngineAlone
from tests.conformance.grpc_drivers import GRPC_DRIVERS
from tests.conformance.scenarios import SCENARIOS, Scenario
from tests.conformance.world import World, plainly
from tests.drive.guarding import idle

CASES = [
    pytest.param(scenario, name, id=f"{scenario.name.replace(' ', '-')}-{name}")
    for scenario in SCENARIOS
    for name, make in DRIVERS.items()
    if scenario.needs <= make().can
]


@pytest.mark.parametrize(("scenario", "name"), CASES)
def test_every_driver_tells_the_same_story(scenario: Scenario, name: str) -> None:
    driver = DRIVERS[name]()
    world = World(scenario, driver)
    if driver.runtime == "plain":
        plainly(world.play())
    else:
        anyio.run(world.play, backend=driver.runtime)
    assert world.results == scenario.results
    assert world.story == scenario.story
    assert world.times == pytest.approx(_times_of_the_engine(scenario, driver.late), rel=0, abs=1e-9)
    world.clock.advance(100)
    assert idle(world.mesh)


def _times_of_the_engine(scenario: Scenario, late: float) -> list[float]:
    world = World(scenario, EngineAlone(late))
    plainly(world.play())
    return world.times


def test_every_driver_plays_most_of_the_scenarios() -> None:
    played = {name: sum(scenario.needs <= make().can for scenario in SCENARIOS) for name, make in DRIVERS.items()}
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS) >= 35
    assert min(played.values()) >= 25, played
    assert {played[name] for name in ("engine", *GRPC_DRIVERS)} == {len(SCENARIOS)}
    assert len(SCENARIOS) - played["httpx"] == sum("pushback" in scenario.needs for scenario in SCENARIOS) == 1
