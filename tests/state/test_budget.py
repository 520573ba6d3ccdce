"""Retry budgets against the list of all deposits and withdrawals."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from resilmesh.state.budget import RetryBudget


def withdrawn(budget, now, wanted):
    return sum(budget.withdraw(now) for _ in range(wanted))


def test_the_floor_is_there_without_traffic():
    assert withdrawn(RetryBudget(20, 2, 10.0), 1000.0, 50) == 20


def test_a_share_of_the_calls_may_be_retried():
    budget = RetryBudget(20, 0, 10.0)
    for _ in range(50):
        budget.deposit(1000.0)
    assert withdrawn(budget, 1000.0, 50) == 10


def test_five_deposits_of_a_fifth_pay_for_one():
    budget = RetryBudget(20, 0, 10.0)
    for _ in range(5):
        assert not budget.withdraw(1000.0)
        budget.deposit(1000.0)
    assert budget.withdraw(1000.0)
    assert not budget.withdraw(1000.0)


def test_deposits_and_withdrawals_are_forgotten_after_ttl():
    budget = RetryBudget(100, 0, 10.0)
    budget.deposit(1000.0)
    assert not budget.withdraw(1011.0)
    budget = RetryBudget(0, 1, 10.0)
    assert withdrawn(budget, 1000.0, 99) == 10
    assert withdrawn(budget, 1011.0, 99) == 10


def test_zero_percent_and_no_floor_allow_nothing():
    budget = RetryBudget(0, 0, 10.0)
    for _ in range(100):
        budget.deposit(1000.0)
    assert not budget.withdraw(1000.0)


def test_new_figures_apply_to_the_deposits_that_are_there():
    budget = RetryBudget(10, 0, 10.0)
    for _ in range(10):
        budget.deposit(1000.0)
    budget.retune(50, 0, 10.0)
    assert budget.balance(1000.0) == pytest.approx(5)
    budget.retune(50, 0, 20.0)
    assert budget.balance(1000.0) == 0


class BudgetMachine(RuleBasedStateMachine):
    @initialize(percent=st.sampled_from([0, 20, 50, 100]), floor=st.integers(0, 2))
    def begin(self, percent, floor):
        self.budget, self.ttl, self.now = RetryBudget(percent, floor, 10.0), 10.0, 1000.0
        self.share, self.floor = percent / 100, floor * 10.0
        self.deposits: list[float] = []
        self.withdrawals: list[float] = []

    @rule(seconds=st.floats(0, 12))
    def wait(self, seconds):
        self.now += seconds

    @rule(calls=st.integers(1, 9))
    def deposit(self, calls):
        for _ in range(calls):
            self.budget.deposit(self.now)
            self.deposits.append(self.now)

    def since(self, times, age):
        return sum(self.now - each < age for each in times)

    @rule()
    def withdraw(self):
        least = self.floor + self.share * self.since(self.deposits, 8.999) - self.since(self.withdrawals, 10.001)
        most = self.floor + self.share * self.since(self.deposits, 10.001) - self.since(self.withdrawals, 8.999)
        paid = self.budget.withdraw(self.now)
        if least >= 1:
            assert paid
        if most < 1 - 1e-6:
            assert not paid
        if paid:
            self.withdrawals.append(self.now)


BudgetMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBudgetMachine = BudgetMachine.TestCase
