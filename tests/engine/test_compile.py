"""Whose state is whose, and what a new policy does to it."""

from __future__ import annotations

import pytest
from driver import BREAKER, INF, NOTHING, OK, S503, START, World, status

from resilmesh.engine.call import RAISE, SEND, WAIT
from resilmesh.errors import PolicyError, UnknownService

ROUTES = "routes:\n- name: own\n  match: [{path: /own}]\n%s- name: plain\n"


def with_route(blocks, own=""):
    return blocks + ROUTES % "".join(f"  {line}\n" for line in own.splitlines())


@pytest.mark.parametrize(("block", "attribute"), [
    (BREAKER, "breaker"), ("concurrency: {maxRequests: 5}\n", "concurrency"), ("rateLimit: {requests: 5}\n", "limit"),
])
def test_state_is_as_wide_as_its_block_stands(block, attribute):
    shared = World(with_route(block))
    assert len({id(getattr(shared.plan(route), attribute)) for route in (None, "own", "plain")}) == 1
    split = World(with_route(block, block))
    assert getattr(split.plan(), attribute) is getattr(split.plan("plain"), attribute)
    assert getattr(split.plan("own"), attribute) is not getattr(split.plan(), attribute)


def test_a_routes_own_circuit_opens_alone():
    world = World(with_route(BREAKER, BREAKER))
    world.trip("own")
    assert world.start(route="own")[1] is RAISE
    assert world.start(route="plain")[1] is SEND
    assert world.start()[1] is SEND


def test_the_budget_and_the_counters_have_their_own_scopes():
    world = World(with_route("retryBudget: {}\n"))
    assert world.plan("own").budget is world.plan().budget
    assert world.plan("own").stats is not world.plan().stats


def test_services_share_nothing():
    world = World(BREAKER)
    world.mesh.apply_text(
        "apiVersion: resilmesh/v1\ndefaults:\n  " + BREAKER + "  rateLimit: {requests: 5}\nservices: [{name: s}, {name: t}]\n"
    )
    s, t = (world.mesh.table.named(name, None)[1] for name in "st")
    assert s.breaker is not t.breaker
    assert s.limit is not t.limit


def test_a_limit_of_a_list_that_refuses_takes_no_token_of_the_others():
    world = World("rateLimit: [{requests: 10}, {requests: 2, per: 60s}]\n")
    assert [world.start()[1] for _ in range(4)] == [SEND, SEND, RAISE, RAISE]
    assert world.plan().limit.limits[0].tokens(world.now) == pytest.approx(8)


def test_a_limit_of_scope_route_in_a_list_is_the_routes_own():
    own = "rateLimit: [{requests: 3, per: 60s, scope: SERVICE}, {requests: 1, per: 60s}]"
    world = World(with_route("rateLimit: {requests: 3, per: 60s}\n", own))
    assert [world.start(route=route)[1] for route in ("own", "own", "plain", "plain", "plain")] == [SEND, RAISE, SEND, SEND, RAISE]


# -------------------------------------------------------------------------------------------------- reloading


def test_state_is_kept_where_its_key_stays():
    world = World(BREAKER + "rateLimit: {requests: 5, per: 60s}\n")
    world.run(S503)
    before = world.plan()
    world.apply(BREAKER + "rateLimit: {requests: 5, per: 60s}\ntimeout: 3s\n")
    after = world.plan()
    assert after is not before
    assert (after.breaker, after.limit, after.stats) == (before.breaker, before.limit, before.stats)
    assert after.breaker.window.failures == 1
    assert after.limit.tokens(world.now) == pytest.approx(4)


def test_a_call_in_flight_keeps_the_plan_that_it_began_with():
    world = World("timeout: 5s\nretries: {maxRetries: 1, retryOn: [5xx], idempotent: true}\n")
    call = world.flying()
    world.apply("timeout: 1s\n")
    assert call.deadline == START + 5
    assert call.answered(world.now, 1, S503) == "SLEEP"


def test_a_state_that_no_policy_claims_is_forgotten():
    world = World(BREAKER)
    world.trip()
    world.apply("")
    world.apply(BREAKER)
    assert world.plan().breaker.state == "CLOSED"


def test_an_open_circuit_stays_open_under_other_thresholds_and_another_window():
    world = World(BREAKER)
    world.trip()
    world.apply(BREAKER.replace("size: 4", "size: 50"))
    assert world.start()[1] is RAISE
    assert world.plan().breaker.window.calls == 0


def test_a_raised_limit_wakes_who_waits():
    world, woken = World("concurrency: {maxRequests: 1, maxPending: 5}\n"), []
    world.flying()
    waiting = [world.start()[0] for _ in range(3)]
    for number, call in enumerate(waiting):
        call.lend(lambda number=number: woken.append(number))
    world.apply("concurrency: {maxRequests: 3, maxPending: 5}\n")
    assert woken == [0, 1]
    assert [call.woke(world.now) for call in waiting] == [SEND, SEND, WAIT]


