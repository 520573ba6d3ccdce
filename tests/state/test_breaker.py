"""The circuit breaker: the nine questions, its thresholds, and a machine against the plain list of results.

The questions are those of the design (3.1) and of the table of what peers get wrong.
"""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from resilmesh.state.breaker import BreakerSettings, CircuitBreaker

INF = float("inf")


def figures(**changes):
    values = {
        "failure_rate": 50.0, "slow_rate": None, "slow_seconds": 1.0, "consecutive": None, "time_based": False, "window_size": 4,
        "minimum_calls": 4, "wait_open": 10.0, "half_open_permits": 2, "count_throttled": False,
    }
    return BreakerSettings(**{**values, **changes})


class Circuit:
    """A breaker, the changes it told of, and short words for what tests do all the time."""

    def __init__(self, **changes):
        self.told = []
        self.breaker = CircuitBreaker(figures(**changes), lambda old, new, reason, now: self.told.append((old, new)))
        self.now = 1000.0

    @property
    def state(self):
        return self.breaker.state

    def ask(self, lease=INF):
        return self.breaker.acquire(self.now, lease)

    def succeed(self, permit, seconds=0.0):
        self.breaker.success(permit, self.now, seconds)

    def fail(self, permit, seconds=0.0):
        self.breaker.failure(permit, self.now, seconds)

    def opened(self):
        for _ in range(4):
            self.fail(self.ask())
        assert self.state == "OPEN"
        return self

    def half_open(self, lease=INF):
        """Open, wait, and take the first probe."""
        self.opened()
        self.now += 10
        probe = self.ask(lease)
        assert self.state == "HALF_OPEN"
        return probe


# ------------------------------------------------------------------------------------------ the nine questions


def test_1_it_opens_at_its_threshold():
    circuit = Circuit()
    for permit in [circuit.ask() for _ in range(2)]:
        circuit.succeed(permit)
    circuit.fail(circuit.ask())
    assert circuit.state == "CLOSED"
    circuit.fail(circuit.ask())
    assert circuit.state == "OPEN"
    assert circuit.ask() is None


def test_2_a_stale_success_does_not_close_it():
    circuit = Circuit()
    stale = circuit.ask()
    circuit.opened()
    circuit.succeed(stale)
    assert circuit.state == "OPEN"
    circuit.now += 10
    circuit.ask()
    for _ in range(5):
        circuit.succeed(stale)
    assert circuit.state == "HALF_OPEN"


def test_3_half_open_admits_no_more_than_permitted():
    circuit = Circuit().opened()
    circuit.now += 10
    assert sum(circuit.ask() is not None for _ in range(20)) == 2


def test_4_a_cancelled_probe_does_not_wedge_it():
    circuit = Circuit()
    cancelled = circuit.half_open()
    circuit.breaker.release(cancelled)
    for permit in (circuit.ask(), circuit.ask()):
        circuit.succeed(permit)
    assert circuit.state == "CLOSED"


def test_4_nor_does_a_probe_that_nobody_ever_answers():
    circuit = Circuit()
    circuit.half_open(lease=3.0)
    circuit.ask(3.0)
    assert circuit.ask() is None
    circuit.now += 2.999
    assert circuit.ask() is None
    circuit.now += 0.001
    for permit in (circuit.ask(), circuit.ask()):
        circuit.succeed(permit)
    assert circuit.state == "CLOSED"


def test_5_a_cancellation_does_not_open_it():
    circuit = Circuit(consecutive=2)
    for _ in range(50):
        circuit.breaker.release(circuit.ask())
    assert circuit.state == "CLOSED"
    assert circuit.breaker.window.calls == 0
    circuit.breaker.release(circuit.half_open())
    assert circuit.state == "HALF_OPEN"


