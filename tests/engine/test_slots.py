"""A concurrency limit against a set of holders and a list of waiters: calls that find a slot free, and tickets that wait."""

from __future__ import annotations

from driver import OK, World
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from resilmesh.engine.call import RAISE, SEND, Call
from resilmesh.state.concurrency import Ticket


class ConcurrencyMachine(RuleBasedStateMachine):
    tickets = Bundle("tickets")

    @initialize(limit=st.integers(1, 4), pending=st.integers(0, 4))
    def begin(self, limit, pending):
        self.world = World("concurrency: {maxRequests: 1}", observed=False)
        self.gate, self.limit, self.pending = self.world.plan().concurrency, limit, pending
        self.gate.retune(limit, pending)
        self.held = 0
        self.calls: list[Call] = []
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
    def call_begins(self):
        """Without a ticket if it can; one that would wait is the business of `wait`."""
        free = self.held + len(self.granted) < self.limit and not self.queue
        if free or len(self.queue) >= self.pending:
            call, step = self.world.start()
            assert step is (SEND if free else RAISE)
            if free:
                self.calls.append(call)
                self.held += 1

    @rule(answers=st.booleans())
    def call_ends(self, answers):
        if self.calls:
            call = self.calls.pop(0)
            self.held -= 1
            self.hand_out()
            if answers:
                call.answered(self.world.now, 1, OK)
            call.abandon(self.world.now)

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
