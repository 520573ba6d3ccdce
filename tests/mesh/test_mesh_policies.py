"""Where a mesh's policy comes from, what overrides it, and how a new one is put in force: whole, or not at all."""

from __future__ import annotations

import gc
import json
import logging
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest

import resilmesh
from resilmesh import CircuitOpen, ConcurrencyExceeded, Mesh, PolicyError, RateLimited, UnknownService
from resilmesh.policy.load import load_text
from resilmesh.testing import ManualClock
from tests.drive.guarding import idle, listen, mesh_of, policy

LIMITED = "{requests: 1, per: 1h}"
OVERRIDES = [
    ("mode", "RESILMESH_MODE", "mode", "OBSERVE", "OFF"),
    ("outbound", "RESILMESH_OUTBOUND", "outbound", "REGISTRY_ONLY", "ALLOW_ANY"),
    ("local_replies", "RESILMESH_LOCAL_REPLIES", "localReplies", "RESPOND", "RAISE"),
    ("workload", "RESILMESH_WORKLOAD", "workload", "from-outside", "web"),
]


def test_a_policy_comes_from_a_file_a_text_or_a_model(tmp_path: Path) -> None:
    text = policy(timeout="1s")
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    model = load_text(text).policy
    with Mesh.from_file(path, reload_interval=None) as from_file, Mesh.from_file(str(path), reload_interval=None) as from_name:
        meshes = [from_file, from_name, Mesh.from_text(text), Mesh.from_text(text.encode()), Mesh.from_policy(model)]
        for mesh in meshes:
            assert mesh.guard("svc")(lambda: 1)() == 1
            assert repr(mesh) == "<Mesh revision 1: svc>"
    with pytest.raises(PolicyError):
        Mesh.from_file(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(("argument", "variable", "shown", "outside", "in_file"), OVERRIDES)
def test_an_argument_wins_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, argument: str, variable: str, shown: str, outside: str, in_file: str,
) -> None:
    text = policy(mesh=f"{{{shown}: {in_file}}}")
    monkeypatch.delenv(variable, raising=False)
    assert Mesh.from_text(text).snapshot()[shown] == in_file
    monkeypatch.setenv(variable, outside)
    assert Mesh.from_text(text).snapshot()[shown] == outside
    mesh = Mesh.from_text(text, **{argument: in_file})  # type: ignore[arg-type]  # one word of several literals
    assert mesh.snapshot()[shown] == in_file
    mesh.apply_text(policy(mesh=f"{{{shown}: {outside}}}"))
    assert mesh.snapshot()[shown] == in_file, "for every policy that comes later, too"
    monkeypatch.setenv(variable, "")
    assert Mesh.from_text(text).snapshot()[shown] == in_file


def test_a_word_that_no_setting_knows_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="mode= is 'off'; it must be one of ENFORCE, OBSERVE, OFF"):
        Mesh.from_text(policy(), mode="off")  # type: ignore[arg-type]  # that is the point
    monkeypatch.setenv("RESILMESH_OUTBOUND", "DENY")
    with pytest.raises(ValueError, match="RESILMESH_OUTBOUND is 'DENY'; it must be one of ALLOW_ANY, REGISTRY_ONLY"):
        Mesh.from_text(policy())