def test_6_a_cancellation_does_not_close_it():
    circuit = Circuit()
    probe, other = circuit.half_open(), circuit.ask()
    circuit.breaker.release(probe)
    circuit.breaker.release(other)
    assert circuit.state == "HALF_OPEN"
    for _ in range(10):
        circuit.breaker.release(circuit.ask())
    assert circuit.state == "HALF_OPEN"


def test_7_a_stale_failure_does_not_reopen_it():
    circuit = Circuit()
    stale = [circuit.ask() for _ in range(20)]
    probes = circuit.half_open(), circuit.ask()
    for permit in stale:
        circuit.fail(permit)
    assert circuit.state == "HALF_OPEN"
    for probe in probes:
        circuit.succeed(probe)
    for permit in stale:
        circuit.fail(permit)
    assert circuit.state == "CLOSED"
    assert circuit.breaker.window.calls == 0


def test_8_an_error_that_says_nothing_in_a_probe_does_not_wedge_it():
    circuit = Circuit(half_open_permits=1)
    circuit.breaker.release(circuit.half_open())
    for _ in range(100):
        circuit.breaker.release(circuit.ask())
    circuit.succeed(circuit.ask())
    assert circuit.state == "CLOSED"


def test_9_a_success_of_an_earlier_half_open_does_not_count():
    circuit = Circuit()
    early, failing = circuit.half_open(), circuit.ask()
    circuit.fail(failing)  # 1 of 2 is 50 %
    assert circuit.state == "OPEN"
    circuit.now += 10
    circuit.ask()
    circuit.succeed(early)
    circuit.succeed(early)
    assert circuit.state == "HALF_OPEN"
    assert circuit.breaker.snapshot(circuit.now)["probesOut"] == 1


# ------------------------------------------------------------------------------------------------- thresholds


def test_no_rate_is_computed_before_the_minimum_number_of_calls():
    circuit = Circuit(window_size=100, minimum_calls=10)
    for _ in range(9):
        circuit.fail(circuit.ask())
    assert circuit.state == "CLOSED"
    circuit.fail(circuit.ask())
    assert circuit.state == "OPEN"


def test_a_minimum_above_the_size_of_a_count_window_means_its_size():
    circuit = Circuit(window_size=3, minimum_calls=100)
    for _ in range(3):
        circuit.fail(circuit.ask())
    assert circuit.state == "OPEN"


def test_a_success_can_be_the_call_that_opens_it():
    circuit = Circuit()
    for _ in range(3):
        circuit.fail(circuit.ask())
    assert circuit.state == "CLOSED"
    circuit.succeed(circuit.ask())
    assert circuit.state == "OPEN"


def test_a_hundred_percent_means_every_call():
    circuit = Circuit(failure_rate=100.0)
    for _ in range(3):
        circuit.fail(circuit.ask())
    for _ in range(4):
        circuit.succeed(circuit.ask())
    for _ in range(3):
        circuit.fail(circuit.ask())
    assert circuit.state == "CLOSED"
    circuit.fail(circuit.ask())
    assert circuit.state == "OPEN"


def test_slow_calls_open_it_even_when_they_succeed():
    circuit = Circuit(failure_rate=None, slow_rate=50.0, slow_seconds=1.0)
    for seconds in (0.999, 1.0, 0.0):
        circuit.succeed(circuit.ask(), seconds)
    assert circuit.state == "CLOSED"
    circuit.succeed(circuit.ask(), 2.0)
    assert circuit.state == "OPEN"


def test_failures_in_a_row_open_it_whatever_the_window_says():
    circuit = Circuit(failure_rate=None, consecutive=3, minimum_calls=1000, window_size=1000)
    for _ in range(2):
        circuit.fail(circuit.ask())
    circuit.succeed(circuit.ask())
    for _ in range(2):
        circuit.fail(circuit.ask())
    assert circuit.state == "CLOSED"
    circuit.fail(circuit.ask())
    assert circuit.state == "OPEN"


