"""The queue: first come, first served, and withdrawal from anywhere in it."""

from sluicegate.admit.claim import ANYONE, Ticket
from sluicegate.admit.queue import Queue


def tickets(count: int) -> list[Ticket]:
    return [Ticket(ANYONE, float(rank), rank) for rank in range(count)]


def test_first_come_first_served() -> None:
    queue, arrivals = Queue(), tickets(3)
    assert list(queue) == []
    for rank, ticket in enumerate(arrivals):
        assert queue.ahead(ticket.claim) == rank
        queue.push(ticket)
    assert list(queue) == arrivals
    assert len(queue) == 3


def test_a_withdrawn_ticket_is_passed_over() -> None:
    queue, (first, second, third) = Queue(), tickets(3)
    for ticket in (first, second, third):
        queue.push(ticket)
    queue.discard(second)
    assert list(queue) == [first, third]
    assert repr(queue) == "<Queue of 2>"


def test_discard_of_an_absent_ticket() -> None:
    """To discard a ticket that is not in the queue changes nothing."""
    queue, (present, absent) = Queue(), tickets(2)
    queue.push(present)
    queue.discard(absent)
    assert list(queue) == [present]
