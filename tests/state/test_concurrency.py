"""Concurrency limits against a set of holders and a list of waiters."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from resilmesh.state.concurrency import Concurrency, Ticket


def waits(gate, waker=None):
    ticket = Ticket()
    assert gate.wait(ticket)
    if waker is not None:
        gate.lend(ticket, waker)
    return ticket


def test_as_many_enter_as_there_are_slots():
    gate = Concurrency(2, 0)
    assert [gate.enter() for _ in range(3)] == [True, True, False]
    gate.leave()
    assert gate.enter()


def test_a_full_queue_refuses():
    gate = Concurrency(1, 1)
    gate.enter()
    waits(gate)
    assert not gate.wait(Ticket())


def test_a_slot_goes_to_the_oldest_waiter():
    gate, woken = Concurrency(1, 9), []
    gate.enter()
    first, second = waits(gate, lambda: woken.append(1)), waits(gate, lambda: woken.append(2))
    gate.leave()
    assert woken == [1]
    assert gate.claim(first)
    assert not gate.claim(second)
    assert gate.in_flight == 1


def test_nobody_overtakes_the_queue():
    gate = Concurrency(2, 9)
    gate.enter()
    gate.enter()
    ticket = waits(gate)
    gate.leave()
    assert not gate.enter()  # the slot is the waiter's, who has not yet noticed
    gate.leave()
    assert gate.enter()
    assert gate.claim(ticket)


def test_who_waits_although_a_slot_is_free_has_it_at_once():
    gate = Concurrency(1, 9)
    assert gate.claim(waits(gate))
    assert gate.in_flight == 1


def test_who_gives_up_is_skipped():
    gate = Concurrency(1, 9)
    gate.enter()
    first, second = waits(gate), waits(gate)
    gate.give_up(first)
    gate.give_up(first)
    gate.leave()
    assert gate.claim(second)
    assert gate.in_flight == 1


def test_giving_up_a_granted_ticket_passes_the_slot_on():
    gate = Concurrency(1, 9)
    gate.enter()
    first, second = waits(gate), waits(gate)
    gate.leave()
    gate.give_up(first)
    assert gate.claim(second)
    gate.give_up(second)
    assert gate.in_flight == 0


def test_a_waker_that_raises_loses_its_place_and_no_slot():
    gate, woken = Concurrency(1, 9), []

    def closed():
        raise RuntimeError("Event loop is closed")

    gate.enter()
    dead, alive = waits(gate, closed), waits(gate, lambda: woken.append("alive"))
    gate.leave()
    assert woken == ["alive"]
    assert not gate.claim(dead)
    assert gate.claim(alive)
    assert gate.in_flight == 1


def test_a_waker_lent_after_the_grant_is_called_at_once():
    gate, woken = Concurrency(1, 9), []
    gate.enter()
    ticket = waits(gate)
    gate.leave()
    gate.lend(ticket, lambda: woken.append("now"))
    assert woken == ["now"]


def test_a_raised_limit_wakes_who_waits():
    gate, woken = Concurrency(1, 9), []
    gate.enter()
    for each in range(4):
        waits(gate, lambda each=each: woken.append(each))
    gate.retune(3, 9)
    assert woken == [0, 1]
    assert gate.in_flight == 3


def test_a_lowered_limit_lets_the_calls_in_flight_finish():
    gate = Concurrency(3, 9)
    for _ in range(3):
        gate.enter()
    gate.retune(1, 9)
    assert gate.in_flight == 3
    gate.leave()
    gate.leave()
    assert not gate.enter()
    gate.leave()
    assert gate.enter()


def test_a_ticket_given_up_before_it_stood_in_the_queue_never_does():
    gate, ticket = Concurrency(1, 9), Ticket()
    gate.give_up(ticket)
    assert not gate.wait(ticket)
    assert (gate.in_flight, len(gate.queue)) == (0, 0)


class ConcurrencyMachine(RuleBasedStateMachine):
    tickets = Bundle("tickets")

    @initialize(limit=st.integers(1, 4), pending=st.integers(0, 4))
    def begin(self, limit, pending):
        self.gate, self.limit, self.pending = Concurrency(limit, pending), limit, pending
        self.held = 0
        self.queue: list[Ticket] = []
        self.granted: list[Ticket] = []
        self.lowered = False
        self.raising: set[Ticket] = set()
        self.woken: list[Ticket] = []

    def hand_out(self):
        while self.queue and self.held + len(self.granted) < self.limit:
            ticket = self.queue.pop(0)
            if ticket not in self.raising:
                self.granted.append(ticket)

    @rule()
    def enter(self):
        free = self.held + len(self.granted) < self.limit and not self.queue
        assert self.gate.enter() == free
        self.held += free

    @rule()
    def leave(self):
        if self.held:
            self.held -= 1
            self.hand_out()
            self.gate.leave()

    @rule(target=tickets, raises=st.booleans())
    def wait(self, raises):
        free = self.held + len(self.granted) < self.limit and not self.queue
        room = len(self.queue) < self.pending
        ticket = Ticket()
        assert self.gate.wait(ticket) == (free or room)
        if free:
            self.granted.append(ticket)
        elif room:
            self.queue.append(ticket)

            def waker():
                self.woken.append(ticket)
                if raises:
                    raise RuntimeError("closed")

            if raises:
                self.raising.add(ticket)
            self.gate.lend(ticket, waker)
        else:
            return multiple()
        return ticket

    @rule(ticket=tickets)
    def claim(self, ticket):
        mine = ticket in self.granted
        assert self.gate.claim(ticket) == mine
        if mine:
            self.granted.remove(ticket)
            self.held += 1

    @rule(ticket=consumes(tickets))
    def give_up(self, ticket):
        if ticket in self.queue:
            self.queue.remove(ticket)
        elif ticket in self.granted:
            self.granted.remove(ticket)
        elif ticket.state == "taken":
            self.held -= 1
        self.hand_out()
        self.gate.give_up(ticket)
        self.gate.give_up(ticket)

    @rule(limit=st.integers(1, 4), pending=st.integers(0, 4))
    def retune(self, limit, pending):
        self.limit, self.pending = limit, pending
        self.hand_out()
        self.gate.retune(limit, pending)

    @invariant()
    def agrees(self):
        if hasattr(self, "gate"):
            assert list(self.gate.queue) == self.queue
            assert self.gate.in_flight == self.held + len(self.granted)
            assert self.woken == sorted(set(self.woken), key=self.woken.index), "nobody is woken twice"


ConcurrencyMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestConcurrencyMachine = ConcurrencyMachine.TestCase