def test_throttled_calls_are_not_counted_unless_the_policy_says_so():
    circuit = Circuit()
    for _ in range(10):
        circuit.breaker.throttled(circuit.ask(), circuit.now, 0.0)
    assert circuit.breaker.window.calls == 0
    circuit = Circuit(count_throttled=True)
    for _ in range(4):
        circuit.breaker.throttled(circuit.ask(), circuit.now, 0.0)
    assert circuit.state == "OPEN"


def test_a_throttled_probe_failed():
    circuit = Circuit(half_open_permits=1)
    circuit.breaker.throttled(circuit.half_open(), circuit.now, 0.0)
    assert circuit.state == "OPEN"


def test_a_time_window_forgets_failures():
    circuit = Circuit(time_based=True, window_size=10.0)
    for _ in range(3):
        circuit.fail(circuit.ask())
    circuit.now += 11
    circuit.fail(circuit.ask())
    assert circuit.state == "CLOSED"


# -------------------------------------------------------------------------------------------------- half-open


def test_it_stays_open_for_its_wait_and_not_longer():
    circuit = Circuit().opened()
    circuit.now += 9.999
    assert circuit.ask() is None
    assert circuit.breaker.retry_after(circuit.now) == pytest.approx(0.001)
    circuit.now += 0.001
    assert circuit.ask() is not None


def test_it_closes_when_all_probes_are_in_and_forgets_what_was():
    circuit = Circuit(half_open_permits=3)
    probes = [circuit.half_open(), circuit.ask(), circuit.ask()]
    circuit.succeed(probes[0])
    circuit.fail(probes[1])
    assert circuit.state == "HALF_OPEN"
    circuit.succeed(probes[2])
    assert circuit.state == "CLOSED"
    assert circuit.breaker.window.calls == 0


def test_it_opens_as_soon_as_the_failures_suffice():
    circuit = Circuit(half_open_permits=4)
    probes = [circuit.half_open(), circuit.ask()]
    circuit.fail(probes[0])
    assert circuit.state == "HALF_OPEN"
    circuit.fail(probes[1])
    assert circuit.state == "OPEN"


def test_slow_probes_open_it():
    circuit = Circuit(half_open_permits=1, slow_rate=100.0)
    circuit.succeed(circuit.half_open(), 1.5)
    assert circuit.state == "OPEN"


def test_a_probe_answers_once():
    circuit = Circuit()
    probe = circuit.half_open()
    circuit.succeed(probe)
    circuit.succeed(probe)
    circuit.breaker.release(probe)
    circuit.fail(probe)
    assert circuit.state == "HALF_OPEN"


def test_a_late_answer_of_an_expired_probe_still_counts():
    circuit = Circuit(half_open_permits=1)
    probe = circuit.half_open(lease=1.0)
    circuit.now += 5
    circuit.succeed(probe)
    assert circuit.state == "CLOSED"


def test_a_probe_that_nothing_bounds_is_given_the_time_of_an_open_circuit():
    circuit = Circuit(half_open_permits=1)
    circuit.half_open()
    circuit.now += 9.99
    assert circuit.ask() is None
    assert circuit.breaker.retry_after(circuit.now) == pytest.approx(0.01)
    circuit.now += 0.01
    assert circuit.ask() is not None


def test_admits_says_what_acquire_would_do_and_changes_nothing():
    circuit = Circuit(half_open_permits=1)
    assert circuit.breaker.admits(circuit.now)
    circuit.opened()
    assert not circuit.breaker.admits(circuit.now + 9.9)
    assert circuit.breaker.admits(circuit.now + 10)
    assert circuit.state == "OPEN"
    circuit.now += 10
    circuit.ask(lease=2.0)
    assert not circuit.breaker.admits(circuit.now + 1.9)
    assert circuit.breaker.admits(circuit.now + 2.0)


def test_every_change_is_told_once_and_in_order():
    circuit = Circuit()
    probes = circuit.half_open(), circuit.ask()
    for probe in probes:
        circuit.succeed(probe)
    assert circuit.told == [("CLOSED", "OPEN"), ("OPEN", "HALF_OPEN"), ("HALF_OPEN", "CLOSED")]