def test_a_new_policy_keeps_the_state() -> None:
    clock = ManualClock()
    mesh = mesh_of(clock=clock, rateLimit=LIMITED, circuitBreaker="{consecutiveFailures: 1, waitDurationInOpenState: 60s}")
    guarded = mesh.guard("svc")(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        guarded()
    assert mesh.apply_text(policy(timeout="5s", circuitBreaker="{consecutiveFailures: 9, waitDurationInOpenState: 60s}")) == 2
    with pytest.raises(CircuitOpen):
        guarded()
    assert mesh.apply_text(policy(rateLimit=LIMITED)) == 3
    with pytest.raises(ZeroDivisionError):
        guarded()
    mesh.apply_text(policy(rateLimit="{requests: 5, per: 1h}"))
    assert mesh.snapshot()["services"]["svc"]["routes"]["*"]["calls"] == 3


def test_a_call_in_flight_ends_under_the_policy_it_began_with() -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")

    @mesh.guard("svc")
    def change() -> None:
        mesh.apply_text(policy(concurrency="{maxRequests: 2}"))
        mesh.guard("svc")(lambda: 1)()
        mesh.apply_text(policy())

    change()
    assert idle(mesh)


BAD = [
    ("services: [", "a text that is no YAML"), (policy(timeout="1"), "a duration without a unit"),
    (policy(timeut="1s"), "an unknown key"), ("apiVersion: resilmesh/v1\nservices: []\n", "a guarded service that is missing"),
]


@pytest.mark.parametrize("text", [text for text, _ in BAD], ids=[why for _, why in BAD])
def test_a_bad_policy_changes_nothing_and_is_told(caplog: pytest.LogCaptureFixture, text: str) -> None:
    mesh = mesh_of(rateLimit=LIMITED)
    guarded = mesh.guard("svc")(lambda: 1)
    guarded()
    table, events = mesh.table, listen(mesh)
    with caplog.at_level(logging.INFO, "resilmesh"), pytest.raises(PolicyError) as caught:
        mesh.apply_text(text, "edited.yaml")
    assert mesh.table is table
    with pytest.raises(RateLimited):
        guarded()
    shown = mesh.snapshot()
    assert (shown["revision"], shown["refused"], shown["lastRefusal"]) == (1, 1, str(caught.value))
    assert (events[0].name, events[0].detail) == ("policy_refused", {"error": str(caught.value)})
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "policy refused, revision 1 stays in force" in caplog.text
    assert "edited.yaml" in caplog.text
    assert mesh.apply_text(policy()) == 2
    assert guarded() == 1


def test_guarded_names_stay() -> None:
    mesh = Mesh.from_text(policy(routes="[{name: read}, {name: write}]"))
    mesh.guard("svc", route="read")
    with pytest.raises(PolicyError, match="a guarded function needs 'svc/read', which the policy does not have"):
        mesh.apply_text(policy(routes="[{name: write}]"))
    mesh.apply_text(policy(routes="[{name: read}]"))


def test_an_applied_policy_is_told(caplog: pytest.LogCaptureFixture) -> None:
    mesh = mesh_of()
    events = listen(mesh)
    with caplog.at_level(logging.INFO, "resilmesh"):
        mesh.apply_text(policy(timeout="2s"))
    assert [(event.name, event.detail) for event in events] == [("policy_applied", {"revision": 2})]
    assert "policy applied as revision 2" in caplog.text


def test_a_mesh_that_was_not_made_from_a_file_has_none_to_reload() -> None:
    with pytest.raises(RuntimeError, match=r"not made by Mesh\.from_file"):
        mesh_of().reload()


# ------------------------------------------------------------------------------------------------ observing


def test_a_snapshot_is_plain_data() -> None:
    mesh = mesh_of(
        timeout="1s", rateLimit="[{requests: 1, per: 1h}, {requests: 2, per: 1s}]", concurrency="{maxRequests: 1}",
        circuitBreaker="{consecutiveFailures: 1}", retryBudget="{percent: 20}",
        endpoints='[{address: "10.0.0.1:80"}]', outlierDetection="{}", routes="[{name: read, rateLimit: {requests: 3, per: 1s}}]",
    )
    with pytest.raises(ZeroDivisionError):
        mesh.guard("svc")(lambda: 1 / 0)()
    shown = mesh.snapshot()
    assert json.loads(json.dumps(shown, allow_nan=False)) == shown
    service = shown["services"]["svc"]
    assert set(service) == {"routes", "circuitBreakers", "concurrency", "rateLimits", "retryBudget", "endpoints"}
    assert service["circuitBreakers"]["*"]["state"] == "OPEN"
    assert set(service["rateLimits"]["*"]) == {"0", "1"}
    assert list(service["endpoints"]) == ["10.0.0.1:80"]
    assert set(service["routes"]) == {"*", "read"}
    shown["services"].clear()
    assert mesh.snapshot()["services"] != {}, "a copy, not the state itself"


def test_snapshots_are_taken_while_policies_change() -> None:
    mesh = mesh_of()
    texts = [policy(timeout="1s"), policy() + "- name: other\n  concurrency: {maxRequests: 1}\n"]
    ended = threading.Event()
    problems: list[BaseException] = []

    def look() -> None:
        try:
            while not ended.is_set():
                json.dumps(mesh.snapshot())
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(60):
        mesh.apply_text(texts[number % 2])
    ended.set()
    for thread in threads:
        thread.join()
    assert problems == []


def test_observers_come_and_go() -> None:
    mesh = mesh_of()
    first: list[Any] = []
    second: list[Any] = []
    end_first, _ = mesh.subscribe(first.append), mesh.subscribe(second.append)
    mesh.guard("svc")(lambda: 1)()
    end_first()
    end_first()
    mesh.guard("svc")(lambda: 1)()
    assert (len(first), len(second)) == (4, 8)
    assert [event.call for event in second] == [1] * 4 + [2] * 4


def test_an_observer_that_raises_is_dropped_and_breaks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    mesh = mesh_of(concurrency="{maxRequests: 1}")
    told: list[str] = []

    def broken(event: resilmesh.Event) -> None:
        told.append(event.name)
        raise LookupError

    mesh.subscribe(broken)
    events = listen(mesh)
    assert mesh.guard("svc")(lambda: 1)() == 1
    assert told == ["call_started"]
    assert len(events) == 4
    assert [record.getMessage() for record in caplog.records] == ["an observer raised at call_started and is unsubscribed"]
    assert idle(mesh)


def test_an_observer_may_use_the_mesh() -> None:
    mesh = mesh_of(circuitBreaker="{consecutiveFailures: 1}")
    shown: list[Any] = []

    def look(event: resilmesh.Event) -> None:
        if event.name == "circuit_changed":
            shown.append(mesh.snapshot()["services"]["svc"]["circuitBreakers"]["*"]["state"])
            mesh.apply_text(policy(circuitBreaker="{consecutiveFailures: 2}"))

    mesh.subscribe(look)
    with pytest.raises(ZeroDivisionError):
        mesh.guard("svc")(lambda: 1 / 0)()
    assert shown == ["OPEN"]
    assert mesh.snapshot()["revision"] == 2


# ------------------------------------------------------------------------------------------ several meshes


def test_two_meshes_do_not_mix() -> None:
    meshes = [mesh_of(rateLimit=LIMITED), mesh_of(rateLimit=LIMITED)]
    first, second = (mesh.guard("svc")(lambda: 1) for mesh in meshes)
    events = [listen(mesh) for mesh in meshes]
    first()
    second()
    with pytest.raises(RateLimited):
        first()
    assert [len(each) for each in events] == [6, 4]
    meshes[0].apply_text(policy())
    first()
    with pytest.raises(RateLimited):
        second()


def test_a_mesh_that_nobody_holds_is_freed() -> None:
    gc.collect()
    gc.disable()
    try:
        mesh = mesh_of(
            timeout="1s", retries="{retryOn: [5xx], idempotent: true}", circuitBreaker="{consecutiveFailures: 1}",
            endpoints='[{address: "10.0.0.1:80"}]', outlierDetection="{}",
        )
        mesh.guard("svc")(lambda: 1)()
        reference = weakref.ref(mesh)
        del mesh
        assert reference() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("fault", ["{delay: {fixedDelay: 1s, percent: 50}, abort: {httpStatus: 503, percent: 30}, scope: ATTEMPT}"])
def test_a_seed_makes_everything_repeatable(fault: str) -> None:
    def run(seed: int) -> list[Any]:
        clock = ManualClock()
        mesh = mesh_of(
            clock=clock, seed=seed, fault=fault, retries="{maxRetries: 3, retryOn: [5xx], idempotent: true}",
            endpoints='[{address: "10.0.0.1:80"}, {address: "10.0.0.2:80"}]', loadBalancer="RANDOM",
        )
        events = listen(mesh)
        for _ in range(50):
            try:
                mesh.guard("svc")(lambda: 1)()
            except resilmesh.InjectedFault:
                clock.advance(1)
        return [(event.at, event.name, event.detail) for event in events]

    assert run(1) == run(1) != run(2)


# -------------------------------------------------------------------------------------- the one-mesh program


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process in which nothing is configured yet."""
    from resilmesh import mesh

    monkeypatch.setattr(mesh.default, "mesh", None)
    monkeypatch.setattr(mesh.default, "_guarded", set())
    monkeypatch.delenv("RESILMESH_POLICY", raising=False)


@pytest.mark.usefixtures("fresh")
class TestConfigured:
    def test_functions_may_be_guarded_before_there_is_a_policy(self) -> None:
        guarded = resilmesh.guard("svc")(lambda: 1)
        with pytest.raises(RuntimeError, match=r"there is no policy yet: call resilmesh\.configure"):
            guarded()
        with pytest.raises(RuntimeError, match="there is no policy yet"):
            resilmesh.attempts("svc")
        assert resilmesh.configure(mesh_of(concurrency="{maxRequests: 1}")).guard("svc") is not None
        assert guarded() == 1
        for attempt in resilmesh.attempts("svc"):
            with attempt, pytest.raises(ConcurrencyExceeded):
                guarded()

    def test_a_name_that_is_guarded_must_be_in_the_policy(self) -> None:
        resilmesh.guard("ledger")
        with pytest.raises(UnknownService, match="no service 'ledger'; it has svc"):
            resilmesh.configure(mesh_of())

    def test_a_refused_mesh_leaves_the_earlier_one(self) -> None:
        guarded = resilmesh.guard("svc")(lambda: 1)
        mesh = resilmesh.configure(mesh_of())
        with pytest.raises(UnknownService):
            resilmesh.configure(Mesh.from_text(policy().replace("svc", "other")))
        guarded()
        assert mesh.snapshot()["services"]["svc"]["routes"]["*"]["calls"] == 1

    def test_a_name_is_checked_at_once_when_there_is_a_policy(self) -> None:
        mesh = resilmesh.configure(mesh_of())
        with pytest.raises(UnknownService):
            resilmesh.guard("ledger")
        resilmesh.guard("svc")
        with pytest.raises(PolicyError, match="a guarded function needs 'svc'"):
            mesh.apply_text("apiVersion: resilmesh/v1\nservices: []\n")

    def test_a_guard_follows_to_the_next_mesh(self) -> None:
        guarded = resilmesh.guard("svc")(lambda: 1)
        meshes = [mesh_of(), mesh_of(rateLimit=LIMITED)]
        for mesh in meshes:
            resilmesh.configure(mesh)
            guarded()
        assert [mesh.snapshot()["services"]["svc"]["routes"]["*"]["calls"] for mesh in meshes] == [1, 1]

    def test_the_policy_is_a_file_or_what_the_environment_names(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ValueError, match="which policy"):
            resilmesh.configure()
        path = tmp_path / "policy.yaml"
        path.write_text(policy())
        monkeypatch.setenv("RESILMESH_POLICY", str(path))
        with resilmesh.configure(reload_interval=None, workload="web") as mesh:
            assert mesh.snapshot()["workload"] == "web"
        with resilmesh.configure(path, reload_interval=None):
            pass
        with pytest.raises(TypeError, match="settings belong to the path of a policy"):
            resilmesh.configure(mesh, seed=1)

    def test_an_earlier_mesh_is_closed(self, tmp_path: Path) -> None:
        path = tmp_path / "policy.yaml"
        path.write_text(policy())
        first = resilmesh.configure(path, reload_interval=0.01)
        with resilmesh.configure(path, reload_interval=0.01):
            assert first._watch is not None
            assert first._watch._ticker.stopped
