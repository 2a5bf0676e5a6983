"""The line: first come, first served, and leaving from anywhere in it."""

import pytest

from sluicegate.admit.queue import Line
from sluicegate.admit.ticket import Ticket


def tickets(count: int) -> list[Ticket]:
    return [Ticket(float(rank), rank) for rank in range(count)]


def test_first_come_first_served() -> None:
    line, arrivals = Line(), tickets(3)
    for ticket in arrivals:
        line.push(ticket)
    assert len(line) == 3
    assert [line.pop() for _ in arrivals] == arrivals
    assert len(line) == 0


def test_who_leaves_from_the_middle_is_passed_over() -> None:
    line, (first, second, third) = Line(), tickets(3)
    for ticket in (first, second, third):
        line.push(ticket)
    line.discard(second)
    assert repr(line) == "<Line of 2>"
    assert [line.pop(), line.pop()] == [first, third]


def test_who_is_not_in_the_line_may_leave_it_all_the_same() -> None:
    line, (present, absent) = Line(), tickets(2)
    line.push(present)
    line.discard(absent)
    assert line.pop() is present


def test_nobody_can_be_taken_from_an_empty_line() -> None:
    with pytest.raises(IndexError):
        Line().pop()