# --------------------------------------------------------------------------------------------------- retuning


def test_thresholds_apply_at_the_next_decision():
    circuit = Circuit(failure_rate=100.0)
    circuit.succeed(circuit.ask())
    for _ in range(2):
        circuit.fail(circuit.ask())
    circuit.breaker.retune(figures(failure_rate=50.0))
    assert circuit.state == "CLOSED"
    circuit.succeed(circuit.ask())
    assert circuit.state == "OPEN"


def test_another_window_starts_counting_anew():
    circuit = Circuit()
    for _ in range(3):
        circuit.fail(circuit.ask())
    circuit.breaker.retune(figures(window_size=5, minimum_calls=1))
    assert circuit.breaker.window.calls == 0
    assert circuit.state == "CLOSED"


@pytest.mark.parametrize("changes", [{"window_size": 50}, {"time_based": True, "window_size": 10.0}, {"failure_rate": 100.0}])
def test_a_retune_never_changes_the_state(changes):
    circuit = Circuit().opened()
    circuit.breaker.retune(figures(**changes))
    assert circuit.state == "OPEN"
    circuit.now += 10
    circuit.ask()
    circuit.breaker.retune(figures(window_size=7))
    assert circuit.state == "HALF_OPEN"


def test_a_shorter_wait_applies_to_a_circuit_that_is_open():
    circuit = Circuit().opened()
    circuit.breaker.retune(figures(wait_open=2.0))
    circuit.now += 1.9
    assert circuit.ask() is None
    circuit.now += 0.1
    assert circuit.ask() is not None


def test_forced_open_refuses_until_it_is_set_back():
    circuit = Circuit()
    circuit.breaker.force("OPEN", circuit.now)
    circuit.now += 1000.0
    assert circuit.ask() is None
    assert not circuit.breaker.admits(circuit.now)
    assert circuit.breaker.retry_after(circuit.now) is None
    assert circuit.breaker.snapshot(circuit.now)["state"] == "FORCED_OPEN"
    assert circuit.breaker.snapshot(circuit.now)["opensFor"] is None
    circuit.breaker.force("AUTO", circuit.now)
    circuit.succeed(circuit.ask())
    assert circuit.told == [("CLOSED", "FORCED_OPEN"), ("FORCED_OPEN", "CLOSED")]


def test_forced_closed_lets_through_and_counts_nothing():
    circuit = Circuit().opened()
    circuit.breaker.force("CLOSED", circuit.now)
    for _ in range(10):
        circuit.fail(circuit.ask())
    assert circuit.breaker.snapshot(circuit.now)["calls"] == 0
    assert circuit.breaker.admits(circuit.now)
    circuit.breaker.force("AUTO", circuit.now)
    assert circuit.opened().told[-1] == ("CLOSED", "OPEN"), "it begins to count anew"


def test_metrics_only_says_once_that_it_would_have_opened():
    circuit = Circuit()
    circuit.breaker.force("METRICS_ONLY", circuit.now)
    for _ in range(8):
        circuit.fail(circuit.ask())
    shown = circuit.breaker.snapshot(circuit.now)
    assert (shown["state"], shown["calls"], shown["failures"]) == ("METRICS_ONLY", 4, 4)
    assert circuit.told == [("CLOSED", "METRICS_ONLY"), ("CLOSED", "CLOSED")]
    for _ in range(4):
        circuit.succeed(circuit.ask())
    for _ in range(4):
        circuit.fail(circuit.ask())
    assert circuit.told[2:] == [("CLOSED", "CLOSED")], "and again after it would have been well"