def test_a_lowered_limit_lets_calls_in_flight_finish():
    world = World("concurrency: {maxRequests: 3}\n")
    calls = [world.flying() for _ in range(3)]
    world.apply("concurrency: {maxRequests: 1}\n")
    assert world.start()[1] is RAISE
    for call in calls:
        call.answered(world.now, 1, OK)
    assert world.held() == NOTHING
    assert world.start()[1] is SEND
    assert world.start()[1] is RAISE


def test_a_call_of_a_limit_that_was_removed_ends_well():
    world = World("concurrency: {maxRequests: 1, maxPending: 1}\n")
    first = world.flying()
    second, _ = world.start()
    world.apply("")
    first.answered(world.now, 1, OK)
    assert second.woke(world.now) is SEND
    second.answered(world.now, 1, OK)
    assert world.stats()["succeeded"] == 2


def test_endpoints_that_stay_keep_what_is_known_of_them():
    two = "outlierDetection: {consecutive5xxErrors: 1}\nendpoints: [{address: '10.0.0.1:80'}, {address: '10.0.0.2:80'}]\n"
    world = World(two)
    call = world.flying()
    bad = call.endpoint
    call.answered(world.now, 1, S503)
    world.apply(two.replace("]", ", {address: '10.0.0.3:80'}]"))
    assert {world.flying().endpoint.address for _ in range(20)} == {f"10.0.0.{each}:80" for each in (1, 2, 3)} - {bad.address}


def test_a_policy_that_is_refused_changes_nothing():
    world = World(BREAKER)
    before, table = world.plan().breaker.settings, world.mesh.table
    with pytest.raises(PolicyError):
        world.apply(BREAKER.replace("size: 4", "size: 9") + "timeout: nonsense\n")
    assert world.mesh.table is table
    assert world.plan().breaker.settings is before


def test_a_removed_service_is_unknown():
    world = World()
    with pytest.raises(UnknownService):
        world.mesh.guard("elsewhere")


def test_off_means_no_plan():
    world = World("mode: OFF\n")
    assert world.plan() is None


def test_what_a_plan_says_by_default_is_no_policy_at_all():
    plan = World().plan()
    assert (plan.timeout, plan.retries, plan.breaker, plan.limit, plan.concurrency, plan.endpoints) == (None,) * 6
    assert (plan.per_try, plan.plain, plan.quick) == (INF, True, True)


@pytest.mark.parametrize(("statuses", "quick"), [("5xx", True), ("429", True), ("503", True), ("404", False), ("200", False)])
def test_only_a_status_that_is_a_success_slows_successes_down(statuses, quick):
    world = World(f"retries: {{retryOn: [{statuses}]}}\n")
    assert world.plan().quick is quick
    if statuses.isdigit():
        assert world.run(status(int(statuses))).attempts == 2


SLOW = "loadBalancer: {slowStart: {window: 100s, minWeightPercent: 1}}\n"


def test_an_endpoint_that_a_reload_adds_to_a_service_in_use_is_eased():
    world = World(SLOW + "endpoints: [{address: '10.0.0.1:80'}, {address: '10.0.0.2:80'}]\n")
    for _ in range(4):
        world.run(OK)
    shares = world.mesh.snapshot()["services"]["s"]["endpoints"]
    assert [each["slowStartShare"] for each in shares.values()] == [1.0, 1.0]
    world.apply(SLOW + "endpoints: [{address: '10.0.0.1:80'}, {address: '10.0.0.3:80'}]\n")
    for _ in range(200):
        world.run(OK)
    shown = world.mesh.snapshot()["services"]["s"]["endpoints"]
    assert shown["10.0.0.3:80"]["requests"] < 15
    assert [each["slowStartShare"] for each in shown.values()] == [1.0, 0.01]
    world.clock.jump(50.0)
    assert world.mesh.snapshot()["services"]["s"]["endpoints"]["10.0.0.3:80"]["slowStartShare"] == pytest.approx(0.5)
    world.apply("endpoints: [{address: '10.0.0.1:80'}, {address: '10.0.0.3:80'}]\n")
    assert world.mesh.snapshot()["services"]["s"]["endpoints"]["10.0.0.3:80"]["slowStartShare"] == 1.0


def test_the_endpoints_of_a_service_that_is_new_are_not_eased():
    world = World("hosts: [s]\n")
    world.apply(SLOW + "endpoints: [{address: '10.0.0.1:80'}, {address: '10.0.0.2:80'}]\n")
    world.run(OK)
    assert [each["slowStartShare"] for each in world.mesh.snapshot()["services"]["s"]["endpoints"].values()] == [1.0, 1.0]
