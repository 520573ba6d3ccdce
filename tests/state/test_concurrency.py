"""Concurrency limits: slots and the queue. tests/engine/test_slots.py has them against a model, with calls that need no queue."""

from __future__ import annotations

from resilmesh.state.concurrency import Concurrency, Ticket


def waits(gate, waker=None):
    ticket = Ticket()
    assert gate.wait(ticket)
    if waker is not None:
        gate.lend(ticket, waker)
    return ticket


def holds(gate):
    """A slot that is free and nobody waits for."""
    ticket = waits(gate)
    assert gate.claim(ticket)
    return ticket


def test_there_are_as_many_slots_as_the_limit_says():
    gate = Concurrency(2, 0)
    held = [holds(gate) for _ in range(2)]
    assert not gate.wait(Ticket())
    gate.give_up(held[0])
    assert holds(gate)


def test_a_full_queue_refuses():
    gate = Concurrency(1, 1)
    holds(gate)
    waits(gate)
    assert not gate.wait(Ticket())


def test_a_slot_goes_to_the_oldest_waiter():
    gate, woken = Concurrency(1, 9), []
    held = holds(gate)
    first, second = waits(gate, lambda: woken.append(1)), waits(gate, lambda: woken.append(2))
    gate.give_up(held)
    assert woken == [1]
    assert gate.claim(first)
    assert not gate.claim(second)
    assert gate.in_flight == 1


def test_nobody_overtakes_the_queue():
    gate = Concurrency(2, 9)
    held = [holds(gate) for _ in range(2)]
    first = waits(gate)
    gate.give_up(held[0])
    second = waits(gate)
    assert not gate.claim(second)  # the slot is the first's, who has not yet noticed
    gate.give_up(held[1])
    assert gate.claim(second)
    assert gate.claim(first)


def test_who_waits_although_a_slot_is_free_has_it_at_once():
    gate = Concurrency(1, 9)
    assert gate.claim(waits(gate))
    assert gate.in_flight == 1


def test_who_gives_up_is_skipped():
    gate = Concurrency(1, 9)
    held = holds(gate)
    first, second = waits(gate), waits(gate)
    gate.give_up(first)
    gate.give_up(first)
    gate.give_up(held)
    assert gate.claim(second)
    assert gate.in_flight == 1


def test_giving_up_a_granted_ticket_passes_the_slot_on():
    gate = Concurrency(1, 9)
    held = holds(gate)
    first, second = waits(gate), waits(gate)
    gate.give_up(held)
    gate.give_up(first)
    assert gate.claim(second)
    gate.give_up(second)
    assert gate.in_flight == 0


def test_a_waker_that_raises_loses_its_place_and_no_slot():
    gate, woken = Concurrency(1, 9), []

    def closed():
        raise RuntimeError("Event loop is closed")

    held = holds(gate)
    dead, alive = waits(gate, closed), waits(gate, lambda: woken.append("alive"))
    gate.give_up(held)
    assert woken == ["alive"]
    assert not gate.claim(dead)
    assert gate.claim(alive)
    assert gate.in_flight == 1


def test_a_waker_lent_after_the_grant_is_called_at_once():
    gate, woken = Concurrency(1, 9), []
    held = holds(gate)
    ticket = waits(gate)
    gate.give_up(held)
    gate.lend(ticket, lambda: woken.append("now"))
    assert woken == ["now"]


def test_a_raised_limit_wakes_who_waits():
    gate, woken = Concurrency(1, 9), []
    holds(gate)
    for each in range(4):
        waits(gate, lambda each=each: woken.append(each))
    gate.retune(3, 9)
    assert woken == [0, 1]
    assert gate.in_flight == 3


def test_a_lowered_limit_lets_the_calls_in_flight_finish():
    gate = Concurrency(3, 0)
    held = [holds(gate) for _ in range(3)]
    gate.retune(1, 0)
    assert gate.in_flight == 3
    gate.give_up(held[0])
    gate.give_up(held[1])
    assert not gate.wait(Ticket())
    gate.give_up(held[2])
    assert holds(gate)


def test_a_ticket_given_up_before_it_stood_in_the_queue_never_does():
    gate, ticket = Concurrency(1, 9), Ticket()
    gate.give_up(ticket)
    assert not gate.wait(ticket)
    assert (gate.in_flight, len(gate.queue)) == (0, 0)