def test_what_was_forced_survives_a_retune_and_a_fork_and_is_said_once():
    circuit = Circuit()
    circuit.breaker.force("CLOSED", circuit.now)
    circuit.breaker.force("CLOSED", circuit.now)
    circuit.breaker.retune(figures(window_size=8))
    circuit.breaker.after_fork()
    for _ in range(8):
        circuit.fail(circuit.ask())
    assert circuit.told == [("CLOSED", "FORCED_CLOSED")]


def test_a_result_from_before_is_not_counted_after_it_was_forced():
    circuit = Circuit(minimum_calls=1, window_size=1)
    before = circuit.ask()
    circuit.breaker.force("METRICS_ONLY", circuit.now)
    circuit.fail(before)
    circuit.breaker.force("AUTO", circuit.now)
    circuit.fail(before)
    assert circuit.state == "CLOSED"


# ---------------------------------------------------------------------------------------------------- machine


class Model:
    """The same rules over plain lists: every result since the circuit closed, every probe since it became half-open."""

    def __init__(self, chosen):
        self.settings, self.state = chosen, "CLOSED"
        self.results, self.probes, self.answers = [], {}, []
        self.opened_at = 0.0
        self.numbers = count()
        self.forced = "AUTO"

    def force(self, to, now):
        """Whether anything changed."""
        changed, self.forced = to != self.forced, to
        if changed:
            self.state, self.opened_at = "OPEN" if to == "OPEN" else "CLOSED", now
            self.results, self.probes, self.answers = [], {}, []
        return changed

    @property
    def shown(self):
        return {"AUTO": self.state, "METRICS_ONLY": "METRICS_ONLY"}.get(self.forced, f"FORCED_{self.forced}")

    def acquire(self, now, lease):
        """``closed``, ``always``, a number for a probe, or None."""
        if self.forced in ("OPEN", "CLOSED"):
            return None if self.forced == "OPEN" else "always"
        if self.state == "OPEN" and now >= self.opened_at + self.settings.wait_open:
            self.state, self.probes, self.answers = "HALF_OPEN", {}, []
        if self.state == "HALF_OPEN":
            self.decide(now)
        if self.state == "CLOSED":
            return "closed"
        if self.state == "OPEN":
            return None
        holding = sum(expires > now for expires in self.probes.values())
        if holding + len(self.answers) >= self.settings.half_open_permits:
            return None
        number = next(self.numbers)
        self.probes[number] = now + (lease if lease != INF else max(1.0, self.settings.wait_open))
        return number

    def trip(self, now):
        if self.forced == "AUTO":
            self.state, self.opened_at = "OPEN", now

    def judge(self, now, failed, slow):
        self.results.append((failed, slow))
        window, chosen = self.results[-int(self.settings.window_size):], self.settings
        row = 0
        for result in reversed(self.results):
            if not result[0]:
                break
            row += 1
        if chosen.consecutive is not None and row >= chosen.consecutive:
            return self.trip(now)
        if len(window) < min(chosen.minimum_calls, chosen.window_size):
            return None
        for which, rate in enumerate((chosen.failure_rate, chosen.slow_rate)):
            if rate is not None and 100 * sum(each[which] for each in window) / len(window) >= rate:
                return self.trip(now)
        return None

    def answer(self, now, number, failed, slow):
        if self.state == "HALF_OPEN" and self.probes.pop(number, None) is not None:
            self.answers.append((failed, slow))
            self.decide(now)

    def decide(self, now):
        chosen, permits = self.settings, self.settings.half_open_permits
        failures, slow = (sum(each[which] for each in self.answers) for which in (0, 1))
        opens = [
            failures and chosen.failure_rate is not None and 100 * failures / permits >= chosen.failure_rate,
            failures and chosen.failure_rate is None and chosen.consecutive is not None,
            slow and chosen.slow_rate is not None and 100 * slow / permits >= chosen.slow_rate,
        ]
        if any(opens):
            self.trip(now)
        elif len(self.answers) >= permits:
            self.state, self.results = "CLOSED", []


chosen_settings = st.builds(
    figures, failure_rate=st.sampled_from([None, 1.0, 50.0, 100.0]), slow_rate=st.sampled_from([None, 50.0]),
    consecutive=st.sampled_from([None, 1, 3]), half_open_permits=st.integers(1, 4), wait_open=st.sampled_from([1.0, 10.0]),
    minimum_calls=st.integers(1, 6),
)


class BreakerMachine(RuleBasedStateMachine):
    """Any number of calls out at once, answered in any order, by success, failure, release or never."""

    @initialize(chosen=chosen_settings)
    def begin(self, chosen):
        self.breaker, self.model = CircuitBreaker(chosen, self.told), Model(chosen)
        self.now, self.out, self.period = 1000.0, [], 0
        self.last = "CLOSED"

    def told(self, old, new, reason, now):
        if old == new:
            assert self.model.forced == "METRICS_ONLY"
            return
        assert old == self.last, "changes are told in order"
        self.last = new
        self.period += new == "CLOSED"

    @rule(lease=st.sampled_from([0.5, 5.0, INF]))
    def ask(self, lease):
        expected = self.model.acquire(self.now, lease)
        permit = self.breaker.acquire(self.now, lease)
        assert (permit is None) == (expected is None)
        if permit is not None:
            self.out.append((permit, expected, self.period))

    def take(self, data, label):
        return self.out.pop(data.draw(st.integers(0, len(self.out) - 1), label))

    @rule(data=st.data(), failed=st.booleans(), seconds=st.sampled_from([0.0, 1.0]))
    def answer(self, data, failed, seconds):
        if not self.out:
            return
        permit, number, period = self.take(data, "answered")
        slow = seconds >= 1.0 and self.model.settings.slow_rate is not None
        if number == "always":
            pass
        elif number != "closed":
            self.model.answer(self.now, number, failed, slow)
        elif self.model.state == "CLOSED" and period == self.period:
            self.model.judge(self.now, failed, slow)
        tell = self.breaker.failure if failed else self.breaker.success
        tell(permit, self.now, seconds)

    @rule(data=st.data())
    def release(self, data):
        if not self.out:
            return
        permit, number, _ = self.take(data, "released")
        if self.model.state == "HALF_OPEN":
            self.model.probes.pop(number, None)
        self.breaker.release(permit)

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 9.0, 20.0]))
    def wait(self, seconds):
        self.now += seconds

    @rule(to=st.sampled_from(["OPEN", "CLOSED", "METRICS_ONLY", "AUTO", "AUTO"]))
    def force(self, to):
        self.period += self.model.force(to, self.now)
        self.breaker.force(to, self.now)

    @rule(chosen=chosen_settings)
    def retune(self, chosen):
        self.breaker.retune(chosen)
        self.model.settings = chosen

    @invariant()
    def agrees(self):
        if hasattr(self, "breaker"):
            assert self.breaker.state == self.model.state
            assert self.breaker.snapshot(self.now)["state"] == self.model.shown == self.last
            assert (self.breaker.permit is not None) == (self.model.state == "CLOSED" and self.model.forced != "CLOSED")
            leased = sum(expires > self.now for expires in self.model.probes.values()) if self.model.state == "HALF_OPEN" else 0
            assert self.breaker.snapshot(self.now)["probesOut"] == leased

    def teardown(self):
        """Whatever happened, a service that is well again can be called again."""
        if not hasattr(self, "breaker"):
            return
        refused = 0
        self.breaker.force("AUTO", self.now)
        for _ in range(20):
            self.now += 100.0
            permit = self.breaker.acquire(self.now, 1.0)
            if permit is None:
                refused += 1
            else:
                self.breaker.success(permit, self.now, 0.0)
        assert self.breaker.state == "CLOSED"
        # After a retune, what the probes said already may be enough to open, which the first to ask is told.
        assert refused <= 1


BreakerMachine.TestCase.settings = hypothesis_settings(max_examples=100, stateful_step_count=40, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase
